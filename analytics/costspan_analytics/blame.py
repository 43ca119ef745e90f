"""Direct blame: who was in the steps that a request sat through, and who held what it waited for (docs/ledger.md).

Accounting, not yet cause: it is additive and conserves time, but leaves out what a delayed neighbour did in turn.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from costspan.semconv import Phase
from costspan_analytics.steps import Floats, Steps
from costspan_analytics.store import Store

_WAITS = {Phase.QUEUE, Phase.PREEMPTED}
_SCHEMA = {
    "engine": pl.String,
    "request_id": pl.String,
    "tenant": pl.String,
    "culprit": pl.String,
    "mechanism": pl.String,
    "ns": pl.Float64,
}


def blame(store: Store, segments: pl.DataFrame) -> pl.DataFrame:
    """Nanoseconds of delay by culprit and mechanism, for the requests that ``segments`` are of.

    Args:
        store: Where their steps are.
        segments: Rows of ``queries/segments.sql``.

    Returns:
        Columns ``engine, request_id, tenant, culprit, mechanism, ns``. A culprit equal to the tenant is its own other traffic.
    """
    rows: list[tuple[str, str, str, str, str, float]] = []
    for (engine,), own in segments.filter(pl.col("step_first") >= 0).partition_by("engine", as_dict=True).items():
        first, last = own["step_first"].min(), own["step_last"].max()
        steps = Steps.load(store, engine, first, last)  # type: ignore[arg-type]
        for segment in own.iter_rows(named=True):
            rows += [
                (engine, segment["request_id"], segment["tenant"], culprit, mechanism, ns)
                for culprit, mechanism, ns in delays(segment, steps)
            ]
    frame = pl.DataFrame(rows, schema=_SCHEMA, orient="row")
    keys = ["engine", "request_id", "tenant", "culprit", "mechanism"]
    return frame.group_by(keys).agg(pl.col("ns").sum()).filter(pl.col("ns") > 0).sort(*keys)


def model_error(store: Store) -> dict[str, float]:
    """The cost model's relative error in the store's window: ``p50``, ``p90``, ``p99``; empty without steps.

    Step times are measured, but whose share is whose is the model's estimate: this belongs beside every answer made of shares.
    """
    row = store.frame("model_error").row(0, named=True)
    return dict(zip(("p50", "p90", "p99"), row["quantiles"], strict=True)) if row["steps"] else {}


def delays(segment: dict[str, object], steps: Steps) -> Iterator[tuple[str, str, float]]:
    """(culprit, mechanism, nanoseconds) for one segment.

    A tenant delays by ``queue``, when it held what was waited for (its own cap holds back itself), or by ``prefill`` or
    ``decode``, when its prompts or its decoding, drafts included, shared the steps.

    In the batch they add up to the segment's interference. In the queue they add up to the time that steps took; what is left
    of the wait was between steps.
    """
    rows = steps.rows(int(str(segment["step_first"])), int(str(segment["step_last"])))
    if rows.start >= rows.stop:
        return
    if segment["phase"] in _WAITS:
        yield from _queued(segment, steps, rows)
        return
    prefill = steps.prefill[rows.stop] - steps.prefill[rows.start]
    decode = steps.decode[rows.stop] - steps.decode[rows.start]
    tenant = str(segment["tenant"])
    if tenant in steps.tenants:
        _leave_own_rest(prefill, decode, steps.tenants.index(tenant), segment)
    yield from _named(steps, "prefill", prefill)
    yield from _named(steps, "decode", decode)


def _queued(segment: dict[str, object], steps: Steps, rows: slice) -> Iterator[tuple[str, str, float]]:
    """Step time by holder, and to the tenant itself where its own cap kept it out."""
    first = rows.start
    length = steps.end[first] - steps.start[first]
    passed = np.clip(int(str(segment["start_ns"])) - steps.start[first], 0, length)
    waited = steps.waited[rows.stop] - steps.waited[first]
    capped = float(steps.waited_for_cap[rows.stop, 0] - steps.waited_for_cap[first, 0])
    # Of the step in flight at arrival only the rest was waited; its batch was made before, so no cap kept this one out of it.
    if passed and steps.capped[first]:
        capped -= float(length)
        waited = waited + steps.held[first] * (length - passed)
    else:
        waited = waited - steps.held[first] * passed
    yield from _named(steps, "queue", waited)
    if capped > 0:
        yield str(segment["tenant"]), "queue", capped


def _leave_own_rest(prefill: Floats, decode: Floats, own: int, segment: dict[str, object]) -> None:
    """What the others did is theirs; of the request's own tenant only what the ledger's interference leaves over."""
    others = float(prefill.sum() + decode.sum() - prefill[own] - decode[own])
    rest = max(0.0, float(str(segment["interference_ns"])) - others)
    total = float(prefill[own] + decode[own])
    scale = rest / total if total else 0.0
    prefill[own] *= scale
    decode[own] *= scale


def _named(steps: Steps, mechanism: str, values: Floats) -> Iterator[tuple[str, str, float]]:
    for at in np.flatnonzero(values > 0):
        yield steps.tenants[at], mechanism, float(values[at])
