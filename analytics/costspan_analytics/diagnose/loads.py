"""How much each tenant asked for, and whether it was more than usual: more requests, larger ones, less found in the cache."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from costspan.semconv import Cause
from costspan_analytics.store import Window
from costspan_analytics.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Growth:
    """How a tenant's load grew.

    Attributes:
        share: Of its load in a window, what is more than usual; from 0 to 1.
        cause: What grew most: the number of its requests, their size, or what of them was not in the cache.
    """

    share: float
    cause: Cause


@dataclass(frozen=True)
class Loads:
    """Engine requests with the work that they brought.

    Attributes:
        requests: Columns ``tenant, since, until`` (when it was there), ``work`` (its engine time at the engine's usual pace),
            ``tokens`` (of prompt and answer) and ``computed`` (those of them that were not in the cache).
    """

    requests: pl.DataFrame

    @classmethod
    def of(cls, timeline: Timeline, segments: pl.DataFrame) -> Loads:
        """Those of the window.

        Args:
            timeline: The window's calls.
            segments: Those of :class:`~costspan_analytics.diagnose.components.Components`.
        """
        late = segments.group_by("engine", "request_id").agg(
            late=(pl.col("late_ns").sum() / pl.max_horizontal(pl.col("duration_ns").sum(), 1)).clip(0, 1)
        )
        tokens = pl.col("prompt_tokens").cast(pl.Int64) + pl.col("output_tokens")
        requests = timeline.attempts.join(late, on=["engine", "request_id"], how="left").select(
            "tenant",
            since="received_ns",
            until="removed_ns",
            work=pl.col("cost_ns") * (1 - pl.col("late").fill_null(0)),
            tokens=tokens,
            computed=tokens - pl.col("cached_tokens"),
        )
        return cls(requests)

    def growth(self, tenant: str, window: Window) -> Growth:
        """How a tenant's load in a window differs from its load outside of it."""
        own = self.requests.filter(pl.col("tenant") == tenant)
        there = (pl.col("since") < window.until) & (pl.col("until") > window.since)
        now, then = own.filter(there), own.filter(~there)
        if now.is_empty():
            return Growth(0.0, Cause.QUEUE_SURGE)
        if then.is_empty():
            return Growth(1.0, Cause.QUEUE_SURGE)
        stay = _mean(then.select((pl.col("until") - pl.col("since")).alias("stay")), "stay")
        length = window.until - window.since
        outside = max(1.0, float(self._length - length))
        expected = then.height / outside * (length + stay)
        many = now.height / expected
        large = _mean(now, "tokens") / max(1.0, _mean(then, "tokens"))
        cold = _mean(now, "computed") / max(1.0, _mean(then, "computed")) / large
        grown = many * _mean(now, "work") / max(1.0, _mean(then, "work"))
        causes = {Cause.QUEUE_SURGE: many, Cause.HEAD_OF_LINE: large, Cause.COLD_CACHE: cold}
        return Growth(max(0.0, 1 - 1 / grown) if grown else 0.0, max(causes, key=lambda cause: causes[cause]))

    @property
    def _length(self) -> int:
        first, last = self.requests.select(pl.col("since").min(), pl.col("until").max()).row(0)
        return int(last - first)


def _mean(requests: pl.DataFrame, column: str) -> float:
    mean = requests[column].mean()
    return mean if isinstance(mean, float) else 0.0
