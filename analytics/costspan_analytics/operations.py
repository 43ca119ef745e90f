"""What one answer took: every try at it, in the order in which they began, and what each cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from costspan.semconv import Waste
from costspan_analytics.book import Book, Posting
from costspan_analytics.model_calls import ModelCalls, Span
from costspan_analytics.store import Store
from costspan_analytics.tail import MS
from costspan_analytics.timeline import Timeline
from costspan_analytics.tries import Tries, Try

FIRST, REPEAT, RETRY, HEDGE, FALLBACK = "first", "repeat", "retry", "hedge", "fallback"
"""Why a call was made: it is the first; the client library asked again by itself; the app did; it did while another try was
under way; it asked another model or provider."""


@dataclass(frozen=True)
class Operation:
    """An operation that took more than one try.

    Attributes:
        id: Which.
        tries: Its tries.
        lost: What did not lead to the answer, by span.
        spent: What each call cost, by span, in US dollars; under "" what was used in a try or between tries, but in no call.
        start_ns: When it began, by its own span or, where it has none, by its first try.
        end_ns: When it ended, likewise.
    """

    id: str
    tries: list[Try]
    lost: Mapping[Span, Waste]
    spent: Mapping[str, Decimal]
    start_ns: int
    end_ns: int

    @classmethod
    def load(cls, store: Store, timeline: Timeline, book: Book, name: str) -> Operation | None:
        """The operation with that id; None where one try was enough."""
        known = ModelCalls.load(store, timeline.attempts)
        tries = Tries.load(store, known)
        found = tries.operations.get(name)
        if not found:
            return None
        own = next((row for row in tries.rows.iter_rows(named=True) if row["span_id"] == name and not row["attempt"]), None)
        rows = [own] if own else [one.row for one in found]
        return cls(
            name,
            found,
            {span: waste for span in _inside(found) if (waste := tries.fate(span))},
            _spent(found, own, book.postings, _places(timeline, known), known),
            min(row["start_ns"] for row in rows),
            max(row["end_ns"] for row in rows),
        )

    @property
    def between_ns(self) -> int:
        """How long no try was under way: waiting to ask again, and the app's own work."""
        covered, reached = 0, self.start_ns
        for one in self.tries:
            start, end = max(reached, one.row["start_ns"]), min(one.row["end_ns"], self.end_ns)
            covered += max(0, end - start)
            reached = max(reached, end)
        return self.end_ns - self.start_ns - covered

    @property
    def usd(self) -> Decimal:
        """What the answer cost: all tries at it."""
        return sum(self.spent.values(), Decimal(0))

    @property
    def calls(self) -> Iterator[dict[str, Any]]:
        """Each model call in the order in which they began: what it was for, how it ended, how long it took, what it cost."""
        made = sorted(((one, call) for one in self.tries for call in one.calls), key=lambda pair: pair[1]["start_ns"])
        for at, (one, call) in enumerate(made):
            waste = self.lost.get((call["trace_id"], call["span_id"]))
            yield {
                **{name: call[name] for name in ("attempt", "span_id", "provider", "model", "outcome")},
                "why": _why(one, call, made[:at]),
                "start_ms": (call["start_ns"] - self.start_ns) / MS,
                "wall_ms": (call["end_ns"] - call["start_ns"]) / MS,
                "waste": str(waste or ""),
                "usd": float(self.spent.get(call["span_id"], 0)),
            }

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "id": self.id,
            "wall_ms": (self.end_ns - self.start_ns) / MS,
            "between_ms": self.between_ns / MS,
            "usd": float(self.usd),
            "elsewhere_usd": float(self.spent.get("", 0)),
            "tries": list(self.calls),
        }


def _why(one: Try, call: Mapping[str, Any], before: list[tuple[Try, Mapping[str, Any]]]) -> str:
    """What a call was made for, told from those before it."""
    if call["replaces"]:
        return REPEAT
    others = [(other, made) for other, made in before if other is not one]
    if not others or len(others) < len(before):  # of the first try, or not the first of its own
        return "" if before else FIRST
    if any(other.row["end_ns"] > one.row["start_ns"] for other, _ in others):
        return HEDGE
    asked = {(made["provider"], made["model"]) for _, made in others}
    return RETRY if (call["provider"], call["model"]) in asked else FALLBACK


def _inside(tries: Iterable[Try]) -> Iterator[Span]:
    for one in tries:
        for call in one.calls:
            yield call["trace_id"], call["span_id"]


def _places(timeline: Timeline, known: ModelCalls) -> dict[str, Span]:
    """What each engine request is under."""
    rows = timeline.attempts.select("engine", "request_id", "trace_id", "parent_span_id").iter_rows()
    return {request: known.answered.get((engine, request), (trace, under)) for engine, request, trace, under in rows}


def _spent(
    tries: list[Try], own: Mapping[str, Any] | None, postings: list[Posting], places: Mapping[str, Span], known: ModelCalls
) -> dict[str, Decimal]:
    calls = {span: span[1] for span in _inside(tries)}
    around = {one.span: "" for one in tries} | ({(own["trace_id"], own["span_id"]): ""} if own else {}) | calls
    traces = {trace for trace, _ in around}
    spent: dict[str, Decimal] = defaultdict(Decimal)
    for posting in postings:
        span = places.get(posting.source_id, (posting.trace_id, posting.source_id))
        if span[0] in traces:
            under = next((around[above] for above in (span, *known.above(span)) if above in around), None)
            if under is not None:
                spent[under] += posting.amount
    return spent
