"""One replica of the engine on a virtual clock, without threads: it jumps from one change of its batch to the next."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from heapq import heappop, heappush

from costspan.semconv import Outcome
from costspan_engine.errors import ConfigError
from costspan_engine.null_observer import NullObserver
from costspan_engine.scheduler import Batch, Progress, Scheduler
from costspan_engine.sequence import Request, Sampling, Sequence
from costspan_engine.settings import EngineConfig
from costspan_engine.simulate.executor import TICK, SimulatedExecutor, load_of
from costspan_engine.simulate.tally import Served
from costspan_engine.simulate.traffic import Arrival
from costspan_hooks.cost_model import Load
from costspan_hooks.observer import EngineInfo, EngineObserver, Removal, RequestInfo, Step

NEVER = 1 << 62
"""A moment that does not come."""


@dataclass(slots=True)
class _Guest:
    """A request in the engine."""

    arrival: Arrival
    admitted_ns: int = -1
    first_token_ns: int = -1


@dataclass(slots=True)
class _Leap:
    """Steps that will be alike, the first of which has begun.

    Attributes:
        batch: Of each of them.
        load: Of the first.
        steps: How many, as long as nobody comes.
        start_ns: When the first began.
        end_ns: When the last ends.
    """

    batch: Batch
    load: Load
    steps: int
    start_ns: int
    end_ns: int


class Replica:
    """The real scheduler over an executor that predicts; its loop is the engine's, taken to the next moment on request.

    Between two changes of the batch every step is like the one before, with contexts one token longer: their time is an
    arithmetic series, and the loop takes them at once. What comes in cuts the leap at the end of the step that it falls into.
    The result is the same to the nanosecond as that of single steps.

    Args:
        executor: With the clock.
        config: Slots, budget and cache; nothing is drafted.
        max_context: Tokens that the model can hold in one sequence.
        serve: Called with each request that has left.
        observer: Told everything, as an engine would tell it; with one, each step is taken by itself.
        stepwise: Take each step by itself without an observer too.
        started_ns: When its loading began; it is ready at what the clock reads. Without, it needs none.
    """

    def __init__(
        self,
        executor: SimulatedExecutor,
        config: EngineConfig,
        *,
        max_context: int,
        serve: Callable[[Served], None],
        observer: EngineObserver | None = None,
        stepwise: bool = False,
        started_ns: int | None = None,
    ) -> None:
        if config.draft_tokens:
            raise ConfigError("draft_tokens is above 0; a simulation makes no text that could be guessed: set it to 0")
        self.max_context = min(max_context, config.kv_tokens)
        self.next_ns = NEVER
        """When :meth:`advance` has something to do."""
        self.steps = 0
        self.leaps = 0
        """Turns of the loop: steps taken at once count as one."""
        self._busy_ticks = 0
        self._observer = observer or NullObserver()
        self.scheduler = Scheduler(config, self._observer, executor.clock)
        self._executor = executor
        self._clock = executor.clock
        self._serve = serve
        self._stepwise = stepwise or observer is not None
        self._guests: dict[str, _Guest] = {}
        self._inbox: list[Arrival] = []
        self._aborts: list[tuple[int, str]] = []  # a heap
        self._leap: _Leap | None = None
        self._received = 0
        self._rules = config.batching(self.max_context)
        ready_ns = self._clock()
        info = EngineInfo(executor.shape, executor.device, self._rules)
        self._observer.ready(ready_ns if started_ns is None else started_ns, ready_ns, info)

    @property
    def outstanding(self) -> int:
        """Requests that were offered and have not left."""
        return len(self._guests) + len(self._inbox)

    @property
    def busy_ns(self) -> int:
        """Time in which a step ran."""
        return self._busy_ticks // TICK

    def warm(self, arrivals: Iterable[Arrival]) -> None:
        """Put into the prefix cache what earlier requests left there, in the order in which they left; no time passes."""
        blocks = self.scheduler.blocks
        for arrival in arrivals:
            seq = _Scripted(arrival, f"w{arrival.request_id}")
            seq.tokens += seq.tokens[-1:] * arrival.output_tokens
            if not blocks.admit(seq, blocks.lookup(seq)):
                seq.computed = len(seq.tokens) - 1
                blocks.register(seq)
                blocks.release(seq)

    def offer(self, arrival: Arrival) -> bool:
        """Take a request in at its moment, not before :attr:`next_ns` has passed it; false when it is too long to serve."""
        if arrival.prompt_tokens + arrival.output_tokens > self.max_context:
            return False
        self._inbox.append(arrival)
        if self._leap is None:
            self.next_ns = min(self.next_ns, max(arrival.at_ns, self._clock()))
        else:
            self._cut(self._leap, arrival.at_ns)
        return True

    def cancel(self, request_id: str, at_ns: int) -> None:
        """The client of a request leaves, at a moment that :attr:`next_ns` has not passed; one that has ended is left alone."""
        heappush(self._aborts, (at_ns, request_id))
        if self._leap is not None:
            self._cut(self._leap, at_ns)

    def advance(self) -> None:
        """Take the loop's turn that is due at :attr:`next_ns`."""
        if self._leap is not None:
            self._land(self._leap)
        else:
            start_ns = self._clock()
            self._clock.wait(self.next_ns)
            self._observer.idle(start_ns, self._clock())
        for arrival in self._inbox:
            self._welcome(arrival)
        self._inbox.clear()
        while self._aborts and self._aborts[0][0] <= self._clock():
            self._abort(*heappop(self._aborts))
        self._depart()

    def run(self, arrivals: Iterable[Arrival]) -> None:
        """Serve traffic, in the order of time, until nobody is left."""
        for arrival in arrivals:
            while self.next_ns < arrival.at_ns:
                self.advance()
            self.offer(arrival)
        while self.next_ns < NEVER:
            self.advance()

    def _depart(self) -> None:
        """Begin the next step, and see how far steps like it go."""
        self._leap = None
        self.next_ns = NEVER
        if not len(self.scheduler):
            return
        batch = self.scheduler.schedule()
        for prefill in batch.prefills:
            guest = self._guests[prefill.seq.request_id]
            if guest.admitted_ns < 0:
                guest.admitted_ns = self._clock()
        self._clock.advance(self._executor.times.host_ticks)
        load, start_ns = load_of(batch), self._clock()
        steps = 1 if self._stepwise else self._executor.times.lasting(load, self.scheduler.lasting(batch))
        self._leap = _Leap(batch, load, steps, start_ns, self._end_of(load, steps))
        self.next_ns = self._leap.end_ns
        if self._aborts:
            self._cut(self._leap, self._aborts[0][0])

    def _cut(self, leap: _Leap, at_ns: int) -> None:
        """End a leap with the step that a moment falls into."""
        leap.steps = 1 + bisect_left(range(1, leap.steps), at_ns, key=lambda steps: self._end_of(leap.load, steps))
        self.next_ns = leap.end_ns = self._end_of(leap.load, leap.steps)

    def _end_of(self, load: Load, steps: int) -> int:
        """When so many steps that begin now will have ended."""
        return self._clock.after(self._executor.times.span(load, steps))

    def _land(self, leap: _Leap) -> None:
        """Book the steps of a leap, at its end."""
        batch = leap.batch
        self._busy_ticks += self._executor.times.ticks(leap.load, leap.steps)
        if leap.steps > 1:
            result = self._executor.leap(batch, leap.load, leap.steps)
            progress = self.scheduler.leap(batch, leap.steps, [token for (token,) in result.tokens])
        else:
            result = self._executor.launch(batch)()
            self._observer.step(
                Step(
                    index=self.steps,
                    start_ns=leap.start_ns,
                    end_ns=leap.end_ns,
                    duration_ns=result.duration_ns,
                    chunks=batch.chunks(),
                    bound=batch.bound,
                    blocks=self.scheduler.blocks.held.copy(),
                    decoding=len(batch.decodes),
                )
            )
            progress = self.scheduler.complete(batch, result.tokens)
        self.steps += leap.steps
        self.leaps += 1
        for prefill in batch.prefills:
            guest = self._guests[prefill.seq.request_id]
            if prefill.last and guest.first_token_ns < 0:
                guest.first_token_ns = leap.end_ns
        for each in progress:
            self._tell(each)

    def _tell(self, progress: Progress) -> None:
        if progress.reason:
            self.scheduler.remove(progress.seq.request_id)
            self._end(progress.seq, Outcome.OK, progress.reason)

    def _abort(self, left_ns: int, request_id: str) -> None:
        if seq := self.scheduler.remove(request_id):
            self._end(seq, Outcome.CANCELLED, "abort", left_ns)

    def _end(self, seq: Sequence, outcome: Outcome, reason: str, left_ns: int = 0) -> None:
        at_ns = self._clock()
        guest, rules = self._guests.pop(seq.request_id), self._rules
        self._observer.removed(
            Removal(
                request_id=seq.request_id,
                at_ns=at_ns,
                outcome=outcome,
                finish_reason=reason,
                output_tokens=seq.output_tokens,
                disconnect_ns=left_ns,
                disconnect_step=self.steps - 1 if outcome is Outcome.CANCELLED else -1,
                block_ns=seq.block_ns,
                prefix=seq.prefix(rules.block_size, rules.prefix_grain) if rules.prefix_cache else (),
            )
        )
        self._serve(
            Served(
                arrival=guest.arrival,
                outcome=outcome,
                admitted_ns=guest.admitted_ns,
                first_token_ns=guest.first_token_ns,
                end_ns=at_ns,
                output_tokens=seq.output_tokens,
                cached_tokens=max(0, seq.cached_tokens),
            )
        )

    def _welcome(self, arrival: Arrival) -> None:
        self._received += 1
        seq = _Scripted(arrival, arrival.request_id or f"r{self._received}")
        self._guests[seq.request_id] = _Guest(arrival)
        self._observer.enqueued(seq.request.info)
        self.scheduler.add(seq)
        if arrival.abort_ns:
            heappush(self._aborts, (arrival.abort_ns, seq.request_id))


class _Scripted(Sequence):
    """A sequence whose tokens mean nothing: which of its blocks equal another's is told by what its arrival begins with."""

    __slots__ = ("_arrival",)

    def __init__(self, arrival: Arrival, request_id: str) -> None:
        # The token is below zero: it is in no vocabulary and ends nothing.
        super().__init__(Request(_info(arrival, request_id), [-1] * arrival.prompt_tokens, Sampling(arrival.output_tokens)))
        self._arrival = arrival

    def block_hash(self, index: int, block_size: int) -> bytes:
        """As of tokens: chained, so that equal hashes mean equal prefixes."""
        while len(self.hashes) <= index:
            parent = self.hashes[-1] if self.hashes else b""
            content = self._content(len(self.hashes) * block_size, block_size).encode()
            self.hashes.append(blake2b(parent + content, digest_size=16).digest())
        return self.hashes[index]

    def _content(self, start: int, size: int) -> str:
        """What stands for tokens ``start`` to ``start + size``: the ids of their pieces, or its own name."""
        arrival = self._arrival
        if start + size > arrival.known_tokens:
            return self.request_id
        return repr(arrival.prefix[start // arrival.grain : -(-(start + size) // arrival.grain)])


def _info(arrival: Arrival, request_id: str) -> RequestInfo:
    return RequestInfo(
        request_id=request_id,
        tenant=arrival.tenant,
        feature="",
        unit="",
        attempt=1,
        trace_id="",
        parent_span_id="",
        model="",
        prompt_tokens=arrival.prompt_tokens,
        received_ns=arrival.at_ns,
        enqueued_ns=arrival.at_ns,
        has_server=False,
        latency_class=arrival.latency_class,
        priority=arrival.priority,
    )
