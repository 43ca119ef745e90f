"""One life of a simulated engine: a replica, the ledger that it keeps, and the tokens that its callers wait for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

from costspan_engine.settings import EngineConfig
from costspan_engine.simulate.calls import Call
from costspan_engine.simulate.executor import TICK, SimulatedExecutor, StepTimes, VirtualClock
from costspan_engine.simulate.profiles import HOST_NS, Deployment
from costspan_engine.simulate.replay import Replica
from costspan_engine.simulate.tally import Served
from costspan_engine.simulate.traffic import Arrival
from costspan_hooks.cost_model import Coefficients
from costspan_hooks.ledger import StepLedger
from costspan_hooks.observer import Admission, EngineInfo, Removal, RequestInfo, Step
from costspan_hooks.records import LedgerRecord


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A stretch of time, in nanoseconds, in which steps take ``factor`` times as long."""

    since_ns: int
    until_ns: int
    factor: float


class Life:
    """An :class:`~costspan_hooks.observer.EngineObserver` of its own replica.

    Args:
        name: ``service.instance.id`` of the process.
        device: Number of the device that it runs on.
        deployment: What it serves, on what.
        config: Slots, budget and cache.
        started_ns: When it began to load.
        ready_ns: When it can take work.
        slowdowns: When its steps take longer than they should.
        on_token: Called with a call and the moment at which a token of it was made.
        on_end: Called with this and a call that has left it.
    """

    def __init__(
        self,
        name: str,
        device: int,
        deployment: Deployment,
        config: EngineConfig,
        *,
        started_ns: int,
        ready_ns: int,
        slowdowns: Sequence[Slowdown],
        on_token: Callable[[Call], None],
        on_end: Callable[[Life, Call], None],
    ) -> None:
        self.name, self.device, self.gpu = name, device, deployment.gpu
        self.records: list[LedgerRecord] = []
        self._model = deployment.model.name
        self._calls: dict[str, Call] = {}
        self._decoding: dict[str, Call] = {}
        self._slowdowns, self._on_token, self._on_end = slowdowns, on_token, on_end
        self._times = {1.0: StepTimes(deployment.roofline, host_ns=HOST_NS)}  # by what steps take over what they should
        self._ledger = StepLedger(self.records.append)
        self._clock = VirtualClock(ready_ns)
        self._executor = SimulatedExecutor(self._times[1.0], self._clock)
        self.replica = Replica(
            self._executor,
            config,
            max_context=deployment.model.max_context,
            serve=_drop,
            observer=self,
            started_ns=started_ns,
        )

    def offer(self, call: Call, at_ns: int) -> None:
        """Take a call in."""
        want = call.want
        self._calls[call.request_id] = call
        self.replica.offer(
            Arrival(
                at_ns,
                want.tenant,
                want.prompt_tokens,
                want.output_tokens,
                prefix=want.prefix,
                grain=want.grain,
                request_id=call.request_id,
            )
        )

    def serves(self, call: Call) -> bool:
        """Whether a call is in it."""
        return call.request_id in self._calls

    def stop(self, at_ns: int) -> None:
        """End it; it has nothing to do any more."""
        if self._clock() < at_ns:
            self._ledger.idle(self._clock(), at_ns)
        self._ledger.stopped(at_ns)

    # --- what the replica tells --------------------------------------------------------------------------------------

    def ready(self, started_ns: int, ready_ns: int, engine: EngineInfo) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        self._ledger.ready(started_ns, ready_ns, engine)
        self._keep_pace()

    def enqueued(self, request: RequestInfo) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        self._ledger.enqueued(self._calls[request.request_id].request(request, self._model))

    def admitted(self, admission: Admission) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        self._ledger.admitted(admission)

    def preempted(self, request_id: str, at_ns: int, culprit: str) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        self._ledger.preempted(request_id, at_ns, culprit)
        self._decoding.pop(request_id, None)

    def evicted(self, at_ns: int, victim: str, culprit: str, tokens: int) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        self._ledger.evicted(at_ns, victim, culprit, tokens)

    def step(self, step: Step) -> None:
        """Book it, and hand out the tokens that it made."""
        self._ledger.step(step)
        made = list(self._decoding.values())
        for chunk in step.chunks:
            if chunk.last:
                call = self._decoding[chunk.request_id] = self._calls[chunk.request_id]
                made.append(call)
        for call in made:
            call.made.append(step.end_ns)
            self._on_token(call)
        self._keep_pace()

    def idle(self, start_ns: int, end_ns: int) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        self._ledger.idle(start_ns, end_ns)
        self._keep_pace()

    def removed(self, removal: Removal) -> None:
        """Book it, and tell whose call it was."""
        self._ledger.removed(removal)
        self._decoding.pop(removal.request_id, None)
        call = self._calls.pop(removal.request_id)
        call.removal = removal
        self._on_end(self, call)

    def closed(self, request_id: str, sent_ns: int, delivered_tokens: int) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`; a call knows this itself."""

    def stopped(self, at_ns: int) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`; :meth:`stop` does it."""

    def _keep_pace(self) -> None:
        """Between two steps is when the pace of the next one may change."""
        now_ns = self._clock()
        factor = prod(each.factor for each in self._slowdowns if each.since_ns <= now_ns < each.until_ns)
        if factor not in self._times:
            self._times[factor] = _slowed(self._times[1.0], factor)
        self._executor.times = self._times[factor]


def _slowed(times: StepTimes, factor: float) -> StepTimes:
    """The same with every step taking ``factor`` times as long."""
    slower = {
        regime: replace(unit, **{name: factor * getattr(unit, name) for name in Coefficients.__dataclass_fields__})
        for regime, unit in times.coefficients.items()
    }
    return StepTimes(times.roofline, slower, host_ns=times.host_ticks // TICK)


def _drop(served: Served) -> None:
    """What became of a request is in the ledger."""
