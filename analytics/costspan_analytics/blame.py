"""Direct blame: who was in the steps that a request sat through, and who held what it waited for (docs/ledger.md).

Accounting, not yet cause: it is additive and conserves time, but leaves out what a delayed neighbour did in turn
(:mod:`costspan_analytics.causal`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from costspan.semconv import Mechanism, Phase, Waste
from costspan_analytics.spans import QUEUED, Floats, Spans
from costspan_analytics.store import Store

BATCH = 400
"""Segments whose sums are asked for at once: three marks each, in one statement."""
_REDONE = {
    Waste.RECOMPUTED_EVICTION.value: Mechanism.EVICTION,
    Waste.RECOMPUTED_PREEMPTION.value: Mechanism.PREEMPTION,
}
_SCHEMA = {
    "engine": pl.String,
    "request_id": pl.String,
    "tenant": pl.String,
    "culprit": pl.String,
    "mechanism": pl.String,
    "ns": pl.Float64,
}
_KEYS = ["engine", "request_id", "tenant", "culprit", "mechanism"]

Delay = tuple[str, Mechanism, float]
"""Culprit, mechanism, nanoseconds."""


def blame(store: Store, segments: pl.DataFrame) -> pl.DataFrame:
    """Nanoseconds of delay by culprit and mechanism, for the requests that ``segments`` are of.

    Args:
        store: Where their steps are.
        segments: Rows of ``queries/segments.sql``.

    Returns:
        Columns ``engine, request_id, tenant, culprit, mechanism, ns``. A culprit equal to the tenant is its own other traffic.
    """
    pushed_out = pl.col("phase") == Phase.PREEMPTED.value
    found = [_pushed_out(segments.filter(pushed_out))]
    # In the order of steps, so that each statement looks at a stretch of its own.
    ran = segments.filter(~pushed_out, pl.col("step_first") >= 0).sort("engine", "step_first")
    for (engine,), own in ran.partition_by("engine", as_dict=True, maintain_order=True).items():
        found += [_blame(store, str(engine), part) for part in own.iter_slices(BATCH)]
    return pl.concat(found).group_by(_KEYS).agg(pl.col("ns").sum()).filter(pl.col("ns") > 0).sort(*_KEYS)


def _pushed_out(waits: pl.DataFrame) -> pl.DataFrame:
    """Waits after a preemption are all of the tenant's that took the blocks; its own, where an older row does not say whose."""
    culprit = pl.when(pl.col("culprit") != "").then("culprit").otherwise("tenant").alias("culprit")
    how, ns = pl.lit(Mechanism.PREEMPTION.value).alias("mechanism"), pl.col("duration_ns").cast(pl.Float64).alias("ns")
    return waits.select("engine", "request_id", "tenant", culprit, how, ns)


def _blame(store: Store, engine: str, segments: pl.DataFrame) -> pl.DataFrame:
    waits = segments.filter(pl.col("phase") == Phase.QUEUE.value)["step_first"].to_list()
    marks = [*(segments["step_first"] - 1), *segments["step_last"], *waits]
    spans = Spans.load(store, engine, marks, waits)
    rows = [
        (engine, segment["request_id"], segment["tenant"], culprit, how.value, ns)
        for segment in segments.iter_rows(named=True)
        for culprit, how, ns in delays(segment, spans)
    ]
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row")


def model_error(store: Store) -> dict[str, float]:
    """The cost model's relative error in the store's window: ``p50``, ``p90``, ``p99``; empty without steps.

    Step times are measured, but whose share is whose is the model's estimate: this belongs beside every answer made of shares.
    """
    row = store.frame("model_error").row(0, named=True)
    return dict(zip(("p50", "p90", "p99"), row["quantiles"], strict=True)) if row["steps"] else {}


def delays(segment: dict[str, Any], spans: Spans) -> Iterator[Delay]:
    """Who delayed one segment, and how.

    In the batch they add up to the segment's interference, and to the part of its own work that it did a second time. In the
    queue they add up to the time that steps took; what is left of the wait was between steps.
    """
    if segment["phase"] == Phase.QUEUE.value:
        yield from _queued(segment, spans)
        return
    yield from _shared(segment, spans)
    if (how := _REDONE.get(segment["waste"])) and segment["cost_ns"]:
        again = segment["solo_ns"] * segment["waste_ns"] / segment["cost_ns"]
        yield segment["culprit"] or segment["tenant"], how, float(again)


def _queued(segment: dict[str, Any], spans: Spans) -> Iterator[Delay]:
    """Step time by holder, and to the tenant itself where its own cap kept it out."""
    first, last = segment["step_first"], segment["step_last"]
    start_ns, duration_ns = spans.times.get(first, (0, 0))  # a step that was lost was waited through by nobody
    passed = min(max(0, segment["start_ns"] - start_ns), duration_ns)
    after = first if passed else first - 1
    for how in QUEUED:
        held = spans.between(spans.waited[how], after, last)
        if how is Mechanism.QUEUE_TENANT_CAP:
            if capped := float(held.sum()):
                yield segment["tenant"], how, capped
        else:
            yield from ((tenant, how, ns) for tenant, ns in spans.named(held))
        if passed:
            # Of the step in flight at arrival only the rest was waited; its batch was made before, so no cap kept this one out.
            rest = spans.between(spans.waited[how], first - 1, first) * ((duration_ns - passed) / duration_ns)
            said = Mechanism.QUEUE_STEP if how is Mechanism.QUEUE_TENANT_CAP else how
            yield from ((tenant, said, ns) for tenant, ns in spans.named(rest))


def _shared(segment: dict[str, Any], spans: Spans) -> Iterator[Delay]:
    """Interference by whose prompts and whose decoding it was."""
    after, last = segment["step_first"] - 1, segment["step_last"]
    prefill, decode = spans.between(spans.prefill, after, last), spans.between(spans.decode, after, last)
    if segment["tenant"] in spans.tenants:
        _leave_own_rest(prefill, decode, spans.tenants.index(segment["tenant"]), float(segment["interference_ns"]))
    for how, values in ((Mechanism.PREFILL, prefill), (Mechanism.DECODE, decode)):
        yield from ((tenant, how, ns) for tenant, ns in spans.named(values))


def _leave_own_rest(prefill: Floats, decode: Floats, own: int, interference_ns: float) -> None:
    """What the others did is theirs; of the request's own tenant only what the ledger's interference leaves over."""
    total = float(prefill[own] + decode[own])
    others = float(np.sum(prefill) + np.sum(decode)) - total
    scale = max(0.0, interference_ns - others) / total if total else 0.0
    prefill[own] *= scale
    decode[own] *= scale
