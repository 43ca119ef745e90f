"""What each engine request's time bought: the answer, or which waste.

The parts of a request add up to its cost. They are looked for in this order, and each nanosecond is in one only: made after
the client left, made before but never read, all for nothing (retried, hedged, invalid, abandoned), computed a second time or
drafted and thrown away, the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from costspan.semconv import Outcome, Phase, Waste
from costspan_analytics.steps import Floats, Steps
from costspan_analytics.stops import Stops
from costspan_analytics.store import Store, Window
from costspan_analytics.timeline import Timeline
from costspan_analytics.tries import Tries

REQUEST = "request"
"""The category of money that somebody got an answer for."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some of one engine request's cost.

    Attributes:
        attempt: The row of ``attempts`` that it is of.
        category: ``request``, or a waste.
        cost_ns: Engine time.
        tokens: Output tokens made in it (waste of output), prompt tokens computed again, or drafts thrown away.
        culprit: The tenant that caused it, or "".
    """

    attempt: dict[str, Any]
    category: str
    cost_ns: int
    tokens: int = 0
    culprit: str = ""


def load_parts(store: Store, timeline: Timeline, tries: Tries) -> list[Part]:
    """The parts of every engine request in the window; their ``cost_ns`` add up to the requests'.

    Of a request that crosses the window's edge, the share of its computing that lies inside is taken.
    """
    joined = _with_fate(timeline, tries, Stops.load(store, timeline).earliest)
    segments = timeline.segments.partition_by("engine", "request_id", as_dict=True)
    steps = {engine: _steps_of_aborted(store, engine, joined, timeline.segments) for engine in joined["engine"].unique()}
    parts: list[Part] = []
    for attempt in joined.iter_rows(named=True):
        frame = segments.get((attempt["engine"], attempt["request_id"]))
        own = frame.to_dicts() if frame is not None else []
        inside = _inside(own, store.window)
        if inside > 0:
            found = split(attempt, own, steps[attempt["engine"]])
            parts += found if inside == 1 else [replace(part, cost_ns=round(inside * part.cost_ns)) for part in found]
    return parts


def _inside(segments: list[dict[str, Any]], window: Window) -> float:
    """Which share of a request's cost falls into a window, each segment's spread evenly over its time."""
    if not segments:
        return 1.0
    if window.since <= segments[0]["start_ns"] and segments[-1]["start_ns"] + segments[-1]["duration_ns"] <= window.until:
        return 1.0
    total, inside = 0.0, 0.0
    for segment in segments:
        start, length = segment["start_ns"], max(1, segment["duration_ns"])
        overlap = min(start + length, window.until) - max(start, window.since)
        total += segment["cost_ns"]
        inside += segment["cost_ns"] * max(0, overlap) / length
    return inside / total if total else 0.0


def _with_fate(timeline: Timeline, tries: Tries, stops: pl.DataFrame) -> pl.DataFrame:
    """Attempts with what became of their calls: when the client left, what it read, whether another try gave the answer.

    Of those whom a call's answer passes on its way, the first to leave counts, whether the call was told or not.
    """
    aborted = pl.when(pl.col("call_abort_ns") > 0).then("call_abort_ns")
    views = timeline.joined.join(stops, on="call_id", how="left").select(
        "engine",
        "request_id",
        "offset_ns",
        "answered",
        read_tokens=pl.when("unseen").then(0).otherwise("read_tokens"),
        gone_ns=pl.min_horizontal(aborted, "stop_ns"),
    )
    answered = pl.col("answered").fill_null(value=True)  # its call, where there is one
    named = timeline.attempts.select("engine", "request_id", "trace_id", "parent_span_id").iter_rows()
    lost = [tries.fate_of_request(engine, request, (trace, under)) for engine, request, trace, under in named]
    return (
        timeline.attempts.with_columns(lost=pl.Series(lost, dtype=pl.String))
        .join(views, on=["engine", "request_id"], how="left")
        .with_columns(
            lost=pl.coalesce("lost", pl.when(~answered).then(pl.lit(Waste.RETRIED.value))),
            left_ns=pl.when(answered).then(pl.col("gone_ns") + pl.col("offset_ns")),
            # Where no client told what it read, what was written to it must do.
            read_tokens=pl.coalesce("read_tokens", "delivered_tokens"),
        )
    )


def _steps_of_aborted(store: Store, engine: str, attempts: pl.DataFrame, segments: pl.DataFrame) -> Steps:
    """The steps that somebody who left was in: only those are split within a segment."""
    aborted = attempts.filter((pl.col("engine") == engine) & pl.col("left_ns").is_not_null() & (pl.col("last_step") >= 0))
    own = segments.join(aborted.select("engine", "request_id"), on=["engine", "request_id"])
    ran = own.filter(pl.col("step_first") >= 0)
    if ran.is_empty():
        return Steps.load(store, engine, 0, -1)
    return Steps.load(store, engine, int(ran["step_first"].min()), int(ran["step_last"].max()))  # type: ignore[arg-type]


def split(attempt: dict[str, Any], segments: list[dict[str, Any]], steps: Steps) -> list[Part]:
    """One request's parts.

    Args:
        attempt: Its row, with ``left_ns`` (when its client left, on the engine's clock, or None), ``read_tokens`` and ``lost``
            (which waste all of it is, or None).
        segments: Its phases in time order.
        steps: The engine's steps, if the client left.
    """
    left_ns = attempt["left_ns"]
    kept = [1.0] * len(segments)
    parts = _left_behind(attempt, segments, steps, kept) if left_ns is not None else []
    rest = attempt["cost_ns"] - sum(part.cost_ns for part in parts)
    tokens = attempt["output_tokens"] - sum(part.tokens for part in parts)
    cut_short = left_ns is not None or attempt["outcome"] != Outcome.OK
    if attempt["lost"]:
        parts.append(Part(attempt, attempt["lost"], rest, tokens))
    elif cut_short and not attempt["read_tokens"]:
        parts.append(Part(attempt, Waste.ABANDONED, rest, tokens))
    else:
        for_nothing = [*_computed_again(attempt, segments, kept), *_thrown_away(attempt, segments, kept)]
        parts += for_nothing
        parts.append(Part(attempt, REQUEST, rest - sum(part.cost_ns for part in for_nothing), tokens))
    return [part for part in parts if part.cost_ns or part.category == REQUEST]


def _computed_again(attempt: dict[str, Any], segments: list[dict[str, Any]], kept: list[float]) -> Iterator[Part]:
    """Prompt tokens that were computed a second time."""
    reached = 0  # tokens that the request itself had computed before
    for segment, share in zip(segments, kept, strict=True):
        if segment["phase"] == Phase.PREFILL and segment["waste_ns"] > 0:
            evicted = segment["waste"] == Waste.RECOMPUTED_EVICTION
            tokens = min(segment["tokens"], attempt["evicted_tokens"] if evicted else reached - segment["context"])
            cost = round(share * segment["waste_ns"])
            yield Part(attempt, segment["waste"], cost, round(share * tokens), segment["culprit"])
        if segment["phase"] in {Phase.PREFILL, Phase.DECODE}:
            reached = max(reached, segment["context"] + segment["tokens"])


def _thrown_away(attempt: dict[str, Any], segments: list[dict[str, Any]], kept: list[float]) -> Iterator[Part]:
    """Drafts that were not what the request would have said."""
    costs = [segment["waste_ns"] * (segment["waste"] == Waste.REJECTED_DRAFT) for segment in segments]
    if any(costs):
        cost = sum(share * cost for share, cost in zip(kept, costs, strict=True))
        rejected = attempt["drafted_tokens"] - attempt["accepted_tokens"]
        yield Part(attempt, Waste.REJECTED_DRAFT, round(cost), round(rejected * cost / sum(costs)))


def _left_behind(attempt: dict[str, Any], segments: list[dict[str, Any]], steps: Steps, kept: list[float]) -> list[Part]:
    """What was made after the client left, and what was made before but never read.

    Args:
        attempt: As for :func:`split`.
        segments: As for :func:`split`.
        steps: As for :func:`split`.
        kept: Which share of each segment's cost is neither; written here.
    """
    halves = Halves.at(attempt["left_ns"], attempt, segments, steps)
    for at, (segment, gone) in enumerate(zip(segments, halves.gone, strict=True)):
        kept[at] -= gone / (segment["cost_ns"] or 1.0)
    parts = [Part(attempt, Waste.AFTER_ABORT, halves.after_ns, halves.after_tokens)] if sum(halves.gone) else []
    undelivered = attempt["output_tokens"] - halves.after_tokens - attempt["read_tokens"]
    if undelivered > 0 and attempt["read_tokens"]:
        unread = _take_last(undelivered, halves.before, segments, kept)
        parts.append(Part(attempt, Waste.UNDELIVERED, round(unread), undelivered))
    return parts


@dataclass(frozen=True, slots=True)
class Halves:
    """One engine request, cut at a moment.

    Attributes:
        gone: What each segment cost after it, in nanoseconds.
        after_tokens: Output tokens made after it.
        before: What each token cost that was decoded before it, by segment.
    """

    gone: list[float]
    after_tokens: int
    before: list[tuple[int, Floats]]

    @property
    def after_ns(self) -> int:
        """Engine time after it."""
        return round(sum(self.gone))

    @classmethod
    def at(cls, moment_ns: int, attempt: dict[str, Any], segments: list[dict[str, Any]], steps: Steps) -> Halves:
        """Cut at a moment of the engine's clock; the step in which it falls is split by time."""
        gone, tokens, before = [0.0] * len(segments), 0, []
        for at, (segment, follower) in enumerate(pairwise([*segments, {"phase": ""}])):
            rows = steps.rows(segment["step_first"], segment["step_last"])
            cost, end = _cost_by_step(segment, steps), steps.end[rows]
            if not cost.size:
                continue
            late = np.clip((end - moment_ns) / np.maximum(end - steps.start[rows], 1), 0.0, 1.0)
            gone[at] = float(cost @ late)
            if segment["phase"] == Phase.DECODE:
                in_time = int((end <= moment_ns).sum())
                by_token = _by_token(cost[:in_time], round(segment["tokens"] * in_time / cost.size))
                tokens += segment["tokens"] - by_token.size
                before.append((at, by_token))
            elif follower["phase"] == Phase.DECODE and end[-1] > moment_ns:  # the prompt was whole, and made a token
                tokens += 1
        # A burst may have gone on past the answer's end.
        return cls(gone, min(tokens, attempt["output_tokens"]), before)


def _take_last(count: int, made: list[tuple[int, Floats]], segments: list[dict[str, Any]], kept: list[float]) -> float:
    """What the last ``count`` tokens made cost; taken off what is kept of their segments."""
    taken = 0.0
    for at, by_token in reversed(made):
        own = float(by_token[max(0, by_token.size - count) :].sum())
        kept[at] -= own / (segments[at]["cost_ns"] or 1)
        taken += own
        count = max(0, count - by_token.size)
    return taken


def _by_token(cost: Floats, tokens: int) -> Floats:
    """What each token cost, of a stretch of steps that each made as many: shape (tokens,), of the same sum."""
    reached = np.linspace(0, tokens, cost.size + 1)
    return np.diff(np.interp(np.arange(tokens + 1), reached, np.concatenate([[0.0], np.cumsum(cost)])))


def _cost_by_step(segment: dict[str, Any], steps: Steps) -> Floats:
    """A segment's cost in each of its steps.

    Decoding is the ledger's own formula. Neither a prompt's chunks nor a request's drafts are kept one by one: a prefill is
    spread by the steps' durations, drafts like the decoding that they came with, and all is scaled to the segment's cost as
    the ledger booked it.
    """
    rows = steps.rows(segment["step_first"], segment["step_last"])
    if segment["phase"] == Phase.DECODE and rows.start < rows.stop:
        cost = steps.decode_cost(segment["step_first"], segment["step_last"], segment["context"], segment["tokens"])
    else:
        cost = (steps.end[rows] - steps.start[rows]).astype(np.float64)
    total = float(cost.sum())
    return cost * (segment["cost_ns"] / total) if total else cost
