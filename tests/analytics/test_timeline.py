"""Law 1 on hand-made readings: what is in a phase, what is cut off, and what is left over."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costspan.semconv import Phase
from costspan_analytics.tail import unaccounted_share
from costspan_analytics.timeline import PHASES, Timeline

MS = 1_000_000
T0 = 1_700_000_000_000_000_000


def call(**changes: object) -> dict[str, object]:
    row: dict[str, object] = {
        "trace_id": "t",
        "span_id": "c1",
        "client": "app",
        "tenant": "acme",
        "feature": "",
        "unit": "",
        "attempt": 1,
        "operation": "",
        "provider": "costspan",
        "invalid": "",
        "model": "tiny",
        "outcome": "ok",
        "delivered_tokens": 5,
        "call_start_ns": T0,
        "call_sent_ns": T0 + 1 * MS,
        "call_headers_ns": T0 + 52 * MS,
        "call_first_ns": T0 + 53 * MS,
        "call_last_ns": T0 + 98 * MS,
        "call_end_ns": T0 + 100 * MS,
        "call_abort_ns": 0,
    }
    return row | changes


def attempt(offset: int = 0, **changes: object) -> dict[str, object]:
    row: dict[str, object] = {
        "engine": "e",
        "request_id": "r1",
        "parent_span_id": "c1",
        "tenant": "acme",
        "received_ns": T0 + 3 * MS + offset,
        "first_token_ns": T0 + 50 * MS + offset,
        "removed_ns": T0 + 94 * MS + offset,
        "sent_ns": T0 + 96 * MS + offset,
        "disconnect_ns": 0,
        "delivered_tokens": 5,
    }
    return row | changes


def segments(offset: int = 0) -> list[dict[str, object]]:
    spans = [
        (Phase.ADMISSION, 3, 5),
        (Phase.QUEUE, 5, 20),
        (Phase.PREFILL, 20, 50),
        (Phase.DECODE, 50, 94),
        (Phase.STREAM, 94, 96),
    ]
    return [
        {
            "engine": "e",
            "request_id": "r1",
            "phase": phase.value,
            "start_ns": T0 + start * MS + offset,
            "duration_ns": (end - start) * MS,
        }
        for phase, start, end in spans
    ]


def lay(calls: dict[str, object], attempts: dict[str, object], spans: list[dict[str, object]]) -> Timeline:
    return Timeline(pl.DataFrame([calls]), pl.DataFrame([attempts]), pl.DataFrame(spans))


def milliseconds(timeline: Timeline) -> dict[str, float]:
    row = timeline.requests.row(0, named=True)
    return {phase: row[phase] / MS for phase in PHASES if row[phase]}


def test_phases_add_up_to_what_the_client_measured() -> None:
    timeline = lay(call(), attempt(), segments())
    assert milliseconds(timeline) == {
        "client_overhead": 3.0,
        "network": 4.0,
        "admission": 2.0,
        "queue": 15.0,
        "prefill": 30.0,
        "decode": 44.0,
        "stream": 2.0,
    }
    assert timeline.requests["wall_ns"].item() == 100 * MS


def test_a_lost_segment_is_left_over_and_shown() -> None:
    timeline = lay(call(), attempt(), [row for row in segments() if row["phase"] != Phase.QUEUE])
    assert milliseconds(timeline)["unaccounted"] == 15.0
    assert unaccounted_share(timeline.requests).item() == pytest.approx(0.15)


def test_what_came_after_the_client_left_is_not_its_time() -> None:
    timeline = lay(call(call_abort_ns=T0 + 60 * MS, outcome="cancelled"), attempt(), segments())
    spent = milliseconds(timeline)
    assert spent["decode"] == 10.0
    assert sum(spent.values()) == 60.0
    assert "stream" not in spent
    assert "unaccounted" not in spent


def test_a_call_that_no_engine_saw_is_unaccounted_but_for_its_own_part() -> None:
    timeline = Timeline(pl.DataFrame([call()]), pl.DataFrame([attempt(parent_span_id="other")]), pl.DataFrame(segments()))
    assert milliseconds(timeline) == {"client_overhead": 3.0, "unaccounted": 97.0}


def test_a_call_that_was_turned_away_was_on_its_way_until_it_heard_so() -> None:
    refused = call(outcome="error", call_first_ns=0, call_last_ns=0)
    timeline = Timeline(pl.DataFrame([refused]), pl.DataFrame([attempt(parent_span_id="other")]), pl.DataFrame(segments()))
    assert milliseconds(timeline) == {"client_overhead": 1.0 + 48.0, "network": 51.0}


def test_a_provider_that_none_of_our_engines_answered_for_is_somebody_else() -> None:
    calls = [call(), call(span_id="c2"), call(span_id="c3", provider="openai"), call(span_id="c4", provider="openai")]
    timeline = Timeline(pl.DataFrame(calls), pl.DataFrame([attempt()]), pl.DataFrame(segments()))
    assert sorted(timeline.elsewhere["span_id"]) == ["c3", "c4"]
    answered = Timeline(pl.DataFrame(calls), pl.DataFrame([attempt(parent_span_id="c3")]), pl.DataFrame(segments()))
    assert answered.elsewhere.is_empty(), "openai is a name of an engine of ours: what it lost is for the law to see"


def test_an_answer_that_was_whole_before_its_client_left_was_on_its_way() -> None:
    spent = milliseconds(lay(call(call_abort_ns=T0 + 400 * MS, call_end_ns=T0 + 400 * MS), attempt(), segments()))
    assert spent["network"] == 306.0
    assert "unaccounted" not in spent


def test_a_client_that_hung_up_before_it_says_so_spent_that_time_itself() -> None:
    left = call(call_abort_ns=T0 + 70 * MS, call_end_ns=T0 + 70 * MS, outcome="cancelled")
    gone = attempt(disconnect_ns=T0 + 55 * MS, removed_ns=T0 + 60 * MS, sent_ns=T0 + 55 * MS)
    cut = [row | {"duration_ns": 10 * MS} if row["phase"] == Phase.DECODE else row for row in segments()[:-1]]
    spent = milliseconds(lay(left, gone, cut))
    assert spent["client_overhead"] == 1.0 + 10.0
    assert "unaccounted" not in spent


def test_what_an_http_client_tried_again_by_itself_is_neither_counted_twice_nor_upsets_the_clocks() -> None:
    # The engine saw two requests of one call, whose stamp of sending is that of the second.
    calls = [call(span_id="c0"), call(call_start_ns=T0 - 3000 * MS)]
    attempts = [
        attempt(request_id="r0", parent_span_id="c0"),
        attempt(request_id="failed", received_ns=T0 - 2990 * MS, sent_ns=T0 - 1000 * MS),
        attempt(),
    ]
    spans = [{**row, "request_id": name} for name in ("r0", "r1") for row in segments()]
    failed = {**segments()[0], "request_id": "failed", "start_ns": T0 - 2990 * MS, "duration_ns": 1990 * MS}
    timeline = Timeline(pl.DataFrame(calls), pl.DataFrame(attempts), pl.DataFrame([*spans, failed]))
    assert timeline.joined["offset_ns"].to_list() == [0, 0, 0]
    alone, retried = timeline.requests.sort("span_id").select(PHASES).to_dicts()
    assert retried == {**alone, "client_overhead": alone["client_overhead"] + 3000 * MS}


def choices(**changes: object) -> Timeline:
    """One call for two choices, received together; the second ends first and makes the first token."""
    attempts = [
        attempt(request_id="chatcmpl-a", delivered_tokens=6),
        attempt(request_id="chatcmpl-a-1", delivered_tokens=3, first_token_ns=T0 + 45 * MS, removed_ns=T0 + 80 * MS),
    ]
    spans = [{**row, "request_id": name} for name in ("chatcmpl-a", "chatcmpl-a-1") for row in segments()]
    calls = call(**{"call_first_ns": T0 + 47 * MS, "delivered_tokens": 9, **changes})
    return Timeline(pl.DataFrame([calls]), pl.DataFrame(attempts), pl.DataFrame(spans))


def test_choices_of_one_answer_run_at_the_same_time_and_are_laid_under_the_call_once() -> None:
    timeline = choices()
    assert milliseconds(timeline) == milliseconds(lay(call(), attempt(), segments()))
    rows = timeline.joined.sort("request_id")
    assert rows["answered"].to_list() == [True, True]
    assert rows["final"].to_list() == [True, False]
    # The client had the second choice's first token before the first choice had made any: no clock is wrong.
    assert rows["offset_ns"].to_list() == [0, 0]
    assert timeline.waited_for["request_id"].to_list() == ["chatcmpl-a"]


def test_what_was_read_of_several_choices_is_told_apart_by_what_was_written_of_each() -> None:
    assert choices().joined.sort("request_id")["read_tokens"].to_list() == [6, 3]
    left = choices(call_abort_ns=T0 + 60 * MS, outcome="cancelled", delivered_tokens=4)
    assert left.joined.sort("request_id")["read_tokens"].to_list() == [3, 1]


def test_what_was_tried_again_is_no_choice_though_it_came_in_the_same_moment() -> None:
    attempts = [
        attempt(request_id="chatcmpl-a"),
        attempt(request_id="chatcmpl-b"),
        attempt(request_id="chatcmpl-b-1"),
        attempt(request_id="chatcmpl-c", engine="other", received_ns=T0 + 1 * MS),
    ]
    timeline = Timeline(pl.DataFrame([call()]), pl.DataFrame(attempts), pl.DataFrame(segments()))
    marks = timeline.joined.select("request_id", "answered", "final").sort("request_id").rows()
    assert marks == [
        ("chatcmpl-a", False, False),
        ("chatcmpl-b", True, False),
        ("chatcmpl-b-1", True, True),
        ("chatcmpl-c", False, False),
    ]
    assert timeline.waited_for.height == 3


def test_the_clocks_of_a_client_that_always_left_are_aligned_by_what_it_read() -> None:
    offset = 3_600_000 * MS
    timeline = lay(call(call_abort_ns=T0 + 60 * MS, outcome="cancelled"), attempt(offset), segments(offset))
    spent = milliseconds(timeline)
    assert abs(timeline.joined["offset_ns"].item() - offset) <= 3 * MS
    assert (spent["queue"], spent["prefill"], sum(spent.values())) == (15.0, 30.0, 60.0)


@given(st.integers(-10_000_000 * MS, 10_000_000 * MS))
def test_clocks_of_two_machines_are_aligned_so_that_no_phase_is_negative(offset: int) -> None:
    timeline = lay(call(), attempt(offset), segments(offset))
    spent = milliseconds(timeline)
    assert min(spent.values()) >= 0
    assert sum(spent.values()) == pytest.approx(100.0)
    assert spent["network"] == pytest.approx(4.0)  # there and back is known, whatever the clocks say
    assert abs(timeline.joined["offset_ns"].item() - offset) <= 2 * MS
