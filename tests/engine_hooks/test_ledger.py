"""The ledger against brute force: the same schedules, added up participant by participant and step by step."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costspan.semconv import Bound, Outcome, Phase, Waste
from costspan_hooks import Admission, Chunk, Removal, RequestInfo, Step
from costspan_hooks.devices import ONE_CORE
from costspan_hooks.errors import ProtocolError
from costspan_hooks.ledger import StepLedger
from costspan_hooks.observer import Burst, EngineInfo, ModelShape
from costspan_hooks.records import AttemptRecord, EngineRecord, LedgerRecord, StepRecord

MODEL = ModelShape(parameters=5_000_000, bytes_per_parameter=4, kv_bytes_per_token=4096, flops_per_pair=8192)
ENGINE = EngineInfo(MODEL, ONE_CORE)
BOOT_NS, READY_NS = 1_000, 5_001_000


def request(name: str, tenant: str, at_ns: int, prompt: int = 100) -> RequestInfo:
    return RequestInfo(name, tenant, "", "", 1, "", "", "tiny", prompt, at_ns, at_ns, has_server=False)


def joules(start_ns: int, end_ns: int) -> float:
    """What a device that draws 100 to 300 W used."""
    return 200e-9 * (end_ns - start_ns) + math.sin(end_ns / 1e7) - math.sin(start_ns / 1e7)


@dataclass
class Live:
    name: str
    tenant: str
    prompt: int
    output: int
    context: int = 0
    made: int = 0
    state: str = "waiting"  # waiting, prefill, decode
    cost: float = 0.0
    residency: int = 0
    solo: float = 0.0
    decoded: int = 0
    rejected: float = 0.0
    drafted: int = 0
    accepted: int = 0
    joules: float = 0.0


@dataclass
class Schedule:
    """A random engine that drives a ledger and remembers, with loops, what the ledger knows by subtraction."""

    seed: int
    index: int = 0
    records: list[LedgerRecord] = field(default_factory=list)
    live: list[Live] = field(default_factory=list)
    gone: dict[str, Live] = field(default_factory=dict)
    now: int = READY_NS

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.ledger = StepLedger(self.records.append, joules)
        self.ledger.ready(BOOT_NS, READY_NS, ENGINE)

    def run(self, turns: int) -> None:
        for turn in range(turns):
            self.turn(turn)
        while self.live:
            self.remove(self.live[-1], self.tick())
        self.ledger.stopped(self.tick())

    def tick(self) -> int:
        self.now += self.random.randint(1, 20_000)
        return self.now

    def turn(self, turn: int) -> None:
        for _ in range(self.random.choice([0, 0, 1, 1, 2])):
            one = Live(
                f"r{turn}-{len(self.live)}", self.random.choice("abc"), self.random.randint(1, 300), self.random.randint(1, 40)
            )
            self.live.append(one)
            self.ledger.enqueued(request(one.name, one.tenant, self.now, one.prompt))
        for one in [one for one in self.live if self.random.random() < 0.04]:
            self.remove(one, self.tick())
        for one in [one for one in self.live if one.state != "waiting" and self.random.random() < 0.03]:
            self.ledger.preempted(one.name, self.tick(), "")
            one.state, one.context = "waiting", 0
        for one in [one for one in self.live if one.state == "waiting" and self.random.random() < 0.5]:
            cached = self.random.randrange(one.prompt)
            at = self.tick()
            self.ledger.admitted(Admission(one.name, at, self.tick(), cached, 0, ""))
            one.state, one.context = "prefill", cached
        self.step()

    def step(self) -> None:
        decoding = [one for one in self.live if one.state == "decode"]
        prefilling = [one for one in self.live if one.state == "prefill"]
        chunks: list[tuple[Live, Chunk]] = []
        for one in prefilling:
            left = one.prompt + one.made - one.context
            budget_left = self.random.random() < 0.8 or not (chunks or decoding)
            if budget_left:
                tokens = self.random.randint(1, left)
                chunks.append((one, Chunk(one.name, tokens, one.context, last=tokens == left)))
        if not chunks and not decoding:
            start = self.tick()
            self.ledger.idle(start, self.tick())
            return
        start = self.tick()
        duration = self.random.randint(100_000, 9_000_000)
        self.now = end = start + duration + self.random.choice([0, self.random.randint(1, 500_000)])
        bursts = {one.name: self.burst(one) for one in decoding if self.random.random() < 0.4}
        pieces = [chunk for _, chunk in chunks]
        padding = self.random.choice([0, 0, self.random.randint(1, 5)])
        guesses = list(bursts.values())
        told = Step(self.index, start, end, duration, pieces, Bound.NONE, {}, guesses, padding=padding, decoding=len(decoding))
        self.ledger.step(told)
        row = self.records[-1]
        assert isinstance(row, StepRecord)
        self.brute_force(row, decoding, chunks, bursts)
        self.index += 1
        for one, chunk in chunks:
            one.context += chunk.tokens
            if chunk.last:
                one.state, one.made = "decode", one.made + 1
        for one in decoding:
            made = 1 + (bursts[one.name].accepted if one.name in bursts else 0)
            one.context, one.made, one.decoded = one.context + made, one.made + made, one.decoded + made
        for one in [one for one in self.live if one.state == "decode" and one.made >= one.output]:
            self.remove(one, end)

    def burst(self, one: Live) -> Burst:
        drafted = self.random.randint(1, 6)
        return Burst(one.name, drafted, self.random.randint(0, drafted))

    def brute_force(
        self, row: StepRecord, decoding: list[Live], chunks: list[tuple[Live, Chunk]], bursts: dict[str, Burst]
    ) -> None:
        unit, parts, stretch = row.unit, len(decoding) + len(chunks), row.duration_ns / row.predicted_ns
        work = [(one, unit.prefill(chunk.tokens, chunk.context)) for one, chunk in chunks]
        for one in decoding:
            compute = unit.decode(one.context)
            if burst := bursts.get(one.name):
                # One draft after the other, each attending to all before it and, on average, to half of itself.
                drafts = [unit.prefill(1, one.context + 1 + place) for place in range(burst.drafted)]
                compute += sum(drafts)
                one.rejected += stretch * sum(drafts) * (burst.drafted - burst.accepted) / burst.drafted
                one.drafted, one.accepted = one.drafted + burst.drafted, one.accepted + burst.accepted
            work.append((one, compute))
        predicted = unit.fixed + row.padding * unit.decode_seq + sum(compute for _, compute in work)
        watts = joules(row.start_ns, row.start_ns + row.duration_ns) / row.predicted_ns
        assert row.predicted_ns == pytest.approx(predicted, rel=1e-9)
        for one, compute in work:
            one.cost += stretch * (unit.fixed / parts + compute)
            one.solo += unit.fixed + row.padding * unit.decode_seq + compute
            one.joules += watts * (unit.fixed / parts + compute)
        for one in self.live:
            one.residency += row.duration_ns if one.state != "waiting" else 0
        self.check_shares(row, work, chunks, bursts)

    def check_shares(
        self, row: StepRecord, work: list[tuple[Live, float]], chunks: list[tuple[Live, Chunk]], bursts: dict[str, Burst]
    ) -> None:
        assert row.participants == len(work)
        assert row.prefill_tokens == sum(chunk.tokens for _, chunk in chunks)
        assert row.drafted_tokens == sum(burst.drafted for burst in bursts.values())
        for share in row.tenants:
            own = [(one, compute) for one, compute in work if one.tenant == share.name]
            prompts = [chunk for one, chunk in chunks if one.tenant == share.name]
            drafted = sum(bursts[one.name].drafted for one, _ in own if one.name in bursts)
            assert share.tokens == sum(chunk.tokens for chunk in prompts) + len(own) - len(prompts) + drafted
            assert share.compute_ns == pytest.approx(sum(compute for _, compute in own), rel=1e-9)
            prefill = sum(row.unit.prefill(chunk.tokens, chunk.context) for chunk in prompts)
            assert share.prefill_ns == pytest.approx(prefill, rel=1e-9)

    def remove(self, one: Live, at_ns: int) -> None:
        self.live.remove(one)
        self.gone[one.name] = one
        self.ledger.removed(Removal(one.name, at_ns, Outcome.OK, "stop", one.made))

    def attempts(self) -> list[AttemptRecord]:
        return [record for record in self.records if isinstance(record, AttemptRecord)]

    def steps(self) -> list[StepRecord]:
        return [record for record in self.records if isinstance(record, StepRecord)]


# An engine at 5 ms a step is at step 10^9 after two months.
schedules = st.builds(Schedule, st.integers(0, 2**32), st.sampled_from([0, 10**9]))
lengths = st.integers(1, 250)


@settings(max_examples=60)
@given(schedules, lengths)
def test_running_sums_equal_brute_force(schedule: Schedule, turns: int) -> None:
    schedule.run(turns)
    for attempt in schedule.attempts():
        truth = schedule.gone[attempt.request.request_id]
        segments = [segment for segment in attempt.segments if segment.name in {Phase.PREFILL, Phase.DECODE}]
        cost = sum(segment.cost_ns for segment in segments)
        assert cost == pytest.approx(truth.cost, rel=1e-9, abs=len(segments))  # whole nanoseconds a segment
        assert sum(segment.solo_ns for segment in segments) == pytest.approx(truth.solo, rel=1e-9, abs=len(segments))
        lived = sum(segment.duration_ns - segment.host_gap_ns for segment in segments)
        assert lived == truth.residency
        rejected = [segment.waste_ns for segment in segments if segment.waste == Waste.REJECTED_DRAFT]
        assert sum(rejected) == pytest.approx(truth.rejected, rel=1e-9, abs=len(segments))
        assert (attempt.drafted_tokens, attempt.accepted_tokens) == (truth.drafted, truth.accepted)
        assert sum(segment.tokens for segment in segments if segment.name is Phase.DECODE) == truth.decoded


@settings(max_examples=60)
@given(schedules, lengths)
def test_cost_is_conserved_to_the_nanosecond(schedule: Schedule, turns: int) -> None:
    schedule.run(turns)
    charged = sum(segment.cost_ns for attempt in schedule.attempts() for segment in attempt.segments)
    padding = sum(step.padding_ns for step in schedule.steps())
    assert abs(charged + padding - sum(step.duration_ns for step in schedule.steps())) <= 1
    for step in schedule.steps():
        shares = sum(share.cost_ns for share in step.tenants)
        assert shares + step.padding_ns == step.duration_ns


@settings(max_examples=60)
@given(schedules, lengths)
def test_the_loop_closes(schedule: Schedule, turns: int) -> None:
    """What requests cost, padding, idle, gaps and loading are the engine's wall time from start to stop."""
    schedule.run(turns)
    charged = sum(segment.cost_ns for attempt in schedule.attempts() for segment in attempt.segments)
    rest = sum(row.padding_ns + row.idle_ns + row.host_gap_ns + row.cold_start_ns for row in schedule.steps())
    assert abs(charged + rest - (schedule.now - BOOT_NS)) <= 1


@settings(max_examples=60)
@given(schedules, lengths)
def test_joules_are_split_as_nanoseconds_are(schedule: Schedule, turns: int) -> None:
    schedule.run(turns)
    for attempt in schedule.attempts():
        assert attempt.energy_j == pytest.approx(schedule.gone[attempt.request.request_id].joules, rel=1e-9, abs=1e-12)
    rows = schedule.steps()
    assert sum(row.energy_j or 0.0 for row in rows) == pytest.approx(joules(BOOT_NS, schedule.now), rel=1e-9)
    computed = [joules(row.start_ns, row.start_ns + row.duration_ns) for row in rows if row.participants]
    padded = [
        joules(row.start_ns, row.start_ns + row.duration_ns) * row.padding * row.unit.decode_seq / row.predicted_ns
        for row in rows
        if row.padding
    ]
    spent = sum(attempt.energy_j or 0.0 for attempt in schedule.attempts())
    assert spent + sum(padded) == pytest.approx(sum(computed), rel=1e-9, abs=1e-12)


def test_what_no_meter_measured_is_absent_and_not_zero() -> None:
    for meter in (None, late):
        records: list[LedgerRecord] = []
        ledger = StepLedger(records.append, meter)
        ledger.ready(BOOT_NS, READY_NS, ENGINE)
        for name in ("first", "second"):
            ledger.enqueued(request(name, "a", READY_NS))
            ledger.admitted(Admission(name, READY_NS, READY_NS, 0, 0, ""))
        ran(ledger, 0, READY_NS, [Chunk("first", 100, 0, last=True)])
        end = ran(ledger, 1, READY_NS + 3_000_000, [Chunk("second", 100, 0, last=True)])
        for name in ("first", "second"):
            ledger.removed(Removal(name, end, Outcome.OK, "length", 1))
        joined = [record.energy_j for record in records if isinstance(record, AttemptRecord)]
        if meter is None:
            assert joined == [None, None]
        else:
            assert joined[0] is None  # its prompt was computed while the meter said nothing
            assert joined[1] == pytest.approx(
                1.0 - sum(share_of(record) for record in records if isinstance(record, StepRecord) and record.step == 1)
            )


def late(start_ns: int, end_ns: int) -> float | None:
    """A meter that begins to say something 2 ms after the engine, and then a joule a step."""
    return None if min(start_ns, end_ns) < READY_NS + 2_000_000 else 1.0


def share_of(record: StepRecord) -> float:
    """The first request's part of a step in which it decoded, beside the second's prompt."""
    decoding = record.unit.fixed / 2 + record.unit.decode(100)
    return decoding / record.predicted_ns


@settings(max_examples=60)
@given(schedules, lengths)
def test_latency_split_adds_up_to_each_segment(schedule: Schedule, turns: int) -> None:
    schedule.run(turns)
    for attempt in schedule.attempts():
        for segment in attempt.segments:
            assert segment.duration_ns >= 0
            if segment.name in {Phase.PREFILL, Phase.DECODE}:
                split = segment.solo_ns + segment.interference_ns + segment.deviation_ns + segment.host_gap_ns
                assert split == segment.duration_ns


@settings(max_examples=60)
@given(schedules, lengths)
def test_segments_tile_a_life_without_overlap(schedule: Schedule, turns: int) -> None:
    schedule.run(turns)
    for attempt in schedule.attempts():
        at = attempt.request.enqueued_ns
        for segment in attempt.segments:
            assert segment.start_ns == at
            at += segment.duration_ns
        assert at == attempt.removal.at_ns


@settings(max_examples=60)
@given(schedules, lengths)
def test_every_nanosecond_of_the_engine_is_in_a_row(schedule: Schedule, turns: int) -> None:
    schedule.run(turns)
    rows = schedule.steps()
    total = sum(row.duration_ns + row.host_gap_ns + row.idle_ns + row.cold_start_ns for row in rows)
    assert total == schedule.now - BOOT_NS
    assert all(row.host_gap_ns >= 0 and row.idle_ns >= 0 for row in rows)


def ran(ledger: StepLedger, index: int, start: int, chunks: list[Chunk], bursts: Sequence[Burst] = ()) -> int:
    end = start + 1_000_000
    ledger.step(Step(index, start, end, 1_000_000, chunks, Bound.NONE, {"a": 3}, bursts))
    return end


def test_what_an_eviction_made_compute_again_is_told_apart() -> None:
    records: list[LedgerRecord] = []
    ledger = StepLedger(records.append)
    ledger.ready(BOOT_NS, READY_NS, ENGINE)
    ledger.enqueued(request("r", "a", READY_NS, 100))
    ledger.admitted(Admission("r", READY_NS + 10, READY_NS + 20, cached_tokens=16, evicted_tokens=48, evicted_by="b"))
    end = ran(ledger, 0, READY_NS + 30, [Chunk("r", 84, 16, last=True)])
    ledger.removed(Removal("r", end, Outcome.OK, "length", 1))
    attempt = records[-1]
    assert isinstance(attempt, AttemptRecord)
    prefill = attempt.segments[2]
    assert (prefill.name, prefill.waste, prefill.culprit) == (Phase.PREFILL, Waste.RECOMPUTED_EVICTION, "b")
    assert 0.4 * prefill.cost_ns < prefill.waste_ns < 48 / 84 * prefill.cost_ns  # earlier tokens attend to fewer
    assert attempt.evicted_tokens == 48


def test_what_a_preemption_made_compute_again_is_told_apart() -> None:
    records: list[LedgerRecord] = []
    ledger = StepLedger(records.append)
    ledger.ready(BOOT_NS, READY_NS, ENGINE)
    ledger.enqueued(request("r", "a", READY_NS, 100))
    ledger.admitted(Admission("r", READY_NS + 10, READY_NS + 20, 0, 0, ""))
    end = ran(ledger, 0, READY_NS + 30, [Chunk("r", 100, 0, last=True)])
    end = ran(ledger, 1, end + 30, [])  # decodes one more
    ledger.preempted("r", end + 10, "b")
    ledger.enqueued(request("other", "b", end + 10, 5))
    ledger.admitted(Admission("other", end + 11, end + 12, 0, 0, ""))
    end = ran(ledger, 2, end + 30, [Chunk("other", 5, 0, last=True)])
    ledger.removed(Removal("other", end, Outcome.OK, "length", 1))
    ledger.admitted(Admission("r", end + 10, end + 20, 0, 0, ""))
    end = ran(ledger, 3, end + 30, [Chunk("r", 102, 0, last=True)])
    ledger.removed(Removal("r", end, Outcome.OK, "length", 3))
    attempt = records[-1]
    assert isinstance(attempt, AttemptRecord)
    assert [segment.name for segment in attempt.segments] == [
        Phase.QUEUE,
        Phase.CACHE_HIT,
        Phase.PREFILL,
        Phase.DECODE,
        Phase.PREEMPTED,
        Phase.CACHE_HIT,
        Phase.PREFILL,
        Phase.DECODE,
    ]
    again = attempt.segments[6]
    assert (again.waste, again.culprit) == (Waste.RECOMPUTED_PREEMPTION, "b")
    assert 0.97 * again.cost_ns < again.waste_ns < again.cost_ns  # 101 of its 102 tokens were there before
    assert attempt.preemptions == 1
    assert attempt.segments[4].step_first == attempt.segments[4].step_last == 2


def test_a_preemption_in_the_middle_of_a_recomputation_does_not_forget_what_was_there_before() -> None:
    records: list[LedgerRecord] = []
    ledger = StepLedger(records.append)
    ledger.ready(BOOT_NS, READY_NS, ENGINE)
    ledger.enqueued(request("r", "a", READY_NS, 100))
    ledger.admitted(Admission("r", READY_NS + 10, READY_NS + 20, 0, 0, ""))
    end = ran(ledger, 0, READY_NS + 30, [Chunk("r", 100, 0, last=True)])
    ledger.preempted("r", end, "")
    ledger.admitted(Admission("r", end + 10, end + 20, 0, 0, ""))
    end = ran(ledger, 1, end + 30, [Chunk("r", 20, 0, last=False)])
    ledger.preempted("r", end, "")
    ledger.admitted(Admission("r", end + 10, end + 20, 0, 0, ""))
    end = ran(ledger, 2, end + 30, [Chunk("r", 101, 0, last=True)])
    ledger.removed(Removal("r", end, Outcome.OK, "length", 2))
    attempt = records[-1]
    assert isinstance(attempt, AttemptRecord)
    _, second, third = (segment for segment in attempt.segments if segment.name is Phase.PREFILL)
    assert second.waste_ns == second.cost_ns
    assert 0.97 * third.cost_ns < third.waste_ns < third.cost_ns


def test_what_was_drafted_and_thrown_away_is_told_apart_and_what_was_right_lengthens_the_context() -> None:
    records: list[LedgerRecord] = []
    ledger = StepLedger(records.append)
    ledger.ready(BOOT_NS, READY_NS, ENGINE)
    ledger.enqueued(request("r", "a", READY_NS, 100))
    ledger.admitted(Admission("r", READY_NS + 10, READY_NS + 20, 0, 0, ""))
    end = ran(ledger, 0, READY_NS + 30, [Chunk("r", 100, 0, last=True)])
    end = ran(ledger, 1, end + 30, [], [Burst("r", 4, 3)])
    step = records[-1]
    assert isinstance(step, StepRecord)
    share, unit = step.tenants[0], step.unit
    assert (step.participants, step.prefill_tokens, step.drafted_tokens, share.tokens) == (1, 0, 4, 5)
    drafts = unit.prefill(4, 101)
    assert share.compute_ns == pytest.approx(unit.decode(100) + drafts)
    assert share.prefill_ns == 0
    ledger.preempted("r", end, "b")
    ledger.admitted(Admission("r", end + 10, end + 20, 0, 0, ""))
    end = ran(ledger, 2, end + 30, [Chunk("r", 105, 0, last=True)])
    ledger.removed(Removal("r", end, Outcome.OK, "length", 6))
    attempt = records[-1]
    assert isinstance(attempt, AttemptRecord)
    decode, again = attempt.segments[3], attempt.segments[6]
    assert (decode.tokens, decode.waste, decode.culprit) == (4, Waste.REJECTED_DRAFT, "")
    assert decode.waste_ns == pytest.approx(1_000_000 * drafts / step.predicted_ns / 4, abs=1)
    # The 104 tokens that had keys and values are computed again, and the newest for the first time.
    assert again.waste_ns == pytest.approx(again.cost_ns * 104 / 105, rel=0.02)


def test_the_step_in_flight_at_arrival_is_the_first_one_waited_through() -> None:
    records: list[LedgerRecord] = []
    ledger = StepLedger(records.append)
    ledger.ready(BOOT_NS, READY_NS, ENGINE)
    ledger.enqueued(request("first", "a", READY_NS, 10))
    ledger.admitted(Admission("first", READY_NS + 10, READY_NS + 20, 0, 0, ""))
    end = ran(ledger, 0, READY_NS + 30, [Chunk("first", 10, 0, last=True)])
    ledger.enqueued(request("late", "b", end - 400_000, 10))
    ledger.admitted(Admission("late", end + 10, end + 20, 0, 0, ""))
    ledger.removed(Removal("late", end + 100, Outcome.CANCELLED, "abort", 0))
    attempt = records[-1]
    assert isinstance(attempt, AttemptRecord)
    queue, _, prefill = attempt.segments
    assert (queue.step_first, queue.step_last, queue.duration_ns) == (0, 0, 400_010)
    assert (prefill.duration_ns, prefill.cost_ns, attempt.last_step) == (80, 0, -1)


def test_an_engine_that_breaks_the_protocol_is_told_what_to_do() -> None:
    ledger = StepLedger(lambda _: None)
    ledger.ready(BOOT_NS, READY_NS, ENGINE)
    with pytest.raises(ProtocolError, match="report enqueued"):
        ledger.preempted("nobody", READY_NS, "")
    with pytest.raises(ProtocolError, match=r"through idle"):
        ran(ledger, 0, READY_NS, [])
    ledger.enqueued(request("r", "a", READY_NS))
    ledger.admitted(Admission("r", READY_NS, READY_NS, 0, 0, ""))
    with pytest.raises(ProtocolError, match="has work"):
        ledger.idle(READY_NS, READY_NS + 1)
    with pytest.raises(ProtocolError, match="report its preemption first"):
        ledger.admitted(Admission("r", READY_NS, READY_NS, 0, 0, ""))
    with pytest.raises(ProtocolError, match="only a decoding request"):
        ran(ledger, 0, READY_NS, [Chunk("r", 50, 0, last=False)], [Burst("r", 2, 1)])
    end = ran(ledger, 0, READY_NS, [Chunk("r", 100, 0, last=True)])
    for drafted, accepted in ((0, 0), (2, 3)):
        with pytest.raises(ProtocolError, match="report bursts with drafts only"):
            ran(ledger, 1, end, [], [Burst("r", drafted, accepted)])


def test_an_engine_that_stops_before_its_first_turn_has_loaded_all_the_same() -> None:
    records: list[LedgerRecord] = []
    ledger = StepLedger(records.append)
    ledger.ready(BOOT_NS, READY_NS, ENGINE)
    ledger.stopped(READY_NS + 7)
    engine, row = records
    assert engine == EngineRecord(BOOT_NS, READY_NS, ENGINE)
    assert isinstance(row, StepRecord)
    assert (row.cold_start_ns, row.host_gap_ns) == (READY_NS - BOOT_NS, 7)


def test_an_engine_that_never_got_ready_has_no_books() -> None:
    records: list[LedgerRecord] = []
    StepLedger(records.append).stopped(READY_NS)
    assert not records
