"""Direct blame from the rows of a random schedule: it conserves what the ledger measured."""

from __future__ import annotations

import random
from collections import defaultdict

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costspan.semconv import Bound, Outcome, Phase
from costspan_analytics.blame import delays
from costspan_analytics.steps import Steps
from costspan_hooks import Admission, Chunk, Removal, RequestInfo, Step, wire
from costspan_hooks.devices import ONE_CORE
from costspan_hooks.ledger import StepLedger
from costspan_hooks.observer import Burst, EngineInfo, ModelShape
from costspan_hooks.records import AttemptRecord, LedgerRecord, Segment, StepRecord

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

    def turn(self) -> None:
        chunks = []
        while self.waiting and len(self.running) < 4:
            name, tenant = self.waiting.pop(0)
            self.now += 100
            self.ledger.admitted(Admission(name, self.now, self.now + 10, 0, 0, ""))
            self.now += 10
            self.running[name] = (tenant, self.random.randint(1, 12))
            chunks.append(Chunk(name, 50, 0, last=True))
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

    def steps(self) -> Steps:
        rows = [record for record in self.records if isinstance(record, StepRecord) and record.participants]
        frame = pl.from_arrow(wire.steps(wire.Origin("p", "e", "cpu"), rows))
        assert isinstance(frame, pl.DataFrame)
        names = {name: name.removeprefix("tenants.") for name in frame.columns if name.startswith("tenants.")}
        return Steps(frame.rename(names | {"tenants.name": "names"}))

    def segments(self) -> list[tuple[str, Segment]]:
        attempts = [record for record in self.records if isinstance(record, AttemptRecord)]
        return [(attempt.request.tenant, segment) for attempt in attempts for segment in attempt.segments]


def row(tenant: str, segment: Segment) -> dict[str, object]:
    names = ("start_ns", "duration_ns", "step_first", "step_last", "interference_ns", "host_gap_ns")
    return {"tenant": tenant, "phase": segment.name.value, **{name: getattr(segment, name) for name in names}}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.sampled_from(list(Bound)))
def test_blame_conserves_interference_and_waiting(seed: int, count: int, bound: Bound) -> None:
    crowd = Crowd(seed, bound)
    crowd.run(count)
    steps = crowd.steps()
    for tenant, segment in crowd.segments():
        found = list(delays(row(tenant, segment), steps))
        assert all(ns >= 0 for _, _, ns in found)
        total = sum(ns for _, _, ns in found)
        if segment.name in {Phase.PREFILL, Phase.DECODE}:
            assert total == pytest.approx(segment.interference_ns, rel=1e-6, abs=2.0)
        if segment.name is Phase.QUEUE and segment.step_first >= 0:
            # What is left of the wait is the host's: the gaps between the steps.
            assert total <= segment.duration_ns + 1
            assert total >= segment.duration_ns - 1_000 * (segment.step_last - segment.step_first + 2)


def test_a_wait_is_charged_to_those_who_held_what_was_waited_for() -> None:
    frame = pl.DataFrame(
        {
            "step": [0, 1],
            "start_ns": [0, 10_000],
            "duration_ns": [10_000, 10_000],
            "bound": ["kv_blocks", "seq_slots"],
            "names": [["acme", "hog"], ["acme", "hog"]],
            "seqs": [[1, 1], [3, 1]],
            "tokens": [[1, 1], [3, 1]],
            "blocks": [[10, 90], [10, 90]],
            "compute_ns": [[1.0, 1.0], [1.0, 1.0]],
            "prefill_ns": [[0.0, 0.0], [0.0, 0.0]],
            "cost_ns": [[5_000.0, 5_000.0], [5_000.0, 5_000.0]],
        }
    )
    wait = {"tenant": "late", "phase": "queue", "start_ns": 5_000, "duration_ns": 15_000, "step_first": 0, "step_last": 1}
    found = {culprit: ns for culprit, _, ns in delays(wait, Steps(frame))}
    assert found == pytest.approx({"acme": 0.1 * 5_000 + 0.75 * 10_000, "hog": 0.9 * 5_000 + 0.25 * 10_000})


def test_a_tenants_own_cap_holds_back_nobody_else() -> None:
    frame = pl.DataFrame(
        {
            "step": [0, 1, 2],
            "start_ns": [0, 10_000, 20_000],
            "duration_ns": [10_000, 10_000, 10_000],
            "bound": ["tenant_cap", "tenant_cap", "seq_slots"],
            "names": [["acme", "hog"]] * 3,
            "seqs": [[1, 3]] * 3,
            "tokens": [[1, 3]] * 3,
            "blocks": [[10, 90]] * 3,
            "compute_ns": [[1.0, 1.0]] * 3,
            "prefill_ns": [[0.0, 0.0]] * 3,
            "cost_ns": [[4_000.0, 6_000.0]] * 3,
        }
    )
    wait = {"tenant": "hog", "phase": "queue", "start_ns": 5_000, "duration_ns": 25_000, "step_first": 0, "step_last": 2}
    found: dict[str, float] = defaultdict(float)
    for culprit, mechanism, ns in delays(wait, Steps(frame)):
        assert mechanism == "queue"
        found[culprit] += ns
    # The step in flight at arrival was made without it, and is charged by cost; the cap holds the next one; slots the last.
    assert found == pytest.approx({"acme": 0.4 * 5_000 + 2_500, "hog": 0.6 * 5_000 + 10_000 + 7_500})
