"""``costspan prices`` and ``costspan invoices``: what finance enters by hand, and sees again.

A price is never changed: a new one with a later date takes over from it, so a closed period stays as it was.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import polars as pl

from costspan_analytics import render
from costspan_analytics.book import CURRENCY, SCALE
from costspan_analytics.cli import open_store, parser
from costspan_analytics.errors import AnalyticsError
from costspan_analytics.report.closing import moment
from costspan_analytics.store import Store, Window

MONEY = pl.Decimal(38, 12)


def prices(argv: list[str]) -> int:
    """The price book: list it, or enter a price from a date on."""
    made = parser("prices", "List the price book; with SKU and RATE, enter a price.")
    made.add_argument("sku", nargs="?", help="what it is for: gpu_hour.<device kind>, or a quantity that your app reports")
    made.add_argument("rate", nargs="?", type=_amount, help=f"{CURRENCY} for one")
    made.add_argument("--unit", default="", help="what one is: hour, call, minute")
    made.add_argument(
        "--from",
        dest="begins",
        metavar="TIME",
        help="in force from then on (default: always for a first price, else now)",
    )
    made.add_argument("--source", default="entered by hand", help="who says so: a contract, a price list")
    made.add_argument("--version", default="", help="which edition of the source")
    options = made.parse_args(argv)
    store = open_store(options)
    if options.sku:
        if options.rate is None:
            raise AnalyticsError(f"A price needs a rate: costspan prices {options.sku} 4.00 --unit hour.")
        begins = _begins(store, options)
        store.insert("prices", _price_row(store, options, begins), token=f"price/{store.project}/{options.sku}/{begins}")
    rows = store.frame("prices").with_columns(pl.col("from_ns").map_elements(moment, pl.String).alias("from")).drop("from_ns")
    _show(options, "Prices", rows, ("sku", "rate", "unit", "currency", "from", "source", "version"))
    return 0


def invoices(argv: list[str]) -> int:
    """Bills that are not device hours: list them, or enter one."""
    made = parser("invoices", "List invoices; with SKU and AMOUNT, enter one for the period from --since to --until.")
    made.add_argument("sku", nargs="?", help="what it bills: a quantity that your app reports")
    made.add_argument("amount", nargs="?", type=_amount, help=f"its total in {CURRENCY}")
    made.add_argument("--quantity", type=_amount, default=Decimal(0), help="how many it bills")
    made.add_argument("--vendor", default="", help="who sent it")
    made.add_argument("--id", default="", help="its number; the same number again replaces it")
    options = made.parse_args(argv)
    store = open_store(options)
    if options.sku:
        if options.amount is None or not (options.since and options.until and options.id):
            raise AnalyticsError("An invoice needs AMOUNT, --id, --since and --until: its number and the period that it bills.")
        row = _invoice_row(store, options)
        store.insert("invoices", row, token=f"invoice/{store.project}/{options.id}/{options.sku}/{options.amount}")
    rows = store.frame("invoices").with_columns(
        pl.col("start_ns", "end_ns").map_elements(moment, pl.String).name.map(lambda name: name.removesuffix("_ns"))
    )
    _show(options, "Invoices", rows, ("invoice_id", "vendor", "sku", "amount", "quantity", "start", "end"))
    return 0


def _price_row(store: Store, options: argparse.Namespace, begins: int) -> pl.DataFrame:
    row: dict[str, Any] = {
        "project": store.project,
        "sku": options.sku,
        "unit": options.unit,
        "rate": options.rate,
        "currency": CURRENCY,
        "effective_from": datetime.fromtimestamp(begins / 1e9, UTC),
        "source": options.source,
        "version": options.version,
    }
    return pl.DataFrame([row], schema_overrides={"rate": MONEY, "effective_from": pl.Datetime("ms", "UTC")})


def _invoice_row(store: Store, options: argparse.Namespace) -> pl.DataFrame:
    row: dict[str, Any] = {
        "project": store.project,
        "invoice_id": options.id,
        "vendor": options.vendor,
        "sku": options.sku,
        "start_ns": store.window.since,
        "end_ns": store.window.until,
        "quantity": options.quantity,
        "amount": options.amount,
        "currency": CURRENCY,
        "source": "entered by hand",
    }
    return pl.DataFrame([row], schema_overrides={"quantity": MONEY, "amount": MONEY})


def _begins(store: Store, options: argparse.Namespace) -> int:
    """When a price begins to hold: the first one of a sku also for what was used before somebody thought of entering it."""
    if options.begins:
        return Window.parse(options.begins, None).since
    known = store.frame("prices").filter(pl.col("sku") == options.sku)
    return 0 if known.is_empty() else int(datetime.now(UTC).timestamp() * 1e9)


def _amount(text: str) -> Decimal:
    try:
        amount = Decimal(text).quantize(SCALE)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of money: write digits such as 4.00")
    return amount


def _show(options: argparse.Namespace, title: str, rows: pl.DataFrame, columns: tuple[str, ...]) -> None:
    if options.json:
        print(json.dumps({title.lower(): rows.select(columns).to_dicts()}, indent=2))
        return
    made = render.table(title, *columns, right=len(columns))
    for row in rows.select(columns).iter_rows():
        render.add(made, *(str(value) for value in row))
    render.show(made)
