"""The answers of ``cost``, ``waste`` and ``tail`` as plain dictionaries: one shape for ``--json``, reports and dashboards."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import polars as pl

from costspan.semconv import SKU_GPU_HOUR, Waste
from costspan_analytics.audit import dollars
from costspan_analytics.book import UNPRICED, Book
from costspan_analytics.errors import AnalyticsError
from costspan_analytics.store import Store
from costspan_analytics.tail import MS, Tail
from costspan_analytics.units import KEY, shared_cost, spending, total, unit_costs, unit_summary

DIMENSIONS = ("tenant", "feature", "unit", "kind", "adapter", "sku", "category")
SHARED = "(shared)"
"""Who pays for what no request pays: idle, host gaps, loading."""
OWNERS = {"unit": ("tenant", "unit_kind")}
"""What a name is somebody's own in: two tenants may have a ticket 17, and one of them a document 17."""
SHOWN_SLOW = 10
NS_PER_HOUR = 3.6e12


def cost_summary(book: Book, by: str = "tenant") -> dict[str, Any]:
    """What was spent, by one of :data:`DIMENSIONS`; waste of a tenant is told apart, and rows add up to ``posted_usd``.

    Raises:
        AnalyticsError: Nothing is posted by that dimension.
    """
    if by not in DIMENSIONS:
        raise AnalyticsError(f"Cost cannot be split by {by!r}: choose one of {', '.join(DIMENSIONS)}.")
    rows = cost_frame(book, by)
    return {
        "by": by,
        "posted_usd": dollars(book.posted),
        "waste_usd": dollars(total(rows["waste"])),
        "bill_usd": dollars(book.bill),
        UNPRICED: book.unpriced,
        "rows": [
            {
                by: row[by] or SHARED,
                **{name: row[name] for name in OWNERS.get(by, ())},
                "usd": dollars(row["amount"]),
                "waste_usd": dollars(row["waste"]),
                "postings": row["postings"],
            }
            for row in rows.iter_rows(named=True)
        ],
    }


def waste_summary(book: Book) -> dict[str, Any]:
    """Money that no user got anything for, by category; ``culprits`` are the tenants that caused it, where one did."""
    rows = waste_frame(book)
    culprits = culprit_frame(book).partition_by("category", as_dict=True)
    wasted = total(rows["amount"])
    return {
        "waste_usd": dollars(wasted),
        "share_of_bill": float(wasted / book.bill) if book.bill else None,
        "rows": [
            {
                "category": row["category"],
                "usd": dollars(row["amount"]),
                "device_ns": round(float(row["quantity"]) * NS_PER_HOUR),
                "tokens": row["tokens"],
                "culprits": [
                    {"tenant": each["culprit"], "usd": dollars(each["amount"])}
                    for each in culprits.get((row["category"],), rows.clear()).iter_rows(named=True)
                ],
            }
            for row in rows.iter_rows(named=True)
        ],
    }


def money_law(book: Book) -> list[tuple[str, Decimal]]:
    """The second law as a sum, exactly: requests, waste, idle and what nothing explains; their total, the bill, comes last."""
    amounts = {row["category"]: row["amount"] for row in waste_frame(book).iter_rows(named=True)}
    wasted, idle = sum(amounts.values(), Decimal(0)), amounts.get(Waste.IDLE.value, Decimal(0))
    return [
        ("requests", book.posted - wasted),
        ("waste", wasted - idle),
        ("idle", idle),
        ("unexplained", book.bill - book.posted),
        ("bill", book.bill),
    ]


def cost_frame(book: Book, by: str) -> pl.DataFrame:
    """What was spent by a dimension, exactly: columns ``by, amount, waste, postings``, dearest first; see :data:`OWNERS`."""
    owners = [pl.when(pl.col(by) != "").then(name).otherwise(pl.lit("")).alias(name) for name in OWNERS.get(by, ())]
    wasted = pl.col("category").is_in([waste.value for waste in Waste])
    zero = pl.lit(0, pl.Decimal(38, 12))
    return (
        book.frame.with_columns(*owners, waste=pl.when(wasted).then("amount").otherwise(zero))
        .group_by(by, *OWNERS.get(by, ()))
        .agg(pl.col("amount").sum(), pl.col("waste").sum(), postings=pl.len())
        .sort(by, *OWNERS.get(by, ()))
        .sort("amount", descending=True, maintain_order=True)
    )


def waste_frame(book: Book) -> pl.DataFrame:
    """What was wasted, exactly: columns ``category, amount, quantity, tokens, requests``, dearest first.

    ``quantity`` is in device hours; what was bought instead, of a provider that charges by the token, has none.
    """
    wasted = book.frame.filter(pl.col("category").is_in([waste.value for waste in Waste]) & (pl.col("quantity") > 0))
    hours = pl.when(pl.col("sku").str.starts_with(f"{SKU_GPU_HOUR}.")).then("quantity").otherwise(pl.lit(0, pl.Decimal(38, 12)))
    return (
        wasted.group_by("category")
        .agg(
            pl.col("amount").sum(),
            hours.sum().alias("quantity"),
            pl.col("tokens").sum(),
            requests=pl.col("trace_id").n_unique(),
        )
        .sort("amount", "category", descending=[True, False])
    )


def culprit_frame(book: Book) -> pl.DataFrame:
    """What tenants made others compute for nothing, exactly: columns ``category, culprit, amount``, dearest first."""
    return (
        book.frame.filter(pl.col("culprit") != "")
        .group_by("category", "culprit")
        .agg(pl.col("amount").sum())
        .sort("amount", "culprit", descending=[True, False])
    )


def tail_summary(tail: Tail) -> dict[str, Any]:
    """Quantiles with their intervals, expected shortfall by phase, and who delayed whom; milliseconds."""
    return {
        "requests": tail.requests.height,
        "level": tail.level,
        "tail_requests": tail.slow.height,
        "quantiles": [
            {"q": quantile.q, "ms": quantile.value, "low_ms": quantile.low, "high_ms": quantile.high}
            for quantile in tail.quantiles()
        ],
        "phases": [{"phase": phase, "mean_ms": mean, "tail_ms": slow} for phase, mean, slow in tail.phases()],
        "blame": [
            {"tenant": victim, "culprit": culprit, "mechanism": how, "ms": ms} for victim, culprit, how, ms in tail.culprits()
        ],
        "model_error": tail.model_error,
        "tenants": [
            {"tenant": tenant, "requests": count, "median_ms": median, "share_of_tail": share}
            for tenant, count, median, share in tail.tenants()
        ],
        "slowest": [
            {"span_id": row["span_id"], "tenant": row["tenant"], "outcome": row["outcome"], "ms": row["wall_ns"] / MS}
            for row in tail.slow.sort("wall_ns", descending=True).head(SHOWN_SLOW).iter_rows(named=True)
        ],
    }


def units_summary(store: Store, book: Book) -> dict[str, Any]:
    """Unit cost by kind and tenant, beside what no unit pays."""
    rows = unit_summary(unit_costs(store, book))
    return {
        "rows": [
            {
                "unit_kind": row["unit_kind"],
                "tenant": row["tenant"],
                "units": row["units"],
                "resolved": row["resolved"],
                "cost_usd": dollars(row["cost"]),
                "waste_usd": dollars(row["waste"]),
                "usd_per_resolved": dollars(row["cost_per_resolved"]) if row["cost_per_resolved"] is not None else None,
                "value_usd": dollars(row["value"]),
            }
            for row in rows
        ],
        "shared_usd": dollars(shared_cost(book)),
    }


def each_unit(store: Store, book: Book, unit: str = "") -> list[dict[str, Any]]:
    """Every unit, or those of one id: how it stands, what it cost and earned. What it ``spent`` and its waste are the cost."""
    rows = unit_costs(store, book)
    if unit:
        rows = rows.filter(pl.col("unit") == unit)
    spent = spending(store, book).partition_by(*KEY, as_dict=True)
    return [_unit(row, spent.get(tuple(row[name] for name in KEY))) for row in rows.iter_rows(named=True)]


def _unit(row: dict[str, Any], spent: pl.DataFrame | None) -> dict[str, Any]:
    until = row["decided_ns"] or row["ended_ns"]
    return {
        **{name: row[name] for name in (*KEY, "feature", "status", "reason", "started_ns", "decided_ns")},
        "took_ns": None if until is None else max(0, until - row["started_ns"]),
        "cost_usd": dollars(row["cost"]),
        "spent": {}
        if spent is None
        else {each["kind"]: dollars(each["useful"]) for each in spent.iter_rows(named=True) if each["useful"]},
        "retries_usd": dollars(Decimal(0) if spent is None else total(spent["retries"])),
        "waste_usd": dollars(row["waste"]),
        "value_usd": None if row["value_usd"] is None else dollars(row["value_usd"]),
        "margin_usd": None if row["margin"] is None else dollars(row["margin"]),
    }
