"""Direct blame: who was in the steps that a request sat through, and who held what it waited for (docs/ledger.md).

Accounting, not yet cause: it is additive and conserves time, but leaves out what a delayed neighbour did in turn
(:mod:`costspan_analytics.causal`).

In the batch, delays add up to a segment's interference, and to the part of its own work that it did a second time. In the queue
they add up to the time that steps took; what is left of the wait was between steps. A wait after a preemption is all of the
tenant's that took the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from costspan.semconv import Mechanism, Phase, Waste
from costspan_analytics.spans import QUEUED, Floats, Spans
from costspan_analytics.store import Store

BATCH = 400
"""Segments whose sums are asked for at once: three marks each, in one statement."""
_REDONE = {
    Waste.RECOMPUTED_EVICTION.value: Mechanism.EVICTION.value,
    Waste.RECOMPUTED_PREEMPTION.value: Mechanism.PREEMPTION.value,
}
_KEYS = ["engine", "request_id", "tenant", "culprit", "mechanism"]
_SCHEMA = {**dict.fromkeys(_KEYS, pl.String), "ns": pl.Float64}

Delays = tuple[Mechanism, Floats]
"""Nanoseconds by segment and culprit, shape (segments, tenants)."""


def blame(store: Store, segments: pl.DataFrame) -> pl.DataFrame:
    """Nanoseconds of delay by culprit and mechanism, for the requests that ``segments`` are of.

    Args:
        store: Where their steps are.
        segments: Rows of ``queries/segments.sql``.

    Returns:
        Columns ``engine, request_id, tenant, culprit, mechanism, ns``. A culprit equal to the tenant is its own other traffic.
    """
    pushed_out = pl.col("phase") == Phase.PREEMPTED.value
    found = [pl.DataFrame(schema=_SCHEMA), _pushed_out(segments.filter(pushed_out)), _redone(segments)]
    # In the order of steps, so that each statement looks at a stretch of its own.
    ran = segments.filter(~pushed_out, pl.col("step_first") >= 0).sort("engine", "step_first")
    for (engine,), own in ran.partition_by("engine", as_dict=True, maintain_order=True).items():
        for part in own.iter_slices(BATCH):
            waits = part.filter(pl.col("phase") == Phase.QUEUE.value)["step_first"]
            marks = [*(part["step_first"] - 1), *part["step_last"], *waits]
            found.append(of_steps(part, Spans.load(store, str(engine), marks, waits.to_list())))
    return pl.concat(found).group_by(_KEYS).agg(pl.col("ns").sum()).filter(pl.col("ns") > 0).sort(*_KEYS)


def model_error(store: Store) -> dict[str, float]:
    """The cost model's relative error in the store's window: ``p50``, ``p90``, ``p99``; empty without steps.

    Step times are measured, but whose share is whose is the model's estimate: this belongs beside every answer made of shares.
    """
    row = store.frame("model_error").row(0, named=True)
    return dict(zip(("p50", "p90", "p99"), row["quantiles"], strict=True)) if row["steps"] else {}


def _pushed_out(waits: pl.DataFrame) -> pl.DataFrame:
    how, ns = pl.lit(Mechanism.PREEMPTION.value).alias("mechanism"), pl.col("duration_ns").cast(pl.Float64).alias("ns")
    return waits.select("engine", "request_id", "tenant", _culprit(), how, ns)


def _redone(segments: pl.DataFrame) -> pl.DataFrame:
    again = segments.filter(pl.col("waste").is_in(list(_REDONE)), pl.col("cost_ns") > 0)
    how = pl.col("waste").cast(pl.String).replace(_REDONE).alias("mechanism")
    ns = (pl.col("solo_ns") * pl.col("waste_ns") / pl.col("cost_ns")).cast(pl.Float64).alias("ns")
    return again.select("engine", "request_id", "tenant", _culprit(), how, ns)


def _culprit() -> pl.Expr:
    """The culprit that a segment names; its own tenant, where an older row does not say whose it was."""
    return pl.when(pl.col("culprit") != "").then("culprit").otherwise("tenant").alias("culprit")


def of_steps(segments: pl.DataFrame, spans: Spans) -> pl.DataFrame:
    """Blame for what some segments of one engine sat or waited through, row by row."""
    queued = segments.filter(pl.col("phase") == Phase.QUEUE.value)
    shared = segments.filter(pl.col("phase") != Phase.QUEUE.value)
    found = [pl.DataFrame(schema=_SCHEMA)]
    for own, delays in ((queued, _queued(queued, spans)), (shared, _shared(shared, spans))):
        for how, values in delays:
            lines, columns = np.nonzero(values > 0)
            found.append(
                own.select("engine", "request_id", "tenant")[lines].with_columns(
                    pl.Series("culprit", [spans.tenants[column] for column in columns], pl.String),
                    pl.lit(how.value).alias("mechanism"),
                    pl.Series("ns", values[lines, columns]),
                )
            )
    return pl.concat(found)


def _queued(segments: pl.DataFrame, spans: Spans) -> Iterator[Delays]:
    """Step time by holder, and to the tenant itself where its own cap kept it out."""
    first, last, began = (segments[name].to_numpy() for name in ("step_first", "step_last", "start_ns"))
    # A step that was lost was waited through by nobody.
    times = np.array([spans.times.get(step, (0, 0)) for step in first.tolist()], dtype=np.int64).reshape(-1, 2)
    passed = np.clip(began - times[:, 0], 0, times[:, 1])
    left = np.where(passed > 0, 1 - passed / np.maximum(times[:, 1], 1), 0.0)
    after = np.where(passed > 0, first, first - 1)
    for how in QUEUED:
        held = spans.between(spans.waited[how], after, last)
        # Of the step in flight at arrival only the rest was waited; its batch was made before, so no cap kept this one out.
        rest = spans.between(spans.waited[how], first - 1, first) * left[:, None]
        if how is Mechanism.QUEUE_TENANT_CAP:
            yield how, held.sum(axis=1)[:, None] * _own(segments, spans)
            yield Mechanism.QUEUE_STEP, rest
        else:
            yield how, held + rest


def _shared(segments: pl.DataFrame, spans: Spans) -> Iterator[Delays]:
    """Interference by whose prompts and whose decoding it was.

    What the others did is theirs; of the request's own tenant only what the ledger's interference leaves over.
    """
    after, last = (segments[name].to_numpy() for name in ("step_first", "step_last"))
    prefill, decode = (spans.between(sums, after - 1, last) for sums in (spans.prefill, spans.decode))
    own = _own(segments, spans)
    total = ((prefill + decode) * own).sum(axis=1)
    others = (prefill + decode).sum(axis=1) - total
    over = np.maximum(0.0, segments["interference_ns"].cast(pl.Float64).to_numpy() - others)
    scale = np.where(own, np.divide(over, total, out=np.zeros_like(over), where=total > 0)[:, None], 1.0)
    yield Mechanism.PREFILL, prefill * scale
    yield Mechanism.DECODE, decode * scale


def _own(segments: pl.DataFrame, spans: Spans) -> NDArray[np.bool_]:
    """Which column is each segment's own tenant, shape (segments, tenants)."""
    names: NDArray[np.bool_] = segments["tenant"].to_numpy()[:, None] == np.array(spans.tenants, dtype=object)[None, :]
    return names
