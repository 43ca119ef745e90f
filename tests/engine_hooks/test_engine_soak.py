"""Twenty thousand short requests that finish, leave, time out and are pushed out: nothing stays behind."""

from __future__ import annotations

import gc
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from costspan.clock import now_ns
from costspan.semconv import LatencyClass, Outcome
from costspan_engine.engine import Engine, Output
from costspan_engine.executor import Result
from costspan_engine.scheduler import Batch
from costspan_engine.sequence import Request, Sequence
from costspan_engine.settings import EngineConfig, Policy
from costspan_hooks.devices import ONE_CORE, Device
from costspan_hooks.ledger import StepLedger
from costspan_hooks.observer import ModelShape
from costspan_hooks.records import AttemptRecord, EvictionRecord, LedgerRecord, StepRecord
from tests.engine_hooks.engine_fixtures import request

REQUESTS = 20_000
AT_ONCE = 96
CONFIG = EngineConfig(
    max_num_seqs=24,
    max_batched_tokens=128,
    kv_blocks=72,
    block_size=4,
    policy=Policy.FAIR,
    tenant_max_seqs=10,
    draft_tokens=2,
)
HOUR_NS = 3_600_000_000_000


class Ledger(StepLedger):
    """The real ledger as an observer; delivery is not its business."""

    def closed(self, request_id: str, sent_ns: int, delivered_tokens: int) -> None:
        """No server, no delivery."""


@dataclass
class Tally:
    """What the ledger hands on, added up; no record is kept."""

    attempts: bytearray = field(default_factory=lambda: bytearray(REQUESTS))
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    preemptions: int = 0
    evictions: int = 0
    charged_ns: int = 0
    busy_ns: int = 0

    def __call__(self, record: LedgerRecord) -> None:
        if isinstance(record, AttemptRecord):
            self.attempts[int(record.request.request_id)] += 1
            self.outcomes[record.removal.outcome] += 1
            self.preemptions += record.preemptions
            self.charged_ns += sum(segment.cost_ns for segment in record.segments)
        elif isinstance(record, StepRecord):
            self.busy_ns += record.duration_ns
        elif isinstance(record, EvictionRecord):
            self.evictions += 1


class Traffic:
    """An executor whose steps take no time, during which new requests come and old ones leave."""

    def __init__(self) -> None:
        self.engine: Engine
        self.chance = random.Random(11)
        self.sent = 0
        self.ended = bytearray(REQUESTS)
        self.done = 0
        self.over = threading.Event()
        self.allocated: dict[int, int] = {}

    @property
    def shape(self) -> ModelShape:
        return ModelShape(1, 4, 4, 4)

    @property
    def device(self) -> Device:
        return ONE_CORE

    def launch(self, batch: Batch) -> Callable[[], Result]:
        def wait() -> Result:
            self.arrive()
            if self.chance.random() < 0.15:
                self.engine.cancel(self.chance.choice(batch.sequences).request_id, now_ns())
            if self.chance.random() < 0.15 and self.sent:
                self.engine.cancel(str(self.chance.randrange(max(0, self.sent - AT_ONCE), self.sent)), now_ns())
            return Result([_says(seq) for seq in batch.making], 1000)

        return wait

    def arrive(self) -> None:
        while self.sent < REQUESTS and self.sent - self.done < AT_ONCE:
            self.engine.submit(self._request(str(self.sent)))
            self.sent += 1

    def deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            if output.finish_reason:
                self.ended[int(output.request_id)] += 1
                self.done += 1
                if self.done == REQUESTS:
                    self.over.set()
        if self.done // 2000 not in self.allocated:
            gc.collect()
            self.allocated[self.done // 2000] = sys.getallocatedblocks()

    def _request(self, name: str) -> Request:
        chance, kind = self.chance, self.chance.randrange(5)
        asked = request([kind] * 4 + [chance.randrange(50) for _ in range(chance.randrange(1, 20))], chance.randrange(1, 10))
        info = replace(
            asked.info,
            request_id=name,
            tenant=f"t{kind}" if chance.random() < 0.9 else f"once-{name}",
            latency_class=chance.choice(list(LatencyClass)),
            priority=chance.randrange(3),
        )
        deadline_ns = now_ns() + (HOUR_NS if chance.random() < 0.9 else chance.randrange(5_000_000))
        return replace(asked, info=info, deadline_ns=deadline_ns)


def _says(seq: Sequence) -> list[int]:
    made = [(sum(seq.tokens[-2:]) + 1) % 5]
    for guess in seq.drafts:
        if guess != made[-1]:
            break
        made.append((guess + 1) % 5)
    return made


def test_soak() -> None:
    tally, traffic = Tally(), Traffic()
    ledger = Ledger(tally)
    engine = traffic.engine = Engine(traffic, CONFIG, max_context=200, observer=ledger, started_ns=now_ns())
    traffic.arrive()
    engine.start(traffic.deliver)
    try:
        assert traffic.over.wait(120), "somebody is stuck"
    finally:
        engine.stop()

    assert not len(engine.scheduler)
    assert set(traffic.ended) == {1}, "a request has not exactly one end"
    assert set(tally.attempts) == {1}, "a request has not exactly one record"
    assert min(tally.outcomes[each] for each in (Outcome.OK, Outcome.CANCELLED, Outcome.TIMEOUT)) > 200, tally
    assert engine.scheduler.preemptions == tally.preemptions > 200
    assert engine.scheduler.evictions == tally.evictions > 200
    assert abs(tally.charged_ns - tally.busy_ns) <= 1
    assert engine.totals.busy_ns == tally.busy_ns

    books = engine.scheduler
    books.blocks.check_invariants([])
    assert (books.blocks.available, books.blocks.held, len(books)) == (CONFIG.kv_blocks, {}, 0)
    assert _sizes(engine) <= 4 * AT_ONCE, "the engine remembers requests that ended"
    assert not ledger._accounts
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is Sequence and each.request_id.isdecimal()]
    # What the allocator has handed out after the first 4,000 requests and after the last differs by next to nothing.
    assert traffic.allocated[REQUESTS // 2000] - traffic.allocated[2] < 4000, traffic.allocated


def _sizes(engine: Engine) -> int:
    """Entries in everything that requests are kept in."""
    kept = [*vars(engine).values(), *vars(engine.scheduler).values(), *vars(engine.scheduler.waiting).values()]
    return sum(len(each) for each in kept if hasattr(each, "__len__"))
