"""``costspan explain``: one request, from the client's first reading to its last, and who delayed it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from costspan.semconv import Phase
from costspan_analytics.blame import blame, model_error
from costspan_analytics.book import Book
from costspan_analytics.errors import NotFoundError
from costspan_analytics.journey import Journey
from costspan_analytics.operations import Operation
from costspan_analytics.store import Store
from costspan_analytics.tail import MS
from costspan_analytics.timeline import PHASES, Timeline

SLOWEST = "slowest"
SHORTEST_PREFIX = 6
NS_PER_S = 1e9


@dataclass(frozen=True)
class Explanation:
    """One model call.

    Attributes:
        call: Its row of ``Timeline.requests``.
        attempts: Its engine requests.
        intervals: Its phases in time order.
        delays: (culprit, mechanism, ms), longest first.
        postings: (category, tokens, US dollars) of its engine time, or of what its provider charges for.
        model_error: How far off the model is that the delays rest on.
        deviation_ms: How much longer its steps took than the model says; below zero where they were quicker.
        throttled_ms: For how long meanwhile the device's clocks were held down, by reason; empty where it does not say.
        operation: What it was a try of; ``None`` where one was enough.
        journey: The way of its stop, by every clock that it passed; ``None`` where nobody stopped it.
    """

    call: dict[str, Any]
    attempts: list[dict[str, Any]]
    intervals: pl.DataFrame
    delays: list[tuple[str, str, float]]
    postings: list[dict[str, Any]]
    model_error: dict[str, float]
    deviation_ms: float
    throttled_ms: dict[str, float]
    operation: Operation | None
    journey: Journey | None

    @classmethod
    def load(cls, store: Store, timeline: Timeline, book: Book, name: str) -> Explanation:
        """Explain a call.

        Args:
            store: Where its steps are.
            timeline: The window's calls.
            book: The window's postings.
            name: A span, trace, operation or engine request id, the beginning of one, or ``slowest``.

        Raises:
            NotFoundError: No call in the window goes by that name.
        """
        call = _find(timeline, name)
        attempts = timeline.joined.filter(pl.col("call_id") == call["span_id"])
        waited_for = timeline.waited_for.filter(pl.col("call_id") == call["span_id"])
        segments = timeline.segments.join(waited_for.select("engine", "request_id"), on=["engine", "request_id"])
        found = blame(store, segments).group_by("culprit", "mechanism").agg(ms=pl.col("ns").sum() / MS)
        own = pl.col("source_id").is_in(attempts["request_id"].implode()) | (pl.col("source_id") == call["span_id"])
        posted = book.frame.filter(own)
        return cls(
            call,
            attempts.to_dicts(),
            timeline.intervals.filter(pl.col("call_id") == call["span_id"]),
            found.sort("ms", descending=True).rows(),
            posted.select("category", "tokens", "amount", "culprit").to_dicts(),
            model_error(store),
            float(segments["deviation_ns"].sum()) / MS,
            _throttled(store, segments),
            Operation.load(store, timeline, book, call["operation"]) if call["operation"] else None,
            Journey.load(store, timeline, book, call),
        )

    @property
    def phases(self) -> list[tuple[str, float]]:
        """(phase, ms) in the vocabulary's order; they add up to the wall time."""
        return [(phase, self.call[phase] / MS) for phase in PHASES]

    @property
    def cohort(self) -> pl.DataFrame:
        """The engine request whose end was the call's: ``engine, request_id, enqueued_ns, removed_ns``; no row if none was."""
        names = ("engine", "request_id", "enqueued_ns", "removed_ns")
        rows = [tuple(attempt[name] for name in names) for attempt in self.attempts if attempt["final"]]
        return pl.DataFrame(rows, dict(zip(names, (pl.String, pl.String, pl.Int64, pl.Int64), strict=True)), orient="row")

    @property
    def direct(self) -> pl.DataFrame:
        """Direct blame by culprit, as :func:`~costspan_analytics.causal.causal_answers` takes it: ``engine, culprit, ms``."""
        rows = [(engine, culprit, ms) for engine in self.cohort["engine"] for culprit, _, ms in self.delays]
        return pl.DataFrame(rows, {"engine": pl.String, "culprit": pl.String, "ms": pl.Float64}, orient="row")

    @property
    def aborts(self) -> list[tuple[str, float]]:
        """The three clocks of a cancellation, in milliseconds after the call began; empty for a whole answer."""
        start, left = self.call["call_start_ns"], self.call["call_abort_ns"]
        if not left:
            return []
        clocks = [("client left", (left - start) / MS)]
        for attempt in self.attempts:
            moved = start + attempt["offset_ns"]
            if attempt["disconnect_ns"]:
                clocks.append(("server saw it", (attempt["disconnect_ns"] - moved) / MS))
            clocks.append(("engine let go", (attempt["removed_ns"] - moved) / MS))
        return clocks

    @property
    def engine(self) -> dict[str, Any]:
        """What its engine requests held, guessed and used: KV block-seconds, drafts, adapter, and joules where a meter said."""
        spent = [attempt["energy_j"] for attempt in self.attempts]
        return {
            "adapter": ", ".join(sorted({attempt["adapter"] for attempt in self.attempts if attempt["adapter"]})),
            "kv_block_s": sum(attempt["block_ns"] for attempt in self.attempts) / NS_PER_S,
            **{name: sum(attempt[name] for attempt in self.attempts) for name in ("drafted_tokens", "accepted_tokens")},
            "joules": None if not spent or None in spent else sum(spent),
        }

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        who = ("span_id", "trace_id", "tenant", "feature", "unit", "attempt", "model", "outcome")
        return {
            **{name: self.call[name] for name in who},
            "start_ns": self.call["call_start_ns"],
            "wall_ms": self.call["wall_ns"] / MS,
            "phases_ms": dict(self.phases),
            "delayed_by": [{"tenant": culprit, "mechanism": how, "ms": ms} for culprit, how, ms in self.delays],
            "model_error": self.model_error,
            "deviation_ms": self.deviation_ms,
            "throttled_ms": self.throttled_ms,
            "engine": self.engine,
            "cost": [{**row, "amount": float(row["amount"])} for row in self.postings],
            "aborts_ms": dict(self.aborts),
            "operation": None if self.operation is None else self.operation.as_dict(),
            "stop": None if self.journey is None else self.journey.as_dict(),
        }


def _throttled(store: Store, segments: pl.DataFrame) -> dict[str, float]:
    """Milliseconds of computing while a device's clocks were held down, by reason."""
    ends = pl.col("start_ns") + pl.col("duration_ns")
    ran = segments.filter(pl.col("phase").is_in([Phase.PREFILL.value, Phase.DECODE.value]))
    held: dict[str, float] = {}
    for (engine,), own in ran.partition_by("engine", as_dict=True).items():
        span = {"first": own["start_ns"].min(), "last": own.select(ends.max()).item()}
        for start_ns, end_ns, reason in store.frame("throttles", engine=engine, **span).iter_rows():
            overlap = pl.min_horizontal(ends, pl.lit(end_ns)) - pl.max_horizontal("start_ns", pl.lit(start_ns))
            held[reason] = held.get(reason, 0.0) + float(own.select(overlap.clip(0).sum()).item()) / MS
    return {reason: ms for reason, ms in held.items() if ms > 0}


def _find(timeline: Timeline, name: str) -> dict[str, Any]:
    requests = timeline.requests
    if requests.is_empty():
        raise NotFoundError("There are no calls in this window: widen --since, or name another --project.")
    if name == SLOWEST:
        return requests.sort("wall_ns", descending=True).row(0, named=True)
    if len(name) < SHORTEST_PREFIX:
        raise NotFoundError(
            f"{name!r} is too short to mean one call: give at least {SHORTEST_PREFIX} characters, or `{SLOWEST}`."
        )
    by_engine = timeline.joined.filter(pl.col("request_id").str.starts_with(name))["call_id"].to_list()
    own = pl.any_horizontal(pl.col("span_id", "trace_id", "operation").str.starts_with(name))
    found = requests.filter(own | pl.col("span_id").is_in(by_engine)).sort("wall_ns", descending=True)
    if found.is_empty():
        raise NotFoundError(f"No call in this window has an id that begins with {name!r}: look one up in `costspan tail`.")
    return found.row(0, named=True)
