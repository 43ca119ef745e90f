"""``costspan blame``: the matrix adds up to what blame says, however it is asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from costspan_analytics import cli
from costspan_analytics.blame import blame
from costspan_analytics.errors import NotFoundError
from costspan_analytics.matrix import Matrix
from costspan_analytics.matrix_table import grid
from costspan_analytics.store import Store
from costspan_analytics.tail import MS
from tests.analytics.conftest import Sample
from tests.analytics.sample_store import TENANTS

Capture = pytest.CaptureFixture[str]


def document(sample: Sample, capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert cli.blame([*arguments, "--store", sample.store, "--project", sample.truth.project, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_matrix_adds_up_to_all_delays(sample: Sample, capsys: Capture) -> None:
    store = Store(sample.store, sample.truth.project)
    everything = float(blame(store, store.frame("segments"))["ns"].sum()) / MS
    found = document(sample, capsys)
    assert set(found["requests"]) == set(TENANTS)
    for rows in (found["matrix"], found["delays"]):
        assert sum(row["ms"] for row in rows) == pytest.approx(everything)
    counts = found["requests"]
    assert all(row["ms_a_request"] == pytest.approx(row["ms"] / counts[row["tenant"]]) for row in found["matrix"])
    assert 0 < found["model_error"]["p50"] <= found["model_error"]["p99"]
    assert found["causal"] == []


def test_one_tenants_rows_are_the_matrixs(sample: Sample, capsys: Capture) -> None:
    whole = document(sample, capsys)
    for tenant in TENANTS:
        own = document(sample, capsys, "--tenant", tenant)
        for row in own["matrix"]:
            (same,) = (each for each in whole["matrix"] if (each["tenant"], each["culprit"]) == (tenant, row["culprit"]))
            assert same["ms"] == pytest.approx(row["ms"])
        culprit = own["matrix"][0]["culprit"]
        alone = document(sample, capsys, "--tenant", tenant, "--culprit", culprit)
        assert {row["culprit"] for row in alone["delays"]} == {culprit}
        assert sum(row["ms"] for row in alone["delays"]) == pytest.approx(own["matrix"][0]["ms"])


def test_the_table_for_people_has_every_tenant_and_the_sum(sample: Sample, capsys: Capture) -> None:
    where = ["--store", sample.store, "--project", sample.truth.project]
    cli.blame(where)
    shown = capsys.readouterr().out
    assert "Who was delayed, by whom" in shown
    assert all(tenant in shown for tenant in TENANTS)
    assert "shares estimated" in shown
    assert max(map(len, shown.splitlines())) <= 120
    cli.blame([*where, "--tenant", TENANTS[0]])
    shown = capsys.readouterr().out
    assert f"Who delayed {TENANTS[0]}" in shown
    assert "its own other traffic" in shown


def test_causal_needs_a_cohort_and_stands_beside_direct_blame(sample: Sample, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        cli.blame(["--causal"])
    assert "--causal needs --tenant" in capsys.readouterr().err
    found = document(sample, capsys, "--tenant", TENANTS[0], "--causal")
    (answer,) = found["causal"]
    direct = {row["culprit"]: row["ms_a_request"] for row in found["matrix"]}
    assert {each["tenant"]: each["direct_ms"] for each in answer["culprits"]} == pytest.approx(direct)


def test_a_tenant_that_is_not_there_is_a_sentence(sample: Sample) -> None:
    store = Store(sample.store, sample.truth.project)
    with pytest.raises(NotFoundError, match=f"No engine request of 'nobody' came in this window; .*{TENANTS[0]}"):
        Matrix.load(store, "nobody")


def test_culprits_beyond_the_columns_share_one() -> None:
    tenants = [f"t{at}" for at in range(9)]
    matrix = [{"tenant": victim, "culprit": tenants[at], "ms": 9.0 - at} for victim in tenants[:2] for at in range(9)]
    found = {"requests": dict.fromkeys(tenants[:2], 2), "matrix": matrix}
    culprits, lines = grid(found, 4)
    assert culprits == ["t0", "t1", "t2", "(6 others)"]
    assert [line.tenant for line in lines] == tenants[:2]
    assert all(line.by == [9.0, 8.0, 7.0, 21.0] and line.whole == 45.0 for line in lines)
