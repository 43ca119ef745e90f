"""Replicas behind a router, on one virtual time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from operator import attrgetter

from costspan_engine.errors import ConfigError
from costspan_engine.settings import EngineConfig
from costspan_engine.simulate.executor import TICK, SimulatedExecutor, StepTimes, VirtualClock
from costspan_engine.simulate.replay import NEVER, Replica
from costspan_engine.simulate.tally import Served, Tally
from costspan_engine.simulate.traffic import Arrival

WINDOW_NS = 600 * 1_000_000_000
"""Load is looked at in windows of ten minutes."""
HEADROOM = 0.8
"""Of a replica's slots, KV cache and time, what the busiest window may take on average: the rest is for its bursts."""
_PROGRESS_EVERY = 500


class Turns:
    """Whose turn it is, of several replicas on one virtual time."""

    def __init__(self) -> None:
        self._due: list[tuple[int, int, Replica]] = []  # a heap; moments that no longer hold are passed over
        self._serials = count()

    @property
    def next_ns(self) -> int:
        """When the next turn is due; :data:`NEVER` when nobody has anything to do."""
        while self._due and self._due[0][0] != self._due[0][2].next_ns:
            heappop(self._due)
        return self._due[0][0] if self._due else NEVER

    def changed(self, replica: Replica) -> None:
        """What is next for a replica may have changed: a request was offered or cancelled."""
        if replica.next_ns < NEVER:
            heappush(self._due, (replica.next_ns, next(self._serials), replica))

    def take(self) -> None:
        """Take the next turn."""
        if self.next_ns < NEVER:
            _, _, replica = heappop(self._due)
            replica.advance()
            self.changed(replica)


class Fleet:
    """Equal replicas; a request goes to that with the fewest outstanding requests, of several to the first.

    Args:
        times: How long steps take.
        config: Of each replica.
        max_context: Tokens that the model can hold in one sequence.
        replicas: How many.
    """

    def __init__(self, times: StepTimes, config: EngineConfig, *, max_context: int, replicas: int) -> None:
        if replicas < 1:
            raise ConfigError(f"{replicas} replicas were asked for; at least 1 is needed")
        self.tenants: dict[str, Tally] = {}
        self.refused = 0
        """Requests too long for the model or the cache."""
        self.end_ns = 0
        """When the last request left."""
        self.replicas = [
            Replica(SimulatedExecutor(times, VirtualClock()), config, max_context=max_context, serve=self._serve)
            for _ in range(replicas)
        ]
        self._turns = Turns()

    def run(self, arrivals: Iterable[Arrival], show: Callable[[int, int], None]) -> None:
        """Serve them all; ``show`` is told now and then how far it is: the virtual time and the requests that came."""
        for number, arrival in enumerate(arrivals):
            if number % _PROGRESS_EVERY == 0:
                show(arrival.at_ns, number)
            self._advance(arrival.at_ns)
            replica = min(self.replicas, key=attrgetter("outstanding"))
            if replica.offer(arrival):
                self._turns.changed(replica)
            else:
                self.refused += 1
        self._advance(NEVER)

    def _advance(self, until_ns: int) -> None:
        """Take every turn that is due before a moment, in the order of time."""
        while self._turns.next_ns < until_ns:
            self._turns.take()

    def _serve(self, served: Served) -> None:
        self.end_ns = max(self.end_ns, served.end_ns)
        self.tenants.setdefault(served.arrival.tenant, Tally()).add(served)

    @property
    def busy(self) -> float:
        """Share of the replicas' time, up to the end of the last request, in which a step ran."""
        total = sum(replica.busy_ns for replica in self.replicas)
        return total / (self.end_ns * len(self.replicas)) if self.end_ns else 0.0


@dataclass(slots=True)
class _Demand:
    """What arrives in a window."""

    requests: int = 0
    prompt_tokens: int = 0
    prompt_pairs: float = 0.0
    output_tokens: int = 0
    context_tokens: float = 0.0  # Σ over output tokens of the context each is made at

    def add(self, arrival: Arrival) -> None:
        prompt, output = arrival.prompt_tokens, arrival.output_tokens
        self.requests += 1
        self.prompt_tokens += prompt
        self.prompt_pairs += prompt * prompt / 2
        self.output_tokens += output
        self.context_tokens += output * (prompt + output / 2)


@dataclass(slots=True)
class Offered:
    """The load that traffic offers, window by window: how many replicas it takes, before any of it is simulated.

    A replica's step with ``N`` decoding sequences at a mean context ``x`` takes ``T = a + N·(e + f·x) + T·p``, where ``p`` is
    the prefill time that arrives in a second. A request is in ``o`` steps, so by Little's law ``N = r·o·T`` at ``r`` requests
    a second. Together ``N = r·o·a / (1 - w)`` with ``w = p + r·o·(e + f·x)``, the share of time that the work itself takes.
    Prefix hits are left out: with them it takes no more.
    """

    windows: dict[int, _Demand] = field(default_factory=dict)
    end_ns: int = 0
    """The last arrival; its window ends there."""
    shared: bool = False
    """Whether prompts say how they begin: without that a prefix cache finds nothing, and only costs time to simulate."""

    @classmethod
    def of(cls, arrivals: Iterable[Arrival]) -> Offered:
        """Go through the traffic once."""
        offered = cls()
        for arrival in arrivals:
            offered.windows.setdefault(arrival.at_ns // WINDOW_NS, _Demand()).add(arrival)
            offered.end_ns = arrival.at_ns
            offered.shared = offered.shared or bool(arrival.prefix)
        return offered

    @property
    def requests(self) -> int:
        """Requests in all windows."""
        return sum(demand.requests for demand in self.windows.values())

    def replicas(self, times: StepTimes, config: EngineConfig) -> int:
        """The smallest number with which no window takes more than :data:`HEADROOM` of a replica's slots, cache and time.

        Its time is what the work itself takes, without what a step costs whoever is in it: the share that no batching saves.
        """
        return max((self._replicas(window, times, config) for window in self.windows), default=1)

    def _replicas(self, window: int, times: StepTimes, config: EngineConfig) -> int:
        demand = self.windows[window]
        # Where the traffic stops soon after its last window began, the few requests of it say little of their rate.
        length_ns = max(WINDOW_NS // 10, min(WINDOW_NS, self.end_ns - window * WINDOW_NS))
        unit = times.coefficients["memory"]
        work = demand.prompt_tokens * unit.prefill_token + demand.prompt_pairs * unit.prefill_pair
        work += demand.output_tokens * unit.decode_seq + demand.context_tokens * unit.decode_token
        fixed = demand.output_tokens * (unit.fixed + times.host_ticks / TICK)
        context = demand.context_tokens / demand.output_tokens
        most = HEADROOM * min(config.max_num_seqs, config.kv_tokens / context)
        # N = (fixed / R) / (1 - work / R) ≤ most, with both over the window's length, solved for R.
        return max(1, math.ceil(max(fixed / most + work, work / HEADROOM) / length_ns))
