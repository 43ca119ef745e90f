"""Scheduling and its books, under random arrivals and aborts, without arithmetic."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costspan.semconv import Bound
from costspan_engine.errors import ConfigError
from costspan_engine.scheduler import Batch, Scheduler
from costspan_engine.sequence import Sequence
from costspan_engine.settings import EngineConfig
from tests.engine_hooks.engine_fixtures import CountingExecutor, Recording, advance, request, scheduler

configs = st.builds(
    EngineConfig,
    max_num_seqs=st.integers(1, 5),
    max_batched_tokens=st.integers(5, 24),
    kv_blocks=st.integers(12, 30),
    block_size=st.integers(1, 4),
    prefix_cache=st.booleans(),
)
arrivals = st.tuples(
    st.just("arrive"), st.integers(1, 9), st.integers(1, 3), st.sampled_from(["a", "b", "c"]), st.integers(0, 1)
)
happenings = st.lists(st.one_of(arrivals, st.tuples(st.just("abort"), st.integers(0, 9)), st.just(("step",))), max_size=50)


@given(config=configs, happenings=happenings)
@settings(max_examples=150)
def test_random_traffic_keeps_the_books(config: EngineConfig, happenings: list[tuple[object, ...]]) -> None:
    books, executor, alive = scheduler(config), CountingExecutor(), list[Sequence]()
    for happening in happenings:
        match happening:
            case ("arrive", int(length), int(answer), str(tenant), int(kind)):
                alive.append(Sequence(request([kind] * length, answer, tenant=tenant)))
                books.add(alive[-1])
            case ("abort", int(index)) if alive:
                gone = alive[index % len(alive)]
                books.remove(gone.request_id)
                assert not gone.blocks
                assert gone.request_id not in books
            case _:
                _checked_step(config, books, executor)
    for _ in range(2000):
        if not len(books):
            break
        _checked_step(config, books, executor)
    assert not len(books), "somebody waits for ever"
    assert books.blocks.available == config.kv_blocks
    assert books.blocks.held == {}


def _checked_step(config: EngineConfig, books: Scheduler, executor: CountingExecutor) -> None:
    decoding = {seq.request_id for seq in books.running.values() if seq.decoding}
    batch = advance(executor, books)
    took_part = {seq.request_id for seq in batch.decodes}
    assert took_part <= decoding
    assert all(name in books.waiting for name in decoding - took_part), "a running decode was left out without a preemption"
    assert len(batch.decodes) + sum(prefill.tokens for prefill in batch.prefills) <= config.max_batched_tokens
    assert len(batch.sequences) <= config.max_num_seqs
    assert all(prefill.tokens > 0 for prefill in batch.prefills)


def test_a_step_says_what_bound_admission() -> None:
    def bound(config: EngineConfig, *lengths: int) -> Bound:
        books = scheduler(config)
        for length in lengths:
            books.add(Sequence(request([1] * length)))
        return books.schedule().bound

    config = EngineConfig(max_num_seqs=2, max_batched_tokens=8, kv_blocks=4, block_size=4, prefix_cache=False)
    assert bound(config, 3) is Bound.NONE
    assert bound(config, 8, 3) is Bound.TOKEN_BUDGET
    assert bound(config, 2, 2, 2) is Bound.SEQ_SLOTS
    assert bound(config, 7, 12) is Bound.KV_BLOCKS


def test_decodes_come_before_prompts_and_prompts_share_what_is_left() -> None:
    config = EngineConfig(max_num_seqs=3, max_batched_tokens=10, kv_blocks=64, block_size=4)
    books, executor = scheduler(config), CountingExecutor()
    short, long, later = (Sequence(request([n] * length, 50)) for n, length in enumerate((4, 14, 30)))
    books.add(short)
    advance(executor, books)
    books.add(long)
    books.add(later)
    batches = [advance(executor, books) for _ in range(3)]
    assert [_shape(batch) for batch in batches] == [
        ([short], [(long, 9, 0)]),
        ([short], [(long, 5, 9), (later, 4, 0)]),
        ([short, long], [(later, 8, 4)]),
    ]


def _shape(batch: Batch) -> tuple[list[Sequence], list[tuple[Sequence, int, int]]]:
    return batch.decodes, [(prefill.seq, prefill.tokens, prefill.context) for prefill in batch.prefills]


def test_preemption_takes_the_last_come_and_computes_it_again() -> None:
    config = EngineConfig(max_num_seqs=4, max_batched_tokens=64, kv_blocks=4, block_size=4, prefix_cache=False)
    observer = Recording()
    books, executor = scheduler(config, observer), CountingExecutor()
    first, second = Sequence(request([1] * 8, 6)), Sequence(request([2] * 8, 6))
    books.add(first)
    books.add(second)
    while len(books):
        advance(executor, books)
    assert [(name, culprit) for name, _, culprit in observer.all("preempted")] == [(second.request_id, "acme")]
    admissions = [each for each in observer.all("admitted") if each.request_id == second.request_id]
    assert len(admissions) == 2
    assert second.tokens == [2] * 8 + [3, 4, 5, 6, 7, 8]
    assert second.cached_tokens == 0


def test_an_eviction_names_victim_and_culprit_and_is_remembered() -> None:
    config = EngineConfig(max_num_seqs=1, max_batched_tokens=64, kv_blocks=4, block_size=4)
    observer = Recording()
    books, executor = scheduler(config, observer), CountingExecutor()

    def run(tenant: str, prompt: list[int]) -> None:
        books.add(Sequence(request(prompt, 1, tenant=tenant)))
        advance(executor, books)

    run("victim", [1] * 12 + [9])
    run("victim", [1] * 12 + [8])
    assert observer.all("admitted")[-1].cached_tokens == 12
    run("culprit", [2] * 13)
    # One of the four blocks was free; of the victim's prefix the end goes first, so its beginning is lost last.
    assert [(victim, culprit, tokens) for _, victim, culprit, tokens in observer.all("evicted")] == [
        ("victim", "culprit", 4)
    ] * 3
    run("victim", [1] * 12 + [7])
    last = observer.all("admitted")[-1]
    assert (last.cached_tokens, last.evicted_tokens, last.evicted_by) == (0, 12, "culprit")


def test_a_prefix_is_shared_between_tenants_and_counted_for_both() -> None:
    config = EngineConfig(kv_blocks=16, block_size=4)
    observer = Recording()
    books, executor = scheduler(config, observer), CountingExecutor()
    prompt = [5] * 9
    books.add(Sequence(request(prompt, 20, tenant="a")))
    advance(executor, books)
    books.add(Sequence(request(prompt, 20, tenant="b")))
    advance(executor, books)
    assert observer.all("admitted")[-1].cached_tokens == 8
    assert books.blocks.held == {"a": 3, "b": 3}
    assert books.blocks.used == 4


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="raise the first"):
        EngineConfig(max_num_seqs=8, max_batched_tokens=4)
    with pytest.raises(ConfigError, match="block_size is 0"):
        EngineConfig(block_size=0)


def test_scheduling_needs_no_torch() -> None:
    code = "import sys, costspan_engine.engine, costspan_engine.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
