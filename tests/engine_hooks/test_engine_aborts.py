"""Hundreds of aborts under load: gone by the next step, their blocks free, nobody else's tokens changed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from costspan.clock import now_ns
from costspan.semconv import LatencyClass, Outcome
from costspan_engine.engine import Engine
from costspan_engine.executor import Executor, Result
from costspan_engine.scheduler import Batch
from costspan_engine.sequence import Request, Sequence
from costspan_engine.settings import EngineConfig
from costspan_hooks.devices import ONE_CORE, Device
from costspan_hooks.observer import ModelShape, Step
from tests.engine_hooks.engine_fixtures import Client, Recording, generate, mini_model, request, scheduler, torch_executor

CONFIG = EngineConfig(max_num_seqs=6, max_batched_tokens=24, kv_blocks=40, block_size=4, draft_tokens=3)
KINDS = ("queued", "mid-prefill-chunk", "decoding", "speculating", "preempted")


class CyclingExecutor:
    """Says 0, 1, ..., 6, 0, ... but starts over at every fifth place: guesses are often right and sometimes wrong."""

    @property
    def shape(self) -> ModelShape:
        return ModelShape(1, 4, 4, 4)

    @property
    def device(self) -> Device:
        return ONE_CORE

    def launch(self, batch: Batch) -> Callable[[], Result]:
        return lambda: Result([_says(seq) for seq in batch.making], 1)


def _says(seq: Sequence) -> list[int]:
    made, last, place = list[int](), seq.tokens[-1], len(seq.tokens)
    for guess in [*seq.drafts, None]:
        last = 0 if place % 5 == 0 else (last + 1) % 7
        made.append(last)
        place += 1
        if guess != last:
            break
    return made


@dataclass
class Aborting:
    """An executor that keeps the queue full and, while a step is in flight, has clients leave: of any kind there is."""

    inner: Executor
    feed: list[Request]
    chance: random.Random
    kinds: Counter[str] = field(default_factory=Counter)
    gone: dict[str, int] = field(default_factory=dict)  # the step in flight when the client left
    engine: Engine = field(init=False)

    @property
    def shape(self) -> ModelShape:
        return self.inner.shape

    @property
    def device(self) -> Device:
        return self.inner.device

    def launch(self, batch: Batch) -> Callable[[], Result]:
        books = self.engine.scheduler
        books.blocks.check_invariants(list(books.running.values()))
        assert not any(request_id in books for request_id in self.gone), "an aborted request is there in the next step"
        assert not any(seq.blocks for seq in books.waiting)
        wait = self.inner.launch(batch)

        def with_leavers() -> Result:
            while self.feed and len(self.engine.scheduler.waiting) + self.chance.randrange(3) < 6:
                self.engine.submit(self.feed.pop())
                if self.chance.random() < 0.6:
                    break
            if self.chance.random() < 0.6:
                self._leave(batch)
            return wait()

        return with_leavers

    def _leave(self, batch: Batch) -> None:
        choice: dict[str, list[str]] = {}
        for seq in self.engine.scheduler.waiting:
            choice.setdefault("queued" if seq.cached_tokens < 0 else "preempted", []).append(seq.request_id)
        for seq in batch.decodes:
            choice.setdefault("speculating" if seq.drafts else "decoding", []).append(seq.request_id)
        for prefill in batch.prefills:
            if not prefill.last:
                choice.setdefault("mid-prefill-chunk", []).append(prefill.seq.request_id)
        rarest = min(choice, key=lambda kind: self.kinds[kind])
        leaver = self.chance.choice([one for one in choice[rarest] if one not in self.gone] or [""])
        if leaver:
            self.kinds[rarest] += 1
            self.gone[leaver] = self.engine.totals.steps
            self.engine.cancel(leaver, now_ns())


class Checking(Recording):
    """Checks the cache's books after every step."""

    engine: Engine

    def step(self, step: Step) -> None:
        super().step(step)
        books = self.engine.scheduler
        books.blocks.check_invariants(list(books.running.values()))


def _requests(chance: random.Random, count: int, longest: int) -> list[Request]:
    return [
        _of_class(
            request([(start + n) % 7 for n in range(chance.randrange(1, 40))], chance.randrange(2, longest), tenant=tenant),
            chance.choice(list(LatencyClass)),
        )
        for start, tenant in ((chance.randrange(7), chance.choice("abc")) for _ in range(count))
    ]


def _of_class(asked: Request, latency_class: LatencyClass) -> Request:
    return replace(asked, info=replace(asked.info, latency_class=latency_class))


def _abort(make: Callable[[], Executor], count: int, longest: int, seed: int) -> Counter[str]:
    chance = random.Random(seed)
    asked = _requests(chance, count, longest)
    roomy = EngineConfig(max_num_seqs=16, max_batched_tokens=128, kv_blocks=40, block_size=4)
    expected = dict(zip((each.info.request_id for each in asked), generate(make(), scheduler(roomy), asked), strict=True))
    aborting, observer = Aborting(make(), asked.copy(), chance), Checking()
    engine = Engine(aborting, CONFIG, max_context=160, observer=observer, started_ns=now_ns())
    aborting.engine = observer.engine = engine
    client = Client(engine)
    for _ in range(6):
        engine.submit(aborting.feed.pop())
    engine.start(client.deliver)
    try:
        client.wait(count)
        assert engine.scheduler.blocks.available == CONFIG.kv_blocks
        engine.scheduler.blocks.check_invariants([])
    finally:
        engine.stop()
    _check(observer, client, aborting, expected)
    return aborting.kinds


def _check(observer: Checking, client: Client, aborting: Aborting, expected: dict[str, list[int]]) -> None:
    last_step, ended = -1, Counter[str]()
    for name, what in observer.events:
        if name == "step":
            last_step = what[0].index
        elif name == "removed":
            ended[what.request_id] += 1
            if what.outcome is Outcome.CANCELLED:
                assert last_step == what.disconnect_step == aborting.gone[what.request_id]
    assert ended == Counter(expected.keys())
    for request_id, answer in expected.items():
        got = client.tokens.get(request_id, [])
        aborted = client.reasons[request_id] == "abort"
        assert got == (answer[: len(got)] if aborted else answer)
        assert aborted <= (request_id in aborting.gone)


def test_hundreds_of_aborts_of_every_kind() -> None:
    kinds = _abort(CyclingExecutor, 900, 60, seed=5)
    assert kinds.total() > 500
    assert all(kinds[kind] >= 40 for kind in KINDS), kinds


@pytest.mark.parametrize("seed", range(2))
def test_aborts_under_a_real_model(seed: int) -> None:
    model = mini_model()
    kinds = _abort(lambda: torch_executor(CONFIG, model), 60, 40, seed)
    assert kinds.total() > 30
    assert all(kinds[kind] for kind in KINDS), kinds
