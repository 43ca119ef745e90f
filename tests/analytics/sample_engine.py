"""A small engine on a virtual clock that drives the real ledger: what the sample store's rows come from."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from costspan.semconv import Bound, Outcome
from costspan_hooks import Admission, Chunk, Removal, RequestInfo, Step
from costspan_hooks.devices import ONE_CORE
from costspan_hooks.ledger import StepLedger
from costspan_hooks.observer import Burst, EngineInfo, ModelShape
from costspan_hooks.records import LedgerRecord

MS = 1_000_000
SLOTS = 4
BUDGET = 256
BLOCK = 16
MODEL = ModelShape(parameters=5_000_000, bytes_per_parameter=4, kv_bytes_per_token=4096, flops_per_pair=8192)
ENGINE = EngineInfo(MODEL, ONE_CORE)
COLD_START_NS = 1_500 * MS
HOST_GAP_NS = MS // 10
LOOK_UP_NS = MS // 5
OVERHEAD_NS = 1_000
"""What the executor's own clock leaves out of a step: two clocks never agree to the nanosecond."""


@dataclass(eq=False)
class Ask:
    """A request on its way through the engine.

    Attributes:
        tokens_ns: The end of the step that made each token.
        disconnect_ns: When the server saw the client leave; 0 if it has not.
        drafts: Tokens guessed a step; all but one are right.
    """

    info: RequestInfo
    output: int
    on_token: Callable[[Ask], None]
    on_end: Callable[[Ask, Removal], None]
    cached: int = 0
    evicted: int = 0
    evicted_by: str = ""
    preempt_at: int = 0
    preempted_by: str = ""
    drafts: int = 0
    context: int = 0
    to_compute: int = 0
    tokens_ns: list[int] = field(default_factory=list)
    disconnect_ns: int = 0
    block_ns: int = 0

    @property
    def decoding(self) -> bool:
        return self.to_compute == 0


class Engine:
    """Continuous batching with four slots and chunked prefill. ``records`` is what its ledger handed on."""

    def __init__(self, boot_ns: int, seed: int) -> None:
        self.records: list[LedgerRecord] = []
        self.ledger = StepLedger(self.records.append)
        self.boot_ns = boot_ns
        self.now = boot_ns + COLD_START_NS
        self.stop_ns = 0
        self._random = random.Random(seed)
        self._inbox: list[tuple[int, str, Ask]] = []
        self._waiting: list[Ask] = []
        self._running: list[Ask] = []
        self._index = 0
        self.ledger.ready(boot_ns, self.now, ENGINE)

    def submit(self, ask: Ask) -> None:
        heapq.heappush(self._inbox, (ask.info.enqueued_ns, ask.info.request_id, ask))

    def run(self, until_ns: int) -> None:
        """Work until everything is done and ``until_ns`` has passed."""
        while self._inbox or self._waiting or self._running or self.now < until_ns:
            self._take_inbox()
            self._cancel()
            self._admit()
            if self._running:
                self._step()
            elif not self._waiting:
                self._sleep(self._inbox[0][0] if self._inbox else until_ns)
        self.stop_ns = self.now + MS
        self.ledger.stopped(self.stop_ns)

    def _take_inbox(self) -> None:
        while self._inbox and self._inbox[0][0] <= self.now:
            ask = heapq.heappop(self._inbox)[2]
            ask.to_compute = ask.info.prompt_tokens
            self.ledger.enqueued(ask.info)
            self._waiting.append(ask)

    def _cancel(self) -> None:
        gone = [ask for ask in self._running + self._waiting if 0 < ask.disconnect_ns <= self.now]
        for ask in gone:
            (self._running if ask in self._running else self._waiting).remove(ask)
            self._remove(ask, self.now, Outcome.CANCELLED, "abort")

    def _admit(self) -> None:
        while self._waiting and len(self._running) < SLOTS:
            ask = self._waiting.pop(0)
            if ask.evicted:
                self.ledger.evicted(self.now, ask.info.tenant, ask.evicted_by, ask.evicted)
            self.ledger.admitted(
                Admission(ask.info.request_id, self.now, self.now + LOOK_UP_NS, ask.cached, ask.evicted, ask.evicted_by)
            )
            self.now += LOOK_UP_NS
            ask.context = ask.cached
            ask.to_compute = ask.info.prompt_tokens + len(ask.tokens_ns) - ask.cached
            self._running.append(ask)

    def _step(self) -> None:
        decoding = [ask for ask in self._running if ask.decoding]
        chunks, budget = [], BUDGET - len(decoding)
        for ask in self._running:
            if not ask.decoding and budget:
                tokens = min(budget, ask.to_compute)
                chunks.append((ask, Chunk(ask.info.request_id, tokens, ask.context, last=tokens == ask.to_compute)))
                budget -= tokens
        start = self.now + HOST_GAP_NS
        work = 12.0 + 0.9 * len(decoding) + 0.06 * sum(chunk.tokens for _, chunk in chunks)
        work += 0.002 * sum(ask.context for ask in decoding)
        end = start + round(work * MS * self._random.uniform(0.97, 1.05))
        bound = Bound.SEQ_SLOTS if self._waiting else Bound.NONE
        blocks = {ask.info.tenant: 0 for ask in self._running}
        for ask in self._running:
            held = (ask.context + ask.to_compute) // BLOCK + 1
            blocks[ask.info.tenant] += held
            ask.block_ns += held * (end - self.now)
        bursts = {ask: Burst(ask.info.request_id, ask.drafts, ask.drafts - 1) for ask in decoding if self._drafts(ask)}
        pieces = [chunk for _, chunk in chunks]
        self.ledger.step(Step(self._index, start, end, end - start - OVERHEAD_NS, pieces, bound, blocks, list(bursts.values())))
        self._index, self.now = self._index + 1, end
        for ask, chunk in chunks:
            ask.context, ask.to_compute = ask.context + chunk.tokens, ask.to_compute - chunk.tokens
        for ask in decoding:
            made = 1 + (bursts[ask].accepted if ask in bursts else 0)
            ask.context += made
            for _ in range(made):
                self._token(ask)
        for ask in [ask for ask, chunk in chunks if chunk.last]:
            self._token(ask)

    def _drafts(self, ask: Ask) -> bool:
        """Whether it guesses: never past its end."""
        return 0 < ask.drafts < ask.output - len(ask.tokens_ns)

    def _token(self, ask: Ask) -> None:
        ask.tokens_ns.append(self.now)
        ask.on_token(ask)
        if len(ask.tokens_ns) >= ask.output:
            self._running.remove(ask)
            self._remove(ask, self.now, Outcome.OK, "stop")
        elif len(ask.tokens_ns) == ask.preempt_at:
            self._running.remove(ask)
            self.ledger.preempted(ask.info.request_id, self.now, ask.preempted_by)
            ask.cached = ask.evicted = 0
            self._waiting.insert(0, ask)

    def _sleep(self, until_ns: int) -> None:
        until_ns = min(until_ns, self.now + 1_000 * MS)
        self.ledger.idle(self.now + HOST_GAP_NS, max(until_ns, self.now + 2 * HOST_GAP_NS))
        self.now = max(until_ns, self.now + 2 * HOST_GAP_NS)

    def _remove(self, ask: Ask, at_ns: int, outcome: Outcome, reason: str) -> None:
        in_flight = self._index - 1
        removal = Removal(
            ask.info.request_id,
            at_ns,
            outcome,
            reason,
            len(ask.tokens_ns),
            ask.disconnect_ns if outcome is not Outcome.OK else 0,
            in_flight if outcome is not Outcome.OK else -1,
            ask.block_ns,
        )
        self.ledger.removed(removal)
        ask.on_end(ask, removal)
