"""Unit cost: what one outcome cost, with every attempt, retrieval, rerank and review minute that went into it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import polars as pl

from costspan_analytics.book import Book
from costspan_analytics.parts import REQUEST
from costspan_analytics.store import Store

RESOLVED = "resolved"
OUTSIDE = "(not in window)"
"""The kind shown for units that cost something in the window, but began before it or have not ended."""
MONEY = pl.Decimal(38, 12)


def unit_costs(store: Store, book: Book) -> pl.DataFrame:
    """One row a unit: ``unit, unit_kind, tenant, feature, status, value_usd, cost, waste``, dearest first.

    Every posting that names a unit is in a row, also where the unit itself is not in the window (:data:`OUTSIDE`).
    """
    posted = book.frame.filter(pl.col("unit") != "")
    wasted = pl.when(pl.col("category") == REQUEST).then(pl.lit(0, MONEY)).otherwise("amount")
    costs = (
        posted.with_columns(wasted=wasted)
        .group_by("tenant", "unit")
        .agg(cost=pl.col("amount").sum(), waste=pl.col("wasted").sum())
    )
    units = store.frame("units").with_columns(pl.col("value_usd").cast(MONEY, strict=False))
    return (
        units.join(costs, on=["tenant", "unit"], how="full", coalesce=True)
        .with_columns(pl.col("unit_kind").fill_null(OUTSIDE), pl.col("cost", "waste").fill_null(0))
        .sort("cost", "unit", descending=[True, False])
    )


def shared_cost(book: Book) -> Decimal:
    """What no unit of work pays: idle, host gaps, loading, and calls made for no unit."""
    return sum((posting.amount for posting in book.postings if not posting.unit), Decimal(0))


def total(amounts: pl.Series) -> Decimal:
    """The exact sum of a Decimal column; polars' own is typed as any number."""
    return sum((amount for amount in amounts if amount is not None), Decimal(0))


def unit_summary(costs: pl.DataFrame) -> list[dict[str, Any]]:
    """By kind and tenant: how many units, how many resolved, and what a resolved one cost.

    The cost of those that were not resolved is in it: an outcome's price is everything spent, over what was achieved.
    """
    rows = []
    for (kind, tenant), group in sorted(costs.partition_by("unit_kind", "tenant", as_dict=True).items()):
        resolved = group.filter(pl.col("status") == RESOLVED).height
        spent = total(group["cost"])
        rows.append(
            {
                "unit_kind": kind,
                "tenant": tenant,
                "units": group.height,
                RESOLVED: resolved,
                "cost": spent,
                "waste": total(group["waste"]),
                "cost_per_resolved": spent / resolved if resolved else None,
                "value": total(group["value_usd"]),
            }
        )
    return rows
