"""The analytic commands as a person and a script use them, against a real store."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

import costspan
from costspan import cli as front_door
from costspan import semconv
from costspan.semconv import Waste
from costspan_analytics import cli
from costspan_analytics.audit import Audit
from costspan_analytics.book import BASE_MODEL, Book
from costspan_analytics.entries import prices
from costspan_analytics.store import Store, Window
from costspan_analytics.summary import DIMENSIONS, SHARED, units_summary
from costspan_analytics.timeline import Timeline
from costspan_analytics.units import OUTSIDE
from tests.analytics.conftest import Sample
from tests.analytics.sample_store import ADAPTER, TENANTS, wait_stored

Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(sample: Sample, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run a command with --json and return its document."""

    def run(command: Callable[[list[str]], int], *arguments: str) -> dict[str, Any]:
        command([*arguments, "--store", sample.store, "--project", sample.truth.project, "--json"])
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    return run


def test_audit_says_by_its_status_whether_both_laws_hold(sample: Sample, ask: Ask) -> None:
    assert ask(cli.audit)["holds"] is True
    assert cli.audit(["--store", sample.store, "--project", sample.truth.project]) == 0


def test_tail_adds_up_to_wall_time(ask: Ask) -> None:
    tail = ask(cli.tail, "--level", "0.9")
    walls = [sum(row[key] for row in tail["phases"]) for key in ("mean_ms", "tail_ms")]
    assert 0 < walls[0] < walls[1]
    median, _, p99 = tail["quantiles"]
    assert median["low_ms"] <= median["ms"] <= median["high_ms"] <= p99["high_ms"]
    assert walls[1] <= tail["slowest"][0]["ms"]
    assert sum(row["share_of_tail"] for row in tail["tenants"]) == pytest.approx(1.0)
    assert 0 < tail["model_error"]["p50"] <= tail["model_error"]["p99"]


def test_cost_rows_add_up_to_what_was_posted_whatever_they_are_split_by(ask: Ask) -> None:
    for by in DIMENSIONS:
        cost = ask(cli.cost, "--by", by)
        assert sum(row["usd"] for row in cost["rows"]) == pytest.approx(cost["posted_usd"], abs=1e-6 * len(cost["rows"]))


def test_cost_by_adapter_tells_the_adapters_from_the_base_model(ask: Ask) -> None:
    usd = {row["adapter"]: row["usd"] for row in ask(cli.cost, "--by", "adapter")["rows"]}
    assert set(usd) == {ADAPTER, BASE_MODEL, SHARED}
    assert min(usd.values()) > 0


def test_waste_names_what_was_guessed_in_vain_and_who_preempted(ask: Ask) -> None:
    waste = {row["category"]: row for row in ask(cli.waste)["rows"]}
    rejected = waste[Waste.REJECTED_DRAFT]
    assert rejected["usd"] > 0
    assert rejected["tokens"] > 0
    assert rejected["culprits"] == []
    preempted = waste[Waste.RECOMPUTED_PREEMPTION]
    assert preempted["culprits"] == [{"tenant": TENANTS[2], "usd": preempted["usd"]}]


def test_explain_tells_what_a_request_held_and_guessed(sample: Sample, ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    attempts = Timeline.load(Store(sample.store, sample.truth.project)).attempts
    spoke: str = attempts.filter(pl.col("adapter") == ADAPTER)["request_id"][0]
    engine = ask(cli.explain, spoke)["engine"]
    assert engine["kv_block_s"] > 0
    assert 0 < engine["accepted_tokens"] < engine["drafted_tokens"]
    assert engine["adapter"] == ADAPTER
    cli.explain([spoke, "--store", sample.store, "--project", sample.truth.project])
    shown = capsys.readouterr().out
    said = f"{engine['accepted_tokens']} of {engine['drafted_tokens']} guessed tokens were right; adapter {ADAPTER}."
    assert f"It held {engine['kv_block_s']:,.2f} KV block-seconds; {said}" in shown


def test_waste_and_request_make_the_whole(ask: Ask) -> None:
    waste = ask(cli.waste)
    categories = {row["category"]: row["usd"] for row in ask(cli.cost, "--by", "category")["rows"]}
    assert {row["category"]: row["usd"] for row in waste["rows"]} == {
        name: usd for name, usd in categories.items() if name in list(Waste) and usd
    }
    assert waste["waste_usd"] == pytest.approx(sum(row["usd"] for row in waste["rows"]), abs=1e-5)


def test_units_count_what_was_done(sample: Sample, ask: Ask) -> None:
    units = ask(cli.units)
    assert sum(row["units"] for row in units["rows"]) == sample.truth.units
    assert sum(row["resolved"] for row in units["rows"]) == sample.truth.resolved
    spent = sum(row["cost_usd"] for row in units["rows"]) + units["shared_usd"]
    assert spent == pytest.approx(ask(cli.cost)["posted_usd"], abs=1e-5)


def test_units_are_told_apart_by_tenant_and_nobodys_is_unknown(sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    costspan.init(project="twins", endpoint=sample.collector, service="app")
    for tenant, minutes in (("acme", 1), ("birch", 2), (None, 3)):
        with costspan.unit("ticket", "T-1", tenant=tenant) as unit:
            unit.review(minutes=minutes)
            unit.resolve()
    costspan.shutdown(10)
    wait_stored(sample.collector)
    where = ["--store", sample.store, "--project", "twins"]
    prices(["review_minutes", "0.50", *where])
    capsys.readouterr()
    cli.units([*where, "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["tenant"]: (row["units"], row["cost_usd"]) for row in rows} == {
        "acme": (1, 0.5),
        "birch": (1, 1.0),
        semconv.UNKNOWN: (1, 1.5),
    }


def test_money_of_a_unit_that_is_not_in_the_window_is_shown_and_not_dropped(sample: Sample) -> None:
    truth = sample.truth
    middle = truth.since_ns + (truth.until_ns - truth.since_ns) // 3
    store = Store(sample.store, truth.project, Window(middle, truth.until_ns))
    book = Book.load(store, Timeline.load(store))
    units = units_summary(store, book)
    kinds = {row["unit_kind"] for row in units["rows"]}
    assert kinds == {"ticket", OUTSIDE}
    spent = sum(row["cost_usd"] for row in units["rows"]) + units["shared_usd"]
    assert spent == pytest.approx(float(book.posted), abs=1e-5)


def test_usage_without_a_price_shouts_wherever_cost_is_shown(sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    costspan.init(project="unpriced", endpoint=sample.collector, service="app")
    with costspan.unit("ticket", "T-1", tenant="acme") as unit:
        unit.review(minutes=3)
    costspan.shutdown(10)
    wait_stored(sample.collector)
    where = ["--store", sample.store, "--project", "unpriced"]
    cli.cost(where)
    assert "Some review_minutes was used at a time that has no price" in capsys.readouterr().out
    cli.cost([*where, "--json"])
    assert json.loads(capsys.readouterr().out)["unpriced"] == ["review_minutes"]


def test_explain_adds_up_and_finds_a_request_by_the_beginning_of_its_id(ask: Ask) -> None:
    slowest = ask(cli.explain, "slowest")
    assert sum(slowest["phases_ms"].values()) == pytest.approx(slowest["wall_ms"])
    assert ask(cli.explain, slowest["span_id"][:10])["span_id"] == slowest["span_id"]
    assert ask(cli.explain, slowest["trace_id"])["trace_id"] == slowest["trace_id"]


def test_the_three_clocks_of_an_abort_come_in_order(sample: Sample, ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    calls = Timeline.load(Store(sample.store, sample.truth.project)).calls
    aborted: str = calls.filter(outcome="cancelled")["span_id"][0]
    clocks = ask(cli.explain, aborted)["aborts_ms"]
    assert list(clocks) == ["client left", "server saw it", "engine let go"]
    assert sorted(clocks.values()) == list(clocks.values())
    cli.explain([aborted, "--store", sample.store, "--project", sample.truth.project])
    assert "The abort's clocks" in capsys.readouterr().out


def test_tables_say_what_json_says(sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--store", sample.store, "--project", sample.truth.project]
    for command, words in (
        (cli.audit, ("time", "money", "holds", "heartbeat")),
        (cli.tail, ("Tail: p50", "unaccounted", "wall", "Who delayed the tail")),
        (cli.cost, ("Cost by tenant", "acme", "posted")),
        (cli.waste, ("Waste:", "idle", "after_abort")),
        (cli.units, ("Unit cost", "acme ticket", "each", "shared")),
    ):
        assert command(where) == 0
        shown = capsys.readouterr().out
        assert all(word in shown for word in words), shown


def test_a_window_without_traffic_is_empty_and_not_an_error(ask: Ask) -> None:
    assert ask(cli.tail, "--until", "2001-01-01")["requests"] == 0
    assert ask(cli.cost, "--until", "2001-01-01")["rows"] == []
    assert ask(cli.audit, "--until", "2001-01-01")["holds"] is False


def test_a_window_that_cuts_traffic_cuts_both_sides_of_the_laws(sample: Sample) -> None:
    truth = sample.truth
    for share in (0.2, 0.25, 0.3, 0.35):  # while traffic flows
        middle = truth.since_ns + round(share * (truth.until_ns - truth.since_ns))
        for since, until in ((truth.since_ns, middle), (middle, truth.until_ns)):
            found = Store(sample.store, truth.project, Window(since, until))
            timeline = Timeline.load(found)
            audit = Audit.load(found, timeline, Book.load(found, timeline))
            assert audit.time["holds"], audit.time
            gpu = next(line for line in audit.money["lines"] if line["source"] == "heartbeat")
            assert abs(gpu["unexplained_usd"]) < 0.01 * gpu["bill_usd"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["audit", "--store", "http://127.0.0.1:1"],
            r"No store answers at 127\.0\.0\.1:1: start one with",
        ),
        (["audit", "--store", "nowhere"], r"'nowhere' is no store: write its HTTP address"),
        (["audit", "--since", "yesterday"], r"'yesterday' is no time: write an age such as 2h"),
        (["audit", "--since", "1h", "--until", "2h"], r"--since 1h is not before --until 2h: swap them"),
        (["explain", "ffffffff00"], r"No call in this window has an id that begins with 'ffffffff00'"),
        (["tail", "--project", "nobody"], r"Nothing of project 'nobody' is in this store; it has .*sample"),
        (["explain", "ff"], r"'ff' is too short to mean one call"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(
    sample: Sample, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.setenv("COSTSPAN_STORE", sample.store)
    monkeypatch.setenv("COSTSPAN_PROJECT", sample.truth.project)
    monkeypatch.setattr("sys.argv", ["costspan", *arguments])
    assert front_door.main() == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(sentence, said)
