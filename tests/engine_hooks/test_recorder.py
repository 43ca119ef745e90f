"""The recorder against a real receiver: what an engine reports arrives as rows and as spans that tell the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from costspan import semconv
from costspan.clock import now_ns
from costspan.semconv import Bound, LatencyClass, Outcome, Phase, Waste
from costspan_hooks import Admission, Chunk, Removal, RequestInfo, Step
from costspan_hooks.devices import ONE_CORE
from costspan_hooks.observer import Burst, EngineInfo, ModelShape
from costspan_hooks.recorder import Recorder
from tests.receiver import Receiver, Span, read_spans

MODEL = ModelShape(parameters=1_000_000, bytes_per_parameter=4, kv_bytes_per_token=1024, flops_per_pair=2048)
ENGINE = EngineInfo(MODEL, ONE_CORE)
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
MS = 1_000_000


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def rows(receiver: Receiver, table: str) -> list[dict[str, Any]]:
    bodies = [request.body for request in receiver.accepted if request.path == f"/v1/ledger/{table}"]
    return [row for body in bodies for row in pa.ipc.open_stream(body).read_all().to_pylist()]


def spans(receiver: Receiver) -> dict[str, Span]:
    bodies = [request.body for request in receiver.accepted if request.path == "/v1/traces"]
    return {span.name: span for body in bodies for span in read_spans(body)}


def live(recorder: Recorder, *, closed_first: bool) -> int:
    """One request from arrival to a disconnect in its second step."""
    boot = now_ns()
    at = boot + 5 * MS
    recorder.ready(boot, at, ENGINE)
    recorder.enqueued(
        RequestInfo("r1", "acme", "chat", "ticket-1", 2, TRACE, CALLER, "tiny", 40, at - 2 * MS, at - MS, has_server=True)
    )
    if closed_first:
        recorder.closed("r1", at + 9 * MS, 1)
    recorder.admitted(Admission("r1", at, at + 1000, 16, 0, ""))
    recorder.step(Step(0, at + MS, at + 5 * MS, 4 * MS, [Chunk("r1", 24, 16, last=True)], Bound.NONE, {"acme": 3}))
    recorder.step(Step(1, at + 6 * MS, at + 8 * MS, 2 * MS, [], Bound.NONE, {"acme": 3}))
    recorder.removed(Removal("r1", at + 9 * MS, Outcome.CANCELLED, "abort", 2, at + 7 * MS, 1))
    if not closed_first:
        recorder.closed("r1", at + 9 * MS, 1)
    recorder.idle(at + 9 * MS, at + 10 * MS)
    recorder.evicted(at + 10 * MS, "acme", "birch", 16)
    recorder.stopped(now_ns())
    return at


@pytest.mark.parametrize("closed_first", [True, False])
def test_rows_and_spans_tell_the_same(receiver: Receiver, closed_first: bool) -> None:
    at = live(Recorder(collector=receiver.endpoint, project="p", device_kind="cpu"), closed_first=closed_first)
    (attempt,) = rows(receiver, "attempts")
    assert (attempt["tenant"], attempt["unit"], attempt["attempt"]) == ("acme", "ticket-1", 2)
    assert (attempt["disconnect_ns"], attempt["disconnect_step"], attempt["last_step"]) == (at + 7 * MS, 1, 1)
    assert attempt["phases.name"] == ["admission", "queue", "cache_hit", "prefill", "decode"]
    assert attempt["cost_ns"] == sum(attempt["phases.cost_ns"]) == 6 * MS
    found = spans(receiver)
    request = found["chat tiny"]
    assert (request.trace_id, request.parent_id, request.span_id) == (TRACE, CALLER, attempt["span_id"])
    assert request.attributes[semconv.TENANT] == "acme"
    assert request.attributes[semconv.OUTCOME] == Outcome.CANCELLED
    for name, start, duration in zip(
        attempt["phases.name"], attempt["phases.start_ns"], attempt["phases.duration_ns"], strict=True
    ):
        assert (found[name].start_ns, found[name].end_ns) == (start, start + duration)
        assert found[name].parent_id == request.span_id
    waste = found[semconv.CANCELLATION_WASTE]
    assert (waste.start_ns, waste.end_ns) == (at + 7 * MS, at + 9 * MS)


def test_steps_evictions_and_heartbeats_arrive_under_one_name(receiver: Receiver) -> None:
    live(Recorder(collector=receiver.endpoint, project="p", device_kind="cpu"), closed_first=False)
    steps = rows(receiver, "steps")
    assert [(row["step"], row["participants"]) for row in steps] == [(0, 1), (1, 1), (1, 0), (1, 0)]
    assert steps[0]["cold_start_ns"] == 5 * MS
    assert [share for row in steps for share in row["tenants.cost_ns"]] == pytest.approx([4 * MS, 2 * MS])
    (eviction,) = rows(receiver, "evictions")
    assert (eviction["victim"], eviction["culprit"], eviction["tokens"]) == ("acme", "birch", 16)
    samples = rows(receiver, "gpu_samples")
    assert samples
    assert all(row["end_ns"] >= row["start_ns"] and row.get("utilization") is None for row in samples)
    names = {request.headers[semconv.HEADER_CLIENT] for request in receiver.accepted}
    assert names == {steps[0]["engine"]} == {samples[0]["client"]}


def test_the_books_end_when_the_device_is_billed_no_longer(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(collector=receiver.endpoint, project="p", device_kind="cpu")
    boot = now_ns()
    recorder.ready(boot, boot + MS, ENGINE)
    end, book = now_ns(), recorder._ledger.stopped

    def late(at_ns: int) -> None:
        time.sleep(0.05)
        book(at_ns)

    monkeypatch.setattr(recorder._ledger, "stopped", late)
    time.sleep(0.02)  # a busy machine comes to it late
    recorder.stopped(end)
    booked = sum(row["cold_start_ns"] + row["host_gap_ns"] + row["idle_ns"] for row in rows(receiver, "steps"))
    billed_until = max(row["end_ns"] for row in rows(receiver, "gpu_samples"))
    assert billed_until >= end + 20 * MS
    assert boot + booked == billed_until


def test_what_the_engine_tells_of_drafts_experts_adapters_and_classes_arrives(receiver: Receiver) -> None:
    recorder = Recorder(collector=receiver.endpoint, project="p", device_kind="cpu")
    at = now_ns()
    recorder.ready(at, at, ENGINE)
    recorder.enqueued(RequestInfo("r1", "acme", "", "", 1, "", "", "tiny", 8, at, at, True, "lora-1", LatencyClass.BATCH, -2))
    recorder.closed("r1", at + 9 * MS, 4)
    recorder.admitted(Admission("r1", at, at, 0, 0, ""))
    chunks = [Chunk("r1", 8, 0, last=True)]
    recorder.step(Step(0, at, at + MS, MS, chunks, Bound.NONE, {"acme": 1}, experts=[5, 0, 11], expert_skew=2.06))
    recorder.step(Step(1, at + MS, at + 2 * MS, MS, [], Bound.NONE, {"acme": 1}, [Burst("r1", 3, 2)]))
    recorder.removed(Removal("r1", at + 2 * MS, Outcome.TIMEOUT, "timeout", 4, block_ns=7 * MS))
    recorder.stopped(now_ns())
    (attempt,) = rows(receiver, "attempts")
    told = ("adapter", "latency_class", "priority", "block_ns", "drafted_tokens", "accepted_tokens", "outcome")
    assert [attempt[name] for name in told] == ["lora-1", "batch", -2, 7 * MS, 3, 2, "timeout"]
    assert (attempt["phases.name"][-2], attempt["phases.tokens"][-2]) == (Phase.DECODE, 3)
    assert attempt["phases.waste"][-2] == Waste.REJECTED_DRAFT
    first, second = rows(receiver, "steps")[:2]
    assert (first["expert_tokens"], first["expert_skew"], first["drafted_tokens"]) == ([5, 0, 11], 2.06, 0)
    assert (second["expert_tokens"], second["prefill_tokens"], second["drafted_tokens"]) == ([], 0, 3)
    found = spans(receiver)
    assert found["chat tiny"].attributes[semconv.ADAPTER] == "lora-1"
    assert found["decode"].attributes[semconv.ITEMS] == 3


def test_a_request_whose_server_never_reported_is_not_lost(receiver: Receiver) -> None:
    recorder = Recorder(collector=receiver.endpoint, project="p", device_kind="cpu")
    at = now_ns()
    recorder.ready(at, at, ENGINE)
    recorder.enqueued(RequestInfo("r1", "acme", "", "", 1, "", "", "tiny", 4, at, at, has_server=True))
    recorder.removed(Removal("r1", at + MS, Outcome.ERROR, "error", 0))
    recorder.stopped(now_ns())
    (attempt,) = rows(receiver, "attempts")
    assert (attempt["outcome"], attempt["sent_ns"], attempt["phases.name"]) == ("error", at + MS, ["admission", Phase.QUEUE])
    assert spans(receiver)["chat tiny"].status == 2


def test_a_request_without_a_caller_has_a_trace_of_its_own(receiver: Receiver) -> None:
    recorder = Recorder(collector=receiver.endpoint, project="p", device_kind="cpu")
    at = now_ns()
    recorder.ready(at, at, ENGINE)
    recorder.enqueued(RequestInfo("r1", "acme", "", "", 1, "", "", "tiny", 4, at, at, has_server=False))
    recorder.removed(Removal("r1", at + MS, Outcome.OK, "stop", 0))
    recorder.stopped(now_ns())
    (attempt,) = rows(receiver, "attempts")
    request = spans(receiver)["chat tiny"]
    assert (attempt["trace_id"], attempt["span_id"]) == (request.trace_id, request.span_id)
    assert int(request.trace_id, 16)
    assert attempt["parent_span_id"] == request.parent_id == ""


def test_a_row_that_cannot_be_written_is_counted_as_lost_and_the_next_ones_still_go(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(collector=receiver.endpoint, project="p", device_kind="cpu")
    at = now_ns()
    recorder.ready(at, at, ENGINE)
    for name, prompt_tokens in (("bad", -1), ("good", 4)):
        recorder.enqueued(RequestInfo(name, "acme", "", "", 1, "", "", "tiny", prompt_tokens, at, at, has_server=False))
        recorder.removed(Removal(name, at + MS, Outcome.OK, "stop", 0))
        deadline = now_ns() + 10_000 * MS
        while not (caplog.records or name == "good") and now_ns() < deadline:
            time.sleep(0.01)
    recorder.stopped(now_ns())
    assert [row["request_id"] for row in rows(receiver, "attempts")] == ["good"]
    (sent,) = (request for request in receiver.accepted if request.path == "/v1/ledger/attempts")
    assert (sent.headers[semconv.HEADER_ITEMS], sent.headers[semconv.HEADER_TOTAL]) == ("1", "2")


def test_closings_whose_attempts_were_lost_do_not_pile_up(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("costspan_hooks.shipper.BACKLOG", 10)
    recorder = Recorder(collector=receiver.endpoint, project="p", device_kind="cpu")
    for number in range(100):
        recorder.closed(f"lost-{number}", now_ns(), 0)
    recorder.stopped(now_ns())
    assert list(recorder._shipper._closed) == [f"lost-{number}" for number in range(90, 100)]


def test_an_engine_stops_though_its_collector_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("costspan_hooks.shipper.LAST_WORDS_S", 0.2)
    receiver = Receiver()
    receiver.close()
    recorder = Recorder(collector=receiver.endpoint, project="p", device_kind="cpu")
    began = now_ns()
    live(recorder, closed_first=False)
    assert now_ns() - began < 60_000 * MS


def test_what_was_lost_is_told_though_no_row_comes_after_it(receiver: Receiver) -> None:
    recorder = Recorder(collector=receiver.endpoint, project="p", device_kind="cpu")
    recorder._shipper.lose("attempts", 3)
    at = now_ns()
    recorder.ready(at, at, ENGINE)
    recorder.enqueued(RequestInfo("bad", "acme", "", "", 1, "", "", "tiny", -1, at, at, has_server=True))
    recorder.removed(Removal("bad", at, Outcome.OK, "stop", 0))
    recorder.stopped(now_ns())
    sent = [request for request in receiver.accepted if request.path == "/v1/ledger/attempts"]
    assert [request.headers[semconv.HEADER_ITEMS] for request in sent] == ["0"] * len(sent)
    assert sent[-1].headers[semconv.HEADER_TOTAL] == "4"


def test_closings_are_bounded_while_nobody_takes_them(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("costspan_hooks.shipper.BACKLOG", 10)
    monkeypatch.setattr("costspan_hooks.shipper.PERIOD_S", 600.0)
    recorder = Recorder(collector=receiver.endpoint, project="p", device_kind="cpu")
    for number in range(100):
        recorder.closed(f"r{number}", now_ns(), 0)
    assert [each[0] for each in recorder._shipper._closings] == [f"r{number}" for number in range(90, 100)]
    recorder.stopped(now_ns())


def test_attempts_of_a_server_that_reports_no_end_do_not_pile_up(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("costspan_hooks.shipper.BACKLOG", 10)
    monkeypatch.setattr("costspan_hooks.shipper.PERIOD_S", 0.02)
    recorder = Recorder(collector=receiver.endpoint, project="p", device_kind="cpu")
    at = now_ns()
    recorder.ready(at, at, ENGINE)
    for number in range(25):
        name = f"r{number}"
        recorder.enqueued(RequestInfo(name, "acme", "", "", 1, "", "", "tiny", 4, at, at, has_server=True))
        recorder.removed(Removal(name, at, Outcome.OK, "stop", 0))
        time.sleep(0.03)
    deadline = now_ns() + 10_000 * MS
    while len(recorder._shipper._removed) < 10 and now_ns() < deadline:
        time.sleep(0.01)
    assert len(recorder._shipper._removed) <= 10
    recorder.stopped(now_ns())
    assert sorted(row["request_id"] for row in rows(receiver, "attempts")) == sorted(f"r{number}" for number in range(25))
