"""Model calls as whoever instrumented them reports them: each counted once, and laid over the engine requests that answered it.

Several instrumentations may report one call, a framework's above the client's: the innermost that knows the usage counts. An
engine in the ledger answered a call whose trace reached it, or whose answer has the request's id; what that cost is known from
the engine's own time. Every other call costs what its provider charges for tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, TypeAlias

import polars as pl

from costspan.semconv import SKU_TOKENS, Tokens
from costspan_analytics.store import Store, Window
from costspan_analytics.timeline import CHOICE

Span: TypeAlias = tuple[str, str]
"""A trace's id and a span's."""

MILLION = Decimal(1_000_000)
_DEPTH = 64
"""Spans that may stand between a call and what is under it; more is no call stack but a circle."""


@dataclass(frozen=True)
class ModelCalls:
    """The calls of a window, and some on either side.

    Attributes:
        rows: Rows of ``queries/model_calls.sql``.
        attempts: Rows of ``queries/attempts.sql``.
        parents: What is directly above a span, where that may matter.
        window: A call is in it when it began in it.
    """

    rows: pl.DataFrame
    attempts: pl.DataFrame
    parents: Mapping[Span, str]
    window: Window

    @classmethod
    def load(cls, store: Store, attempts: pl.DataFrame) -> ModelCalls:
        """Those of the store's window."""
        ancestry = store.frame("ancestry").select("trace_id", "span_id", "parent_span_id")
        parents = {(trace, span): parent for trace, span, parent in ancestry.iter_rows()}
        return cls(store.frame("model_calls"), attempts, parents, store.window)

    @cached_property
    def calls(self) -> dict[Span, dict[str, Any]]:
        """Each call once, by its span."""
        reported = {(row["trace_id"], row["span_id"]): row for row in self.rows.iter_rows(named=True)}
        above = {outer for span in reported for outer in self.above(span) if outer in reported}
        by_answer: dict[str, Span] = {}
        for span, row in reported.items():
            if span not in above and row["answer_id"]:
                by_answer.setdefault(row["answer_id"], span)
        return {
            span: row for span, row in reported.items() if span not in above and by_answer.get(row["answer_id"], span) == span
        }

    @cached_property
    def answered(self) -> dict[tuple[str, str], Span]:
        """Which call each engine request answered, by engine and request id."""
        by_answer = {row["answer_id"]: span for span, row in self.calls.items() if row["answer_id"]}
        found: dict[tuple[str, str], Span] = {}
        left: list[dict[str, Any]] = []
        for row in self.attempts.with_columns(answer_id=pl.col("request_id").str.replace(CHOICE, "")).iter_rows(named=True):
            under = (row["trace_id"], row["parent_span_id"])
            above = (span for span in (under, *self.above(under)) if span in self.calls)
            call = next(above, None) or by_answer.get(row["answer_id"])
            if call is None:
                left.append(row)
            else:
                found[row["engine"], row["request_id"]] = call
        return found | self._beside(left, set(found.values()))

    def _beside(self, attempts: list[dict[str, Any]], answered: set[Span]) -> dict[tuple[str, str], Span]:
        """Which of a trace's calls are reported beside the request (Logfire's of a stream), known by what they counted."""
        waiting: dict[tuple[Any, ...], list[Span]] = {}
        for span, row in self.calls.items():
            if span not in answered:
                counted = (row["trace_id"], row["model"], row["input_tokens"], row["output_tokens"])
                waiting.setdefault(counted, []).append(span)
        found: dict[tuple[str, str], Span] = {}
        for row in attempts:
            calls = waiting.get((row["trace_id"], row["model"], row["prompt_tokens"], row["output_tokens"]))
            if calls:
                found[row["engine"], row["request_id"]] = calls.pop(0)
        return found

    def who(self, engine: str, request: str) -> dict[str, Any] | None:
        """The call that an engine request answered, or None where nobody reported one."""
        span = self.answered.get((engine, request))
        return None if span is None else self.calls[span]

    @property
    def bought(self) -> Iterator[dict[str, Any]]:
        """The window's calls that no engine in the ledger answered."""
        ours = set(self.answered.values())
        for span, row in self.calls.items():
            if span not in ours and self.window.since <= row["start_ns"] < self.window.until:
                yield row

    def above(self, span: Span) -> Iterator[Span]:
        """What is above a span, from the inside out."""
        trace, at = span
        for _ in range(_DEPTH):
            above = self.parents.get((trace, at))
            if above is None:
                return
            at = above
            yield trace, at


def usage(call: Mapping[str, Any]) -> Iterable[tuple[str, Decimal]]:
    """What a call used, each token once: what it is, and how many millions."""
    apart = call["cached_tokens"] + call["cache_write_tokens"]
    counts = {
        Tokens.INPUT: max(0, call["input_tokens"] - apart),
        Tokens.CACHE_READ: call["cached_tokens"],
        Tokens.CACHE_WRITE: call["cache_write_tokens"],
        Tokens.OUTPUT: call["output_tokens"],
    }
    return ((str(kind), count / MILLION) for kind, count in counts.items() if count)


def token_sku(provider: str, model: str, kind: str) -> str:
    """What the price book calls a million tokens of a kind."""
    return f"{SKU_TOKENS}.{provider}.{model}.{kind}"
