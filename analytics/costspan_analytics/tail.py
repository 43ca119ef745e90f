"""Where the time of slow requests goes: expected shortfall by phase, which adds up at any sample size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

from costspan.semconv import Phase
from costspan_analytics.blame import blame, model_error
from costspan_analytics.store import Store
from costspan_analytics.timeline import PHASES, Timeline

QUANTILES = (0.5, 0.9, 0.99)
RESAMPLES = 1000
MS = 1e6


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile of wall time in milliseconds, with its 95 % bootstrap interval."""

    q: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Tail:
    """The requests at or above a quantile, beside all of them.

    Attributes:
        level: The quantile that the tail begins at.
        requests: All calls of the window (rows of ``Timeline.requests``).
        slow: Those in the tail.
        blame: Direct blame for the tail, rows of :func:`costspan_analytics.blame.blame`.
        model_error: How far off the model is that blame rests on.
    """

    level: float
    requests: pl.DataFrame
    slow: pl.DataFrame
    blame: pl.DataFrame
    model_error: dict[str, float]

    @classmethod
    def load(cls, store: Store, timeline: Timeline, level: float) -> Tail:
        """The tail of the window's calls, aborted and timed-out ones included."""
        requests = timeline.requests
        if requests.is_empty():
            return cls(level, requests, requests, blame(store, timeline.segments.clear()), {})
        threshold = requests["wall_ns"].quantile(level, "higher")
        slow = requests.filter(pl.col("wall_ns") >= threshold)
        keys = timeline.waited_for.filter(pl.col("call_id").is_in(slow["span_id"].implode())).select("engine", "request_id")
        segments = timeline.segments.join(keys, on=["engine", "request_id"])
        return cls(level, requests, slow, blame(store, segments), model_error(store))

    def quantiles(self) -> list[Quantile]:
        """Wall time at :data:`QUANTILES`; exact, with intervals from :data:`RESAMPLES` resamples of a fixed seed.

        The k-th smallest of n values drawn again is the sorted values' element ⌊n·U⌋, where U, the k-th smallest of n uniform
        draws, is Beta(k, n + 1 - k): so a resample costs one draw, not n.
        """
        wall = np.sort(self.requests["wall_ns"].to_numpy() / MS)
        if not wall.size:
            return []
        rng = np.random.default_rng(0)
        quantiles = []
        for q in QUANTILES:
            rank = math.ceil(q * (wall.size - 1))
            drawn = wall[(rng.beta(rank + 1, wall.size - rank, RESAMPLES) * wall.size).astype(int).clip(max=wall.size - 1)]
            low, high = np.quantile(drawn, (0.025, 0.975))
            quantiles.append(Quantile(q, float(wall[rank]), float(low), float(high)))
        return quantiles

    def phases(self) -> list[tuple[str, float, float]]:
        """(phase, mean ms over all, mean ms over the tail); each column adds up to the mean wall time."""
        return [
            (phase, _mean_ms(self.requests, phase), _mean_ms(self.slow, phase))
            for phase in PHASES
            if phase in self.requests.columns
        ]

    def culprits(self) -> list[tuple[str, str, str, float]]:
        """(victim, culprit, mechanism, ms) over the tail, the largest delay of one tenant by another first."""
        summed = self.blame.group_by("tenant", "culprit", "mechanism").agg(ms=pl.col("ns").sum() / MS)
        return summed.sort(["ms", "tenant", "culprit"], descending=[True, False, False]).rows()

    def tenants(self) -> list[tuple[str, int, float, float]]:
        """(tenant, requests, median ms, share of the tail's requests), slowest first."""
        slow = self.slow.group_by("tenant").agg(slow=pl.len())
        table = (
            self.requests.group_by("tenant")
            .agg(n=pl.len(), ms=pl.col("wall_ns").median() / MS)
            .join(slow, on="tenant", how="left")
        )
        share = pl.col("slow").fill_null(0) / max(1, self.slow.height)
        return table.select("tenant", "n", "ms", share.alias("share")).sort("share", descending=True).rows()


def _mean_ms(requests: pl.DataFrame, phase: str) -> float:
    return float(requests[phase].mean() or 0.0) / MS  # type: ignore[arg-type]


def unaccounted_share(requests: pl.DataFrame) -> pl.Series:
    """How much of each request's wall time no phase explains, as a share of it."""
    return (requests[Phase.UNACCOUNTED.value].abs() / requests["wall_ns"].clip(lower_bound=1)).alias("share")
