"""``costspan simulate`` as its user sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from costspan.errors import CostspanError
from costspan_analytics.simulate.cli import simulate

SMALL = """\
name: small
duration_s: 30
engine: {gpu: l4, model: llama-8b, gpu_usd_per_hour: 0.8}
tenants:
  - name: acme
    arrivals: {process: poisson, rate: 1.0}
    prompt_tokens: {dist: constant, value: 100}
    output_tokens: {dist: constant, value: 20}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL, encoding="utf-8")
    return file


def test_json_has_the_keys_of_the_design_and_is_the_same_every_time(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate([str(small), "--json"]) == 0
    first = capsys.readouterr().out
    assert simulate([str(small), "--json"]) == 0

    answer = json.loads(first)
    assert list(answer) == ["audit", "tail", "diagnosis", "waste", "cost"]
    assert answer["audit"]["holds"]
    assert [row["tenant"] for row in answer["tail"]["tenants"]] == ["acme"]
    assert set(answer["waste"][0]) == {"category", "tokens", "gpu_ns", "usd"}
    assert {row["tenant"] for row in answer["cost"]["rows"]} == {"acme", "(shared)"}
    assert capsys.readouterr().out == first


def test_tables_say_the_same_and_a_store_can_be_kept(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = Path.cwd()

    assert simulate([str(small), "--out", str(tmp_path / "kept")]) == 0

    shown = capsys.readouterr().out
    for words in ("Audit", "acme", "nobody was much slower than usual", "Cost by tenant"):
        assert words in shown
    assert (tmp_path / "kept" / "store").is_dir()
    assert Path.cwd() == here
    with pytest.raises(CostspanError, match="holds a store"):
        simulate([str(small), "--out", str(tmp_path / "kept")])


def test_an_expectation_that_is_not_met_fails(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small.write_text(f"{SMALL}expect:\n  found:\n    - {{tenant: acme, cause: retry}}\n", encoding="utf-8")

    assert simulate([str(small), "--seed", "3"]) == 1
    assert "Not found: acme slow by retry." in capsys.readouterr().out


def test_built_in_scenarios_are_listed_and_wrong_use_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(["--list"]) == 0
    assert "noisy-neighbour" in capsys.readouterr().out
    with pytest.raises(CostspanError, match="--list"):
        simulate([])
    with pytest.raises(CostspanError, match="seed is -1"):
        simulate(["calm", "--seed", "-1"])
