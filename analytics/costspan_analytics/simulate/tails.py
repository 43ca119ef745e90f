"""Each tenant's own tail, by phase."""

from __future__ import annotations

from typing import Any

import polars as pl
from rich.console import RenderableType

from costspan_analytics import render
from costspan_analytics.tail import MS, Tail
from costspan_analytics.timeline import PHASES


def tail_by_tenant(tail: Tail) -> list[dict[str, Any]]:
    """Quantiles of each tenant's wall time, and the mean of each phase over its own slowest: they add up to their mean."""
    return [
        _one(str(tenant), own, tail.level)
        for (tenant,), own in sorted(tail.requests.partition_by("tenant", as_dict=True).items())
    ]


def _one(tenant: str, own: pl.DataFrame, level: float) -> dict[str, Any]:
    wall = pl.col("wall_ns")
    slow = own.filter(wall >= wall.quantile(level, "higher"))
    quantiles = own.select(p50=wall.quantile(0.5, "higher") / MS, p99=wall.quantile(0.99, "higher") / MS).row(0)
    means = slow.select(pl.col(phase).mean() / MS for phase in PHASES).row(0)
    return {
        "tenant": tenant,
        "requests": own.height,
        "p50_ms": quantiles[0],
        "p99_ms": quantiles[1],
        "tail_ms": dict(zip(PHASES, means, strict=True)),
    }


def tenants_table(rows: list[dict[str, Any]]) -> RenderableType:
    """One row a tenant; phases that nobody spent a tenth of a millisecond in are left out."""
    phases = [phase for phase in PHASES if any(abs(row["tail_ms"][phase]) >= 0.1 for row in rows)]
    made = render.table("Tail: ms by phase of each tenant's slowest", "tenant", "requests", "p50", "p99", *phases)
    for row in rows:
        spent = [row["tail_ms"][phase] for phase in phases]
        render.add(
            made, row["tenant"], f"{row['requests']:,}", *(f"{ms:,.1f}" for ms in (row["p50_ms"], row["p99_ms"], *spent))
        )
    return made
