"""Quantiles of wall time and their intervals: exact, and as cheap for a million calls as for ten."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from costspan_analytics.tail import MS, QUANTILES, Quantile, Tail


def quantiles(wall: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[Quantile]:
    calls = pl.DataFrame({"wall_ns": wall})
    return Tail(0.95, calls, calls, calls, {}).quantiles()


@pytest.mark.parametrize("count", [1, 2, 3, 10, 11, 100, 101, 1001])
def test_quantiles_are_calls_that_were_made(count: int) -> None:
    wall = np.random.default_rng(count).integers(1, 10**10, count)
    expected = np.quantile(wall, QUANTILES, method="higher") / MS
    assert [found.value for found in quantiles(wall)] == pytest.approx(expected.tolist())


def test_intervals_are_those_of_a_bootstrap() -> None:
    rng = np.random.default_rng(1)
    wall = rng.lognormal(20, 1, 400).astype(np.int64)
    drawn = np.quantile(rng.choice(wall, (4000, wall.size)), QUANTILES, axis=1, method="higher") / MS
    for found, again in zip(quantiles(wall), drawn, strict=True):
        ranks = [float((wall / MS <= edge).mean()) for edge in (found.low, found.high)]
        assert ranks == pytest.approx(
            [float((wall / MS <= edge).mean()) for edge in np.quantile(again, (0.025, 0.975))], abs=0.01
        )


def test_a_million_calls_take_no_more_memory_than_they_have() -> None:
    found = quantiles(np.arange(1_000_000) * int(MS))
    assert [quantile.value for quantile in found] == [500_000, 900_000, 990_000]
    assert all(quantile.low <= quantile.value <= quantile.high for quantile in found)
