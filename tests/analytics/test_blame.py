"""Direct blame from the rows of random schedules: it conserves what the ledger measured, and is what loops over steps give."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from costspan.semconv import Bound, Mechanism, Outcome, Phase, Waste
from costspan_analytics.blame import blame, of_steps
from costspan_analytics.spans import Spans
from costspan_analytics.store import Store
from costspan_hooks import Admission, Chunk, Removal, RequestInfo, Step, wire
from costspan_hooks.devices import ONE_CORE
from costspan_hooks.ledger import StepLedger
from costspan_hooks.observer import Burst, EngineInfo, ModelShape
from costspan_hooks.records import AttemptRecord, EngineRecord, LedgerRecord, StepRecord
from tests.analytics.conftest import Sample
from tests.analytics.neighbours import deliver

MODEL = ModelShape(parameters=5_000_000, bytes_per_parameter=4, kv_bytes_per_token=4096, flops_per_pair=8192)
ENGINE = EngineInfo(MODEL, ONE_CORE)
START = 1_000_000_000
TENANTS = ("acme", "birch", "hog")


class Crowd:
    """Requests that arrive at random and are all served, under one bound, at most four at a time."""

    def __init__(self, seed: int, bound: Bound) -> None:
        self.random, self.bound = random.Random(seed), bound
        self.records: list[LedgerRecord] = []
        self.ledger = StepLedger(self.records.append)
        self.ledger.ready(START, START, ENGINE)
        self.now, self.index = START, 0
        self.waiting: list[tuple[str, str]] = []
        self.running: dict[str, tuple[str, int]] = {}  # name: tenant, tokens to go

    def run(self, count: int) -> None:
        for number in range(count):
            self.arrive(number)
            self.turn()
        while self.waiting or self.running:
            self.turn()

    def arrive(self, number: int) -> None:
        name, tenant = f"r{number}", self.random.choice(TENANTS)
        at = self.now - self.random.randrange(300_000) if self.index else self.now
        self.ledger.enqueued(RequestInfo(name, tenant, "", "", 1, "", "", "tiny", 50, at, at, has_server=False))
        self.waiting.append((name, tenant))

    def push_out(self) -> None:
        if self.running and self.random.random() < 0.1:
            name = self.random.choice(list(self.running))
            tenant, _ = self.running.pop(name)
            self.ledger.preempted(name, self.now, self.random.choice(TENANTS))
            self.waiting.append((name, tenant))

    def turn(self) -> None:
        self.push_out()
        chunks = []
        while self.waiting and len(self.running) < 4:
            name, tenant = self.waiting.pop(0)
            self.now += 100
            evicted, culprit = self.random.choice([(0, ""), (20, "hog")])
            self.ledger.admitted(Admission(name, self.now, self.now + 10, 10, evicted, culprit))
            self.now += 10
            self.running[name] = (tenant, self.random.randint(1, 12))
            chunks.append(Chunk(name, 50 - 10, 10, last=True))
        decoding = [name for name in self.running if name not in {chunk.request_id for chunk in chunks}]
        bursts = [Burst(name, 3, self.random.randint(0, 3)) for name in decoding if self.random.random() < 0.3]
        start = self.now + 500
        duration = self.random.randint(400_000, 3_000_000)
        self.now = start + duration
        blocks: dict[str, int] = defaultdict(int)
        for tenant, _ in self.running.values():
            blocks[tenant] += 4
        self.ledger.step(Step(self.index, start, self.now, duration, chunks, self.bound, blocks, bursts))
        self.index += 1
        for name, (tenant, left) in list(self.running.items()):
            self.running[name] = (tenant, left - 1)
            if left == 1:
                del self.running[name]
                self.ledger.removed(Removal(name, self.now, Outcome.OK, "length", 1))

    def tables(self, project: str) -> dict[str, pa.Table]:
        origin = wire.Origin(project, "engine", "cpu")
        attempts = [
            wire.Delivered(each, "", "", each.removal.at_ns, 1) for each in self.records if isinstance(each, AttemptRecord)
        ]
        return {
            "engines": wire.engines(origin, [each for each in self.records if isinstance(each, EngineRecord)]),
            "attempts": wire.attempts(origin, attempts),
            "steps": wire.steps(origin, self.steps()),
        }

    def steps(self) -> list[StepRecord]:
        return [record for record in self.records if isinstance(record, StepRecord) and record.participants]


_HELD = {Bound.TOKEN_BUDGET: "tokens", Bound.SEQ_SLOTS: "seqs", Bound.KV_BLOCKS: "blocks"}
_HOW = {
    Bound.TOKEN_BUDGET: Mechanism.QUEUE_TOKEN_BUDGET,
    Bound.SEQ_SLOTS: Mechanism.QUEUE_SEQ_SLOTS,
    Bound.KV_BLOCKS: Mechanism.QUEUE_KV_BLOCKS,
}


_REDONE = {
    Waste.RECOMPUTED_EVICTION.value: Mechanism.EVICTION,
    Waste.RECOMPUTED_PREEMPTION.value: Mechanism.PREEMPTION,
}


def by_hand(segment: dict[str, Any], steps: list[StepRecord]) -> dict[tuple[str, str], float]:
    """Blame for one segment, step by step and tenant by tenant."""
    own = [step for step in steps if segment["step_first"] <= step.step <= segment["step_last"]]
    match segment["phase"]:
        case Phase.PREEMPTED.value:
            return {(segment["culprit"], Mechanism.PREEMPTION): segment["duration_ns"]}
        case Phase.QUEUE.value:
            return queued_by_hand(segment, own)
        case Phase.PREFILL.value | Phase.DECODE.value:
            return shared_by_hand(segment, own)
    return {}


def queued_by_hand(segment: dict[str, Any], steps: list[StepRecord]) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = defaultdict(float)
    for step in steps:
        waited = step.duration_ns - min(max(0, segment["start_ns"] - step.start_ns), step.duration_ns)
        if step.bound is Bound.TENANT_CAP and waited == step.duration_ns:
            found[segment["tenant"], Mechanism.QUEUE_TENANT_CAP] += waited
            continue
        held = {share.name: getattr(share, _HELD.get(step.bound, "cost_ns")) for share in step.tenants}
        for name, part in held.items():
            found[name, _HOW.get(step.bound, Mechanism.QUEUE_STEP)] += waited * part / sum(held.values())
    return found


def shared_by_hand(segment: dict[str, Any], steps: list[StepRecord]) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = defaultdict(float)
    for share in (share for step in steps for share in step.tenants):
        found[share.name, Mechanism.PREFILL] += share.prefill_ns
        found[share.name, Mechanism.DECODE] += share.compute_ns - share.prefill_ns
    mine = {how: found[segment["tenant"], how] for how in (Mechanism.PREFILL, Mechanism.DECODE)}
    rest = segment["interference_ns"] - sum(found.values()) + sum(mine.values())
    for how, whole in mine.items():
        found[segment["tenant"], how] = max(0.0, rest) * whole / sum(mine.values()) if whole else 0.0
    if segment["waste"] in _REDONE:
        found[segment["culprit"], _REDONE[segment["waste"]]] += redone(segment)
    return found


def redone(segment: dict[str, Any]) -> float:
    """Of its own work, what it did a second time."""
    if segment["waste"] not in _REDONE:
        return 0.0
    return float(segment["solo_ns"] * segment["waste_ns"] / segment["cost_ns"])


@pytest.mark.parametrize("bound", list(Bound))
def test_the_store_adds_up_what_loops_do(sample: Sample, bound: Bound) -> None:
    crowd, project = Crowd(len(bound.value), bound), f"crowd-{bound}"
    crowd.run(120)
    deliver(sample.collector, crowd.tables(project))
    store = Store(sample.store, project)
    segments = store.frame("segments")
    # Called by segment and not by request, so that one question answers for each.
    alone = segments.filter(pl.col("step_first") >= 0).with_columns(request_id=pl.format("{} {}", "request_id", "start_ns"))
    blamed = blame(store, alone).partition_by("request_id", as_dict=True)
    for segment in alone.iter_rows(named=True):
        rows = blamed.get((segment["request_id"],), alone.clear()).iter_rows(named=True)
        found = {(row["culprit"], row["mechanism"]): row["ns"] for row in rows}
        expected = {key: ns for key, ns in by_hand(segment, crowd.steps()).items() if ns > 0}
        assert found == pytest.approx(expected, rel=1e-9, abs=1.0)
        total = sum(found.values())
        if segment["phase"] in {Phase.PREFILL, Phase.DECODE}:
            # Rows keep fractions of a nanosecond that segments do not.
            assert total == pytest.approx(segment["interference_ns"] + redone(segment), rel=1e-6, abs=2.0 + len(crowd.steps()))
        if segment["phase"] == Phase.QUEUE and segment["step_first"] >= 0:
            # What is left of the wait is the host's: the gaps between the steps.
            assert total <= segment["duration_ns"] + 1
            assert total >= segment["duration_ns"] - 1_000 * (segment["step_last"] - segment["step_first"] + 2)
    whole = {tuple(row[:-1]): row[-1] for row in blame(store, segments).iter_rows()}
    parts = pl.concat([blame(store, one) for one in segments.iter_slices(70)])
    summed = parts.group_by(pl.exclude("ns")).agg(pl.col("ns").sum())
    assert whole == pytest.approx({tuple(row[:-1]): row[-1] for row in summed.iter_rows()})
    assert len({how for *_, how in whole}) >= 5


def test_batches_of_segments_change_nothing(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = Crowd(3, Bound.SEQ_SLOTS)
    crowd.run(60)
    deliver(sample.collector, crowd.tables("batches"))
    store = Store(sample.store, "batches")
    segments = store.frame("segments")
    whole = blame(store, segments)
    monkeypatch.setattr("costspan_analytics.blame.BATCH", 3)
    again = blame(store, segments)
    assert whole.drop("ns").equals(again.drop("ns"))
    assert again["ns"].to_list() == pytest.approx(whole["ns"].to_list())


def test_nothing_to_blame(sample: Sample) -> None:
    store = Store(sample.store, "sample")
    assert blame(store, store.frame("segments").clear()).is_empty()


def spans(bounds: list[str], held: dict[str, list[list[int]]]) -> Spans:
    """Two tenants in steps of 10,000 ns, one after the other, each a mark of its own."""
    rows = [
        (step, bound, tenant, 0.0, 0.0, 10_000 * held[bound][step][at] / sum(held[bound][step]))
        for step, bound in enumerate(bounds)
        for at, tenant in enumerate(("acme", "hog"))
    ]
    names = ["mark", "bound", "tenant", "prefill", "decode", "waited"]
    times = {step: (10_000 * step, 10_000) for step in range(len(bounds))}
    return Spans.of(np.arange(-1, len(bounds)), pl.DataFrame(rows, names, orient="row"), times)


def waited(tenant: str, last: int, held: Spans) -> dict[tuple[str, str], float]:
    """Blame for a wait that began in the middle of the first step."""
    wait = {"engine": "e", "request_id": "r", "tenant": tenant, "phase": "queue", "start_ns": 5_000}
    found = of_steps(pl.DataFrame([{**wait, "step_first": 0, "step_last": last, "interference_ns": 0.0}]), held)
    return {(row["culprit"], row["mechanism"]): row["ns"] for row in found.iter_rows(named=True) if row["ns"]}


def test_a_wait_is_charged_to_those_who_held_what_was_waited_for() -> None:
    held = spans(["kv_blocks", "seq_slots"], {"kv_blocks": [[10, 90], []], "seq_slots": [[], [3, 1]]})
    assert waited("late", 1, held) == pytest.approx(
        {
            ("acme", "queue_kv_blocks"): 0.1 * 5_000,
            ("hog", "queue_kv_blocks"): 0.9 * 5_000,
            ("acme", "queue_seq_slots"): 0.75 * 10_000,
            ("hog", "queue_seq_slots"): 0.25 * 10_000,
        }
    )


def test_a_tenants_own_cap_holds_back_nobody_else() -> None:
    cost = [[4_000, 6_000]] * 3
    held = spans(["tenant_cap", "tenant_cap", "seq_slots"], {"tenant_cap": cost, "seq_slots": [[1, 3]] * 3})
    # The step in flight at arrival was made without it, and is charged by cost; the cap holds the next one; slots the last.
    assert waited("hog", 2, held) == pytest.approx(
        {
            ("acme", "queue_step"): 0.4 * 5_000,
            ("hog", "queue_step"): 0.6 * 5_000,
            ("hog", "queue_tenant_cap"): 10_000,
            ("acme", "queue_seq_slots"): 2_500,
            ("hog", "queue_seq_slots"): 7_500,
        }
    )
