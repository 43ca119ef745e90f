"""The loop: cancellation before every step, the order of events, and time that adds up."""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from costspan.clock import now_ns
from costspan.semconv import Outcome
from costspan_engine.deadlines import Deadlines
from costspan_engine.engine import Engine, Output
from costspan_engine.errors import RequestError
from costspan_engine.scheduler import Batch
from costspan_engine.settings import EngineConfig
from costspan_hooks.observer import Removal
from tests.engine_hooks.engine_fixtures import (
    CountingExecutor,
    Recording,
    generate,
    mini_model,
    request,
    running,
    scheduler,
    torch_executor,
    until,
)

CONFIG = EngineConfig(max_num_seqs=6, max_batched_tokens=16, kv_blocks=40, block_size=4)


@pytest.mark.parametrize("seed", range(3))
def test_cancelled_at_random_moments(seed: int) -> None:
    chance = random.Random(seed)
    model, observer = mini_model(), Recording()
    asked = [request([chance.randrange(256) for _ in range(chance.randrange(1, 30))], 25) for _ in range(16)]
    expected = generate(torch_executor(CONFIG, model), scheduler(CONFIG), asked)
    cancelled = set()
    with running(torch_executor(CONFIG, model), CONFIG, observer) as client:
        for each in asked:
            client.engine.submit(each)
        for each in chance.sample(asked, 8):
            time.sleep(chance.random() * 0.01)
            client.engine.cancel(each.info.request_id, now_ns())
        client.wait(len(asked))
        assert client.engine.scheduler.blocks.available == CONFIG.kv_blocks
        client.engine.scheduler.blocks.check_invariants([])
    for each, answer in zip(asked, expected, strict=True):
        request_id = each.info.request_id
        got = client.tokens.get(request_id, [])
        if client.reasons[request_id] == "abort":
            cancelled.add(request_id)
            assert got == answer[: len(got)]
        else:
            assert got == answer
    assert cancelled
    _check_gone_by_the_next_step(observer, cancelled)
    _check_order(observer)


def _check_gone_by_the_next_step(observer: Recording, cancelled: set[str]) -> None:
    last_step = -1
    for name, what in observer.events:
        if name == "step":
            last_step = what[0].index
        if name == "removed" and what.request_id in cancelled:
            assert what.outcome is Outcome.CANCELLED
            assert what.disconnect_ns > 0
            assert last_step <= what.disconnect_step <= last_step + 1
            assert what.at_ns >= what.disconnect_ns


def _check_order(observer: Recording) -> None:
    """Each request: enqueued, then admitted and preempted in turns, then removed once; nothing after that."""
    state: dict[str, str] = {}
    allowed = {"enqueued": {""}, "admitted": {"enqueued", "preempted"}, "preempted": {"admitted"}}
    allowed["removed"] = {"enqueued", "admitted", "preempted"}
    for name, what in observer.events:
        if name in allowed:
            request_id = what[0] if name == "preempted" else what.request_id
            assert state.get(request_id, "") in allowed[name], (name, state.get(request_id))
            state[request_id] = name
        if name == "step":
            for chunk in what[0].chunks:
                assert state[chunk.request_id] == "admitted"
    assert set(state.values()) == {"removed"}


def test_chunks_cover_the_prompt_and_every_decode_is_in_every_step() -> None:
    observer = Recording()
    with running(CountingExecutor(), CONFIG, observer) as client:
        asked = [request([n] * length, 30) for n, length in enumerate((5, 21, 40, 13))]
        for each in asked:
            client.engine.submit(each)
        client.wait(len(asked))
    assert observer.all("preempted"), "the case is meant to be tight"
    # The ledger counts a request's tokens from its last chunk's step to its removal or preemption: that must come out right.
    made: dict[str, int] = {each.info.request_id: 0 for each in asked}
    decoding: set[str] = set()
    computed: dict[str, int] = {}
    for name, what in observer.events:
        if name == "admitted":
            computed[what.request_id] = what.cached_tokens
        elif name == "preempted":
            decoding.discard(what[0])
        elif name == "step":
            for request_id in decoding:
                made[request_id] += 1
            for chunk in what[0].chunks:
                assert chunk.context == computed[chunk.request_id]
                computed[chunk.request_id] += chunk.tokens
                if chunk.last:
                    decoding.add(chunk.request_id)
                    made[chunk.request_id] += 1
        elif name == "removed":
            decoding.discard(what.request_id)
            assert made[what.request_id] == what.output_tokens == 30
    assert [step.index for step in observer.steps()] == list(range(len(observer.steps())))


def test_time_is_told_once_and_without_holes() -> None:
    observer, before = Recording(), now_ns()
    with running(CountingExecutor(0.002), CONFIG, observer) as client:
        for _ in range(3):
            client.engine.submit(request([1] * 5, 40))
            client.wait(1)
            time.sleep(0.05)
        time.sleep(1.1)
    after = now_ns()
    [(started_ns, ready_ns, _)], [stopped_ns] = observer.all("ready"), observer.all("stopped")
    assert before <= started_ns <= ready_ns <= stopped_ns <= after
    told = [(started_ns, ready_ns)]
    for name, what in observer.events:
        if name == "idle":
            told.append(what)
        elif name == "step":
            step = what[0]
            assert step.duration_ns <= step.end_ns - step.start_ns
            told.append((step.start_ns, step.end_ns))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(told)), "two stretches overlap"
    # What no stretch covers is host time, and it is small; what the executor measured is nearly all of a step.
    wall = stopped_ns - started_ns
    assert wall - sum(end - start for start, end in told) < 0.25 * wall
    assert sum(s.end_ns - s.start_ns - s.duration_ns for s in observer.steps()) < 0.1 * wall
    idle = observer.all("idle")
    assert max(end - start for start, end in idle) < 2e9
    assert sum(end - start for start, end in idle) > 1.1e9


def test_a_finished_request_left_at_the_end_of_its_last_step() -> None:
    observer = Recording()
    with running(CountingExecutor(), CONFIG, observer) as client:
        asked = request([1] * 3, 4)
        client.engine.submit(asked)
        client.wait(1)
    removal = observer.removal(asked.info.request_id)
    assert removal.block_ns > 0
    last = observer.steps()[-1].end_ns
    assert removal == Removal(
        asked.info.request_id, last, Outcome.OK, "length", 4, block_ns=removal.block_ns, prefix=removal.prefix
    )
    assert len(removal.prefix) == 1  # of its six computed tokens, the first block


def test_a_stop_token_ends_a_sequence() -> None:
    with running(CountingExecutor(), CONFIG, Recording()) as client:
        asked = request([1], 50, stop_ids=frozenset({5, 9}))
        client.engine.submit(asked)
        client.wait(1)
    assert client.tokens == {asked.info.request_id: [2, 3, 4, 5]}
    assert client.reasons == {asked.info.request_id: "stop"}


def test_cancelled_before_the_loop_ever_saw_it() -> None:
    observer, executor = Recording(), CountingExecutor()
    with running(executor, CONFIG, observer) as client:
        executor.gate.clear()
        first, second = request([1] * 3, 2), request([2] * 3, 2)
        client.engine.submit(first)
        until(lambda: observer.all("admitted"))
        client.engine.submit(second)
        client.engine.cancel(second.info.request_id, now_ns())
        executor.gate.set()
        client.wait(2)
    assert client.reasons == {first.info.request_id: "length", second.info.request_id: "abort"}
    removal = observer.removal(second.info.request_id)
    assert (removal.output_tokens, removal.disconnect_step) == (0, 0)
    assert second.info.request_id not in [each.request_id for each in observer.all("admitted")]
    _check_order(observer)


def test_a_failed_step_fails_its_requests_and_no_others() -> None:
    observer, executor = Recording(), CountingExecutor()
    with running(executor, CONFIG, observer) as client:
        executor.fail_next = True
        failed, served = request([1] * 3, 2), request([2] * 3, 2)
        client.engine.submit(failed)
        client.wait(1)
        client.engine.submit(served)
        client.wait(1)
        assert client.engine.scheduler.blocks.available == CONFIG.kv_blocks
    assert client.reasons == {failed.info.request_id: "error", served.info.request_id: "length"}
    assert observer.removal(failed.info.request_id).outcome is Outcome.ERROR
    assert [step.index for step in observer.steps()] == [0, 1]


def test_stopping_ends_what_is_left_and_refuses_more() -> None:
    observer = Recording()
    with running(CountingExecutor(0.01), CONFIG, observer) as client:
        left = request([1] * 3, 150)
        client.engine.submit(left)
        client.wait_first_token()
        client.engine.stop()
        assert client.reasons == {left.info.request_id: "stopping"}
        with pytest.raises(RequestError, match="shutting down"):
            client.engine.submit(request([1], 1))
    assert [name for name, _ in observer.events][-2:] == ["removed", "stopped"]


def test_a_request_that_never_fits_is_refused_at_once() -> None:
    with running(CountingExecutor(), CONFIG, Recording()) as client:
        assert client.engine.max_context == 160
        client.engine.submit(request([1] * 100, 60))
        client.wait(1)
        with pytest.raises(RequestError, match="maximum context length is 160 tokens") as refusal:
            client.engine.submit(request([1] * 101, 60))
        assert refusal.value.code == "context_length_exceeded"
        with pytest.raises(RequestError, match="empty"):
            client.engine.submit(request([], 1))


def test_a_deadline_ends_a_request_wherever_it_is() -> None:
    observer, executor = Recording(), CountingExecutor(0.005)
    config = EngineConfig(max_num_seqs=1, max_batched_tokens=16, kv_blocks=40, block_size=4)
    with running(executor, config, observer) as client:
        soon = now_ns() + 60_000_000
        decoding, queued = (replace(request([n] * 3, 150), deadline_ns=soon) for n in (1, 2))
        late, patient = replace(request([3] * 3, 2), deadline_ns=1), replace(request([4] * 3, 2), deadline_ns=now_ns() + 10**12)
        for each in (decoding, queued, late, patient):
            client.engine.submit(each)
        client.wait(4)
        assert client.engine.scheduler.blocks.available == config.kv_blocks
    reasons = [client.reasons[each.info.request_id] for each in (decoding, queued, late, patient)]
    assert reasons == ["timeout", "timeout", "timeout", "length"]
    assert client.tokens[decoding.info.request_id]
    for each in (decoding, queued):
        removal = observer.removal(each.info.request_id)
        assert removal.outcome is Outcome.TIMEOUT
        assert removal.at_ns >= soon
    _check_order(observer)


def test_a_far_deadline_is_forgotten_with_its_request() -> None:
    deadlines, alive = Deadlines(), {"stays"}
    deadlines.add(5, "stays", alive)
    for number in range(5000):
        deadlines.add(10**18, f"gone {number}", alive)
        assert len(deadlines) < 200
    assert list(deadlines.passed(4)) == []
    assert list(deadlines.passed(5)) == ["stays"]


class BrokenGuide:
    """A guide that fails when it is asked for what may come, or when it is told what came."""

    ended = False

    def __init__(self, *, fills: bool) -> None:
        self._fills = fills

    def fill(self, row: NDArray[np.int32]) -> None:
        if not self._fills:
            raise LookupError("no such state")
        row[:] = -1

    def accept(self, token: int) -> None:
        raise LookupError(f"token {token} is not in the grammar")


def _raise(token: int) -> bool:
    raise UnicodeError(f"token {token} is no text")


@pytest.mark.parametrize("broken", [{"guide": BrokenGuide(fills=False)}, {"guide": BrokenGuide(fills=True)}, {"stops": _raise}])
def test_a_request_whose_own_code_fails_ends_alone(broken: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    observer = Recording()
    good, bad = request([1] * 3, 6), replace(request([2] * 3, 6), **broken)
    [expected] = generate(torch_executor(CONFIG), scheduler(CONFIG), [good])
    with running(torch_executor(CONFIG), CONFIG, observer) as client:
        client.engine.submit(good)
        client.engine.submit(bad)
        client.wait(2)
        assert client.engine.scheduler.blocks.available == CONFIG.kv_blocks
    assert client.reasons == {good.info.request_id: "length", bad.info.request_id: "error"}
    assert client.tokens[good.info.request_id] == expected
    assert observer.removal(bad.info.request_id).outcome is Outcome.ERROR
    assert len([record for record in caplog.records if bad.info.request_id in record.getMessage()]) == 1


def test_a_failed_step_takes_nothing_from_the_step_before() -> None:
    executor = CountingExecutor()
    with running(executor, CONFIG, Recording()) as client:

        def fail_second(batch: Batch) -> Any:
            executor.fail_next = bool(batch.decodes)
            return partial(executor._execute, batch)

        executor.launch = fail_second  # type: ignore[method-assign] # one step that fails, the second
        asked = request([1] * 3, 6)
        client.engine.submit(asked)
        client.wait(1)
    assert client.tokens == {asked.info.request_id: [2]}
    assert client.reasons == {asked.info.request_id: "error"}


def test_whoever_takes_the_outputs_may_be_gone() -> None:
    observer = Recording()
    engine = Engine(CountingExecutor(), CONFIG, max_context=100, observer=observer, started_ns=now_ns())

    def closed(outputs: list[Output]) -> None:
        raise RuntimeError(f"Event loop is closed: {outputs}")

    engine.start(closed)
    asked = request([1] * 3, 6)
    engine.submit(asked)
    until(lambda: observer.all("removed"))
    assert engine.alive
    engine.stop()
    assert observer.removal(asked.info.request_id).finish_reason == "length"


def test_an_engine_that_never_started_can_be_stopped() -> None:
    observer = Recording()
    engine = Engine(CountingExecutor(), CONFIG, max_context=100, observer=observer, started_ns=now_ns())
    engine.stop()
    assert not engine.alive
    assert observer.events == []
    with pytest.raises(RequestError, match="shutting down"):
        engine.submit(request([1], 1))


def test_a_client_that_leaves_while_the_engine_stops_is_told_of_as_one() -> None:
    observer, executor = Recording(), CountingExecutor()
    with running(executor, CONFIG, observer) as client:
        executor.gate.clear()
        asked = request([1] * 3, 50)
        client.engine.submit(asked)
        until(lambda: observer.all("admitted"))
        client.engine.cancel(asked.info.request_id, now_ns())
        executor.gate.set()
    assert observer.removal(asked.info.request_id).outcome is Outcome.CANCELLED
