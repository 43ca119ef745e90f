"""The waiting queue: who is next.

Requests wait in *lanes*, one for each latency class and priority: interactive before batch, then the lower priority first. A
lane's requests go before those of the lanes behind it without exception, so that these may starve while it is never empty.
Within a lane nobody starves: it is served in order of arrival, or fairly between tenants, by virtual token counters
(Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, algorithm 2). A tenant's counter goes up by 1 for a token
of a prompt when it is first admitted and by 2 for a token of an answer when it is made; the tenant with the lowest is next. A
tenant that comes back to the lane is lifted to the lowest counter waiting there, or to that of the last admitted, so that
nobody saves up by staying away. Of two tenants that both have requests waiting all the while, neither gets more than
``2·max(longest prompt, 2·tokens in the batch)`` ahead of the other (their theorem 4.4).
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count

from costspan.semconv import LatencyClass
from costspan_engine.sequence import Place, Sequence
from costspan_engine.settings import Policy

PROMPT_WEIGHT, OUTPUT_WEIGHT = 1, 2
"""What a token of a prompt and of an answer adds to its tenant's counter."""

_SLACK = 32
"""Entries that nobody needs are swept out when they outnumber the others by this: constant work for each, in the long run."""


_Capped = Callable[[str], bool]
"""Whether a tenant is at its cap."""


class WaitingQueue:
    """Sequences that wait for admission, and the counts by which they wait. Every operation is O(log n) or better.

    Args:
        policy: The order within a lane.
        tenant_cap: Sequences of one tenant in the batch at most; others of its wait and are passed over. 0 for no cap.
    """

    def __init__(self, policy: Policy, tenant_cap: int = 0) -> None:
        self._fair = policy is Policy.FAIR
        self._cap = tenant_cap
        self._seqs: dict[str, Sequence] = {}
        self._lanes: dict[Place, _Lane] = {}
        self._order: list[Place] = []
        self._arrivals = count(1)
        self._running: Counter[str] = Counter()
        self._classes: Counter[LatencyClass] = Counter()

    def __len__(self) -> int:
        return len(self._seqs)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._seqs.values())

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._seqs

    def of(self, latency_class: LatencyClass) -> int:
        """How many of a class wait."""
        return self._classes[latency_class]

    def add(self, seq: Sequence) -> None:
        """Put a sequence that came at the end of its lane."""
        seq.number = next(self._arrivals)
        if seq.place not in self._lanes:
            self._lanes[seq.place] = _Lane(fair=self._fair)
            insort(self._order, seq.place)
        self._enter(seq)

    def head(self) -> Sequence | None:
        """Who is next; ``None`` when nobody waits, or only tenants at their cap."""
        for place in self._order:
            if seq := self._lanes[place].head(self._capped):
                return seq
        return None

    def take(self, seq: Sequence) -> None:
        """The sequence enters the batch."""
        self._leave(seq)
        self._lanes[seq.place].took(seq.tenant)
        self._running[seq.tenant] += 1

    def put_back(self, seq: Sequence) -> None:
        """The sequence left the batch and will be computed again: it is before all of its tenant's that have not been in it."""
        self._lanes[seq.place].running -= 1
        self._enter(seq, first=True)
        self._free(seq.tenant)

    def left(self, seq: Sequence) -> None:
        """The sequence left the batch for good."""
        self._lanes[seq.place].running -= 1
        self._free(seq.tenant)
        self._close(seq.place)

    def remove(self, request_id: str) -> Sequence | None:
        """Take a waiting sequence out for good; ``None`` when it does not wait."""
        seq = self._seqs.get(request_id)
        if seq is not None:
            self._leave(seq)
            self._close(seq.place)
        return seq

    def charge(self, seq: Sequence, tokens: int) -> None:
        """Add weighted tokens to its tenant's counter."""
        if self._fair:
            self._lanes[seq.place].charge(seq.tenant, tokens)

    def _enter(self, seq: Sequence, *, first: bool = False) -> None:
        self._seqs[seq.request_id] = seq
        self._classes[seq.request.info.latency_class] += 1
        self._lanes[seq.place].add(seq, self._capped, first=first)

    def _leave(self, seq: Sequence) -> None:
        del self._seqs[seq.request_id]
        self._classes[seq.request.info.latency_class] -= 1
        self._lanes[seq.place].remove(seq)

    def _close(self, place: Place) -> None:
        """Forget a lane that nobody is in: counters matter only between those who compete."""
        lane = self._lanes[place]
        if not lane.lines and not lane.running:
            del self._lanes[place]
            self._order.remove(place)

    def _capped(self, tenant: str) -> bool:
        return 0 < self._cap <= self._running[tenant]

    def _free(self, tenant: str) -> None:
        was_capped = self._capped(tenant)
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]
        if was_capped:
            for lane in self._lanes.values():
                lane.resume(tenant)


@dataclass(slots=True, eq=False)
class _Line:
    """One tenant's sequences in a lane, in order. ``ticket`` is the number of its entry in the lane's heap; 0 for none."""

    seqs: OrderedDict[str, Sequence]
    ticket: int = 0

    @property
    def first(self) -> Sequence:
        return next(iter(self.seqs.values()))


class _Lane:
    """Sequences of equal class and priority.

    The heap has an entry for each line but those passed over at their cap. A line's place may only have become worse since its
    entry was made (counters go up); that is put right when the entry comes to the top.
    """

    def __init__(self, *, fair: bool) -> None:
        self.lines: dict[str, _Line] = {}
        self.running = 0
        self._fair = fair
        self._heap: list[tuple[int, int, int, str]] = []  # counter, arrival, ticket, tenant
        self._tickets = count(1)
        self._counters: dict[str, int] = {}
        self._floor = 0
        self._sweep_at = _SLACK
        self._last = ""

    def add(self, seq: Sequence, capped: _Capped, *, first: bool) -> None:
        line = self.lines.get(seq.tenant)
        if line is None:
            if self._fair:
                self._lift(seq.tenant, capped)
            line = self.lines[seq.tenant] = _Line(OrderedDict())
        line.seqs[seq.request_id] = seq
        if first:
            line.seqs.move_to_end(seq.request_id, last=False)
        if first or len(line.seqs) == 1:
            self._enlist(seq.tenant, line)

    def remove(self, seq: Sequence) -> None:
        line = self.lines[seq.tenant]
        del line.seqs[seq.request_id]
        if not line.seqs:
            del self.lines[seq.tenant]

    def took(self, tenant: str) -> None:
        self.running += 1
        self._last = tenant

    def head(self, capped: _Capped) -> Sequence | None:
        while self._heap:
            counter, arrival, ticket, tenant = self._heap[0]
            line = self.lines.get(tenant)
            if line is None or line.ticket != ticket:
                heappop(self._heap)
            elif capped(tenant):
                heappop(self._heap)
                line.ticket = 0
            elif (now := self._rank(tenant, line)) != (counter, arrival):
                heapreplace(self._heap, (*now, ticket, tenant))
            else:
                return line.first
        return None

    def resume(self, tenant: str) -> None:
        """The tenant is below its cap again."""
        line = self.lines.get(tenant)
        if line is not None and not line.ticket:
            self._enlist(tenant, line)

    def charge(self, tenant: str, tokens: int) -> None:
        self._counters[tenant] = self._counters.get(tenant, self._floor) + tokens

    def _rank(self, tenant: str, line: _Line) -> tuple[int, int]:
        return self._counters.get(tenant, self._floor) if self._fair else 0, line.first.number

    def _enlist(self, tenant: str, line: _Line) -> None:
        line.ticket = next(self._tickets)
        heappush(self._heap, (*self._rank(tenant, line), line.ticket, tenant))
        if len(self._heap) > 2 * len(self.lines) + _SLACK:
            self._heap = [entry for entry in self._heap if entry[3] in self.lines and self.lines[entry[3]].ticket == entry[2]]
            heapify(self._heap)

    def _lift(self, tenant: str, capped: _Capped) -> None:
        lowest = head.tenant if (head := self.head(capped)) else self._last
        self._floor = max(self._floor, self._counters.get(lowest, 0))
        self._counters[tenant] = max(self._counters.get(tenant, 0), self._floor)
        if len(self._counters) > self._sweep_at:
            # Who is absent and not above the floor would be lifted to it: the counter says nothing any more.
            self._counters = {who: spent for who, spent in self._counters.items() if spent > self._floor or who in self.lines}
            self._counters.setdefault(tenant, self._floor)
            self._sweep_at = 2 * len(self._counters) + _SLACK
