"""What a tenant's presence did to the others: a replay with it, less a replay without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from costspan_analytics.causal.fidelity import METRICS, Fidelity
from costspan_analytics.causal.recording import Recording
from costspan_analytics.causal.rerun import Rerun
from costspan_analytics.errors import ReplayError
from costspan_analytics.tail import MS

Floats = NDArray[np.float64]

STATISTICS: Mapping[str, Callable[[Floats], float]] = {
    "mean": lambda values: float(values.mean()),
    "p99": lambda values: float(np.quantile(values, 0.99)),
}


@dataclass(frozen=True)
class Effect:
    """A cohort's latencies in two replays.

    Attributes:
        culprit: The tenant that is in the first and not in the second.
        with_: ``request_id, tenant, ttft_ns, e2e_ns`` of the cohort's requests with everybody there.
        without: The same requests, in the same order, without the culprit.
        fidelity: How well the first reproduces what was measured.
    """

    culprit: str
    with_: pl.DataFrame
    without: pl.DataFrame
    fidelity: Fidelity

    @property
    def ms(self) -> dict[str, dict[str, float]]:
        """By metric and statistic: how many milliseconds more it was with the culprit there."""
        return named(summary(self.with_) - summary(self.without))


def effect(recording: Recording, culprit: str) -> Effect:
    """What ``culprit`` did to all the others, request by request.

    Raises:
        ReplayError: The recording cannot be replayed, or the culprit asked nothing in it.
    """
    if recording.obstacle:
        raise ReplayError(recording.obstacle)
    if culprit not in recording.tenants:
        raise ReplayError(f"{culprit!r} asked nothing of this engine in the window; {', '.join(recording.tenants)} did.")
    rerun = Rerun(recording)
    everybody = rerun()
    cohort = recording.measured.filter(pl.col("tenant") != culprit)
    with_, without = (of(cohort, run) for run in (everybody, rerun(absent=[culprit])))
    return Effect(culprit, with_, without, Fidelity.of(recording.measured, everybody))


def of(cohort: pl.DataFrame, run: pl.DataFrame) -> pl.DataFrame:
    """What became of the cohort's requests in a run, in the cohort's order.

    They ended well when they were measured, so that none of them leaves before its answer is whole in any run.
    """
    return cohort.select("request_id", "tenant").join(run, on="request_id", maintain_order="left")


def summary(latencies: pl.DataFrame) -> Floats:
    """Nanoseconds by metric and statistic, shape (4,); zeros of nobody."""
    if latencies.is_empty():
        return np.zeros(len(METRICS) * len(STATISTICS))
    columns = [latencies[f"{metric}_ns"].cast(pl.Float64).to_numpy() for metric in METRICS]
    return np.array([at(column) for column in columns for at in STATISTICS.values()])


def named(values: Floats) -> dict[str, dict[str, float]]:
    """A :func:`summary` in milliseconds, with its names."""
    by_metric = zip(METRICS, np.split(values / MS, len(METRICS)), strict=True)
    return {metric: dict(zip(STATISTICS, map(float, each), strict=True)) for metric, each in by_metric}
