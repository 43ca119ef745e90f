"""Which sequences are computed in the next step. First come, first served; running decodes before prompts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from costspan.clock import now_ns
from costspan.semconv import Bound
from costspan_engine.block_manager import BlockManager
from costspan_engine.config import EngineConfig
from costspan_engine.sequence import Sequence
from costspan_hooks.observer import Admission, Chunk, EngineObserver


@dataclass(frozen=True, slots=True)
class Prefill:
    """A piece of a prompt to compute: ``tokens`` of them, after ``context`` that are in the cache."""

    seq: Sequence
    tokens: int
    context: int

    @property
    def last(self) -> bool:
        """Whether it completes the prompt, so that the step makes a token."""
        return self.context + self.tokens == self.seq.prefill_end


@dataclass(slots=True)
class Batch:
    """One step's work.

    Attributes:
        decodes: Sequences that compute their newest token and make the next.
        prefills: Prompt pieces.
        bound: What kept the head of the waiting queue out.
    """

    decodes: list[Sequence] = field(default_factory=list)
    prefills: list[Prefill] = field(default_factory=list)
    bound: Bound = Bound.NONE

    def __bool__(self) -> bool:
        return bool(self.decodes or self.prefills)

    @property
    def making(self) -> list[Sequence]:
        """Sequences that make a token in this step, in the order in which an executor returns the tokens."""
        return self.decodes + [prefill.seq for prefill in self.prefills if prefill.last]

    @property
    def sequences(self) -> list[Sequence]:
        """Everybody who takes part."""
        return self.decodes + [prefill.seq for prefill in self.prefills]

    def chunks(self) -> list[Chunk]:
        """The prompt pieces, as the observer is told of them."""
        return [Chunk(p.seq.request_id, p.tokens, p.context, p.last) for p in self.prefills]


class Scheduler:
    """Continuous batching under a token budget, with chunked prefill and preemption by recompute.

    Args:
        config: Slots, budget and cache.
        observer: Told of admissions, preemptions and evictions as they happen.
        clock: Nanoseconds since the epoch; a virtual one in simulations.
    """

    def __init__(self, config: EngineConfig, observer: EngineObserver, clock: Callable[[], int] = now_ns) -> None:
        self.waiting: OrderedDict[str, Sequence] = OrderedDict()
        self.running: OrderedDict[str, Sequence] = OrderedDict()
        self.preemptions = 0
        self.evictions = 0
        self.blocks = BlockManager(
            config.kv_blocks, config.block_size, prefix_cache=config.prefix_cache, on_evict=self._evicted
        )
        self._config = config
        self._observer = observer
        self._clock = clock

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def add(self, seq: Sequence) -> None:
        """Put a sequence at the end of the queue."""
        self.waiting[seq.request_id] = seq

    def remove(self, request_id: str) -> Sequence | None:
        """Take a sequence out for good and free its blocks; ``None`` when it is not here."""
        seq = self.running.pop(request_id, None) or self.waiting.pop(request_id, None)
        if seq is not None:
            self.blocks.release(seq)
        return seq

    def schedule(self) -> Batch:
        """Compose the next step."""
        batch = Batch()
        preempted = self._decode(batch)
        budget = self._config.max_batched_tokens - len(batch.decodes)
        for seq in self.running.values():
            if not seq.decoding and budget:
                budget -= self._prefill(batch, seq, budget)
        # What a preemption freed is for those that still run; admitting now would preempt again in the next step.
        batch.bound = Bound.KV_BLOCKS if preempted else self._admit(batch, budget)
        return batch

    def complete(self, batch: Batch, tokens: list[int]) -> None:
        """Book a computed step: ``tokens`` are those of :attr:`Batch.making`, in its order."""
        for seq in batch.decodes:
            seq.computed += 1
        for prefill in batch.prefills:
            prefill.seq.computed += prefill.tokens
        for seq in batch.sequences:
            self.blocks.register(seq)
        for seq, token in zip(batch.making, tokens, strict=True):
            seq.tokens.append(token)

    def _decode(self, batch: Batch) -> bool:
        """Add every decoding sequence, preempting the last come while blocks are short; true if any was preempted."""
        preempted = False
        for seq in list(self.running.values()):
            while seq.decoding and not self.blocks.grow(seq):
                self._preempt()
                preempted = True
            if seq.decoding:
                batch.decodes.append(seq)
        return preempted

    def _preempt(self) -> None:
        request_id, seq = self.running.popitem()
        self.blocks.release(seq)
        seq.computed = 0
        self.waiting[request_id] = seq
        self.waiting.move_to_end(request_id, last=False)
        self.preemptions += 1
        self._observer.preempted(request_id, self._clock())

    def _prefill(self, batch: Batch, seq: Sequence, budget: int) -> int:
        prefill = Prefill(seq, min(budget, seq.prefill_end - seq.computed), seq.computed)
        batch.prefills.append(prefill)
        return prefill.tokens

    def _admit(self, batch: Batch, budget: int) -> Bound:
        """Admit from the head of the queue until something binds, and say what."""
        while self.waiting:
            if len(self.running) >= self._config.max_num_seqs:
                return Bound.SEQ_SLOTS
            if not budget:
                return Bound.TOKEN_BUDGET
            seq = next(iter(self.waiting.values()))
            if not self._place(seq):
                return Bound.KV_BLOCKS
            self.running[seq.request_id] = self.waiting.pop(seq.request_id)
            budget -= self._prefill(batch, seq, budget)
        return Bound.NONE

    def _place(self, seq: Sequence) -> bool:
        at_ns = self._clock()
        prefix = self.blocks.lookup(seq)
        if not self.blocks.admit(seq, prefix):
            return False
        seq.computed = len(prefix.blocks) * self.blocks.block_size
        seq.prefill_end = len(seq.tokens)
        if seq.cached_tokens < 0:
            seq.cached_tokens = seq.computed
        self._observer.admitted(
            Admission(seq.request_id, at_ns, self._clock(), seq.computed, prefix.evicted_tokens, prefix.evicted_by)
        )
        return True

    def _evicted(self, victim: str, culprit: str) -> None:
        self.evictions += 1
        self._observer.evicted(self._clock(), victim, culprit, self.blocks.block_size)
