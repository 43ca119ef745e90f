"""Scenarios played on the virtual clock: callers, events and books."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from costspan import semconv
from costspan.semconv import Outcome, Phase, Waste
from costspan_engine.block_manager import BlockManager
from costspan_engine.errors import CostspanEngineError
from costspan_engine.sequence import Request, Sampling, Sequence
from costspan_engine.simulate.calls import BACKOFF_NS, CLIENT_NS, UNREAD, WIRE_NS
from costspan_engine.simulate.scenario import Scenario
from costspan_engine.simulate.world import EPOCH_NS, Played, play
from costspan_hooks.observer import RequestInfo
from costspan_hooks.records import AttemptRecord, EngineRecord, EvictionRecord, StepRecord

S = 10**9
_SCENARIO = """\
name: test
seed: 3
duration_s: 60
engine: {{gpu: l40s, model: llama-8b, gpu_usd_per_hour: 1.0{engine}}}
tenants:
  - name: acme
    arrivals: {{process: poisson, rate: {rate}}}
    prompt_tokens: {{dist: constant, value: 200}}
    output_tokens: {{dist: constant, value: 40}}
    client: {{{client}}}
    {prefix}
events: [{events}]
"""


def played(*, rate: float = 1.0, client: str = "", events: str = "", engine: str = "", prefix: str = "") -> Played:
    text = _SCENARIO.format(rate=rate, client=client, events=events, engine=engine, prefix=prefix)
    return play(Scenario.parse(text, "test.yaml", Path()))


def spans(run: Played) -> list[dict[str, Any]]:
    return [dict(span.attributes or {}) for span in sorted(run.spans, key=lambda span: span.start_time or 0)]


def attempts(run: Played) -> list[AttemptRecord]:
    return [record for life in run.lives for record in life.records if isinstance(record, AttemptRecord)]


def test_every_call_is_answered_once_and_the_books_close() -> None:
    run = played(rate=2.0)

    assert {span[semconv.OUTCOME] for span in spans(run)} == {Outcome.OK.value}
    assert {call.request_id for call in run.calls} == {record.request.request_id for record in attempts(run)}
    booked = sum(
        record.duration_ns + record.idle_ns + record.host_gap_ns
        for record in run.lives[0].records
        if isinstance(record, StepRecord)
    )
    assert booked == run.end_ns - EPOCH_NS


def test_the_same_scenario_is_played_the_same_way() -> None:
    first, again = (
        played(client="abort_probability: 0.3, abort_after_tokens: 5"),
        played(client="abort_probability: 0.3, abort_after_tokens: 5"),
    )

    assert spans(first) == spans(again)
    assert first.lives[0].records == again.lives[0].records


def test_a_user_who_presses_stop_has_read_as_much_as_was_said() -> None:
    run = played(client="abort_probability: 1.0, abort_after_tokens: 7")

    for span in spans(run):
        assert span[semconv.OUTCOME] == Outcome.CANCELLED.value
        assert span[semconv.CALL_DELIVERED] == 7
    for record in attempts(run):
        assert record.removal.disconnect_ns > 0
        assert 7 <= record.removal.output_tokens < 12
        assert record.last_step <= record.removal.disconnect_step


def test_who_loses_patience_asks_again_as_often_as_allowed() -> None:
    stall = "{at_s: 0, kind: slow_engine, factor: 100, for_s: 60}"
    run = played(rate=0.2, client="timeout_s: 2, max_retries: 2", events=stall)
    operations: dict[str, list[dict[str, Any]]] = {}
    for span in spans(run):
        operations.setdefault(span[semconv.OPERATION], []).append(span)

    assert any(len(calls) == 3 for calls in operations.values())
    for calls in operations.values():
        assert [call[semconv.ATTEMPT] for call in calls] == list(range(1, len(calls) + 1))
        for call, following in pairwise(calls):
            assert call[semconv.OUTCOME] == Outcome.TIMEOUT.value
            assert call[semconv.CALL_ABORT] == call[semconv.CALL_START] + 2 * S
            assert following[semconv.CALL_START] == call[semconv.CALL_ABORT] + BACKOFF_NS


def test_a_slow_reader_holds_the_connection_and_not_the_engine() -> None:
    run = played(rate=0.2, client="read_tokens_per_s: 10")

    for call in run.calls:
        assert call.removal is not None
        sent_ns, tokens = call.written()
        read = call.read()
        assert tokens == 40
        assert min(read[1:] - read[:-1]) >= S // 10
        assert sent_ns >= read[39 - UNREAD] > call.removal.at_ns
        assert call.removal.at_ns - call.start_ns < 2 * S


def test_a_cold_start_holds_requests_until_the_new_process_is_ready() -> None:
    run = played(rate=2.0, events="{at_s: 20, kind: cold_start, seconds: 10}")
    old, new = run.lives
    ready = next(record for record in new.records if isinstance(record, EngineRecord))

    assert old.device == new.device
    assert ready.ready_ns - ready.started_ns == 10 * S
    waited = [record for record in attempts(run) if record.request.received_ns < ready.ready_ns <= record.removal.at_ns]
    assert waited
    for record in waited:
        queue = next(segment for segment in record.segments if segment.name is Phase.QUEUE)
        assert queue.start_ns + queue.duration_ns >= ready.ready_ns
    cold = sum(record.cold_start_ns for record in new.records if isinstance(record, StepRecord))
    assert cold == 10 * S


def test_a_slow_engine_s_steps_take_longer_while_it_lasts() -> None:
    run = played(rate=0.5, events="{at_s: 20, kind: slow_engine, factor: 3, for_s: 20}")
    steps = [
        record
        for record in run.lives[0].records
        if isinstance(record, StepRecord) and record.decode_seqs and not record.prefill_tokens
    ]
    slow = [step.duration_ns for step in steps if EPOCH_NS + 20 * S <= step.start_ns < EPOCH_NS + 40 * S]
    usual = [step.duration_ns for step in steps if not EPOCH_NS + 20 * S <= step.start_ns < EPOCH_NS + 40 * S]

    assert min(slow) / max(usual) == pytest.approx(3.0, rel=0.1)


def test_a_changed_route_takes_its_share_to_another_device() -> None:
    run = played(rate=10.0, events="{at_s: 10, kind: route_change, share: 0.3, gpu: l4}")
    moved = [record for record in run.lives[1].records if isinstance(record, AttemptRecord)]
    later = [record for record in attempts(run) if record.request.received_ns > EPOCH_NS + 10 * S]

    assert run.lives[1].gpu == "l4"
    assert run.devices[1].since_ns == EPOCH_NS + 10 * S
    assert len(moved) / len(later) == pytest.approx(0.3, abs=0.06)


def test_a_flushed_cache_is_computed_again_and_nobody_is_the_culprit() -> None:
    run = played(rate=2.0, prefix="prefix: {groups: 2, tokens: 1600}", events="{at_s: 30, kind: flush_cache}")
    gone = [record for record in run.lives[0].records if isinstance(record, EvictionRecord)]
    again = [record for record in attempts(run) if record.evicted_tokens]

    assert {(record.victim, record.culprit) for record in gone} == {("acme", "")}
    assert len(again) >= 2
    assert {segment.waste for record in again for segment in record.segments} == {"", Waste.RECOMPUTED_EVICTION}


def test_a_flush_leaves_the_cache_s_books_in_order() -> None:
    gone: list[tuple[str, str]] = []
    blocks = BlockManager(8, 4, prefix_cache=True, on_evict=lambda victim, culprit: gone.append((victim, culprit)))
    info = RequestInfo("r1", "acme", "", "", 1, "", "", "", 12, 0, 0, has_server=False)
    left, stays = (Sequence(Request(info, list(range(12)), Sampling(1))) for _ in range(2))
    for seq in (left, stays):
        assert blocks.admit(seq, blocks.lookup(seq)) == 0
        seq.computed = 12
        blocks.register(seq)
    blocks.release(left)

    blocks.flush()

    blocks.check_invariants([stays])
    assert blocks.lookup(stays).evicted_tokens > 0
    assert set(gone) == {("acme", "")}


def test_times_of_a_call_follow_from_each_other() -> None:
    run = played(rate=0.2)

    for span in spans(run):
        assert span[semconv.CALL_SENT] - span[semconv.CALL_START] == CLIENT_NS
        assert span[semconv.CALL_FIRST] <= span[semconv.CALL_LAST] == span[semconv.CALL_END] - CLIENT_NS
    for call in run.calls:
        record = next(each for each in attempts(run) if each.request.request_id == call.request_id)
        assert record.request.received_ns == call.start_ns + CLIENT_NS + WIRE_NS


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"events": "{at_s: 1, kind: burst, tenant: big, requests: 1, prompt_tokens: 500000, output_tokens: 1}"},
            "big wants 500000",
        ),
        ({"engine": ", kv_blocks: 4"}, "shorten its lengths or raise kv_blocks"),
        (
            {"events": "{at_s: 5, kind: cold_start, seconds: 20}, {at_s: 10, kind: cold_start, seconds: 5}"},
            "at 10 s no replica",
        ),
        ({"engine": ", max_batched_tokens: 8"}, "max_batched_tokens"),
    ],
)
def test_what_cannot_be_played_is_refused(changes: dict[str, str], says: str) -> None:
    with pytest.raises(CostspanEngineError, match=says):
        played(**changes)  # type: ignore[arg-type]  # all of them are texts
