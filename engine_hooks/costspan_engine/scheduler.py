"""Which sequences are computed in the next step: running decodes, then prompts, then guesses with what is left.

Two latency classes share the batch. Prompts of interactive requests get the token budget first, and an interactive request that
finds no slot or too few blocks pushes out running batch ones. A batch request is admitted only when no interactive one waits
(but for those of a tenant at its cap), and not in a step in which another was pushed out; it pushes nobody out by coming.
Where a running sequence needs a block and none is left, the one that goes is of the batch class if any is, then of the lowest
priority, then the last come. So whoever is spared longest always gets on, and the engine with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter

from costspan.clock import now_ns
from costspan.semconv import Bound
from costspan_engine.block_manager import BlockManager, Prefix
from costspan_engine.drafter import Drafter
from costspan_engine.sequence import Sequence
from costspan_engine.settings import EngineConfig, Policy
from costspan_engine.waiting import OUTPUT_WEIGHT, PROMPT_WEIGHT, WaitingQueue
from costspan_hooks.observer import Admission, Burst, Chunk, EngineObserver

_LASTING = {Bound.SEQ_SLOTS, Bound.TENANT_CAP}
"""What binds admission until somebody leaves."""


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
        decodes: Sequences that compute their newest token, and their drafts after it, and make the next.
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


@dataclass(slots=True)
class Progress:
    """What a step brought a sequence.

    Attributes:
        seq: Which.
        tokens: Its new tokens, up to its last.
        reason: ``stop``, ``length`` or ``error`` (its guide or stop strings failed) when it has ended, "" otherwise.
        drafted: Tokens that were guessed and computed for it.
    """

    seq: Sequence
    tokens: list[int]
    reason: str
    drafted: int = 0

    @property
    def burst(self) -> Burst | None:
        """What became of its drafts, as the observer is told of them; one that was right after the last token is of no use."""
        return Burst(self.seq.request_id, self.drafted, max(0, len(self.tokens) - 1)) if self.drafted else None


class Scheduler:
    """Continuous batching under a token budget, with chunked prefill and preemption by recompute.

    Args:
        config: Slots, budget and cache.
        observer: Told of admissions, preemptions and evictions as they happen.
        clock: Nanoseconds since the epoch; a virtual one in simulations.
    """

    def __init__(self, config: EngineConfig, observer: EngineObserver, clock: Callable[[], int] = now_ns) -> None:
        self.waiting = WaitingQueue(config.policy, config.tenant_max_seqs)
        self.running: dict[str, Sequence] = {}
        self.preemptions = 0
        self.evictions = 0
        self.blocks = BlockManager(
            config.kv_blocks, config.block_size, prefix_cache=config.prefix_cache, on_evict=self._evicted, clock=clock
        )
        self._prompts: dict[str, Sequence] = {}  # running, but not decoding yet
        self._yielding: dict[str, Sequence] = {}  # running, until an interactive request needs the room
        self._drafter = Drafter()
        self._config = config
        self._observer = observer
        self._clock = clock

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self.running or request_id in self.waiting

    def add(self, seq: Sequence) -> None:
        """Put a sequence into the queue."""
        self.waiting.add(seq)

    def remove(self, request_id: str) -> Sequence | None:
        """Take a sequence out for good and free its blocks; ``None`` when it is not here."""
        self._drafter.forget(request_id)
        seq = self.running.get(request_id)
        if seq is None:
            return self.waiting.remove(request_id)
        self._vacate(seq)
        self.waiting.left(seq)
        return seq

    def schedule(self) -> Batch:
        """Compose the next step."""
        batch = Batch()
        preempted = self._decode(batch)
        budget = self._config.max_batched_tokens - len(batch.decodes)
        if self._prompts or self.waiting:
            budget = self._fill(batch, budget, admitting=not preempted)
        if self._config.draft_tokens:
            self._draft(batch, budget)
        return batch

    def complete(self, batch: Batch, tokens: list[list[int]]) -> list[Progress]:
        """Book a computed step: ``tokens`` are those of :attr:`Batch.making`, in its order."""
        for prefill in batch.prefills:
            prefill.seq.computed += prefill.tokens
            if prefill.last:
                del self._prompts[prefill.seq.request_id]
            self.blocks.register(prefill.seq)
        progress = [self._take(seq, made) for seq, made in zip(batch.making, tokens, strict=True)]
        size = self.blocks.block_size
        for seq in batch.decodes:
            # Its newest token alone has no keys and values yet: those of rejected drafts count for nothing.
            seq.computed = len(seq.tokens) - 1
            if seq.computed >= (seq.registered + 1) * size:
                self.blocks.register(seq)
        if self._config.draft_tokens:
            for seq in batch.decodes:
                seq.drafts = []
        if self._config.policy is Policy.FAIR:
            for each in progress:
                self.waiting.charge(each.seq, OUTPUT_WEIGHT * len(each.tokens))
        return progress

    def lasting(self, batch: Batch) -> int:
        """Steps, this one first, that will be alike if nobody comes or leaves: each of its sequences makes one token in each.

        None of them needs a new look at the queue, and at most the last ends a sequence, if sequences end by length alone. A
        simulation takes them at once (:meth:`leap`).
        """
        if batch.prefills or self._config.draft_tokens or (self.waiting and batch.bound not in _LASTING):
            return 1
        left = min(seq.request.sampling.max_tokens - seq.output_tokens for seq in batch.decodes)
        return self.blocks.steps(batch.decodes, left)

    def leap(self, batch: Batch, steps: int, tokens: list[int]) -> list[Progress]:
        """Book ``steps`` steps at once, no more than :meth:`lasting` says; a sequence makes its one of ``tokens`` in each."""
        ended = []
        for seq, token in zip(batch.decodes, tokens, strict=True):
            self.blocks.grow(seq, steps)
            seq.tokens += [token] * steps
            seq.computed += steps
            self.blocks.register(seq)
            self.waiting.charge(seq, OUTPUT_WEIGHT * steps)
            if seq.output_tokens >= seq.request.sampling.max_tokens:
                ended.append(Progress(seq, [token] * steps, "length"))
        return ended

    def _take(self, seq: Sequence, made: list[int]) -> Progress:
        for count, token in enumerate(made, start=1):
            if reason := seq.take(token):
                return Progress(seq, made[:count], reason, len(seq.drafts))
        return Progress(seq, made, "", len(seq.drafts))

    def _draft(self, batch: Batch, budget: int) -> None:
        for seq in batch.decodes:
            room = min(self._config.draft_tokens, budget, seq.request.sampling.max_tokens - seq.output_tokens - 1)
            drafts = self._drafter.guess(seq, room) if room > 0 else []
            if drafts and self.blocks.grow(seq, 1 + len(drafts)):
                seq.drafts = drafts
                budget -= len(drafts)

    def _decode(self, batch: Batch) -> bool:
        """Add every decoding sequence, preempting while blocks are short; true if any was preempted."""
        size, before = self.blocks.block_size, self.preemptions
        running = self.running.values()
        decodes = [seq for seq in running if seq.request_id not in self._prompts] if self._prompts else list(running)
        batch.decodes = decodes
        for seq in [seq for seq in decodes if seq.computed >= len(seq.blocks) * size]:
            while seq.blocks and not self.blocks.grow(seq):
                self._push_out(batch, seq.tenant)
        return self.preemptions > before

    def _fill(self, batch: Batch, budget: int, *, admitting: bool) -> int:
        """Spend the budget on prompts, all interactive ones first, and say what bound admission; returns what is left of it."""
        # What a preemption freed is for those that still run; admitting now would preempt again in the next step.
        batch.bound = Bound.NONE if admitting else Bound.KV_BLOCKS
        for yields in (False, True):
            for seq in list(self._prompts.values()):
                if budget and seq.yields is yields:
                    budget -= self._prefill(batch, seq, budget)
            if batch.bound is Bound.NONE:
                batch.bound, budget = self._admit(batch, budget, yields=yields)
        return budget

    def _prefill(self, batch: Batch, seq: Sequence, budget: int) -> int:
        prefill = Prefill(seq, min(budget, seq.prefill_end - seq.computed), seq.computed)
        batch.prefills.append(prefill)
        return prefill.tokens

    def _admit(self, batch: Batch, budget: int, *, yields: bool) -> tuple[Bound, int]:
        """Admit one class from the head of the queue until something binds; what did, and the budget that is left."""
        gave_way = Bound.NONE
        while (seq := self.waiting.head()) is not None and seq.yields is yields:
            if len(self.running) >= self._config.max_num_seqs and (yields or not self._yielding):
                return Bound.SEQ_SLOTS, budget
            if not budget:
                return Bound.TOKEN_BUDGET, budget
            at_ns = self._clock()
            prefix, missing = self._place(seq)
            while missing:
                if yields or missing > sum(len(other.blocks) for other in self._yielding.values()):
                    return Bound.KV_BLOCKS, budget
                budget += self._push_out(batch, seq.tenant)
                gave_way = Bound.KV_BLOCKS
                prefix, missing = self._place(seq)
            if len(self.running) >= self._config.max_num_seqs:
                budget += self._push_out(batch, seq.tenant)
                gave_way = Bound.SEQ_SLOTS
            self._enter(seq, prefix, at_ns)
            budget -= self._prefill(batch, seq, budget)
        if seq is None and self.waiting:
            return Bound.TENANT_CAP, budget
        return gave_way, budget

    def _place(self, seq: Sequence) -> tuple[Prefix, int]:
        """Give a waiting sequence its blocks; or how many are missing, and nothing is done."""
        prefix = self.blocks.lookup(seq)
        return prefix, self.blocks.admit(seq, prefix)

    def _enter(self, seq: Sequence, prefix: Prefix, at_ns: int) -> None:
        """Take a sequence that has its place into the batch: whom it pushed out was told of since ``at_ns``, before it."""
        seq.computed = len(prefix.blocks) * self.blocks.block_size
        seq.prefill_end = len(seq.tokens)
        self._observer.admitted(
            Admission(seq.request_id, at_ns, self._clock(), seq.computed, prefix.evicted_tokens, prefix.evicted_by)
        )
        self.waiting.take(seq)
        if seq.cached_tokens < 0:  # what is computed again is not paid for again
            seq.cached_tokens = seq.computed
            self.waiting.charge(seq, PROMPT_WEIGHT * len(seq.request.prompt))
        self.running[seq.request_id] = self._prompts[seq.request_id] = seq
        if seq.yields:
            self._yielding[seq.request_id] = seq

    def _push_out(self, batch: Batch, culprit: str) -> int:
        """Preempt whoever is spared least; how many tokens that takes out of the step."""
        victim = max((self._yielding or self.running).values(), key=attrgetter("spare"))
        decoding = victim.request_id not in self._prompts
        if decoding:
            batch.decodes.remove(victim)
        self._vacate(victim)
        victim.computed = 0
        self.waiting.put_back(victim)
        self.preemptions += 1
        self._observer.preempted(victim.request_id, self._clock(), culprit)
        return int(decoding)

    def _vacate(self, seq: Sequence) -> None:
        for group in (self.running, self._prompts, self._yielding):
            group.pop(seq.request_id, None)
        self.blocks.release(seq)

    def _evicted(self, victim: str, culprit: str) -> None:
        self.evictions += 1
        self._observer.evicted(self._clock(), victim, culprit, self.blocks.block_size)
