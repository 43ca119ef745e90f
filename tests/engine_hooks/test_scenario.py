"""Scenario files, and the traffic drawn from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from costspan_engine.simulate.scenario import Scenario, ScenarioError, library
from costspan_engine.simulate.workload import draw

DESIGN = """\
name: noisy-neighbour
seed: 7
duration_s: 600
engine: {gpu: h200, model: llama-8b, replicas: 1, max_num_seqs: 128, max_batched_tokens: 4096,
         kv_blocks: 20000, block_size: 16, policy: fcfs, prefix_cache: true, gpu_usd_per_hour: 4.00}
tenants:
  - name: acme
    arrivals: {process: poisson, rate: 2.0}
    prompt_tokens: {dist: lognormal, median: 1000, p99: 4000}
    output_tokens: {dist: lognormal, median: 150, p99: 800}
    prefix: {groups: 20, tokens: 4000}
    client: {abort_probability: 0.1, abort_after_tokens: 40, timeout_s: 20, max_retries: 2, read_tokens_per_s: null}
events:
  - {at_s: 300, kind: burst, tenant: batchco, requests: 4, prompt_tokens: 28000, output_tokens: 2000}
  - {at_s: 200, kind: route_change, share: 0.3, gpu: l4}
  - {at_s: 250, kind: flush_cache}
  - {at_s: 260, kind: cold_start, seconds: 40}
  - {at_s: 400, kind: slow_engine, factor: 2.0, for_s: 30}
"""


def parsed(text: str, folder: Path = Path()) -> Scenario:
    return Scenario.parse(text, "test.yaml", folder)


def test_the_design_s_example_is_read() -> None:
    scenario = parsed(DESIGN)

    assert scenario.engine.kv_blocks == 20_000
    assert scenario.tenants[0].client.read_tokens_per_s is None
    assert [event.kind for event in scenario.events] == ["burst", "route_change", "flush_cache", "cold_start", "slow_engine"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("rate: 2.0", "rate: fast", ["line 8", "tenants[0].arrivals.rate", "number", "'fast'"]),
        ("rate: 2.0", "rate: -1", ["line 8", "tenants[0].arrivals.rate", "greater than 0"]),
        ("process: poisson", "process: uniform", ["line 8", "tenants[0].arrivals", "'poisson', 'gamma', 'trace'"]),
        ("p99: 4000", "p99: 400", ["line 9", "tenants[0].prompt_tokens", "below median"]),
        ("    output_tokens: {dist: lognormal, median: 150, p99: 800}\n", "", ["tenants[0]", "output_tokens must be given"]),
        ("timeout_s: 20", "timeout: 20", ["line 12", "there is no 'timeout' in tenants[0].client"]),
        ("duration_s: 600\n", "", ["duration_s is missing"]),
        ("gpu: h200", "gpu: h900", ["line 4", "engine.gpu", "name one of h200, h100"]),
        ("model: llama-8b", "model: gpt-9", ["line 4", "engine.model", "name one of tiny, llama-8b"]),
        ("policy: fcfs", "policy: lifo", ["engine.policy", "'fcfs' or 'fair'"]),
        ("kind: flush_cache", "kind: flush", ["line 16", "events[2]", "'flush_cache'"]),
        ("at_s: 400", "at_s: 900", ["after the end at 600 s"]),
        ("seed: 7", "seed: [7", ["is no YAML at line 3"]),
        ("name: acme", "name: ''", ["line 7", "tenants[0].name"]),
    ],
)
def test_what_is_wrong_is_said_with_its_line_and_field(old: str, new: str, says: list[str]) -> None:
    with pytest.raises(ScenarioError) as refusal:
        parsed(DESIGN.replace(old, new))

    assert "\n" not in str(refusal.value)
    for words in says:
        assert words in str(refusal.value)


def test_a_file_that_holds_no_mapping_or_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="holds no scenario"):
        parsed("- 1")
    with pytest.raises(ScenarioError, match="no built-in scenario: name one of"):
        Scenario.find(str(tmp_path / "absent.yaml"))


def test_built_in_scenarios_are_found_by_name() -> None:
    assert len(library()) >= 8
    for name in library():
        assert Scenario.find(name).name == name
        assert Scenario.find(name).expect is not None


def test_the_same_seed_draws_the_same_traffic_and_another_seed_another() -> None:
    scenario = parsed(DESIGN)

    assert draw(scenario) == draw(scenario)
    assert draw(scenario) != draw(scenario.reseeded(8))


def test_a_tenant_s_traffic_does_not_depend_on_the_others() -> None:
    scenario = parsed(DESIGN)
    alone = scenario.model_copy(update={"events": []})

    assert [want for want in draw(scenario) if want.tenant == "acme"] == draw(alone)


def test_lengths_have_the_quantiles_that_were_asked_for() -> None:
    wants = draw(parsed(DESIGN.replace("rate: 2.0", "rate: 100").replace("    prefix: {groups: 20, tokens: 4000}\n", "")))
    prompts = np.array([want.prompt_tokens for want in wants if want.tenant == "acme"])

    assert len(prompts) == pytest.approx(60_000, rel=0.02)
    assert np.quantile(prompts, 0.5) == pytest.approx(1000, rel=0.02)
    assert np.quantile(prompts, 0.99) == pytest.approx(4000, rel=0.05)


@pytest.mark.parametrize("cv", [0.5, 3.0])
def test_gamma_arrivals_have_their_rate_and_variation(cv: float) -> None:
    process = f"{{process: gamma, rate: 20, cv: {cv}}}"
    wants = draw(parsed(DESIGN.replace("{process: poisson, rate: 2.0}", process)))
    gaps = np.diff([want.at_ns for want in wants if want.tenant == "acme"]) / 1e9

    assert gaps.mean() == pytest.approx(1 / 20, rel=0.1)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1)


def test_prompts_of_a_group_begin_alike_and_stops_follow_their_probability() -> None:
    wants = [want for want in draw(parsed(DESIGN)) if want.tenant == "acme"]

    assert len({want.prefix for want in wants}) == 20
    assert all(want.prompt_tokens > 4000 == want.grain for want in wants)
    assert sum(want.stops_after == 40 for want in wants) / len(wants) == pytest.approx(0.1, abs=0.03)


def test_a_burst_comes_at_once_or_evenly() -> None:
    at_once = [want for want in draw(parsed(DESIGN)) if want.tenant == "batchco"]
    spread = [
        want for want in draw(parsed(DESIGN.replace("requests: 4", "requests: 4, over_s: 8"))) if want.tenant == "batchco"
    ]

    assert [want.at_ns for want in at_once] == [300 * 10**9] * 4
    assert [want.at_ns for want in spread] == [seconds * 10**9 for seconds in (300, 302, 304, 306)]


def test_a_trace_brings_its_own_lengths(tmp_path: Path) -> None:
    (tmp_path / "day.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0,100,7\n2023-11-16 18:00:02.5,200,8\n", encoding="utf-8"
    )
    head, _, _ = DESIGN.partition("    arrivals")
    recorded = head + "    arrivals: {process: trace, file: day.csv, format: azure}\n"

    wants = draw(parsed(recorded, tmp_path))

    assert [(want.at_ns, want.tenant, want.prompt_tokens, want.output_tokens) for want in wants] == [
        (0, "acme", 100, 7),
        (2_500_000_000, "acme", 200, 8),
    ]
    with pytest.raises(ScenarioError, match="brings its own lengths; remove output_tokens"):
        parsed(recorded + "    output_tokens: {dist: constant, value: 5}\n", tmp_path)
    with pytest.raises(ScenarioError, match="is no mooncake trace"):
        draw(parsed(recorded.replace("azure", "mooncake"), tmp_path))
