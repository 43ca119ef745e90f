"""What each engine request's time bought: the answer, or which waste.

The parts of a request add up to its cost. They are looked for in this order, and each nanosecond is in one only: made after
the client left, made before but never read, all for nothing (abandoned, retried, invalid), computed a second time, the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from costspan.semconv import Phase, Waste
from costspan_analytics.steps import Floats, Steps
from costspan_analytics.store import Store, Window
from costspan_analytics.timeline import Timeline

REQUEST = "request"
"""The category of money that somebody got an answer for."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some of one engine request's cost.

    Attributes:
        attempt: The row of ``attempts`` that it is of.
        category: ``request``, or a waste.
        cost_ns: Engine time.
        tokens: Output tokens made in it (waste of output), or prompt tokens computed again.
        culprit: The tenant that caused it, or "".
    """

    attempt: dict[str, Any]
    category: str
    cost_ns: int
    tokens: int = 0
    culprit: str = ""


def load_parts(store: Store, timeline: Timeline) -> list[Part]:
    """The parts of every engine request in the window; their ``cost_ns`` add up to the requests'.

    Of a request that crosses the window's edge, the share of its computing that lies inside is taken.
    """
    joined = _with_fate(timeline)
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


def _with_fate(timeline: Timeline) -> pl.DataFrame:
    """Attempts with what became of their calls: when the client left, what it read, whether another attempt replaced it."""
    views = timeline.joined.select(
        "engine", "request_id", "operation", "invalid", "call_abort_ns", "call_attempt", "read_tokens", "offset_ns", "final"
    )
    final = pl.col("final").fill_null(value=True)  # of its call, where there is one
    last = timeline.calls.filter(pl.col("operation") != "").group_by("operation").agg(last_attempt=pl.col("attempt").max())
    return (
        timeline.attempts.join(views, on=["engine", "request_id"], how="left")
        .join(last, on="operation", how="left")
        .with_columns(
            replaced=(pl.col("call_attempt") < pl.col("last_attempt")).fill_null(value=False) | ~final,
            left_ns=pl.when((pl.col("call_abort_ns") > 0) & final).then(pl.col("call_abort_ns") + pl.col("offset_ns")),
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
        attempt: Its row, with ``left_ns`` (when its client left, on the engine's clock, or None), ``read_tokens``, ``replaced``
            and ``invalid``.
        segments: Its phases in time order.
        steps: The engine's steps, if the client left.
    """
    left_ns = attempt["left_ns"]
    parts = list(_left_behind(attempt, segments, steps)) if left_ns is not None else []
    rest = attempt["cost_ns"] - sum(part.cost_ns for part in parts)
    tokens = attempt["output_tokens"] - sum(part.tokens for part in parts)
    if attempt["replaced"]:
        parts.append(Part(attempt, Waste.INVALID_OUTPUT if attempt["invalid"] else Waste.RETRIED, rest, tokens))
    elif left_ns is not None and not attempt["read_tokens"]:
        parts.append(Part(attempt, Waste.ABANDONED, rest, tokens))
    else:
        again = list(_computed_again(attempt, segments))
        parts += again
        parts.append(Part(attempt, REQUEST, rest - sum(part.cost_ns for part in again), tokens))
    return [part for part in parts if part.cost_ns or part.category == REQUEST]


def _computed_again(attempt: dict[str, Any], segments: list[dict[str, Any]]) -> Iterator[Part]:
    """What was computed a second time, while its client was still there."""
    left_ns, reached = attempt["left_ns"], 0  # tokens that the request itself had computed before
    for segment in segments:
        ended_ns = segment["start_ns"] + segment["duration_ns"]
        if segment["waste_ns"] > 0 and (left_ns is None or ended_ns <= left_ns):
            evicted = segment["waste"] == Waste.RECOMPUTED_EVICTION
            tokens = min(segment["tokens"], attempt["evicted_tokens"] if evicted else reached - segment["context"])
            yield Part(attempt, segment["waste"], segment["waste_ns"], tokens, segment["culprit"])
        if segment["phase"] in {Phase.PREFILL, Phase.DECODE}:
            reached = max(reached, segment["context"] + segment["tokens"])


def _left_behind(attempt: dict[str, Any], segments: list[dict[str, Any]], steps: Steps) -> Iterator[Part]:
    """What was made after the client left, and what was made before but never read."""
    left_ns, after, after_tokens = attempt["left_ns"], 0.0, 0
    unread: list[float] = []  # what each token cost that was made before the client left, in order
    for segment, follower in pairwise([*segments, {"phase": ""}]):
        rows = steps.rows(segment["step_first"], segment["step_last"])
        cost, end = _cost_by_step(segment, steps), steps.end[rows]
        if not cost.size:
            continue
        late = np.clip((end - left_ns) / np.maximum(end - steps.start[rows], 1), 0.0, 1.0)
        after += float(cost @ late)
        if segment["phase"] == Phase.DECODE:
            after_tokens += int((end > left_ns).sum())
            unread += (cost * (1.0 - late))[end <= left_ns].tolist()
        elif follower["phase"] == Phase.DECODE and end[-1] > left_ns:  # the prompt was whole, and made a token
            after_tokens += 1
    if after:
        yield Part(attempt, Waste.AFTER_ABORT, round(after), after_tokens)
    made = attempt["output_tokens"] - after_tokens
    undelivered = made - attempt["read_tokens"]
    if undelivered > 0 and attempt["read_tokens"]:
        yield Part(attempt, Waste.UNDELIVERED, round(sum(unread[-undelivered:])), undelivered)


def _cost_by_step(segment: dict[str, Any], steps: Steps) -> Floats:
    """A segment's cost in each of its steps.

    Decoding is the ledger's own formula. A prompt's chunks are not kept one by one, so a prefill is spread by the steps'
    durations, and both are scaled to the segment's cost as the ledger booked it.
    """
    rows = steps.rows(segment["step_first"], segment["step_last"])
    if segment["phase"] == Phase.DECODE:
        cost = steps.decode_cost(segment["step_first"], segment["step_last"], segment["context"])
    else:
        cost = (steps.end[rows] - steps.start[rows]).astype(np.float64)
    total = float(cost.sum())
    return cost * (segment["cost_ns"] / total) if total else cost
