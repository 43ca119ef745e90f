"""The real engine's scheduler and executor on one CPU core, in the process's own time.

Time is what this process computes, and nothing sleeps: what else the machine does stays out of it, and a stretch without work
costs nothing. So two runs of the same traffic can be compared on a machine that others share.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from costspan.clock import now_ns
from costspan.semconv import LatencyClass, Outcome
from costspan_engine.executor import Executor
from costspan_engine.scheduler import Scheduler
from costspan_engine.sequence import Request, Sampling, Sequence
from costspan_engine.settings import EngineConfig
from costspan_hooks.ledger import StepLedger
from costspan_hooks.observer import EngineInfo, EngineObserver, Removal, RequestInfo, Step
from costspan_hooks.records import AttemptRecord, EngineRecord, LedgerRecord, StepRecord

MAX_CONTEXT = 8192
"""Of the ``tiny`` model."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to come, ``at_ns`` after the beginning."""

    at_ns: int
    tenant: str
    prompt: list[int]
    output: int
    latency_class: LatencyClass = LatencyClass.INTERACTIVE


class CpuClock:
    """Runs while this process computes, and jumps over the time in which it would have waited.

    Args:
        start_ns: What it reads at first.
    """

    def __init__(self, start_ns: int) -> None:
        self._skipped_ns = start_ns - time.process_time_ns()

    def __call__(self) -> int:
        """Nanoseconds since the Unix epoch, if it began there."""
        return time.process_time_ns() + self._skipped_ns

    def wait(self, until_ns: int) -> None:
        """Jump to a moment; it never goes back."""
        self._skipped_ns += max(0, until_ns - self())


class Books(StepLedger):
    """The step ledger, standing for the whole observer: there is no server here."""

    def __init__(self) -> None:
        self.records: list[LedgerRecord] = []
        super().__init__(self.records.append)

    @property
    def attempts(self) -> list[AttemptRecord]:
        """Requests, in the order in which they left."""
        return [record for record in self.records if isinstance(record, AttemptRecord)]

    @property
    def steps(self) -> list[StepRecord]:
        """Steps and stretches of idle time, in order."""
        return [record for record in self.records if isinstance(record, StepRecord)]

    @property
    def engines(self) -> list[EngineRecord]:
        """The one engine."""
        return [record for record in self.records if isinstance(record, EngineRecord)]

    def closed(self, request_id: str, sent_ns: int, delivered_tokens: int) -> None:
        """Nobody reports it."""


class CpuEngine:
    """The engine's loop, turn by turn as ``costspan_engine.engine`` takes it, on a :class:`CpuClock`.

    Args:
        executor: Of a model on the CPU.
        config: Slots, budget and cache.
        observer: Told everything.
    """

    def __init__(self, executor: Executor, config: EngineConfig, observer: EngineObserver) -> None:
        self._executor, self._observer = executor, observer
        self._clock = CpuClock(now_ns())
        self._scheduler = Scheduler(config, observer, self._clock)
        self._rules = config.batching(MAX_CONTEXT)
        self.steps = 0
        """How many it has run."""
        self._came = 0
        at_ns = self._clock()
        observer.ready(at_ns, at_ns, EngineInfo(executor.shape, executor.device, self._rules))

    def serve(self, asks: Iterable[Ask]) -> None:
        """Serve traffic, whose moments count from now, until nobody is left."""
        began_ns = self._clock()
        coming = sorted(asks, key=lambda ask: -ask.at_ns)
        while coming or len(self._scheduler):
            if not len(self._scheduler):
                self._sleep(began_ns + coming[-1].at_ns)
            turn_ns = self._clock()
            while coming and began_ns + coming[-1].at_ns <= turn_ns:
                ask = coming.pop()
                self._welcome(ask, began_ns + ask.at_ns)
            self._step()

    def stop(self) -> None:
        """End its books."""
        self._observer.stopped(self._clock())

    def _sleep(self, until_ns: int) -> None:
        start_ns = self._clock()
        self._clock.wait(until_ns)
        self._observer.idle(start_ns, self._clock())

    def _welcome(self, ask: Ask, at_ns: int) -> None:
        name = f"r{self._came:05d}"
        self._came += 1
        info = RequestInfo(
            name, ask.tenant, "", "", 1, "", "", "tiny", len(ask.prompt), at_ns, at_ns, False, "", ask.latency_class
        )
        self._observer.enqueued(info)
        self._scheduler.add(Sequence(Request(info, ask.prompt, Sampling(max_tokens=ask.output))))

    def _step(self) -> None:
        batch = self._scheduler.schedule()
        start_ns = self._clock()
        result = self._executor.launch(batch)()
        end_ns = self._clock()
        progress = self._scheduler.complete(batch, result.tokens)
        self._observer.step(
            Step(
                index=self.steps,
                start_ns=start_ns,
                end_ns=end_ns,
                duration_ns=end_ns - start_ns,
                chunks=batch.chunks(),
                bound=batch.bound,
                blocks=self._scheduler.blocks.held.copy(),
                decoding=len(batch.decodes),
            )
        )
        self.steps += 1
        for each in progress:
            if each.reason:
                self._scheduler.remove(each.seq.request_id)
                self._end(each.seq, each.reason, end_ns)

    def _end(self, seq: Sequence, reason: str, at_ns: int) -> None:
        prefix = seq.prefix(self._rules.block_size, self._rules.prefix_grain) if self._rules.prefix_cache else ()
        self._observer.removed(
            Removal(seq.request_id, at_ns, Outcome.OK, reason, seq.output_tokens, block_ns=seq.block_ns, prefix=prefix)
        )
