"""Every built-in scenario gets the verdicts that it says it must, and both laws hold in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from clickhouse_connect.driver.client import Client

from costspan.semconv import Cause, Phase, Waste
from costspan_analytics.audit import Audit
from costspan_analytics.book import Book
from costspan_analytics.diagnose import Diagnosis
from costspan_analytics.diagnose.components import FIRST, REST, Components
from costspan_analytics.diagnose.confirm import confirm
from costspan_analytics.diagnose.requests import load_requests
from costspan_analytics.simulate.expectations import unmet
from costspan_analytics.simulate.rows import scratch, simulate
from costspan_analytics.simulate.tails import tail_by_tenant
from costspan_analytics.summary import waste_summary
from costspan_analytics.tail import Tail
from costspan_analytics.timeline import Timeline
from costspan_engine.simulate.scenario import Expectation, Scenario, library


@pytest.fixture(scope="module")
def store() -> Iterator[Client]:
    with scratch() as client:
        yield client


@pytest.mark.parametrize("name", library())
def test_built_in_scenario(store: Client, name: str) -> None:
    scenario = Scenario.find(name)
    assert scenario.expect is not None

    rows = simulate(store, scenario, name)
    timeline = Timeline.load(rows)

    assert Audit.load(rows, timeline, Book.load(rows, timeline)).holds
    assert unmet(scenario.expect, Diagnosis.load(rows, timeline)) == []


@pytest.mark.parametrize("name", ["noisy-neighbour", "slow-engine", "calm"])
def test_verdicts_do_not_hang_on_the_seed(store: Client, name: str) -> None:
    scenario = Scenario.find(name).reseeded(4242)
    assert scenario.expect is not None

    rows = simulate(store, scenario, f"{name}-reseeded")

    assert unmet(scenario.expect, Diagnosis.load(rows, Timeline.load(rows))) == []


def test_the_first_culprit_is_confirmed_by_a_replay_without_it(store: Client) -> None:
    rows = simulate(store, Scenario.find("noisy-neighbour"), "confirmed")
    timeline = Timeline.load(rows)

    found = confirm(rows, timeline, Diagnosis.load(rows, timeline))

    assert found is not None
    assert found.finding.culprit == "batchco"
    assert found.trouble == ""
    assert found.vanished_ms is not None
    assert found.vanished_ms > found.finding.share_ms / 4
    assert "Replayed without batchco" in found.sentence


def test_components_add_up_to_what_was_waited_for(store: Client) -> None:
    """They are put together from phases, splits, direct blame and paces: what is left over is shown as unknown."""
    rows = simulate(store, Scenario.parse(ROUGH, "rough.yaml", Path()), "components")
    timeline = Timeline.load(rows)
    requests = load_requests(timeline).filter(pl.col("e2e") > 0, pl.col("ttft") > 0)

    spent = Components.load(rows, timeline, requests).of(requests)

    for metric, parts in (("ttft", [FIRST]), ("e2e", [FIRST, REST])):
        sums = spent.filter(pl.col("part").is_in(parts)).group_by("request").agg(pl.col("ns").sum())
        both = requests.join(sums, on="request")
        assert both["ns"].sum() == pytest.approx(both[metric].sum(), rel=0.05)


def test_what_is_not_met_is_said_in_a_sentence() -> None:
    expected = Expectation.model_validate({"found": [{"tenant": "acme", "cause": "retry", "culprit": "x"}], "only": []})

    assert unmet(expected, Diagnosis([])) == ["Not found: acme slow by retry of x."]


ROUGH = """\
name: rough
seed: 5
duration_s: 90
engine: {gpu: l40s, model: llama-8b, replicas: 2, kv_blocks: 3000, gpu_usd_per_hour: 2.5}
tenants:
  - name: acme
    arrivals: {process: gamma, rate: 2.5, cv: 2}
    prompt_tokens: {dist: lognormal, median: 400, p99: 1600}
    output_tokens: {dist: lognormal, median: 80, p99: 300}
    prefix: {groups: 5, tokens: 1000}
    client: {abort_probability: 0.3, abort_after_tokens: 10, timeout_s: 6, max_retries: 2, read_tokens_per_s: 30}
events:
  - {at_s: 20, kind: cold_start, seconds: 10}
  - {at_s: 35, kind: route_change, share: 0.3, gpu: l4}
  - {at_s: 45, kind: burst, tenant: batchco, requests: 10, prompt_tokens: 9000, output_tokens: 900}
  - {at_s: 50, kind: slow_engine, factor: 4, for_s: 10}
  - {at_s: 60, kind: flush_cache}
"""


def test_both_laws_hold_whatever_happens(store: Client) -> None:
    rows = simulate(store, Scenario.parse(ROUGH, "rough.yaml", Path()), "rough")
    timeline = Timeline.load(rows)
    book = Book.load(rows, timeline)
    audit = Audit.load(rows, timeline, book)

    assert audit.holds
    assert audit.time["unaccounted_share_max"] < 1e-6
    assert audit.money["unexplained_share"] < 1e-6
    assert audit.cancellation["disconnects"] > 0
    wasted = {row["category"] for row in waste_summary(book)["rows"]}
    assert {Waste.RETRIED, Waste.AFTER_ABORT, Waste.COLD_START, Waste.IDLE, Waste.HOST_GAP} <= wasted
    for row in tail_by_tenant(Tail.load(rows, timeline, 0.95)):
        assert row["p99_ms"] >= row["p50_ms"] > 0
        assert set(row["tail_ms"]) == {phase.value for phase in Phase}
    for finding in Diagnosis.load(rows, timeline).findings:
        assert finding.cause in set(Cause)
        assert 0 < finding.confidence < 1
        assert finding.share_ms > 0
