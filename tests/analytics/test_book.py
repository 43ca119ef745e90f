"""Prices are effective-dated, device hours are billed once, and usage without a price shouts."""

from __future__ import annotations

from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costspan_analytics.book import Book, Posting, Price, PriceBook, device_hours
from costspan_analytics.errors import AnalyticsError

HOUR = 3_600_000_000_000


def book(*rows: tuple[str, str, int]) -> PriceBook:
    return PriceBook(pl.DataFrame([price(*row) for row in rows]))


def price(sku: str, rate: str, at: int, currency: str = "USD") -> dict[str, object]:
    return {"sku": sku, "unit": "hour", "rate": rate, "currency": currency, "from_ns": at, "source": "list", "version": "1"}


def test_the_price_in_force_at_the_moment_holds() -> None:
    prices = book(("gpu", "4.00", 100), ("gpu", "3.00", 200))
    assert prices.at("gpu", 99) is None
    assert [found.rate for at in (100, 199, 200) if (found := prices.at("gpu", at))] == [4, 4, 3]
    assert prices.at("tpu", 200) is None


def test_another_currency_is_refused_with_what_to_do() -> None:
    with pytest.raises(AnalyticsError, match="enter it in USD"):
        PriceBook(pl.DataFrame([price("gpu", "4", 0, "EUR")]))


def test_usage_without_a_price_is_no_money() -> None:
    posting = Posting(0, "sku", "unpriced", "", "", "", "", "", Decimal(3), None)
    assert posting.amount == 0
    priced = Posting(0, "sku", "request", "", "", "", "", "", Decimal(3), Price("sku", "call", Decimal("0.1"), 0, "", ""))
    assert priced.amount == Decimal("0.3")


def test_a_quantity_that_cannot_be_money_is_refused_with_its_source() -> None:
    price = Price("pages", "page", Decimal("0.1"), 0, "", "")
    usual = Posting(0, "pages", "request", "", "", "", "", "span-1", Decimal("12345678901234.123456789012"), price)
    assert usual.amount == Decimal("1234567890123.412345678901")
    absurd = Posting(0, "pages", "request", "", "", "", "", "span-1", Decimal(10) ** 26, price)
    with pytest.raises(AnalyticsError, match=r"span-1 reports 1\.00e"):
        _ = absurd.amount
    unpriced = Posting(0, "pages", "unpriced", "", "", "", "", "span-1", Decimal(10) ** 25, None)
    assert Book([unpriced], {}).frame["quantity"].item() == Decimal(10) ** 25


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 100)), min_size=1, max_size=20))
def test_a_device_that_several_processes_report_is_billed_once(beats: list[tuple[int, int]]) -> None:
    rows = pl.DataFrame(
        [
            {"host": "h", "device": "0", "device_kind": "cpu", "client": str(at), "start_ns": start, "end_ns": start + length}
            for at, (start, length) in enumerate(beats)
        ]
    )
    covered = {at for start, length in beats for at in range(start, start + length)}
    assert sum(hours for _, _, hours in device_hours(rows)) * HOUR == pytest.approx(len(covered))
