from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from costspan_demo.bill import _INVOICES, _PRICES, amount_due, invoice_rows, price_rows
from costspan_demo.prices import PRICE_BOOK, RETRIEVAL_QUERIES, REVIEW_MINUTES, rate_of
from costspan_demo.review import Reviewers, fault_of
from costspan_demo.tickets import Ticket
from costspan_demo.vendors import Meter

TENTHS = st.integers(1, 1000).map(lambda tenths: Decimal(tenths) / 10)


def ticket(**changes: object) -> Ticket:
    fields = {"number": 1, "at_s": 0.0, "tenant": "acme", "feature": "chat", "topic": 0, "handbook": 0, "handbook_tokens": 0}
    return Ticket(**{**fields, "prompt_tokens": 100, "output_tokens": 10, **changes})  # type: ignore[arg-type]  # test data


@given(st.lists(TENTHS, min_size=1, max_size=50))
@settings(max_examples=30)
def test_an_invoice_is_exact(minutes: list[Decimal]) -> None:
    meter = Meter("agency", REVIEW_MINUTES)
    for spent in minutes:
        meter.count(spent)
    [row] = invoice_rows("demo", [meter])
    assert row["quantity"] == sum(minutes)
    assert row["amount"] == sum(minutes) * Decimal("0.60")
    table = pa.Table.from_pylist([row], pa.schema(_INVOICES))
    assert table["amount"][0].as_py() == row["amount"]


def test_an_unused_vendor_sends_no_invoice() -> None:
    assert invoice_rows("demo", [Meter("agency", REVIEW_MINUTES)]) == []


def test_the_window_of_an_invoice_holds_its_last_use() -> None:
    meter = Meter("search", RETRIEVAL_QUERIES)
    meter.count()
    [row] = invoice_rows("demo", [meter])
    assert row["start_ns"] == meter.first_ns
    assert row["end_ns"] == meter.last_ns + 1
    assert amount_due(meter) == Decimal("0.0005")


def test_the_price_book_survives_arrow() -> None:
    table = pa.Table.from_pylist(price_rows("demo"), pa.schema(_PRICES))
    assert table["rate"].to_pylist() == [price.rate for price in PRICE_BOOK]
    assert [rate_of(price.sku) for price in PRICE_BOOK] == table["rate"].to_pylist()


def test_the_time_sheet_holds_what_the_app_was_told() -> None:
    reviewers = Reviewers()
    read = [reviewers.read(ticket(review_minutes=Decimal(minutes))) for minutes in ("0.3", "0", "0.8")]
    assert reviewers.meter.quantity == sum(read) == Decimal("1.1")


def test_the_check_refuses_as_often_as_the_seed_says() -> None:
    once = ticket(rejected_answers=1)
    assert fault_of("words", once, asked=1)
    assert not fault_of("words", once, asked=2)
    assert fault_of("", ticket(), asked=1) == "empty answer"
