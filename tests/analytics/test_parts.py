"""Where one request's engine time went: the parts add up, whatever became of it."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costspan.semconv import Phase, Waste
from costspan_analytics.parts import REQUEST, Part, split
from costspan_analytics.steps import Steps

MS = 1_000_000
COUNT = 40


def steps() -> Steps:
    """Forty steps of 1 ms, back to back; one participant, decoding at 0.6 ms + 0.01 ms a token of context."""
    index = list(range(COUNT))
    return Steps(
        pl.DataFrame(
            {
                "step": index,
                "start_ns": [at * MS for at in index],
                "duration_ns": [MS] * COUNT,
                "participants": [1] * COUNT,
                "predicted_ns": [float(MS)] * COUNT,
                "fixed_ns": [0.4 * MS] * COUNT,
                "decode_seq_ns": [0.6 * MS] * COUNT,
                "decode_token_ns": [0.0] * COUNT,
            }
        )
    )


def segment(phase: Phase, first: int, last: int, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "phase": phase.value,
        "start_ns": first * MS,
        "duration_ns": (last - first + 1) * MS,
        "step_first": first,
        "step_last": last,
        "tokens": last - first + 1,
        "context": 10,
        "cost_ns": (last - first + 1) * MS,
        "waste": "",
        "waste_ns": 0,
        "culprit": "",
    }
    return row | changes


def attempt(segments: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Prefill in steps 0-9, then a token a step up to step 39."""
    row: dict[str, Any] = {
        "request_id": "r",
        "cost_ns": sum(one["cost_ns"] for one in segments),
        "output_tokens": 31,
        "evicted_tokens": 0,
        "first_token_ns": 10 * MS,
        "left_ns": None,
        "read_tokens": 31,
        "replaced": False,
        "invalid": "",
    }
    return row | changes


LIFE = [segment(Phase.PREFILL, 0, 9), segment(Phase.DECODE, 10, 39)]


def told(parts: list[Part]) -> dict[str, tuple[int, int]]:
    return {str(part.category): (part.cost_ns, part.tokens) for part in parts}


def test_an_answer_that_was_read_is_no_waste() -> None:
    assert told(split(attempt(LIFE), LIFE, steps())) == {REQUEST: (40 * MS, 31)}


def test_tokens_after_the_abort_and_tokens_never_read_are_told_apart() -> None:
    # Left in the middle of step 20: ten whole tokens decoded, and the first; eight were read.
    parts = told(split(attempt(LIFE, left_ns=20 * MS + MS // 2, read_tokens=8), LIFE, steps()))
    assert parts == {
        Waste.AFTER_ABORT: (19 * MS + MS // 2, 20),
        Waste.UNDELIVERED: (3 * MS, 3),
        REQUEST: (17 * MS + MS // 2, 8),
    }


def test_nothing_read_means_all_of_it_was_abandoned() -> None:
    parts = told(split(attempt(LIFE, left_ns=5 * MS, read_tokens=0), LIFE, steps()))
    assert parts == {Waste.AFTER_ABORT: (35 * MS, 31), Waste.ABANDONED: (5 * MS, 0)}


def test_an_attempt_that_another_replaced() -> None:
    assert told(split(attempt(LIFE, replaced=True), LIFE, steps())) == {Waste.RETRIED: (40 * MS, 31)}
    assert told(split(attempt(LIFE, replaced=True, invalid="no source"), LIFE, steps())) == {
        Waste.INVALID_OUTPUT: (40 * MS, 31)
    }


def test_what_an_eviction_cost_is_named_with_its_culprit() -> None:
    life = [segment(Phase.PREFILL, 0, 9, waste="recomputed_eviction", waste_ns=4 * MS, culprit="hog"), LIFE[1]]
    parts = split(attempt(life, evicted_tokens=7), life, steps())
    assert [(part.category, part.cost_ns, part.tokens, part.culprit) for part in parts] == [
        (Waste.RECOMPUTED_EVICTION, 4 * MS, 7, "hog"),
        (REQUEST, 36 * MS, 31, ""),
    ]


def test_the_first_token_counts_as_made_after_the_client_left() -> None:
    # The executor's own clock leaves out the host's part of a step, so the token came a little after the step's booked end.
    made_ns = 10 * MS + 1_000
    parts = told(split(attempt(LIFE, left_ns=2 * MS, read_tokens=0, first_token_ns=made_ns), LIFE, steps()))
    assert parts[Waste.AFTER_ABORT] == (38 * MS, 31)


def test_only_what_was_computed_before_was_computed_again() -> None:
    # Preempted after 4 of 10 prompt tokens; the second time the whole prompt is computed, 4 of it again.
    life = [
        segment(Phase.PREFILL, 0, 3, context=0, tokens=4),
        segment(Phase.PREFILL, 4, 9, context=0, tokens=10, waste="recomputed_preemption", waste_ns=2 * MS),
        LIFE[1],
    ]
    parts = told(split(attempt(life), life, steps()))
    assert parts == {Waste.RECOMPUTED_PREEMPTION: (2 * MS, 4), REQUEST: (38 * MS, 31)}


def test_an_engine_request_without_phases_is_paid_for_all_the_same() -> None:
    assert told(split(attempt([], cost_ns=7), [], steps())) == {REQUEST: (7, 31)}


@given(
    left=st.none() | st.integers(-5 * MS, 45 * MS),
    read=st.integers(0, 31),
    replaced=st.booleans(),
    cost=st.integers(0, 10**12),
)
def test_parts_always_add_up(left: int | None, read: int, replaced: bool, cost: int) -> None:
    life = [segment(Phase.PREFILL, 0, 9, cost_ns=cost), segment(Phase.DECODE, 10, 39, cost_ns=cost // 3)]
    parts = split(attempt(life, left_ns=left, read_tokens=read, replaced=replaced), life, steps())
    assert sum(part.cost_ns for part in parts) == cost + cost // 3
    assert all(part.cost_ns >= -1 for part in parts)
    if left is not None and left <= 0:
        after = next((part.cost_ns for part in parts if part.category == Waste.AFTER_ABORT), 0)
        assert after == pytest.approx(cost + cost // 3, abs=2)
