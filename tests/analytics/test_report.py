"""The weekly report on a real store: what its files say, and what it closes."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import openpyxl
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl.workbook import Workbook
from openpyxl.worksheet.worksheet import Worksheet
from xlsxwriter.workbook import Workbook as XlsxWriter

from costspan.clock import now_ns
from costspan_analytics.cli import report
from costspan_analytics.errors import NotFoundError, ReportError, StoreError, WindowError
from costspan_analytics.report import Weekly, publish, weekly_window
from costspan_analytics.report import workbook as workbook_module
from costspan_analytics.report.closing import Closing
from costspan_analytics.report.files import Staging
from costspan_analytics.report.page import page
from costspan_analytics.report.sheet import Column, Kind, Sheet, Styles
from costspan_analytics.report.weekly import WEEK_NS
from costspan_analytics.report.workbook import workbook
from costspan_analytics.store import Store
from tests.analytics.conftest import Sample
from tests.analytics.sample_store import fill

SHEETS = ["Summary", "Bill", "Cost by tenant", "Waste", "Units", "Tail", "Postings", "Prices"]
MICRODOLLAR = Decimal("0.000001")


@pytest.fixture(scope="module")
def store(sample: Sample) -> Store:
    return Store(sample.store, "sample", weekly_window(None, None))


@pytest.fixture(scope="module")
def weekly(store: Store) -> Weekly:
    return Weekly.load(store)


@pytest.fixture(scope="module")
def book(weekly: Weekly) -> Workbook:
    return opened(workbook(weekly))


def opened(content: bytes) -> Workbook:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # openpyxl does not read data bars
        return openpyxl.load_workbook(BytesIO(content))


def sheet(book: Workbook, name: str) -> Worksheet:
    found = book[name]
    assert isinstance(found, Worksheet)
    return found


def rows_under(page_: Worksheet, head: str) -> list[dict[str, Any]]:
    """The rows of the table whose first column is named ``head``, up to its total or the next empty row."""
    rows = list(page_.iter_rows(values_only=True))
    at = next(number for number, row in enumerate(rows) if row[0] == head)
    names = [str(name) for name in rows[at] if name is not None]
    found = []
    for row in rows[at + 1 :]:
        if row[0] in (None, "total"):
            break
        found.append(dict(zip(names, row, strict=False)))
    return found


def closings(store: Store) -> dict[str, int]:
    rows = store._client.query("SELECT closing, count() FROM postings WHERE project = 'sample' GROUP BY closing").result_rows
    return {str(name): int(count) for name, count in rows}


# --- the window ------------------------------------------------------------------------------------------------


def test_a_weekly_report_covers_the_seven_days_up_to_now() -> None:
    before = now_ns()
    window = weekly_window(None, None)
    assert before <= window.until <= now_ns()
    assert window.until - window.since == WEEK_NS


def test_either_end_of_the_window_can_be_given() -> None:
    assert weekly_window(None, "2026-01-08").since == weekly_window("2026-01-01", None).since
    assert weekly_window("2026-01-01", "2026-01-03").until == weekly_window(None, "2026-01-03").until


@pytest.mark.parametrize(("since", "until"), [("2999-01-01", None), ("2026-01-02", "2026-01-01"), ("soon", None)])
def test_a_window_that_makes_no_sense_is_refused(since: str, until: str | None) -> None:
    with pytest.raises(WindowError):
        weekly_window(since, until)


# --- the workbook ------------------------------------------------------------------------------------------------


def test_the_workbook_has_its_sheets_and_headers_that_stay(book: Workbook) -> None:
    assert book.sheetnames == SHEETS
    for name in SHEETS[1:]:
        assert sheet(book, name).freeze_panes in {"A3", "A4"}, name


def test_the_postings_sheet_has_every_posting_with_its_price(book: Workbook, weekly: Weekly) -> None:
    rows = rows_under(sheet(book, "Postings"), "time (UTC)")
    assert len(rows) == len(weekly.book.postings) > 100
    for row, amount in zip(rows, weekly.closing.frame["amount"], strict=True):
        assert row["amount"] == float(amount)
        assert row["price_source"] == "sample price list"
        assert row["price_version"] == "2024-01"
        assert row["rate"] > 0
    assert sum(Decimal(str(row["amount"])) for row in rows) == pytest.approx(weekly.book.posted, abs=Decimal("1e-12"))


def test_the_bill_is_line_by_line_with_what_nothing_explains(book: Workbook, sample: Sample) -> None:
    page_ = sheet(book, "Bill")
    rows = rows_under(page_, "what is billed")
    bill, posted = (sum(Decimal(str(row[name])) for row in rows) for name in ("bill", "posted"))
    assert bill == pytest.approx(sample.truth.bill, abs=MICRODOLLAR)
    assert posted == pytest.approx(sample.truth.posted, rel=Decimal("1e-4"))
    for row in rows:
        assert row["unexplained"] == pytest.approx(row["bill"] - row["posted"], abs=1e-15)
    assert page_.cell(3 + len(rows), 6).value == f"=SUM(F3:F{2 + len(rows)})"


def test_money_is_a_number_with_a_money_format(book: Workbook) -> None:
    cell = sheet(book, "Cost by tenant")["B3"]
    assert isinstance(cell.value, float)
    assert cell.number_format.startswith("$#,##0.000000")


def test_tenants_waste_and_law_add_up_to_what_was_posted(book: Workbook, weekly: Weekly) -> None:
    tenants = rows_under(sheet(book, "Cost by tenant"), "tenant")
    assert {row["tenant"] for row in tenants} == {"acme", "globex", "initech", "(shared)"}
    assert sum(row["cost"] for row in tenants) == pytest.approx(float(weekly.book.posted))
    waste = rows_under(sheet(book, "Waste"), "category")
    assert sum(row["of it waste"] for row in tenants) == pytest.approx(sum(row["cost"] for row in waste))
    law = {row["what"]: row["US dollars"] for row in rows_under(sheet(book, "Summary"), "what")}
    assert sum(law.values()) - law["bill"] == pytest.approx(law["bill"])
    assert law["idle"] + law["waste"] == pytest.approx(sum(row["cost"] for row in waste))


def test_units_and_tail_say_what_was_done(book: Workbook, sample: Sample) -> None:
    units = rows_under(sheet(book, "Units"), "unit")
    assert sum(row["units"] for row in units) == sample.truth.units
    assert sum(row["resolved"] for row in units) == sample.truth.resolved
    phases = rows_under(sheet(book, "Tail"), "phase")
    assert {"queue", "prefill", "decode", "unaccounted"} <= {row["phase"] for row in phases}


def test_the_price_book_is_in_it(book: Workbook) -> None:
    prices = {row["what"]: row["rate"] for row in rows_under(sheet(book, "Prices"), "what")}
    assert prices == {"gpu_hour.cpu-sample": 32, "retrieval_queries": 0.0005, "review_minutes": 0.6}


def test_more_postings_than_a_sheet_holds_are_said_to_be_elsewhere(weekly: Weekly, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbook_module, "SHEET_ROWS", 5)
    postings = sheet(opened(workbook(weekly)), "Postings")
    assert len(rows_under(postings, "time (UTC)")) == 5
    assert "all of them are in the CSV" in str(postings["A2"].value)


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_page_stands_alone(weekly: Weekly) -> None:
    text = page(weekly)
    assert not re.search(r"<script|<link|<img|@import|https?:|url\(|javascript:", text)
    assert text.count("✓ holds") == 2
    for word in ("unexplained", "unaccounted", "acme", "globex", "initech", "recomputed_eviction", weekly.closing.id):
        assert word in text


def test_names_from_the_store_are_text_on_the_page(weekly: Weekly) -> None:
    text = page(replace(weekly, project="<script>alert(1)</script>"))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_broken_laws_are_shown(sample: Sample) -> None:
    fill(sample.collector, project="broken", tickets=20, hole_ns=150_000_000, unledgered_ns=4_000_000_000)
    broken = Weekly.load(Store(sample.store, "broken", weekly_window(None, None)))
    assert not broken.audit.time["holds"]
    assert not broken.audit.money["holds"]
    missing = Decimal(4) / 3600 * 32
    assert dict(broken.law)["unexplained"] == pytest.approx(missing, rel=Decimal("0.01"))
    assert page(broken).count("✗ broken") == 2
    assert [row[1].value for row in sheet(opened(workbook(broken)), "Summary")["A5:B6"]] == ["broken", "broken"]


# --- publishing --------------------------------------------------------------------------------------------------


def test_the_command_writes_the_pack_and_closes_the_postings(
    sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str], store: Store
) -> None:
    options = ["weekly", "--store", sample.store, "--project", "sample", "--out", str(tmp_path / "pack"), "--json"]
    assert report(options) == 0
    said = json.loads(capsys.readouterr().out)
    assert sorted(path.suffix for path in (tmp_path / "pack").iterdir()) == [".csv", ".html", ".xlsx"]
    assert all(Path(path).stat().st_size for path in said["files"].values())
    assert said["bill_usd"] == pytest.approx(float(sample.truth.bill), abs=1e-6)
    with Path(said["files"]["csv"]).open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == said["postings"] == closings(store)[said["closing"]]
    stored = store._client.query(
        "SELECT toString(sum(amount)), uniqExact(price_version), min(rate) > 0 FROM postings WHERE closing = {closing:String}",
        parameters={"closing": said["closing"]},
    ).result_rows[0]
    assert stored[1:] == (1, 1)
    assert Decimal(stored[0]) == sum(Decimal(row["amount"]) for row in listed)


def test_what_a_report_said_stays_as_said(store: Store, tmp_path: Path) -> None:
    first = publish(store, Weekly.load(store), tmp_path)
    second = publish(store, Weekly.load(store), tmp_path)
    kept = closings(store)
    assert first["closing"] != second["closing"]
    assert kept[first["closing"]] == kept[second["closing"]] == first["postings"]


def test_a_closing_that_is_kept_twice_is_there_once(store: Store, weekly: Weekly) -> None:
    weekly.closing.keep(store)
    weekly.closing.keep(store)
    assert closings(store)[weekly.closing.id] == len(weekly.book.postings)


def test_an_empty_closing_asks_nothing_of_the_store(store: Store, weekly: Weekly) -> None:
    Closing("nothing", weekly.closing.frame.clear()).keep(store)
    assert "nothing" not in closings(store)


def test_an_unwritable_folder_is_one_line_and_closes_nothing(store: Store, weekly: Weekly, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    before = closings(store)
    with pytest.raises(ReportError, match=r"give another folder with --out\.$"):
        publish(store, weekly, tmp_path / "file" / "pack")
    assert closings(store) == before


def test_the_front_door_prints_that_line(sample: Sample) -> None:
    command = [sys.executable, "-m", "costspan.cli", "report", "weekly", "--store", sample.store, "--project", "sample"]
    done = subprocess.run([*command, "--out", "/proc/nowhere"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("costspan: The report cannot be written to /proc/nowhere")
    assert done.stderr.count("\n") == 1


def test_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("earlier")

    def fail() -> None:
        with Staging(tmp_path) as staging:
            staging.add("a.csv", b"later")
            raise StoreError("gone")

    with pytest.raises(StoreError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    assert (tmp_path / "a.csv").read_text() == "earlier"


def test_a_project_without_anything_has_no_report(sample: Sample) -> None:
    with pytest.raises(NotFoundError, match="'nobody'"):
        Weekly.load(Store(sample.store, "nobody", weekly_window(None, None)))


def test_a_refused_insert_is_a_sentence(store: Store) -> None:
    with pytest.raises(StoreError, match="did not take rows of postings"):
        store.insert("postings", pl.DataFrame({"no_such_column": [1]}), "t")


@settings(max_examples=25)
@given(st.lists(st.decimals(-999, 999, places=12), min_size=1, max_size=20))
def test_amounts_reach_their_cells_as_they_are(amounts: list[Decimal]) -> None:
    buffer = BytesIO()
    book = XlsxWriter(buffer)
    page_ = Sheet(book, Styles(book), "Amounts")
    page_.table([Column("n"), Column("amount", Kind.EXACT_USD, summed=True)], [["x", amount] for amount in amounts])
    book.close()
    cells = [row[1] for row in sheet(opened(buffer.getvalue()), "Amounts").iter_rows(min_row=2, values_only=True)]
    assert cells == [*map(float, amounts), f"=SUM(B2:B{1 + len(amounts)})"]
