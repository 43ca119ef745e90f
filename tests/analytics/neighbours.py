"""Simulated runs of an engine that tenants share, and their rows as the store has them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from uuid import uuid4

import polars as pl
import pyarrow as pa

from costspan import semconv
from costspan.delivery import Delivery
from costspan.semconv import Kind, LatencyClass, Outcome
from costspan.tracing import make_provider
from costspan_analytics.causal import Recording
from costspan_engine.settings import EngineConfig, Policy
from costspan_engine.simulate.executor import SimulatedExecutor, StepTimes, VirtualClock
from costspan_engine.simulate.replay import Replica
from costspan_engine.simulate.tally import Served
from costspan_engine.simulate.traffic import Arrival
from costspan_hooks import wire
from costspan_hooks.cost_model import Roofline
from costspan_hooks.devices import Device
from costspan_hooks.ledger import StepLedger
from costspan_hooks.observer import ModelShape
from costspan_hooks.records import AttemptRecord, EngineRecord, EvictionRecord, LedgerRecord, StepRecord
from tests.analytics.sample_store import wait_stored

SHAPE = ModelShape(parameters=1_000_000, bytes_per_parameter=2, kv_bytes_per_token=1000, flops_per_pair=3000)
# Some dozens of decoding sequences are enough to cross from memory to arithmetic.
TIMES = StepTimes(Roofline(SHAPE, Device(flops_per_s=1e12, bytes_per_s=5e10)), host_ns=1234)
MAX_CONTEXT = 4096
"""With blocks of 16 every block is told apart in the rows."""
CULPRIT = "hog"
GAP_NS = 900_000
"""Between two arrivals of the others, on average."""

Draw = Callable[[random.Random], Iterable[Arrival]]


class Books(StepLedger):
    """A ledger that is told everything, as a recorder would."""

    def __init__(self) -> None:
        self.records: list[LedgerRecord] = []
        super().__init__(self.records.append)

    def closed(self, request_id: str, sent_ns: int, delivered_tokens: int) -> None:
        raise AssertionError((request_id, sent_ns, delivered_tokens))


@dataclass
class Run:
    """What became of traffic, and the rows that a ledger wrote of it."""

    served: list[Served]
    replica: Replica
    records: list[LedgerRecord]

    def of(self, *, but: str = "") -> list[Served]:
        """Requests that ended well, but for a tenant's."""
        return [each for each in self.served if each.outcome is Outcome.OK and each.arrival.tenant != but]

    def tables(self, origin: wire.Origin) -> dict[str, pa.Table]:
        """Its rows, as they are delivered."""
        attempts = [
            wire.Delivered(each, "", "", each.removal.at_ns, each.removal.output_tokens)
            for each in self.records
            if isinstance(each, AttemptRecord)
        ]
        return {
            "engines": wire.engines(origin, [each for each in self.records if isinstance(each, EngineRecord)]),
            "attempts": wire.attempts(origin, attempts),
            "steps": wire.steps(origin, [each for each in self.records if isinstance(each, StepRecord)]),
            "evictions": wire.evictions(origin, [each for each in self.records if isinstance(each, EvictionRecord)]),
        }

    @property
    def frames(self) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        """Engines, attempts and steps."""
        tables = self.tables(wire.Origin("project", "engine", "gpu"))
        engines, attempts, steps = (pl.DataFrame(tables[name]) for name in ("engines", "attempts", "steps"))
        return engines, attempts, steps

    @property
    def recording(self) -> Recording:
        return Recording.of(*self.frames)


def run(arrivals: Iterable[Arrival], config: EngineConfig, *, start_ns: int = 0, max_context: int = MAX_CONTEXT) -> Run:
    """Serve them on one replica whose clock begins at ``start_ns``."""
    books, served = Books(), list[Served]()
    executor = SimulatedExecutor(TIMES, VirtualClock(start_ns))
    replica = Replica(executor, config, max_context=max_context, serve=served.append, observer=books)
    replica.run(sorted(arrivals, key=lambda each: each.at_ns))
    books.stopped(executor.clock())
    return Run(served, replica, books.records)


def deliver(collector: str, tables: Mapping[str, pa.Table]) -> None:
    """Send rows as an engine would, and wait until they are in the store."""
    project = str(tables["engines"]["project"][0])
    for table, rows in tables.items():
        sender = Delivery(collector, project=project, client=uuid4().hex, stream=table, patience_s=20)
        assert sender.send(f"/v1/ledger/{table}", wire.encode(rows), wire.MEDIA_TYPE, rows.num_rows), table
    wait_stored(collector)


def with_calls(collector: str, attempts: pa.Table) -> pa.Table:
    """Send the client's span of each request, and return the rows with those spans as their parents."""
    project = str(attempts["project"][0])
    provider = make_provider(collector, project=project, service="app", client=uuid4().hex)
    tracer, parents = provider.get_tracer("app"), []
    for row in attempts.to_pylist():
        start_ns, end_ns = row["received_ns"], row["sent_ns"]
        stamps = {
            semconv.CALL_START: start_ns,
            semconv.CALL_SENT: start_ns,
            semconv.CALL_FIRST: row["first_token_ns"],
            semconv.CALL_LAST: end_ns,
            semconv.CALL_END: end_ns,
        }
        who = {semconv.KIND: Kind.GENERATION.value, semconv.TENANT: row["tenant"], semconv.OUTCOME: row["outcome"]}
        span = tracer.start_span("call", start_time=start_ns, attributes=who | {key: at for key, at in stamps.items() if at})
        span.end(end_ns)
        parents.append(f"{span.get_span_context().span_id:016x}")
    provider.shutdown()
    place = attempts.column_names.index("parent_span_id")
    return attempts.set_column(place, "parent_span_id", pa.array(parents))


def mixed(seed: int, gap_ns: int, count: int = 250) -> list[Arrival]:
    """All that traffic has: shared prefixes, clients that leave, classes and priorities."""
    draw, at_ns, arrivals = random.Random(seed), 1, []
    for _ in range(count):
        at_ns += int(draw.expovariate(1 / gap_ns))
        leaves = draw.random() < 0.15
        arrivals.append(
            Arrival(
                at_ns,
                draw.choice(("acme", "globex", CULPRIT)),
                draw.randint(1, 700),
                draw.randint(1, 90),
                prefix=draw.choice(((), (1,), (2,), (1, 3))),
                abort_ns=at_ns + draw.randint(1, 4_000_000) if leaves else 0,
                latency_class=draw.choice(list(LatencyClass)),
                priority=draw.randint(0, 2),
            )
        )
    return arrivals


def system_prompts(seed: int, count: int = 300) -> list[Arrival]:
    """Tenants whose prompts begin with one of three texts of their own, of any length, and end with a question."""
    draw, at_ns, arrivals = random.Random(seed), 0, []
    texts = {(who, which): draw.randint(200, 900) // 16 for who in ("acme", "globex", CULPRIT) for which in range(3)}
    for _ in range(count):
        at_ns += int(draw.expovariate(1 / 300_000))
        number, ((tenant, _), blocks) = draw.choice(list(enumerate(texts.items())))
        prompt, prefix = 16 * blocks + draw.randint(10, 300), (number,) * blocks
        arrivals.append(Arrival(at_ns, tenant, prompt, draw.randint(1, 90), prefix, grain=16))
    return arrivals


@dataclass(frozen=True)
class Family:
    """One way to be slowed by a neighbour."""

    others: Draw
    culprit: Draw
    config: EngineConfig

    def draw(self, seed: int) -> tuple[list[Arrival], list[Arrival]]:
        """The others' requests and the culprit's."""
        return list(self.others(random.Random(f"others {seed}"))), list(self.culprit(random.Random(f"culprit {seed}")))


def _chats(
    count: int = 200,
    gap_ns: int = GAP_NS,
    prompt: tuple[int, int] = (20, 300),
    output: tuple[int, int] = (10, 80),
    groups: int = 0,
) -> Draw:
    def draw_all(draw: random.Random) -> Iterator[Arrival]:
        at_ns = 0
        for _ in range(count):
            at_ns += int(draw.expovariate(1 / gap_ns))
            prefix = (draw.randrange(groups),) if groups else ()
            yield Arrival(at_ns, draw.choice(("acme", "globex")), draw.randint(*prompt), draw.randint(*output), prefix)

    return draw_all


def _culprit(
    count: int,
    gap_ns: int,
    prompt: tuple[int, int],
    output: tuple[int, int],
    latency_class: LatencyClass = LatencyClass.INTERACTIVE,
) -> Draw:
    def draw_all(draw: random.Random) -> Iterator[Arrival]:
        at_ns = 20 * GAP_NS
        for _ in range(count):
            at_ns += int(draw.expovariate(1 / gap_ns))
            yield Arrival(at_ns, CULPRIT, draw.randint(*prompt), draw.randint(*output), latency_class=latency_class)

    return draw_all


FAMILIES = {
    "long prompts": Family(_chats(), _culprit(15, 12 * GAP_NS, (2000, 3500), (5, 20)), EngineConfig(16, 256, 2048)),
    "reasoning": Family(_chats(), _culprit(15, 12 * GAP_NS, (30, 80), (400, 900)), EngineConfig(16, 256, 2048)),
    "batch job": Family(
        _chats(), _culprit(60, 1000, (100, 400), (50, 200), LatencyClass.BATCH), EngineConfig(16, 256, 2048, policy=Policy.FAIR)
    ),
    "eviction": Family(
        _chats(prompt=(700, 800), groups=8), _culprit(60, 3 * GAP_NS, (800, 1200), (5, 20)), EngineConfig(16, 256, 500)
    ),
    "memory": Family(_chats(output=(60, 160)), _culprit(60, 3 * GAP_NS, (200, 400), (200, 400)), EngineConfig(16, 256, 80)),
    "saturation": Family(
        _chats(300, 600_000), _culprit(100, 9 * 200_000, (100, 300), (40, 90)), EngineConfig(4, 64, 2048, tenant_max_seqs=3)
    ),
}
