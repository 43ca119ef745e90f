"""The KV cache's books against counting by hand, on random schedules with drafts, preemptions, aborts and evictions."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from costspan.semconv import LatencyClass
from costspan_engine.block_manager import BlockManager, Prefix
from costspan_engine.null_observer import NullObserver
from costspan_engine.scheduler import Batch, Scheduler
from costspan_engine.sequence import Sequence
from costspan_engine.settings import EngineConfig, Policy
from tests.engine_hooks.engine_fixtures import request

configs = st.builds(
    EngineConfig,
    max_num_seqs=st.integers(1, 5),
    max_batched_tokens=st.integers(5, 24),
    kv_blocks=st.integers(14, 24),
    block_size=st.integers(1, 3),
    prefix_cache=st.booleans(),
    policy=st.sampled_from(Policy),
    tenant_max_seqs=st.integers(0, 2),
    draft_tokens=st.integers(0, 4),
)


class Clock:
    """Moves when it is told to."""

    now = 1000

    def __call__(self) -> int:
        return self.now


@given(config=configs, seed=st.integers(0, 2**32), turns=st.integers(1, 60))
@settings(max_examples=200)
def test_blocks_and_their_nanoseconds_come_out_as_counted_by_hand(config: EngineConfig, seed: int, turns: int) -> None:
    chance, clock = random.Random(seed), Clock()
    books, everybody, held_ns = Scheduler(config, NullObserver(), clock), list[Sequence](), Counter[str]()
    for turn in range(2000):
        if turn < turns:
            _come_and_go(books, everybody, chance)
        elif not len(books):
            break
        books.blocks.check_invariants(list(books.running.values()))
        batch = books.schedule()
        books.blocks.check_invariants(list(books.running.values()))
        _check_room(config, books, batch)
        took = chance.randrange(1000)
        clock.now += took
        for seq in everybody:
            held_ns[seq.request_id] += took * len(seq.blocks)
        for each in books.complete(batch, [_made(seq, chance) for seq in batch.making]):
            if each.reason:
                books.remove(each.seq.request_id)
    assert not len(books), "somebody waits for ever"
    assert (books.blocks.available, books.blocks.held) == (config.kv_blocks, {})
    assert {seq.request_id: seq.block_ns for seq in everybody} == {seq.request_id: held_ns[seq.request_id] for seq in everybody}


def _come_and_go(books: Scheduler, everybody: list[Sequence], chance: random.Random) -> None:
    if chance.random() < 0.5:
        prompt = [chance.randrange(2)] * chance.randrange(1, 8)
        asked = request(prompt, chance.randrange(1, 6), tenant=chance.choice("abc"))
        info = replace(asked.info, latency_class=chance.choice(list(LatencyClass)), priority=chance.randrange(2))
        everybody.append(Sequence(replace(asked, info=info)))
        books.add(everybody[-1])
    if everybody and chance.random() < 0.1:
        gone = chance.choice(everybody)
        books.remove(gone.request_id)
        assert not gone.blocks
        assert gone.request_id not in books


def _check_room(config: EngineConfig, books: Scheduler, batch: Batch) -> None:
    """Everybody has a block for every token that the step computes, and the step is within its limits."""
    for seq in batch.decodes:
        assert len(seq.blocks) * config.block_size >= len(seq.tokens) + len(seq.drafts)
        assert seq.computed == len(seq.tokens) - 1
    for prefill in batch.prefills:
        assert len(prefill.seq.blocks) * config.block_size >= prefill.context + prefill.tokens
        assert prefill.tokens > 0
    drafted = sum(len(seq.drafts) for seq in batch.decodes)
    computed = len(batch.decodes) + drafted + sum(prefill.tokens for prefill in batch.prefills)
    assert 0 < computed <= config.max_batched_tokens or not len(books)
    assert len(books.running) <= config.max_num_seqs
    if config.tenant_max_seqs:
        assert max(Counter(seq.tenant for seq in books.running.values()).values(), default=0) <= config.tenant_max_seqs
    assert books.blocks.used + books.blocks.available == config.kv_blocks


def _made(seq: Sequence, chance: random.Random) -> list[int]:
    """Some of the drafts were right."""
    right = chance.randrange(len(seq.drafts) + 1)
    return [*seq.drafts[:right], chance.randrange(2)]


def _manager(blocks: int) -> BlockManager:
    return BlockManager(blocks, 4, prefix_cache=False, on_evict=lambda *_: None)


def test_growing_for_drafts_takes_all_the_blocks_or_none() -> None:
    manager, seq = _manager(4), Sequence(request([1] * 6))
    assert manager.admit(seq, Prefix([], 0, "")) == 0
    seq.computed = 6
    assert manager.grow(seq, 2)
    assert len(seq.blocks) == 2
    assert not manager.grow(seq, 11)
    assert len(seq.blocks) == 2
    assert manager.grow(seq, 10)
    assert (len(seq.blocks), manager.available) == (4, 0)
    manager.check_invariants([seq])


def test_an_admission_says_how_many_blocks_are_missing() -> None:
    manager, first, second = _manager(5), Sequence(request([1] * 12)), Sequence(request([2] * 17))
    assert manager.admit(first, Prefix([], 0, "")) == 0
    assert manager.admit(second, Prefix([], 0, "")) == 3
    assert not second.blocks
    manager.release(first)
    assert manager.admit(second, Prefix([], 0, "")) == 0
