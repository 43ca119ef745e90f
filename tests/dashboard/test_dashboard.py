"""The overview page, as a person sees it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from costspan_dashboard.cli import main
from costspan_dashboard.errors import DashboardError
from tests.analytics.sample_store import free_port
from tests.dashboard.conftest import Sample, dashboard

PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)


def opened(page: Page, url: str) -> Page:
    """The page, once Streamlit has drawn all of it."""
    page.goto(url)
    expect(page.locator(".brand")).to_be_visible()
    expect(page.locator(".stApp")).to_have_attribute("data-test-script-state", "notRunning")
    return page


def row(page: Page, head: str, first: str) -> list[str]:
    """The cells of the row that begins with ``first``, in the first table whose first column is ``head``."""
    table = page.locator("table").filter(has=page.locator("th:first-child", has_text=exactly(head))).first
    found = table.locator("tr").filter(has=page.locator("td:first-child", has_text=exactly(first)))
    return found.locator("td").all_inner_texts()


def exactly(text: str) -> re.Pattern[str]:
    return re.compile(f"^{re.escape(text)}$")


def open_list(page: Page, label: str) -> None:
    """Open a list of choices; one that closes again, because the page still scrolled or was drawn anew, is opened again."""
    for _ in range(20):
        page.get_by_role("combobox", name=label).press("ArrowDown")
        page.wait_for_timeout(250)
        if page.get_by_role("option").count():
            return
    pytest.fail(f"the list of {label} does not open")


def choose(page: Page, label: str, option: str) -> None:
    open_list(page, label)
    page.get_by_role("option", name=option, exact=True).click()


def usd(text: str) -> float:
    return float(text.replace("$", "").replace(",", ""))


def test_both_laws_stand_at_the_top_with_their_remainders_as_rows(page: Page, address: str, sample: Sample) -> None:
    opened(page, address)
    expect(page.get_by_text("✓ holds")).to_have_count(2)
    bill = usd(row(page, "the bill", "bill")[1])
    parts = [usd(row(page, "the bill", name)[1]) for name in ("requests", "waste", "idle", "unexplained")]
    assert bill == pytest.approx(float(sample.truth.bill), abs=1e-6)
    assert sum(parts) == pytest.approx(bill, abs=3e-6)
    assert parts[-1] == pytest.approx(float(sample.truth.bill - sample.truth.posted), abs=2e-5)
    assert row(page, "mean request", "unaccounted")[1] == "0.0 ms"
    expect(page.locator(".figures")).to_contain_text(f"requests\n{sample.truth.requests}", use_inner_text=True)
    expect(page.locator(".figures")).to_contain_text(f"aborted\n{sample.truth.aborted}", use_inner_text=True)
    for quantile in ("p50", "p90", "p99"):
        expect(page.locator(".figures")).to_contain_text(
            re.compile(rf"{quantile}\s+[\d,.]+ ms\s+[\d,.]+–[\d,.]+ ms with 95 %"), use_inner_text=True
        )


def test_every_section_has_its_figures(page: Page, address: str, sample: Sample) -> None:
    opened(page, address)
    for title in (
        "Where slow requests spend their time",
        "Who delayed whom",
        "Interference between tenants",
        "Cost by tenant",
        "Waste",
        "The bill, line by line",
        "What an outcome cost",
        "The slowest requests",
    ):
        expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
    expect(page.get_by_test_id("stVegaLiteChart")).to_have_count(3)
    expect(page.locator("canvas, svg.marks").first).to_be_visible()
    tenants = ["acme", "globex", "initech", "(shared)"]
    costs = [usd(row(page, "tenant", tenant)[1]) for tenant in tenants]
    assert sum(costs) == pytest.approx(float(sample.truth.posted), abs=1e-4)
    assert int(row(page, "category", "after_abort")[3]) == sample.truth.after_abort_tokens
    wall = row(page, "phase", "wall")
    assert float(wall[2].replace(",", "")) > float(wall[1].replace(",", ""))


def test_the_matrix_says_who_delayed_whom_and_is_darkest_where_most(page: Page, address: str) -> None:
    opened(page, address)
    heat = page.locator("table").filter(has=page.locator("th", has_text=exactly("by all")))
    *lines, total = [line.locator("td").all_inner_texts() for line in heat.locator("tbody tr").all()]
    figures = [[float(cell.replace(",", "")) for cell in line[1:]] for line in (*lines, total)]
    assert sorted(line[0] for line in lines) == ["acme", "globex", "initech"]
    for _, *by, whole, _ in figures:
        assert sum(by) == pytest.approx(whole, abs=0.5 * len(by) + 0.5)
    grounds = [float(share) for share in re.findall(r"(\d+)%, transparent", heat.inner_html())]
    cells = [value for line in figures[:-1] for value in line[1:-2]]
    assert len(grounds) == len(cells)
    assert grounds.index(max(grounds)) == cells.index(max(cells))
    assert max(grounds) == 60


def test_a_chosen_request_is_explained(page: Page, address: str) -> None:
    opened(page, address)
    explained = (
        page.locator(".cs")
        .filter(has=page.locator("th", has_text=exactly("share")))
        .filter(has=page.locator("td", has_text=exactly("wall")))
        .last
    )
    expect(explained).to_contain_text("decode")
    open_list(page, "Request")
    option = page.get_by_role("option").nth(1)
    label = option.inner_text()
    option.click()
    expected = float(label.partition(" ms")[0].replace(",", ""))
    total = re.compile(rf"wall\s+{expected:,.0f}|wall\s+{expected - 1:,.0f}")
    expect(explained).to_contain_text(total, use_inner_text=True)
    cells = [line.locator("td").all_inner_texts() for line in explained.locator("tbody tr").all()]
    values = [float(cell[1].replace(",", "")) for cell in cells]
    assert sum(values[:-1]) == pytest.approx(values[-1], abs=0.05)
    expect(page.get_by_role("heading", name="Delayed by")).to_be_visible()


def test_another_project_is_a_choice_away_and_its_broken_laws_are_said(page: Page, address: str) -> None:
    opened(page, address)
    choose(page, "Project", "broken")
    expect(page.get_by_text("✗ broken")).to_have_count(2)
    assert usd(row(page, "the bill", "unexplained")[1]) == pytest.approx(4 / 3600 * 32, rel=0.01)


def test_refresh_reads_again(page: Page, address: str) -> None:
    opened(page, address)
    note = page.locator(".brand + .soft")
    expect(note).to_contain_text("as of")
    before = note.inner_text()
    page.wait_for_timeout(1100)
    page.get_by_role("button", name="Refresh").click()
    expect(note).not_to_have_text(before)
    expect(note).to_contain_text("as of")


def test_an_empty_project_says_what_to_do(page: Page, sample: Sample, tmp_path: Path) -> None:
    with dashboard(tmp_path / "log", "--store", sample.store, "--project", "nobody") as url:
        opened(page, url)
        said = "Nothing of project 'nobody' is stored in this window. Choose a wider window or another project"
        expect(page.get_by_role("status")).to_contain_text(said)
        expect(page.get_by_text("Traceback")).to_have_count(0)
        choose(page, "Project", "sample")
        expect(page.get_by_text("✓ holds")).to_have_count(2)


def test_a_store_that_is_not_there_is_a_sentence(page: Page, tmp_path: Path, browser: Browser) -> None:
    assert browser.is_connected()
    with dashboard(tmp_path / "log", "--store", f"http://127.0.0.1:{free_port()}") as url:
        opened(page, url)
        expect(page.get_by_role("alert")).to_contain_text("No store answers at 127.0.0.1")
        expect(page.get_by_role("alert")).to_contain_text("Then press Refresh.")
        expect(page.get_by_text("Traceback")).to_have_count(0)
        assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_taken_port_is_one_line() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(DashboardError, match=rf"port {port} cannot be used .*: choose another with --port"):
            main(["--port", str(port)])
        done = subprocess.run(
            [sys.executable, "-m", "costspan.cli", "dashboard", "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("port", ["70000", "-1", "eight"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([f"--port={port}"])
    assert "is not a port" in capsys.readouterr().err
