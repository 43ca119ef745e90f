"""Who else saw that an answer was stopped: the page that showed it and the servers that passed it on, each by its own clock.

A call's own span says when its code stopped reading. What stands outside may have known earlier, and where a proxy hides it the
call never learns. So the page and the endpoints above a call are found in its trace, and their clocks moved to the call's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import polars as pl

from costspan.semconv import Kind, Outcome
from costspan_analytics.store import Store
from costspan_analytics.timeline import Timeline, left_at

Span: TypeAlias = tuple[str, str]
"""A trace's id and a span's."""

_DEPTH = 64
"""Spans that may stand between a page and a call; more is no call stack but a circle."""


@dataclass(frozen=True, slots=True)
class Witness:
    """A page or an endpoint that a call's answer passes. Stamps are nanoseconds since the Unix epoch, the call's clock.

    Attributes:
        kind: Which of the two.
        span_id: Its span.
        stop_ns: When it was stopped, or heard that its client was gone; 0 if never.
        end_ns: When it was done.
        offset_ns: How far its own clock is ahead of the call's.
        shown_tokens: Tokens that a page showed.
        unseen: Whether nothing of the answer had passed when it was stopped.
    """

    kind: str
    span_id: str
    stop_ns: int
    end_ns: int
    offset_ns: int
    shown_tokens: int
    unseen: bool


@dataclass(frozen=True)
class Stops:
    """The witnesses of a window's stopped answers.

    Attributes:
        rows: Rows of ``queries/stops.sql``.
        calls: Rows of ``queries/calls.sql``.
    """

    rows: pl.DataFrame
    calls: pl.DataFrame

    @classmethod
    def load(cls, store: Store, timeline: Timeline) -> Stops:
        """Those of the store's window."""
        return cls(store.frame("stops"), timeline.calls)

    @cached_property
    def earliest(self) -> pl.DataFrame:
        """The calls that somebody outside stopped under way.

        A call that began when the last of them was done is work that the app does for itself, and one that had ended before the
        stop was not stopped by it.

        Returns:
            Columns ``call_id``, ``stop_ns`` (the first of them, on the call's clock) and ``unseen`` (nobody saw any of it).
        """
        names = {"call_id": pl.String, "stop_ns": pl.Int64, "unseen": pl.Boolean}
        found = []
        stopped = self.calls.filter(pl.col("trace_id").is_in(self.rows["trace_id"].unique().implode()))
        for call in stopped.with_columns(left_ns=left_at()).iter_rows(named=True):
            heard = [witness for witness in self.witnesses(call) if witness.stop_ns]
            if heard:
                first = min(heard, key=lambda witness: witness.stop_ns)
                if first.stop_ns < call["left_ns"]:
                    found.append((call["span_id"], first.stop_ns, heard[0].unseen))
        return pl.DataFrame(found, names, orient="row")

    def witnesses(self, call: dict[str, Any]) -> list[Witness]:
        """The page and the endpoints above a call that was made for them, outermost first.

        Args:
            call: A row of ``calls``.
        """
        found: list[Witness] = []
        inner = call | {"kind": Kind.GENERATION.value, "began_ns": call["call_start_ns"], "stop_ns": call["call_abort_ns"]}
        ahead_ns = 0
        for row in self._above((call["trace_id"], call["span_id"])):
            ahead_ns += _ahead(row, self._first_answer(inner))
            found.append(_witness(row, ahead_ns))
            inner = row
        made_for = found and call["call_start_ns"] <= found[0].end_ns
        return found[::-1] if made_for else []

    @cached_property
    def _spans(self) -> dict[Span, dict[str, Any]]:
        # Anybody may say anything about a page: of several that claim to be the same one, the first to come counts.
        return {(row["trace_id"], row["span_id"]): row for row in self.rows.reverse().iter_rows(named=True)}

    @cached_property
    def _pages(self) -> dict[Span, list[dict[str, Any]]]:
        """Pages by what is directly above them: an app may have opened the trace in the page, and its span is above both."""
        found: dict[Span, list[dict[str, Any]]] = {}
        for (trace, _), row in self._spans.items():
            if row["kind"] == Kind.PAGE and row["parent_span_id"]:
                found.setdefault((trace, row["parent_span_id"]), []).append(row)
        return found

    @cached_property
    def _answers(self) -> dict[Span, list[dict[str, Any]]]:
        """Endpoints by what is directly above them, in time order; an ``EventSource`` that connects again makes several."""
        found: dict[Span, list[dict[str, Any]]] = {}
        for row in self.rows.filter(pl.col("kind") == Kind.ENDPOINT).iter_rows(named=True):
            found.setdefault((row["trace_id"], row["parent_span_id"]), []).append(row)
        return found

    def _first_answer(self, row: dict[str, Any]) -> dict[str, Any]:
        """Of several endpoints of one page, the one whose first piece was the page's; why it ended is not the page's stop."""
        answers = self._answers.get((row["trace_id"], row.get("parent_span_id", "")), [])
        return answers[0] | {"stop_ns": 0} if len(answers) > 1 and row in answers else row

    def _above(self, span: Span) -> Iterator[dict[str, Any]]:
        """Endpoints from the inside out, then the page."""
        trace, at = span
        for _ in range(_DEPTH):
            row = self._spans.get((trace, at))
            if row is None:
                break
            if row["kind"] in {Kind.ENDPOINT, Kind.PAGE}:
                yield row
            if row["kind"] == Kind.PAGE:
                return
            at = row["parent_span_id"]
        beside = self._pages.get((trace, at), [])
        if len(beside) == 1:  # of several, nobody can say which
            yield beside[0]


def _witness(row: dict[str, Any], ahead_ns: int) -> Witness:
    stop_ns = row["stop_ns"] and row["stop_ns"] - ahead_ns
    unseen = row["outcome"] == Outcome.ABANDONED
    return Witness(row["kind"], row["span_id"], stop_ns, row["end_ns"] - ahead_ns, ahead_ns, row["shown_tokens"], unseen)


def _ahead(outer: dict[str, Any], inner: dict[str, Any]) -> int:
    """How far one clock is ahead of that of what it called: the smallest correction under which no effect precedes its cause.

    What is called begins after its caller did; a page shows nothing before its server has sent something. Inside these bounds
    (Cristian's, 1989), and if they allow it, the server heard of a page's stop after it.
    """
    if outer["client"] and outer["client"] == inner["client"]:
        return 0
    low: int = outer["began_ns"] - inner["began_ns"]
    if outer["kind"] != Kind.PAGE or inner["kind"] != Kind.ENDPOINT or not (outer["first_ns"] and inner["first_ns"]):
        return max(low, 0)
    high: int = outer["first_ns"] - inner["first_ns"]
    if low > high:
        return (low + high) // 2
    if outer["stop_ns"] and inner["stop_ns"]:
        low = max(low, min(high, outer["stop_ns"] - inner["stop_ns"]))
    return max(low, min(high, 0))
