"""The conformance kit: the bundled engine keeps the contract, and every breach that is planted in what it tells is found."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costspan.clock import now_ns
from costspan.semconv import Bound, LatencyClass, Outcome
from costspan_engine.engine import Engine, Output
from costspan_engine.executor import Executor
from costspan_engine.settings import EngineConfig, Policy
from costspan_engine.simulate.traffic import Arrival
from costspan_hooks.conformance import Abilities, ContractChecker, Report, Rule, rehearse
from costspan_hooks.errors import ContractError
from costspan_hooks.observer import Burst, Chunk, EngineObserver, Removal, RequestInfo, Step
from tests.analytics import sample_engine
from tests.engine_hooks import simulation
from tests.engine_hooks import test_engine_aborts as aborts
from tests.engine_hooks.engine_fixtures import (
    Client,
    CountingExecutor,
    Recording,
    request,
    running,
    serving,
    torch_executor,
    until,
)

# Batches of four with 32 tokens a step; 24 blocks are too few for four long answers.
CONFIG = EngineConfig(max_num_seqs=4, max_batched_tokens=32, kv_blocks=24, block_size=8)


class Bundled:
    """The bundled engine, as the kit drives it."""

    def __init__(self, executor: Executor, config: EngineConfig, observer: EngineObserver) -> None:
        self.engine = Engine(executor, config, max_context=512, observer=observer, started_ns=now_ns())
        self.abilities = Abilities(
            max_num_seqs=config.max_num_seqs,
            max_batched_tokens=config.max_batched_tokens,
            max_context=self.engine.max_context,
            kv_tokens=config.kv_tokens,
            prefix_cache=config.prefix_cache,
        )
        self._tokens: dict[str, int] = {}
        self._over: set[str] = set()
        self._changed = threading.Condition()
        self.engine.start(self._deliver)

    def submit(self, tenant: str, prompt: list[int], max_tokens: int) -> str:
        asked = request(prompt, max_tokens, tenant=tenant)
        self.engine.submit(asked)
        return asked.info.request_id

    def cancel(self, request_id: str) -> None:
        self.engine.cancel(request_id, now_ns())

    def wait(self, request_id: str, timeout_s: float) -> int:
        with self._changed:
            if not self._changed.wait_for(lambda: request_id in self._over, timeout_s):
                raise TimeoutError(request_id)
            return self._tokens.get(request_id, 0)

    def stop(self) -> None:
        self.engine.stop()

    def _deliver(self, outputs: list[Output]) -> None:
        with self._changed:
            for output in outputs:
                self._tokens[output.request_id] = self._tokens.get(output.request_id, 0) + (output.token is not None)
                if output.finish_reason:
                    self._over.add(output.request_id)
            self._changed.notify_all()


def rehearsed(executor: Executor, config: EngineConfig = CONFIG) -> Report:
    return rehearse(lambda observer: Bundled(executor, config, observer))


@pytest.mark.parametrize("config", [CONFIG, EngineConfig(4, 32, 24, 8, draft_tokens=3)], ids=["plain", "drafts"])
def test_the_bundled_engine_keeps_the_contract(config: EngineConfig) -> None:
    report = rehearsed(CountingExecutor(), config)
    report.raise_if_broken()
    assert report.played == dict.fromkeys(report.played, "ok"), str(report)
    assert len(report.played) == 11


def test_it_does_so_with_a_model() -> None:
    report = rehearsed(torch_executor(CONFIG))
    report.raise_if_broken()
    assert not report.skipped


def test_the_simulator_keeps_it() -> None:
    assert breaches(tape()) == set()
    kinds = {name for name, _ in tape()}
    assert kinds == {"ready", "enqueued", "admitted", "preempted", "evicted", "step", "idle", "removed", "closed", "stopped"}


arrivals = st.lists(
    st.builds(
        Arrival,
        at_ns=st.integers(0, 3 * 10**6),
        tenant=st.sampled_from("abc"),
        prompt_tokens=st.integers(1, 90),
        output_tokens=st.integers(1, 60),
        prefix=st.lists(st.integers(0, 1), max_size=6).map(tuple),
        abort_ns=st.just(0) | st.integers(3 * 10**6, 9 * 10**6),
        latency_class=st.sampled_from(LatencyClass),
        priority=st.integers(0, 2),
        grain=st.just(8),
    ),
    max_size=30,
)
configs = st.builds(
    EngineConfig,
    max_num_seqs=st.integers(1, 6),
    max_batched_tokens=st.integers(6, 40),
    kv_blocks=st.just(20),
    block_size=st.sampled_from([4, 8]),
    prefix_cache=st.booleans(),
    policy=st.sampled_from(Policy),
    tenant_max_seqs=st.integers(0, 3),
)


@settings(max_examples=60)
@given(arrivals, configs)
def test_the_simulator_keeps_it_whatever_comes(coming: list[Arrival], config: EngineConfig) -> None:
    checker = ContractChecker(clock=None)
    _, replica = simulation.run(sorted(coming, key=attrgetter("at_ns")), config, observer=checker)
    checker.stopped(replica._clock())
    checker.raise_if_broken()


def test_the_engine_keeps_it_in_a_storm_of_aborts() -> None:
    chance = Random(5)
    asked = aborts._requests(chance, 300, 60)
    aborting, checker = aborts.Aborting(aborts.CyclingExecutor(), asked, chance), ContractChecker()
    engine = Engine(aborting, aborts.CONFIG, max_context=160, observer=checker, started_ns=now_ns())
    aborting.engine = engine
    client = Client(engine)
    for _ in range(6):
        engine.submit(aborting.feed.pop())
    engine.start(client.deliver)
    try:
        client.wait(300)
    finally:
        engine.stop()
    checker.raise_if_broken()
    assert len(aborting.gone) > 50


def test_a_step_that_fails_breaks_nothing() -> None:
    executor, checker = CountingExecutor(), ContractChecker()
    with running(executor, CONFIG, checker) as client:
        executor.fail_next = True
        client.engine.submit(request([1, 2, 3]))
        client.wait(1)
        client.engine.submit(request([1, 2, 3]))
        client.wait(1)
    checker.raise_if_broken()


def test_the_server_keeps_its_part() -> None:
    with serving(CountingExecutor(0.002), CONFIG) as live:
        body = {"model": "mini", "prompt": "Who goes there?", "max_tokens": 5, "n": 2}
        assert httpx.post(f"{live.url}/v1/completions", json=body).status_code == 200
        with httpx.stream("POST", f"{live.url}/v1/completions", json={**body, "max_tokens": 150, "stream": True}) as response:
            next(response.iter_lines())
        until(lambda: len(live.observer.all("closed")) == len(live.observer.all("enqueued")) == 4)
    assert breaches(calls(live.observer)) == set()


def test_so_does_an_engine_that_guesses_ahead() -> None:
    assert any(step.bursts for name, (step, *_) in guesses() if name == "step")
    assert breaches(guesses()) == set()


def test_so_does_the_engine_that_the_sample_store_is_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    checker = ContractChecker(clock=None)
    monkeypatch.setattr(sample_engine, "StepLedger", lambda _sink: checker)
    engine = sample_engine.Engine(0, seed=1)
    for place in range(30):
        at_ns = engine.now + place * 40 * sample_engine.MS
        info = RequestInfo(f"r{place}", "ab"[place % 2], "", "", 1, "", "", "tiny", 100 + place, at_ns, at_ns, has_server=False)
        ask = sample_engine.Ask(info, 20, lambda _ask: None, lambda _ask, _removal: None, drafts=place % 3)
        ask.preempt_at, ask.preempted_by = (5, "b") if place % 7 == 3 else (0, "")
        ask.disconnect_ns = at_ns + 300 * sample_engine.MS if place % 5 == 4 else 0
        engine.submit(ask)
    engine.run(until_ns=engine.now + 5_000 * sample_engine.MS)
    checker.raise_if_broken()


# --- planted breaches --------------------------------------------------------------------------------------------------

Call = tuple[str, tuple[Any, ...]]
S = 1_000_000_000


@cache
def tape() -> tuple[Call, ...]:
    """A simulated engine's life with all that the contract has words for but bursts, delivered by a server."""
    arrivals = [
        Arrival(
            at_ns=(place // 8) * 2 * S + place * 1000,
            tenant=f"t{place % 3}",
            prompt_tokens=20 + 7 * (place % 9),
            output_tokens=6 + place % 11,
            prefix=(place % 4,),
            abort_ns=(place // 8) * 2 * S + 400_000 if place % 6 == 5 else 0,
            latency_class=LatencyClass.BATCH if place % 4 == 1 else LatencyClass.INTERACTIVE,
            grain=8,
        )
        for place in range(32)
    ]
    observer = Recording()
    simulation.run(arrivals, CONFIG, observer=observer)
    told = calls(observer)
    return (*deliver(told), ("stopped", (end_of(told) + 1000,)))


@cache
def guesses() -> tuple[Call, ...]:
    """The bundled engine's life with a model that repeats itself, so that some guesses are right."""
    config, observer = replace(CONFIG, draft_tokens=3), Recording()
    with running(torch_executor(config), config, observer) as client:
        for seed in range(4):
            client.engine.submit(request([seed, 1, 2, 1, 2, 1, 2], 40))
        client.wait(4)
    return calls(observer)


def calls(observer: Recording) -> tuple[Call, ...]:
    several = {"ready", "preempted", "evicted", "idle", "closed"}
    told = [(name, what if name in several else (what[0],) if name == "step" else (what,)) for name, what in observer.events]
    return tuple(told)


def deliver(told: Iterable[Call]) -> Iterable[Call]:
    """As if a server had taken the requests in, and written what they made."""
    for name, what in told:
        yield (name, (replace(what[0], has_server=True),)) if name == "enqueued" else (name, what)
        if name == "removed":
            yield "closed", (what[0].request_id, what[0].at_ns, what[0].output_tokens)


def end_of(told: Iterable[Call]) -> int:
    return max(int(what[0].end_ns) for name, what in told if name == "step")


def checked(told: Iterable[Call], **options: Any) -> ContractChecker:
    checker = ContractChecker(clock=None) if not options else ContractChecker(**options)
    for name, what in told:
        getattr(checker, name)(*what)
    checker.finish()
    return checker


def breaches(told: Iterable[Call]) -> set[Rule]:
    return {finding.rule for finding in checked(told).findings.found}


def first_breach(told: Iterable[Call]) -> Rule:
    found = checked(told).findings.found
    assert found, "nothing was found"
    return found[0].rule


def places(name: str, fits: Callable[..., bool] = lambda *_: True) -> list[int]:
    """Where the tape has such a call; one that says that the engine slept for no time at all is of no account."""
    found = [place for place, (each, what) in enumerate(tape()) if each == name and fits(*what) and what != (0, 0)]
    assert found, f"the tape has no such {name}"
    return found


DROPPED = {
    "ready": {Rule.READY_FIRST},
    "enqueued": {Rule.ENQUEUED_FIRST, Rule.BOUND},
    "admitted": {Rule.ADMITTED_FIRST, Rule.BLOCKS},
    "preempted": {Rule.ADMITTED_WAITING, Rule.DECODING},
    "step": {Rule.STEP_INDEX, Rule.END_OF_STEP, Rule.OUTPUT, Rule.DISCONNECT},
    "idle": {Rule.IDLE_TOLD},
    "removed": {Rule.DECODING, Rule.IDLE_ALONE, Rule.NOBODY_LEFT},
    "closed": {Rule.CLOSED_OWN},
    "stopped": {Rule.STOPPED_LAST},
}
DOUBLED = {
    "ready": {Rule.READY_FIRST},
    "enqueued": {Rule.UNIQUE_ID},
    "admitted": {Rule.ADMITTED_WAITING},
    "preempted": {Rule.ADMITTED_FIRST},
    "step": {Rule.STEPS_APART},
    "idle": {Rule.IN_ORDER},
    "removed": {Rule.ENQUEUED_FIRST},
    "closed": {Rule.CLOSED_ONCE},
    "stopped": {Rule.STOPPED_LAST},
}


@settings(max_examples=40)
@given(st.data())
def test_a_call_that_is_left_out_is_found(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(DROPPED)))
    place = data.draw(st.sampled_from(places(name)))
    assert first_breach([*tape()[:place], *tape()[place + 1 :]]) in DROPPED[name], name


@settings(max_examples=40)
@given(st.data())
def test_a_call_that_is_made_twice_is_found(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(DOUBLED)))
    place = data.draw(st.sampled_from(places(name)))
    assert first_breach([*tape()[: place + 1], *tape()[place:]]) in DOUBLED[name], name


@settings(max_examples=40)
@given(st.data())
def test_a_request_whose_end_is_told_a_step_late_is_found(data: st.DataObject) -> None:
    place = data.draw(st.sampled_from(places("removed")))
    after = [step for step in places("step") if step > place]
    later = after[0] + 1 if after else len(tape())
    moved = [*tape()[:place], *tape()[place + 1 : later], tape()[place], *tape()[later:]]
    assert breaches(moved) & {Rule.END_OF_STEP, Rule.DECODING, Rule.IN_ORDER, Rule.IDLE_ALONE, Rule.STOPPED_LAST}


@settings(max_examples=40)
@given(st.data())
def test_an_admission_that_is_told_after_its_step_is_found(data: st.DataObject) -> None:
    place = data.draw(st.sampled_from(places("admitted")))
    later = min(step for step in places("step") if step > place) + 1
    moved = [*tape()[:place], *tape()[place + 1 : later], tape()[place], *tape()[later:]]
    assert breaches(moved) & {Rule.ADMITTED_FIRST, Rule.IN_ORDER}


READINGS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "enqueued": lambda by, info: (replace(info, received_ns=info.received_ns + by, enqueued_ns=info.enqueued_ns + by),),
    "admitted": lambda by, told: (replace(told, at_ns=told.at_ns + by, ready_ns=told.ready_ns + by),),
    "preempted": lambda by, name, at_ns, culprit: (name, at_ns + by, culprit),
    "evicted": lambda by, at_ns, *rest: (at_ns + by, *rest),
    "step": lambda by, step: (replace(step, start_ns=step.start_ns + by, end_ns=step.end_ns + by),),
    "idle": lambda by, start_ns, end_ns: (start_ns + by, end_ns + by),
    "removed": lambda by, removal: (replace(removal, at_ns=removal.at_ns + by, disconnect_ns=0, disconnect_step=-1),),
    "stopped": lambda by, at_ns: (at_ns + by,),
}


@settings(max_examples=60)
@given(st.data(), st.sampled_from([-10 * S, 10 * S]))
def test_a_reading_that_is_ten_seconds_off_is_found(data: st.DataObject, by: int) -> None:
    name = data.draw(st.sampled_from(sorted(READINGS)))
    if (name, by) == ("enqueued", -10 * S):
        return  # it may have waited for ten seconds before the loop had time for it
    place = data.draw(st.sampled_from(places(name)))
    shifted = [*tape()[:place], (name, READINGS[name](by, *tape()[place][1])), *tape()[place + 1 :]]
    assert breaches(shifted) & {Rule.IN_ORDER, Rule.STEPS_APART, Rule.END_OF_STEP, Rule.IDLE_TOLD}, name


def always(_told: object) -> bool:
    return True


def waits(step: Step) -> bool:
    return step.bound is not Bound.NONE


def chunked(step: Step) -> bool:
    return bool(step.chunks)


def in_chunk(**changes: Callable[[Chunk], Any]) -> Callable[[Step], Step]:
    def change(step: Step) -> Step:
        first, *rest = step.chunks
        return replace(step, chunks=[replace(first, **{name: made(first) for name, made in changes.items()}), *rest])

    return change


def finished(removal: Removal) -> bool:
    return removal.outcome is Outcome.OK


def cut(removal: Removal) -> bool:
    return removal.outcome is Outcome.CANCELLED


PLANTED: dict[str, tuple[str, Callable[..., bool], Callable[[Any], Any], Rule]] = {
    "no tenant": ("enqueued", always, lambda r: replace(r, tenant=""), Rule.REQUEST),
    "no prompt": ("enqueued", always, lambda r: replace(r, prompt_tokens=0), Rule.REQUEST),
    "attempt 0": ("enqueued", always, lambda r: replace(r, attempt=0), Rule.REQUEST),
    "half a trace": ("enqueued", always, lambda r: replace(r, trace_id="12ab"), Rule.REQUEST),
    "received late": ("enqueued", always, lambda r: replace(r, received_ns=r.enqueued_ns + 1), Rule.PAIR),
    "longer than told": ("enqueued", always, lambda r: replace(r, prompt_tokens=1000), Rule.LIMITS),
    "all cached": ("admitted", always, lambda a: replace(a, cached_tokens=500), Rule.CACHED),
    "ready before": ("admitted", always, lambda a: replace(a, ready_ns=a.at_ns - 1), Rule.PAIR),
    "evicted by nobody known": (
        "admitted",
        lambda a: a.cached_tokens == 0,
        lambda a: replace(a, evicted_tokens=8, evicted_by="nobody"),
        Rule.EVICTED_BEFORE,
    ),
    "blocks for tokens": ("admitted", lambda a: a.cached_tokens > 0, lambda a: replace(a, cached_tokens=1), Rule.CHUNK_NEXT),
    "a gap in a prompt": ("step", chunked, in_chunk(context=lambda c: c.context + 1), Rule.CHUNK_NEXT),
    "too long a piece": ("step", chunked, in_chunk(tokens=lambda c: c.tokens + 500), Rule.CHUNK),
    "no piece": ("step", chunked, in_chunk(tokens=lambda _: 0), Rule.CHUNK),
    "last too soon or never": ("step", chunked, in_chunk(last=lambda c: not c.last), Rule.CHUNK_LAST),
    "a stranger's piece": ("step", chunked, in_chunk(request_id=lambda _: "stranger"), Rule.ENQUEUED_FIRST),
    "a piece twice": ("step", chunked, lambda s: replace(s, chunks=[*s.chunks, s.chunks[0]]), Rule.CHUNK),
    "a number left out": ("step", always, lambda s: replace(s, index=s.index + 1), Rule.STEP_INDEX),
    "no duration": ("step", always, lambda s: replace(s, duration_ns=0), Rule.DURATION),
    "more time than passed": (
        "step",
        always,
        lambda s: replace(s, duration_ns=s.end_ns - s.start_ns + 1),
        Rule.DURATION,
    ),
    "one too many decodes": ("step", always, lambda s: replace(s, decoding=s.decoding + 1), Rule.DECODING),
    "a burst in a prompt": (
        "step",
        chunked,
        lambda s: replace(s, bursts=[Burst(s.chunks[0].request_id, 2, 1)]),
        Rule.BURST,
    ),
    "nothing guessed": ("step", always, lambda s: replace(s, bursts=[Burst("stranger", 0, 0)]), Rule.BURST),
    "less than no padding": ("step", always, lambda s: replace(s, padding=-1), Rule.STEP_NUMBERS),
    "skew without experts": ("step", always, lambda s: replace(s, expert_skew=1.5), Rule.STEP_NUMBERS),
    "nobody waits": ("step", lambda s: not waits(s), lambda s: replace(s, bound=Bound.SEQ_SLOTS), Rule.BOUND),
    "blocks of who has left": ("step", always, lambda s: replace(s, blocks={**s.blocks, "gone": 3}), Rule.BLOCKS),
    "blocks of some": (
        "step",
        lambda s: len(s.blocks) > 1,
        lambda s: replace(s, blocks=dict([*s.blocks.items()][:1])),
        Rule.BLOCKS,
    ),
    "more blocks than there are": (
        "step",
        always,
        lambda s: replace(s, blocks=dict.fromkeys(s.blocks, 1000)),
        Rule.LIMITS,
    ),
    "a token too many": ("removed", always, lambda r: replace(r, output_tokens=r.output_tokens + 1), Rule.OUTPUT),
    "its own words": ("removed", always, lambda r: replace(r, finish_reason="eos"), Rule.OUTCOME),
    "ended a little later": ("removed", finished, lambda r: replace(r, at_ns=r.at_ns + 1), Rule.END_OF_STEP),
    "a step nobody left in": ("removed", finished, lambda r: replace(r, disconnect_step=0), Rule.DISCONNECT),
    "left after the end": ("removed", cut, lambda r: replace(r, disconnect_ns=r.at_ns + 1), Rule.DISCONNECT),
    "left in a step to come": ("removed", cut, lambda r: replace(r, disconnect_step=10**6), Rule.DISCONNECT),
    "negative holding": ("removed", always, lambda r: replace(r, block_ns=-1), Rule.BLOCK_NS),
    "held nothing": ("removed", finished, lambda r: replace(r, block_ns=0), Rule.BLOCK_NS),
    "no beginning": ("removed", lambda r: len(r.prefix) > 1, lambda r: replace(r, prefix=()), Rule.PREFIX),
    "signed hashes": ("removed", lambda r: bool(r.prefix), lambda r: replace(r, prefix=[-1 for _ in r.prefix]), Rule.PREFIX),
}


@pytest.mark.parametrize("breach", PLANTED)
@settings(max_examples=3)
@given(data=st.data())
def test_what_is_wrong_in_a_call_is_found_and_named(breach: str, data: st.DataObject) -> None:
    name, fits, change, rule = PLANTED[breach]
    place = data.draw(st.sampled_from(places(name, fits)))
    checker = checked([*tape()[:place], (name, (change(tape()[place][1][0]),)), *tape()[place + 1 :]])
    named = [finding for finding in checker.findings.found if finding.rule is rule]
    assert named, checker.findings
    assert named[0].call > place
    assert rule.asks in str(named[0])
    assert rule.advice in str(named[0])
    with pytest.raises(ContractError, match=rule.asks[:10].replace("(", r"\(").replace(")", r"\)")):
        checker.raise_if_broken()


# --- what is wrong between calls ---------------------------------------------------------------------------------------

READY = ("ready", (0, S, tape()[0][1][2]))
ASKED = RequestInfo("a", "t", "", "", 1, "", "", "tiny", 8, S, S, has_server=False)
END = ("stopped", (S + 100,))
BETWEEN: dict[Rule, tuple[Call, ...]] = {
    Rule.READY_FIRST: (("enqueued", (ASKED,)), READY, END),
    Rule.STOPPED_LAST: (READY, END, ("idle", (S + 100, S + 100))),
    Rule.NOBODY_LEFT: (READY, ("enqueued", (ASKED,)), END),
    Rule.SOMEBODY: (READY, ("step", (Step(0, S, S + 10, 5, [], Bound.NONE, {}),)), END),
    Rule.ADMITTED_FIRST: (READY, ("enqueued", (ASKED,)), ("preempted", ("a", S, "t")), END),
    Rule.IDLE_ALONE: (READY, ("enqueued", (ASKED,)), ("idle", (S, S + 50)), END),
    Rule.EVICTION: (READY, ("evicted", (S, "", "t", 8)), END),
    Rule.CLOSED_OWN: (READY, ("closed", ("stranger", S, 0)), END),
    Rule.PAIR: (("ready", (S, 0, READY[1][2])), ("stopped", (100,))),
}


@pytest.mark.parametrize("rule", BETWEEN, ids=lambda rule: rule.name)
def test_what_is_wrong_between_calls_is_found(rule: Rule) -> None:
    assert rule in breaches(BETWEEN[rule])


def test_time_that_nobody_has_is_found() -> None:
    place = places("removed", finished)[-1]
    assert Rule.CLOSES in breaches([*tape()[:place], *tape()[place + 1 :]])


def test_more_delivered_than_made_is_found() -> None:
    told = [(name, (*what[:2], what[2] + 1) if name == "closed" else what) for name, what in tape()]
    assert breaches(told) == {Rule.DELIVERED}


def test_a_server_that_closes_what_is_not_its_own_is_found() -> None:
    told = [(name, (replace(what[0], has_server=False),) if name == "enqueued" else what) for name, what in tape()]
    assert breaches(told) == {Rule.CLOSED_OWN}


def test_another_clock_is_found() -> None:
    assert Rule.PRESENT in {finding.rule for finding in checked(tape(), clock=now_ns).findings.found}
    assert Rule.PRESENT in {finding.rule for finding in checked(tape(), clock=lambda: 0).findings.found}


def test_idle_time_that_is_told_at_its_end_is_found() -> None:
    told = (READY, ("idle", (S, 4 * S)), ("stopped", (4 * S,)))
    assert [finding.rule for finding in checked(told, clock=lambda: 4 * S).findings.found] == [Rule.IDLE_LIVE]


def test_a_call_from_another_thread_is_found_but_for_the_servers() -> None:
    checker = ContractChecker(clock=None)
    checker.ready(*READY[1])
    for call, what in (("idle", (S, S)), ("closed", ("a", S, 0))):
        thread = threading.Thread(target=getattr(checker, call), args=what)
        thread.start()
        thread.join()
    assert [finding.rule for finding in checker.findings.found] == [Rule.ONE_THREAD]


def test_what_the_ledger_alone_refuses_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    checker = ContractChecker(clock=None)
    monkeypatch.setattr(checker._books.ledger, "evicted", lambda *_: {1: 1}[2])
    for name, what in (READY, ("evicted", (S, "v", "c", 8)), END):
        getattr(checker, name)(*what)
    assert [finding.rule for finding in checker.findings.found] == [Rule.LEDGER]


@pytest.mark.parametrize("kept", ["chunks", "blocks"])
def test_a_step_whose_contents_are_used_again_is_found(kept: str) -> None:
    checker = ContractChecker(clock=None)
    own: dict[str, Any] = {"chunks": [], "blocks": {}}
    for name, what in tape():
        if name == "step":
            own["chunks"][:] = what[0].chunks
            own["blocks"].clear()
            own["blocks"].update(what[0].blocks)
            what = (replace(what[0], **{kept: own[kept]}),)  # noqa: PLW2901 - what the engine hands over instead
        getattr(checker, name)(*what)
    assert {finding.rule for finding in checker.findings.found} == {Rule.UNCHANGED}


def test_what_is_changed_after_the_last_call_is_found_at_the_end() -> None:
    checker, prefix = ContractChecker(clock=None), [1]
    removal = Removal(ASKED.request_id, S + 50, Outcome.CANCELLED, "abort", 0, prefix=prefix)
    for name, what in (READY, ("enqueued", (ASKED,)), ("removed", (removal,)), END):
        getattr(checker, name)(*what)
    assert not checker.findings
    prefix.clear()
    checker.finish()
    assert {finding.rule for finding in checker.findings.found} == {Rule.UNCHANGED}


def test_an_engine_that_never_got_ready_may_stop() -> None:
    assert breaches([END]) == set()


def test_a_breach_in_every_step_is_told_a_few_times_and_counted() -> None:
    told = [(name, (replace(what[0], padding=-1),) if name == "step" else what) for name, what in tape()]
    findings = checked(told).findings
    assert len(findings.found) == 5
    assert f"({len(places('step')) - 5} more of STEP_NUMBERS)" in str(findings)


def test_the_next_observer_is_told_all_of_it() -> None:
    then = Recording()
    checked(tape(), then=then, clock=None)
    assert calls(then) == tape()


# --- rehearsals of adapters that are wrong --------------------------------------------------------------------------------


class Liar(ContractChecker):
    """Stands between an engine and the kit, and tells it something else. The kit is what it passes its calls on to."""

    def __init__(self, kit: EngineObserver, call: str, change: Callable[[Any], Any]) -> None:
        super().__init__(kit)
        self.honest = getattr(kit, call)
        setattr(kit, call, lambda what: self.honest(change(what)))


def lying(call: str, change: Callable[[Any], Any]) -> Report:
    return rehearse(lambda observer: Bundled(CountingExecutor(), CONFIG, Liar(observer, call, change)))


def test_an_adapter_that_hides_what_happened_is_found() -> None:
    report = lying("step", lambda step: replace(step, bound=Bound.NONE))
    assert {name for name, what in report.played.items() if what == "broken"} == {"burst"}
    assert {finding.rule for finding in report.findings.found} == {Rule.SHOWN}


def test_an_adapter_that_mixes_up_tenants_is_found_at_once() -> None:
    report = lying("enqueued", lambda info: replace(info, tenant="everybody"))
    assert Rule.AS_ASKED in {finding.rule for finding in report.findings.found}
    assert report.played["lone"] == "broken"
    assert report.skipped.keys() == report.played.keys() - {"lone"}


def test_what_an_engine_cannot_do_is_skipped_with_a_reason() -> None:
    class Modest(Bundled):
        """Says that it can do little."""

        def __init__(self, observer: EngineObserver) -> None:
            super().__init__(CountingExecutor(), replace(CONFIG, prefix_cache=False), observer)
            self.abilities = Abilities(4, 32, 192, chunked_prefill=False, prefix_cache=False, cancels=False)

    report = rehearse(Modest)
    report.raise_if_broken()
    assert {name for name, what in report.played.items() if what == "ok"} == {"lone", "burst", "idle", "stopped_at_work"}
    assert "the engine cannot cancel" in report.skipped["leaves_queue"]
    assert "skipped: the engine has no prefix cache" in str(report)


def test_the_adapter_in_the_documentation_passes_as_it_is_printed() -> None:
    text = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {"__name__": "adapters"}
    exec(compile("\n".join(blocks), "docs/adapters.md", "exec", dont_inherit=True), names)  # noqa: S102 - our own documentation
    names["test_my_adapter"]()
    report = rehearse(names["TinyDriver"])
    assert {name for name, what in report.played.items() if what != "ok"} == {"shared_prefix", "pushed_out", "more_than_fits"}
    assert "broken" not in report.played.values()
