"""The report as an Excel workbook. Every amount goes into its cell as it stands in the ledger; only its format rounds it."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from io import BytesIO

import polars as pl
from xlsxwriter.workbook import Workbook

from costspan_analytics.audit import MONEY_LIMIT, TIME_LIMIT
from costspan_analytics.palette import USEFUL, WASTED
from costspan_analytics.render import percent, usd
from costspan_analytics.report.closing import moment
from costspan_analytics.report.sheet import Cell, Column, Kind, Sheet, Styles
from costspan_analytics.report.weekly import Weekly
from costspan_analytics.summary import SHARED
from costspan_analytics.units import RESOLVED, shared_cost

SHEET_ROWS = 1_000_000
"""Postings that fit in one worksheet (Excel has 1,048,576 rows); all of them are in the CSV."""


def workbook(weekly: Weekly) -> bytes:
    """The workbook's bytes."""
    buffer = BytesIO()
    book = Workbook(buffer, {"in_memory": True, "default_date_format": Kind.TIME.value})
    book.set_properties({"title": f"costspan weekly report, {weekly.project}", "comments": weekly.closing.id})
    styles = Styles(book)
    pages = {
        "Summary": _summary,
        "Bill": _bill,
        "Cost by tenant": _tenants,
        "Waste": _waste,
        "Units": _units,
        "Tail": _tail,
        "Postings": _postings,
        "Prices": _prices,
    }
    for name, write in pages.items():
        sheet = Sheet(book, styles, name)
        write(sheet, weekly)
        sheet.close()
    book.close()
    return buffer.getvalue()


def _summary(sheet: Sheet, weekly: Weekly) -> None:
    time, money = weekly.audit.time, weekly.audit.money
    sheet.heading(f"Weekly report: {weekly.project}")
    sheet.note(f"{moment(weekly.window.since)} up to {moment(weekly.window.until)}; closing {weekly.closing.id}")
    sheet.gap()
    sheet.heading("The two laws")
    sheet.verdict(
        "time",
        f"phases add up to wall time: unaccounted {percent(time['unaccounted_share_p99'])} at p99 (limit {TIME_LIMIT:.0%}), "
        f"{time['negative_phases']} negative phases, {time['requests']} requests, {time['aborted']} aborted",
        time["holds"],
    )
    sheet.verdict(
        "money",
        f"postings add up to the bill: unexplained {usd(money['unexplained_usd'])}, "
        f"line by line {percent(money['unexplained_share'])} of the bill (limit {MONEY_LIMIT:.1%})",
        money["holds"],
    )
    sheet.gap()
    sheet.heading("Where the money went")
    bill = weekly.book.bill
    law: list[list[Cell]] = [[name, amount, amount / bill if bill else None] for name, amount in weekly.law]
    sheet.table(
        [Column("what"), Column("US dollars", Kind.USD), Column("share of the bill", Kind.SHARE)], law, last_is_total=True
    )
    sheet.gap()
    sheet.heading("How long requests took")
    sheet.table(
        [Column("quantile"), Column("ms", Kind.MS), Column("from, 95 %", Kind.MS), Column("to, 95 %", Kind.MS)],
        [[f"p{row['q'] * 100:g}", row["ms"], row["low_ms"], row["high_ms"]] for row in weekly.tail["quantiles"]],
    )


def _bill(sheet: Sheet, weekly: Weekly) -> None:
    sheet.heading("The bill, line by line")
    sheet.table(
        [
            Column("what is billed"),
            Column("billed by"),
            Column("quantity billed", Kind.QUANTITY),
            Column("bill", Kind.USD, summed=True),
            Column("posted", Kind.USD, summed=True),
            Column("unexplained", Kind.USD, summed=True),
        ],
        [[line.sku, line.source, line.quantity, line.bill, line.posted, line.unexplained] for line in weekly.book.lines],
    )
    for sku in weekly.audit.money["unpriced"]:
        sheet.note(f"No price for {sku}: add it to the price book.")


def _tenants(sheet: Sheet, weekly: Weekly) -> None:
    sheet.heading("Cost by tenant")
    columns = [
        Column("tenant"),
        Column("cost", Kind.USD, summed=True),
        Column("of it waste", Kind.USD, summed=True),
        Column("share of it waste", Kind.SHARE),
        Column("postings", Kind.COUNT, summed=True),
    ]
    rows: list[list[Cell]] = [
        [row["tenant"] or SHARED, row["amount"], row["waste"], _share(row["waste"], row["amount"]), row["postings"]]
        for row in weekly.tenants.iter_rows(named=True)
    ]
    sheet.table(columns, rows)


def _waste(sheet: Sheet, weekly: Weekly) -> None:
    sheet.heading("Waste: money that no user got anything for")
    columns = [
        Column("category"),
        Column("cost", Kind.USD, summed=True),
        Column("share of the bill", Kind.SHARE),
        Column("device hours", Kind.QUANTITY, summed=True),
        Column("tokens", Kind.COUNT),
    ]
    rows: list[list[Cell]] = [
        [row["category"], row["amount"], _share(row["amount"], weekly.book.bill), row["quantity"], row["tokens"]]
        for row in weekly.waste.iter_rows(named=True)
    ]
    sheet.table(columns, rows)


def _units(sheet: Sheet, weekly: Weekly) -> None:
    sheet.heading("What an outcome cost")
    sheet.note(f"A resolved one carries the cost of those that were not. No unit pays {usd(float(shared_cost(weekly.book)))}.")
    columns = [
        Column("unit"),
        Column("tenant"),
        Column("units", Kind.COUNT, summed=True),
        Column("resolved", Kind.COUNT, summed=True),
        Column("cost", Kind.USD, summed=True),
        Column("of it waste", Kind.USD, summed=True),
        Column("cost of a resolved one", Kind.USD),
        Column("worth", Kind.USD, summed=True),
    ]
    names = ("unit_kind", "tenant", "units", RESOLVED, "cost", "waste", "cost_per_resolved", "value")
    sheet.table(columns, [[row[name] for name in names] for row in weekly.units])


def _tail(sheet: Sheet, weekly: Weekly) -> None:
    tail = weekly.tail
    sheet.heading("Where slow requests spend their time")
    sheet.note(
        f"Mean of all {tail['requests']} requests beside that of the slowest {1 - tail['level']:.0%} ({tail['tail_requests']})."
    )
    phases: list[list[Cell]] = [[row["phase"], row["mean_ms"], row["tail_ms"]] for row in tail["phases"]]
    sheet.table([Column("phase"), Column("all, ms", Kind.MS, summed=True), Column("slowest, ms", Kind.MS, summed=True)], phases)
    sheet.gap()
    sheet.heading("Who delayed the slowest")
    sheet.table(
        [Column("delayed"), Column("by"), Column("how"), Column("ms", Kind.MS)],
        [[row["tenant"], row["culprit"], row["mechanism"], row["ms"]] for row in tail["blame"]],
    )
    if tail["blame"]:
        sheet.bars(3, len(tail["blame"]), WASTED)
    sheet.gap()
    sheet.heading("The slowest")
    sheet.table(
        [Column("call"), Column("tenant"), Column("outcome"), Column("ms", Kind.MS)],
        [[row["span_id"], row["tenant"], row["outcome"], row["ms"]] for row in tail["slowest"]],
    )
    if tail["slowest"]:
        sheet.bars(3, len(tail["slowest"]), USEFUL)


_POSTING_KINDS = {
    "quantity": Kind.QUANTITY,
    "rate": Kind.EXACT_USD,
    "amount": Kind.EXACT_USD,
}


def _postings(sheet: Sheet, weekly: Weekly) -> None:
    frame = weekly.closing.frame.drop("project", "closing")
    shown = frame.head(SHEET_ROWS)
    sheet.heading("The cost ledger, posting by posting")
    if shown.height < frame.height:
        sheet.note(f"The first {shown.height:,} of {frame.height:,} postings: all of them are in the CSV beside this workbook.")
    columns = [
        Column("time (UTC)", Kind.TIME),
        *(Column(name, _POSTING_KINDS.get(name, Kind.TEXT), summed=name == "amount") for name in shown.columns[1:]),
    ]
    rows = [[_time(at_ns), *cells] for at_ns, *cells in shown.iter_rows()]
    sheet.table(columns, rows, filtered=True)


def _prices(sheet: Sheet, weekly: Weekly) -> None:
    sheet.heading("The price book")
    columns = [
        Column("what"),
        Column("one is a"),
        Column("rate", Kind.EXACT_USD),
        Column("currency"),
        Column("in force from (UTC)", Kind.TIME),
        Column("source"),
        Column("version"),
    ]
    prices = weekly.prices.select("sku", "unit", pl.col("rate"), "currency", "from_ns", "source", "version")
    rows: list[list[Cell]] = [
        [sku, unit, Decimal(rate), currency, _time(from_ns), source, version]
        for sku, unit, rate, currency, from_ns, source, version in prices.iter_rows()
    ]
    sheet.table(columns, rows)


def _time(at_ns: int) -> datetime:
    return datetime.fromtimestamp(at_ns / 1e9, UTC)


def _share(part: Decimal, whole: Decimal) -> Decimal | None:
    return part / whole if whole else None
