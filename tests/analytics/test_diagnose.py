"""Incidents are found where they are, and chance makes few."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from costspan.semconv import Cause
from costspan_analytics.diagnose.cli import diagnose
from costspan_analytics.diagnose.loads import Loads
from costspan_analytics.diagnose.paces import Paces
from costspan_analytics.diagnose.windows import scan, usual
from costspan_analytics.store import Window
from tests.analytics.conftest import Sample

S = 10**9


def lognormal(count: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.random.default_rng(seed).lognormal(0.0, 0.7, count)


def test_chance_makes_hardly_any_incident() -> None:
    assert sum(bool(scan(lognormal(400, seed), tests=9)) for seed in range(200)) <= 1


@pytest.mark.parametrize("seed", range(10))
def test_a_stretch_of_slow_requests_is_found_where_it_is(seed: int) -> None:
    values = lognormal(400, seed)
    values[200:215] *= 20

    (found,) = scan(values, tests=9)

    there, found_there = set(range(200, 215)), set(range(found.first, found.last + 1))
    assert len(there & found_there) / len(there | found_there) > 0.6


def test_what_is_slow_for_most_of_the_time_is_not_usual() -> None:
    values = lognormal(400, 1)
    values[120:] *= 6

    (found,) = scan(values, tests=9)

    assert abs(found.first - 120) <= 10
    assert found.last == 399
    assert usual(values)[:100].mean() > usual(values)[120:].mean()


def test_two_incidents_are_two() -> None:
    values = lognormal(400, 2)
    values[80:95] *= 20
    values[300:330] *= 8

    assert [round(each.first, -1) for each in sorted(scan(values, tests=9), key=lambda each: each.first)] == [80, 300]


def test_of_few_requests_nothing_is_said() -> None:
    assert scan(np.array([1.0] * 20 + [100.0] * 10), tests=1) == []


def _loads(rows: list[tuple[str, int, int, int]]) -> Loads:
    """(tenant, second, tokens, computed): each is in the engine for a second, and works in proportion to what is computed."""
    frame = pl.DataFrame(rows, schema=["tenant", "since", "tokens", "computed"], orient="row")
    return Loads(frame.with_columns(since=pl.col("since") * S, until=(pl.col("since") + 1) * S, work=pl.col("computed") * 1.0))


@pytest.mark.parametrize(
    ("extra", "cause"),
    [
        ([("acme", 50, 100, 100)] * 40, Cause.QUEUE_SURGE),
        ([("acme", 50, 20_000, 20_000)], Cause.HEAD_OF_LINE),
    ],
)
def test_growth_is_told_by_what_grew(extra: list[tuple[str, int, int, int]], cause: Cause) -> None:
    steady = [("acme", second, 100, 100) for second in range(100)]

    grown = _loads(steady + extra).growth("acme", Window(48 * S, 52 * S))

    assert grown.cause is cause
    assert grown.share > 0.8
    assert _loads(steady).growth("acme", Window(48 * S, 52 * S)).share == pytest.approx(0.0, abs=0.25)


def test_a_cold_cache_is_growth_too_and_a_newcomer_is_all_growth() -> None:
    rows = [("acme", second, 1000, 1000 if 45 <= second < 55 else 50) for second in range(100)]

    grown = _loads([*rows, ("batchco", 50, 10, 10)])

    assert grown.growth("acme", Window(46 * S, 54 * S)).cause is Cause.COLD_CACHE
    assert grown.growth("batchco", Window(46 * S, 54 * S)).share == 1.0
    assert grown.growth("nobody", Window(46 * S, 54 * S)).share == 0.0


def test_an_engine_that_stays_slow_is_late_even_when_its_model_has_learnt_it() -> None:
    """The coefficients follow the pace, so that the ledger's own prediction is right again."""
    slow = np.repeat([1.0, 3.0, 1.0], [60, 30, 60])
    steps = pl.DataFrame(
        {
            "step": np.arange(150),
            "start_ns": np.arange(150) * 100,
            "duration_ns": (slow * (1000 + 50 * 4 + 400)).astype(np.int64),
            "regime": ["memory"] * 150,
            "prefill_tokens": [0] * 150,
            "prefill_pairs": [0.0] * 150,
            "decode_seqs": [4] * 150,
            "decode_tokens": [400] * 150,
            "fixed_ns": slow * 1000,
            "prefill_token_ns": slow * 1,
            "prefill_pair_ns": slow * 0,
            "decode_seq_ns": slow * 50,
            "decode_token_ns": slow * 1,
        }
    )

    paces = Paces.of(steps)
    late = paces.between(np.array([0, 60, -1]), np.array([59, 89, -1]))

    assert late.tolist() == pytest.approx([0.0, 30 * 2 * 1600, 0.0])


def test_a_store_is_diagnosed_by_command(sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--store", sample.store, "--project", "sample"]

    assert diagnose([*where, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert diagnose(where) == 0

    assert set(answer) == {"diagnosis", "confirmation"}
    for finding in answer["diagnosis"]:
        assert list(finding) == ["tenant", "metric", "window", "cause", "culprit", "share_ms", "confidence"]
        assert finding["cause"] in set(Cause)
    assert "Diagnosis" in capsys.readouterr().out
