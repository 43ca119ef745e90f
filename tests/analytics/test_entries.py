"""Prices and invoices that a person enters, against a real store."""

from __future__ import annotations

import json

import pytest

from costspan import cli as front_door
from costspan_analytics.book import PriceBook
from costspan_analytics.entries import invoices, prices
from costspan_analytics.store import Store
from tests.analytics.conftest import Sample

HOUR = 3_600_000_000_000


@pytest.fixture
def where(sample: Sample) -> list[str]:
    return ["--store", sample.store, "--project", "entries"]


def test_a_price_holds_from_its_date_and_the_earlier_one_before(
    sample: Sample, where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for rate, begins in (("4.00", "2026-01-01"), ("3.50", "2026-06-01")):
        assert prices(["gpu_hour.h200", rate, "--unit", "hour", "--from", begins, "--source", "contract 7", *where]) == 0
    capsys.readouterr()
    assert prices([*where, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["prices"]
    assert [(row["rate"], row["from"]) for row in listed] == [
        ("4", "2026-01-01T00:00:00Z"),
        ("3.5", "2026-06-01T00:00:00Z"),
    ]
    book = PriceBook(Store(sample.store, "entries").frame("prices"))
    june = 1_780_272_000_000_000_000
    found = [book.at("gpu_hour.h200", at) for at in (june - 1, june)]
    assert [str(price.rate) for price in found if price] == ["4", "3.5"]


def test_an_invoice_is_billed_for_its_period_and_replaced_by_its_number(
    sample: Sample, where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    period = ["--since", "2026-03-01", "--until", "2026-04-01"]
    for amount in ("10.00", "12.50"):
        assert invoices(["reranks", amount, "--id", "R-1", "--vendor", "Plumb", *period, *where]) == 0
    rows = Store(sample.store, "entries").frame("invoices")
    assert rows.select("invoice_id", "vendor", "amount").rows() == [("R-1", "Plumb", "12.5")]
    assert "R-1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["prices", "gpu_hour.h200"], "A price needs a rate"),
        (["prices", "gpu_hour.h200", "four"], "is not an amount of money"),
        (["prices", "gpu_hour.h200", "-1"], "is not an amount of money"),
        (["invoices", "reranks", "3.00"], "An invoice needs AMOUNT, --id, --since and --until"),
    ],
)
def test_half_an_entry_is_refused_and_nothing_is_entered(
    sample: Sample,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["costspan", *arguments, "--store", sample.store, "--project", "refused"])
    status: object
    try:
        status = front_door.main()
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert sentence in capsys.readouterr().err
    assert Store(sample.store, "refused").frame("prices").is_empty()
