"""The tries of an operation: which one gave its answer, and what the others were.

Retries, hedges and fallbacks are told from what was recorded of them and from nothing else. One try of an operation gave its
answer, or came nearest to it, and is what was paid for. A try that was under way together with that one was a ``hedged`` one;
any other was ``retried``, or its answer was an ``invalid_output``. What was used inside a try is lost with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from costspan.semconv import Kind, Outcome, Waste
from costspan_analytics.model_calls import ModelCalls, Span
from costspan_analytics.store import Store


@dataclass(frozen=True, slots=True)
class Try:
    """One try of an operation, with the calls made in it.

    Attributes:
        row: Its row of ``queries/tries.sql``: an attempt's, or that of a model call in none.
        calls: Its model calls in the order in which they began; a client library's repetitions are calls of their own.
    """

    row: Mapping[str, Any]
    calls: Sequence[Mapping[str, Any]]

    @property
    def span(self) -> Span:
        """Its span."""
        return self.row["trace_id"], self.row["span_id"]

    @property
    def outcome(self) -> str:
        """How it ended. An app may keep to itself what went wrong with the last call in it."""
        return str(self.calls[-1]["outcome"] if self.calls and self.row["outcome"] == Outcome.OK else self.row["outcome"])

    @property
    def is_invalid(self) -> bool:
        """Whether what it came to failed validation."""
        return bool(self.row["invalid"] or (self.calls and self.calls[-1]["invalid"]))

    def overlaps(self, other: Try) -> bool:
        """Whether both were under way at one time."""
        return bool(self.row["start_ns"] < other.row["end_ns"] and other.row["start_ns"] < self.row["end_ns"])


@dataclass(frozen=True)
class Tries:
    """The operations of a window that took more than one try.

    Attributes:
        rows: Rows of ``queries/tries.sql``.
        calls: The window's calls, which know what is under what.
    """

    rows: pl.DataFrame
    calls: ModelCalls

    @classmethod
    def load(cls, store: Store, calls: ModelCalls) -> Tries:
        """Those of the store's window."""
        return cls(store.frame("tries"), calls)

    @cached_property
    def operations(self) -> dict[str, list[Try]]:
        """The tries of each operation, in the order in which they began."""
        found: dict[str, list[Try]] = {}
        for (operation,), rows in self.rows.filter(pl.col("attempt") > 0).partition_by("operation", as_dict=True).items():
            found[operation] = list(self._tries(rows.to_dicts()))
        return found

    @cached_property
    def lost(self) -> dict[Span, Waste]:
        """What did not lead to the answer, by its span: whole tries, and calls that a client library repeated by itself."""
        found: dict[Span, Waste] = {}
        for tries in self.operations.values():
            made = {call["span_id"]: call for one in tries for call in one.calls}
            repeated = (made.get(call["replaces"]) for call in made.values())
            found |= {(call["trace_id"], call["span_id"]): Waste.RETRIED for call in repeated if call}
            kept = answer(tries)
            found |= {one.span: _waste(one, kept) for one in tries if one is not kept}
        return found

    def fate(self, span: Span) -> Waste | None:
        """Which waste all that was used under a span is; None where it is none of these."""
        own = self.lost.get(span)
        return own or next((self.lost[above] for above in self.calls.above(span) if above in self.lost), None)

    def fate_of_request(self, engine: str, request: str, under: Span) -> Waste | None:
        """The same for an engine request that says what it is under."""
        return self.fate(self.calls.answered.get((engine, request), under))

    def _tries(self, rows: list[dict[str, Any]]) -> Iterator[Try]:
        attempts = {(row["trace_id"], row["span_id"]): row for row in rows if row["kind"] != Kind.GENERATION}
        inside: dict[Span, list[dict[str, Any]]] = {span: [] for span in attempts}
        for row in rows:
            span = row["trace_id"], row["span_id"]
            if span in attempts:
                yield Try(row, inside[span])
                continue
            around = next((above for above in self.calls.above(span) if above in attempts), None)
            if around is None:
                yield Try(row, [row])
            else:
                inside[around].append(row)


def answer(tries: Sequence[Try]) -> Try:
    """The try that gave the answer; where none did, the one that came nearest.

    That is one whose answer is whole and valid, else one that its reader left, else any other. The last to begin of these
    replaced those before it; of those that ran beside it, the first to end was taken.
    """
    whole = [one for one in tries if one.outcome == Outcome.OK and not one.is_invalid]
    read = [one for one in tries if one.outcome == Outcome.CANCELLED and not one.is_invalid]
    near = whole or read or [one for one in tries if not one.is_invalid] or tries
    last = max(near, key=lambda one: (one.row["start_ns"], one.row["attempt"]))
    beside = [one for one in near if one is last or one.overlaps(last)]
    return min(beside, key=lambda one: one.row["end_ns"])


def _waste(lost: Try, kept: Try) -> Waste:
    if lost.is_invalid:
        return Waste.INVALID_OUTPUT
    return Waste.HEDGED if lost.overlaps(kept) else Waste.RETRIED
