"""The support assistant: search, rerank, generate, check, review. This is what somebody's own app would look like."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial

import httpx

import costspan
from costspan.semconv import Kind
from costspan_demo import prompt
from costspan_demo.corpus import Passage, passages
from costspan_demo.engine_client import EngineClient
from costspan_demo.prices import RERANK_CALLS, RETRIEVAL_QUERIES
from costspan_demo.rerank import Reranker
from costspan_demo.retrieval import SearchIndex
from costspan_demo.review import Reviewers, fault_of
from costspan_demo.tickets import Ticket
from costspan_demo.vendors import Meter

_CANDIDATES = 8
_KEPT = 2


class End(str, Enum):
    """How a ticket ended for its customer."""

    ANSWERED = "answered"
    STOPPED = "stopped"
    GAVE_UP = "gave up"
    FAILED = "failed"


@dataclass(slots=True)
class Reply:
    """What became of a ticket.

    Attributes:
        end: How it ended.
        calls: Model calls made for it.
        timeouts: Those among them that were given up.
        refused: Answers that did not pass the check.
    """

    end: End = End.ANSWERED
    calls: int = 0
    timeouts: int = 0
    refused: int = 0

    @property
    def aborted(self) -> int:
        """Calls that the client left before the answer was whole."""
        return self.timeouts + (self.end is End.STOPPED)

    @property
    def retried(self) -> int:
        """Calls made again after one that was given up."""
        return self.timeouts - (self.end is End.GAVE_UP)


class Assistant:
    """Answers tickets.

    Args:
        engine: Where the model is served.
    """

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._index = SearchIndex(passages())
        self._reranker = Reranker(passages())
        self._reviewers = Reviewers()

    @property
    def meters(self) -> tuple[Meter, ...]:
        """What each vendor has counted."""
        return self._index.meter, self._reranker.meter, self._reviewers.meter

    async def answer(self, ticket: Ticket) -> Reply:
        """Work on one ticket until it is resolved, turned down or left by its customer."""
        with costspan.unit(
            "ticket", ticket.unit, tenant=ticket.tenant, feature=ticket.feature, value_usd=ticket.value_usd
        ) as unit:
            question = prompt.question_of(ticket)
            found = self._rerank(question, self._search(question))
            with costspan.operation("answer"):
                reply = await self._converse(ticket, prompt.build(ticket, found))
            self._close(unit, ticket, reply)
        return reply

    def close(self) -> None:
        """Free the index."""
        self._index.close()

    @costspan.observe(name="search", kind=Kind.RETRIEVAL, quantities={RETRIEVAL_QUERIES: 1})
    def _search(self, question: str) -> list[Passage]:
        return self._index.search(question, _CANDIDATES)

    @costspan.observe(name="rerank", kind=Kind.RERANK, quantities={RERANK_CALLS: 1})
    def _rerank(self, question: str, found: list[Passage]) -> list[Passage]:
        return self._reranker.rank(question, found, _KEPT)

    async def _converse(self, ticket: Ticket, text: str) -> Reply:
        """Ask until an answer passes the check, trying again when time is up and patience is not."""
        reply = Reply()
        timeouts_s = iter(ticket.timeouts_s)
        timeout_s = next(timeouts_s)
        while True:
            reply.calls += 1
            asked = reply.refused + 1
            try:
                answer = await self._engine.complete(
                    text,
                    max_tokens=ticket.output_tokens,
                    timeout_s=timeout_s,
                    stop_after=ticket.stop_after_tokens,
                    leave_after_s=ticket.leaves_after_s,
                    fault_of=partial(fault_of, ticket=ticket, asked=asked),
                )
            except TimeoutError:
                reply.timeouts += 1
                if (next_s := next(timeouts_s, None)) is None:
                    reply.end = End.GAVE_UP
                    return reply
                timeout_s = next_s
                continue
            except httpx.HTTPError:
                reply.end = End.FAILED
                return reply
            if answer.stopped:
                reply.end = End.STOPPED
                return reply
            if not fault_of(answer.text, ticket, asked):
                return reply
            reply.refused += 1
            text = prompt.ask_again(text)

    def _close(self, unit: costspan.Unit, ticket: Ticket, reply: Reply) -> None:
        if reply.end is not End.ANSWERED:
            unit.reject(f"the customer {reply.end.value}" if reply.end is not End.FAILED else "no answer")
            return
        minutes = self._reviewers.read(ticket)
        if minutes:
            unit.review(minutes=minutes)
        if ticket.rejected:
            unit.reject(ticket.rejected)
        else:
            unit.resolve()
