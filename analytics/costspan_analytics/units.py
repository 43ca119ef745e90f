"""Unit cost: what one outcome cost, with every attempt, retrieval, rerank and review minute that went into it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import polars as pl

from costspan.semconv import Waste
from costspan_analytics.book import Book
from costspan_analytics.store import Store

RESOLVED = "resolved"
REJECTED = "rejected"
OUTSIDE = "(not in window)"
"""The kind shown for units that cost something in the window, but began before it or have not ended."""
MONEY = pl.Decimal(38, 12)
WASTE = [waste.value for waste in Waste]
RETRIES = [Waste.RETRIED.value, Waste.HEDGED.value]
KEY = ("tenant", "unit_kind", "unit")


def unit_costs(store: Store, book: Book) -> pl.DataFrame:
    """One row a unit, over all its stretches, traces and processes; dearest first.

    ``tenant, unit_kind, unit, feature, status, reason, value_usd, started_ns, ended_ns, decided_ns, cost, waste, margin``.
    Every posting that names a unit is in a row, also where the unit itself is not in the window (:data:`OUTSIDE`).
    """
    units = store.frame("units").with_columns(pl.col("value_usd").cast(MONEY, strict=False))
    costs = posted_to(units, book).group_by(KEY).agg(cost=pl.col("amount").sum(), waste=_where(WASTE).sum())
    return (
        units.join(costs, on=KEY, how="full", coalesce=True)
        .with_columns(pl.col("cost", "waste").fill_null(0))
        .with_columns(margin=_margin())
        .sort("cost", *KEY, descending=[True, False, False, False])
    )


def posted_to(units: pl.DataFrame, book: Book) -> pl.DataFrame:
    """The postings that name a unit, each with the ``unit_kind`` of the row of ``units`` that it is of."""
    only = units.group_by("tenant", "unit").agg(pl.col("unit_kind").unique()).filter(pl.col("unit_kind").list.len() == 1)
    known = units.select(*KEY, known=pl.lit(value=True))
    posted = book.frame.filter(pl.col("unit") != "").join(
        only.select("tenant", "unit", only=pl.col("unit_kind").list.first()), on=["tenant", "unit"], how="left"
    )
    named = posted.with_columns(unit_kind=pl.when(pl.col("unit_kind") == "").then("only").otherwise("unit_kind"))
    return (
        named.join(known, on=KEY, how="left")
        .with_columns(unit_kind=pl.when("known").then("unit_kind").otherwise(pl.lit(OUTSIDE)))
        .drop("only", "known")
    )


def spending(store: Store, book: Book) -> pl.DataFrame:
    """What units spent their money on: a row for each unit and kind of operation, ``useful``, ``retries`` and ``waste``.

    The retries are in the waste; useful and waste add up to what the unit cost.
    """
    useful = pl.when(~pl.col("category").is_in(WASTE)).then("amount").otherwise(pl.lit(0, MONEY))
    return (
        posted_to(store.frame("units"), book)
        .group_by(*KEY, "kind")
        .agg(useful=useful.sum(), retries=_where(RETRIES).sum(), waste=_where(WASTE).sum())
        .sort(*KEY, "useful", "kind", descending=[False, False, False, True, False])
    )


def _where(categories: list[str]) -> pl.Expr:
    return pl.when(pl.col("category").is_in(categories)).then("amount").otherwise(pl.lit(0, MONEY))


def _margin() -> pl.Expr:
    """What a unit earned, less what it cost; null while it is open, and where nobody said what it is worth."""
    earned = pl.when(pl.col("status") == RESOLVED).then("value_usd").when(pl.col("status") == REJECTED).then(pl.lit(0, MONEY))
    return earned - pl.col("cost")


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
