"""Who is next: classes, priorities, arrival or fairness, caps; and who gives way."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costspan.semconv import Bound, LatencyClass
from costspan_engine.scheduler import Scheduler
from costspan_engine.sequence import Sequence
from costspan_engine.settings import EngineConfig, Policy
from costspan_engine.waiting import OUTPUT_WEIGHT, PROMPT_WEIGHT, WaitingQueue
from tests.engine_hooks.engine_fixtures import CountingExecutor, Recording, advance, request, scheduler

INTERACTIVE, BATCH = LatencyClass.INTERACTIVE, LatencyClass.BATCH


def _seq(
    prompt: int = 4, answer: int = 8, *, tenant: str = "acme", latency: LatencyClass = INTERACTIVE, priority: int = 0
) -> Sequence:
    asked = request([(ord(tenant[0]) + prompt) % 250] * prompt, answer, tenant=tenant)
    return Sequence(replace(asked, info=replace(asked.info, latency_class=latency, priority=priority)))


class Reference:
    """The queue's order, the slow way: look at everybody each time."""

    def __init__(self, policy: Policy, cap: int) -> None:
        self.fair, self.cap = policy is Policy.FAIR, cap
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.counters: dict[tuple[object, str], int] = {}
        self.last: dict[object, str] = {}
        self.floor: dict[object, int] = {}

    def add(self, seq: Sequence) -> None:
        lane = [other for other in self.waiting if other.place == seq.place]
        if seq.tenant not in {other.tenant for other in lane}:
            rivals = [self.counter(other) for other in lane if not self.capped(other)]
            floor = min(rivals) if rivals else self.counters.get((seq.place, self.last.get(seq.place, "")), 0)
            floor = self.floor[seq.place] = max(floor, self.floor.get(seq.place, 0))
            self.counters[seq.place, seq.tenant] = max(self.counter(seq), floor)
        self.waiting.append(seq)

    def take(self, seq: Sequence) -> None:
        self.waiting.remove(seq)
        self.running.append(seq)
        self.last[seq.place] = seq.tenant

    def forget(self) -> None:
        lanes = {seq.place for seq in self.waiting + self.running}
        self.counters = {key: value for key, value in self.counters.items() if key[0] in lanes}
        self.floor = {lane: floor for lane, floor in self.floor.items() if lane in lanes}
        self.last = {lane: tenant for lane, tenant in self.last.items() if lane in lanes}

    def counter(self, seq: Sequence) -> int:
        return self.counters.get((seq.place, seq.tenant), 0)

    def capped(self, seq: Sequence) -> bool:
        return 0 < self.cap <= sum(other.tenant == seq.tenant for other in self.running)

    def head(self) -> Sequence | None:
        able = [seq for seq in self.waiting if not self.capped(seq)]
        return min(able, key=lambda seq: (seq.place, self.counter(seq) if self.fair else 0, seq.number), default=None)


happenings = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abcd"), st.sampled_from([INTERACTIVE, BATCH]), st.integers(0, 1)),
        st.tuples(st.just("take"), st.integers(1, 9)),
        st.tuples(st.just("made"), st.integers(0, 9)),
        st.tuples(st.just("back"), st.integers(0, 9)),
        st.tuples(st.just("left"), st.integers(0, 9)),
        st.tuples(st.just("abort"), st.integers(0, 9)),
    ),
    max_size=60,
)


@given(policy=st.sampled_from(Policy), cap=st.integers(0, 3), happenings=happenings)
@settings(max_examples=400)
def test_the_order_is_that_of_looking_at_everybody(policy: Policy, cap: int, happenings: list[tuple[object, ...]]) -> None:
    queue, slow = WaitingQueue(policy, cap), Reference(policy, cap)
    for happening in happenings:
        _happen(queue, slow, happening)
        slow.forget()
        assert queue.head() is slow.head()
        assert len(queue) == len(slow.waiting)
        assert set(queue) == set(slow.waiting)
        for each in LatencyClass:
            assert queue.of(each) == sum(seq.request.info.latency_class is each for seq in slow.waiting)


def _happen(queue: WaitingQueue, slow: Reference, happening: tuple[object, ...]) -> None:
    match happening:
        case ("add", str(tenant), LatencyClass() as latency, int(priority)):
            seq = _seq(tenant=tenant, latency=latency, priority=priority)
            slow.add(seq)
            queue.add(seq)
        case ("take", int(tokens)) if head := queue.head():
            queue.take(head)
            slow.take(head)
            _charge(queue, slow, head, tokens)
        case ("made", int(index)) if slow.running:
            _charge(queue, slow, slow.running[index % len(slow.running)], 2)
        case ("back", int(index)) if slow.running:
            # Whoever is pushed out came after all of its tenant's that stay.
            one = slow.running[index % len(slow.running)]
            mates = [seq for seq in slow.running if (seq.place, seq.tenant) == (one.place, one.tenant)]
            victim = max(mates, key=lambda seq: seq.number)
            slow.add(victim)
            slow.running.remove(victim)
            queue.put_back(victim)
        case ("left", int(index)) if slow.running:
            queue.left(slow.running.pop(index % len(slow.running)))
        case ("abort", int(index)) if slow.waiting:
            gone = slow.waiting[index % len(slow.waiting)]
            slow.waiting.remove(gone)
            assert queue.remove(gone.request_id) is gone
            assert queue.remove(gone.request_id) is None
        case _:
            pass


def _charge(queue: WaitingQueue, slow: Reference, seq: Sequence, tokens: int) -> None:
    queue.charge(seq, tokens)
    slow.counters[seq.place, seq.tenant] = slow.counter(seq) + tokens


def test_a_fair_queue_keeps_backlogged_tenants_together() -> None:
    """Theorem 4.4 of the paper: however unlike their requests, the service of two tenants differs by no more than its bound."""
    config = EngineConfig(max_num_seqs=6, max_batched_tokens=32, kv_blocks=30, block_size=4, policy=Policy.FAIR)
    books, executor, service = scheduler(config), CountingExecutor(), Counter[str]()
    sizes = {"long": (40, 12), "short": (3, 4), "chatty": (5, 30)}
    first: set[str] = set()
    for _ in range(800):
        for tenant, (prompt, answer) in sizes.items():
            if sum(seq.tenant == tenant for seq in books.waiting) < 4:
                books.add(_seq(prompt, answer, tenant=tenant))
        batch = advance(executor, books)
        for prefill in batch.prefills:
            if prefill.seq.request_id not in first:
                first.add(prefill.seq.request_id)
                service[prefill.seq.tenant] += PROMPT_WEIGHT * len(prefill.seq.request.prompt)
        for seq in batch.making:
            service[seq.tenant] += OUTPUT_WEIGHT
        assert max(service.values()) - min(service[tenant] for tenant in sizes) <= 2 * max(40, 2 * config.kv_tokens)
    assert books.preemptions
    assert min(service.values()) > 0.9 * max(service.values())


def test_first_come_first_served_lets_a_flood_go_first_and_fair_does_not() -> None:
    def place(policy: Policy) -> int:
        books, executor = scheduler(EngineConfig(max_num_seqs=1, max_batched_tokens=16, policy=policy)), CountingExecutor()
        for _ in range(20):
            books.add(_seq(answer=2, tenant="flood"))
        lone = _seq(answer=2, tenant="lone")
        books.add(lone)
        steps = 0
        while lone.request_id in books:
            advance(executor, books)
            steps += 1
        return steps

    assert place(Policy.FCFS) == 42
    assert place(Policy.FAIR) == 4


def test_a_tenant_at_its_cap_is_passed_over() -> None:
    config = EngineConfig(max_num_seqs=8, max_batched_tokens=64, tenant_max_seqs=2)
    books, executor = scheduler(config), CountingExecutor()
    many = [_seq(answer=3, tenant="many") for _ in range(4)]
    for seq in (*many, other := _seq(tenant="other")):
        books.add(seq)
    batch = advance(executor, books)
    assert batch.sequences == [*many[:2], other]
    assert batch.bound is Bound.TENANT_CAP
    while many[0].request_id in books:
        batch = advance(executor, books)
    assert advance(executor, books).bound is Bound.NONE
    assert set(books.running) == {other.request_id, many[2].request_id, many[3].request_id}


def _books(observer: Recording, max_num_seqs: int = 2, max_batched_tokens: int = 16, kv_blocks: int = 32) -> Scheduler:
    return scheduler(EngineConfig(max_num_seqs, max_batched_tokens, kv_blocks, block_size=4, prefix_cache=False), observer)


def test_an_interactive_request_takes_the_slot_of_the_batch_request_that_is_spared_least() -> None:
    observer, executor = Recording(), CountingExecutor()
    books = _books(observer)
    kept, pushed, person = _seq(latency=BATCH), _seq(latency=BATCH, priority=1), _seq(tenant="person")
    books.add(kept)
    books.add(pushed)
    advance(executor, books)
    books.add(person)
    batch = advance(executor, books)
    assert (batch.decodes, [prefill.seq for prefill in batch.prefills], batch.bound) == ([kept], [person], Bound.SEQ_SLOTS)
    assert [(name, culprit) for name, _, culprit in observer.all("preempted")] == [(pushed.request_id, "person")]
    while len(books):
        advance(executor, books)
    assert pushed.tokens == kept.tokens


def test_an_interactive_request_takes_blocks_but_not_for_nothing() -> None:
    observer, executor = Recording(), CountingExecutor()
    books = _books(observer, max_num_seqs=4, max_batched_tokens=128, kv_blocks=20)
    person, job, other = _seq(40, tenant="a"), _seq(16, latency=BATCH), _seq(8, latency=BATCH)
    for seq in (person, job, other):
        books.add(seq)
    advance(executor, books)
    books.add(_seq(60, tenant="b"))  # more than all batch work holds
    assert advance(executor, books).bound is Bound.KV_BLOCKS
    assert not observer.all("preempted")
    books.remove(next(iter(books.waiting)).request_id)
    books.add(fits := _seq(20, tenant="b"))
    batch = advance(executor, books)
    assert [name for name, _, _ in observer.all("preempted")] == [other.request_id, job.request_id][: len(books.waiting)]
    assert fits.request_id in books.running
    assert person in batch.decodes
    # What was pushed out does not come back in the same step, though its slot is free.
    assert batch.bound is Bound.KV_BLOCKS


def test_neither_class_pushes_out_an_interactive_request_by_coming() -> None:
    observer, executor = Recording(), CountingExecutor()
    books = _books(observer)
    for _ in range(2):
        books.add(_seq())
    advance(executor, books)
    books.add(_seq(priority=-5))
    books.add(_seq(latency=BATCH))
    assert advance(executor, books).bound is Bound.SEQ_SLOTS
    assert not observer.all("preempted")


def test_prompts_of_interactive_requests_come_first_in_the_budget() -> None:
    executor = CountingExecutor()
    books = _books(Recording(), max_num_seqs=4)
    job = _seq(40, latency=BATCH)
    books.add(job)
    advance(executor, books)
    books.add(person := _seq(10))
    assert [(p.seq, p.tokens) for p in advance(executor, books).prefills] == [(person, 10), (job, 6)]


@pytest.mark.parametrize("batch_first", [True, False])
def test_where_blocks_run_out_the_batch_class_goes_first_whoever_came_last(batch_first: bool) -> None:
    observer, executor = Recording(), CountingExecutor()
    books = _books(observer, kv_blocks=6)
    job, person = _seq(8, 12, latency=BATCH), _seq(8, 12)
    for seq in (job, person) if batch_first else (person, job):
        books.add(seq)
    while len(books):
        advance(executor, books)
    assert {name for name, _, _ in observer.all("preempted")} == {job.request_id}
    assert person.output_tokens == job.output_tokens == 12


def test_tenants_that_went_are_forgotten() -> None:
    queue, stays = WaitingQueue(Policy.FAIR), _seq(tenant="stays")
    queue.add(stays)
    queue.take(stays)
    [lane] = queue._lanes.values()
    for number in range(2000):
        waits, goes = _seq(tenant=f"a{number}"), _seq(tenant=f"b{number}")
        queue.add(goes)
        queue.add(waits)
        head = queue.head()
        assert head is goes
        queue.take(goes)
        queue.charge(goes, 5)
        queue.left(goes)
        queue.remove(waits.request_id)
        assert len(lane._counters) + len(lane._heap) < 300
    assert not lane.lines
