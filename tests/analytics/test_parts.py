"""Where one request's engine time went: the parts add up, whatever became of it."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costspan.semconv import Outcome, Phase, Waste
from costspan_analytics.parts import REQUEST, Part, split
from costspan_analytics.steps import Steps

MS = 1_000_000
COUNT = 40


def steps(per_token: float = 0.0) -> Steps:
    """Forty steps of 1 ms, back to back; one participant, decoding at 0.6 ms and ``per_token`` a token of context."""
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
                "decode_token_ns": [per_token] * COUNT,
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
        "outcome": Outcome.OK.value,
        "output_tokens": 31,
        "drafted_tokens": 0,
        "accepted_tokens": 0,
        "evicted_tokens": 0,
        "first_token_ns": 10 * MS,
        "left_ns": None,
        "read_tokens": 31,
        "lost": None,
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
    assert told(split(attempt(LIFE, lost=Waste.RETRIED), LIFE, steps())) == {Waste.RETRIED: (40 * MS, 31)}
    assert told(split(attempt(LIFE, lost=Waste.INVALID_OUTPUT), LIFE, steps())) == {Waste.INVALID_OUTPUT: (40 * MS, 31)}


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


SPECULATIVE = [LIFE[0], segment(Phase.DECODE, 10, 39, tokens=60, waste="rejected_draft", waste_ns=6 * MS)]
"""Thirty steps that made sixty tokens, with drafts that were thrown away for a fifth of the cost."""
DRAFTS = {"output_tokens": 61, "read_tokens": 61, "drafted_tokens": 50, "accepted_tokens": 30}


def test_drafts_that_were_thrown_away_are_no_part_of_the_answer() -> None:
    parts = told(split(attempt(SPECULATIVE, **DRAFTS), SPECULATIVE, steps()))
    assert parts == {Waste.REJECTED_DRAFT: (6 * MS, 20), REQUEST: (34 * MS, 61)}


def test_drafts_thrown_away_for_a_client_that_left_are_counted_once() -> None:
    # Left after step 24: fifteen steps made thirty tokens, and the prompt one; 21 were read.
    life = attempt(SPECULATIVE, **DRAFTS | {"left_ns": 25 * MS, "read_tokens": 21})
    assert told(split(life, SPECULATIVE, steps())) == {
        Waste.AFTER_ABORT: (15 * MS, 30),
        Waste.UNDELIVERED: (5 * MS, 10),
        Waste.REJECTED_DRAFT: (2 * MS, 7),  # of the ten decode steps that are left
        REQUEST: (18 * MS, 21),
    }
    assert told(split(life | {"lost": Waste.RETRIED}, SPECULATIVE, steps())) == {
        Waste.AFTER_ABORT: (15 * MS, 30),
        Waste.UNDELIVERED: (5 * MS, 10),
        Waste.RETRIED: (20 * MS, 21),
    }


def test_later_tokens_cost_more_as_their_context_grows() -> None:
    life = attempt(SPECULATIVE, **DRAFTS | {"left_ns": 40 * MS, "read_tokens": 31})
    parts = told(split(life, SPECULATIVE, steps(per_token=0.1 * MS)))
    # Half the tokens decoded, the last half, at contexts 40 to 70 where the first were at 10 to 40.
    assert parts[Waste.UNDELIVERED][0] > 1.2 * 15 * MS
    assert parts[Waste.UNDELIVERED][1] == 30


def test_a_deadline_that_passed_leaves_what_was_read() -> None:
    timeout = {"outcome": Outcome.TIMEOUT.value, "output_tokens": 11}
    assert told(split(attempt(LIFE, **timeout, read_tokens=11), LIFE, steps())) == {REQUEST: (40 * MS, 11)}
    assert told(split(attempt(LIFE, **timeout, read_tokens=0), LIFE, steps())) == {Waste.ABANDONED: (40 * MS, 11)}
    again = attempt(LIFE, **timeout, read_tokens=0, lost=Waste.RETRIED)
    assert told(split(again, LIFE, steps())) == {Waste.RETRIED: (40 * MS, 11)}


@given(
    left=st.none() | st.integers(-5 * MS, 45 * MS),
    read=st.integers(0, 31),
    lost=st.sampled_from([None, Waste.RETRIED, Waste.HEDGED, Waste.INVALID_OUTPUT]),
    cost=st.integers(0, 10**12),
    bursts=st.integers(0, 60),
    rejected=st.floats(0, 1),
    again=st.floats(0, 1),
)
def test_parts_always_add_up(
    *, left: int | None, read: int, lost: Waste | None, cost: int, bursts: int, rejected: float, again: float
) -> None:
    redo = {"waste": "recomputed_preemption", "waste_ns": int(again * cost)}
    draft = {"waste": "rejected_draft", "waste_ns": int(rejected * (cost // 3)), "tokens": 30 + bursts}
    life = [segment(Phase.PREFILL, 0, 9, cost_ns=cost, **redo), segment(Phase.DECODE, 10, 39, cost_ns=cost // 3, **draft)]
    drafts = {"drafted_tokens": 99, "accepted_tokens": bursts, "output_tokens": 31 + bursts}
    parts = split(attempt(life, left_ns=left, read_tokens=read, lost=lost, **drafts), life, steps())
    assert sum(part.cost_ns for part in parts) == cost + cost // 3
    assert all(part.cost_ns >= -3 for part in parts)  # rounded to whole nanoseconds
    if left is not None and left <= 0:
        after = next((part.cost_ns for part in parts if part.category == Waste.AFTER_ABORT), 0)
        assert after == pytest.approx(cost + cost // 3, abs=2)
