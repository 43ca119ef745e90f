"""What the ledger remembers of a request while it is in the engine, and the running sums that its shares are differences of."""

from __future__ import annotations

from dataclasses import dataclass, field

from costspan.semconv import Phase, Waste
from costspan_hooks.cost_model import Coefficients
from costspan_hooks.observer import Admission, Burst, RequestInfo, Step
from costspan_hooks.records import Segment

UNIT = 1 << 40
"""Sums are whole numbers of 1/UNIT nanosecond: the difference of two is exact, however long the engine has run."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a step's work is charged at, in nanoseconds.

    Attributes:
        unit: The coefficients.
        stretch: s, measured over predicted.
        each: a/n, what every participant bears of the step itself.
        alone: What the step itself would have taken with one of them: a, and the rows that are nobody's.
        watts: The step's joules over T̂, so that they are split as its time is; ``None`` where no meter said.
    """

    unit: Coefficients
    stretch: float
    each: float
    alone: float
    watts: float | None


@dataclass(slots=True)
class Sums:
    """Running sums over all steps so far, in 1/UNIT nanoseconds or nanojoules.

    ``duration`` and ``host_gap`` are in nanoseconds, and ``unmetered`` counts the steps whose energy nobody knows.
    """

    cost: int = 0  # F
    cost_token: int = 0  # X
    cost_token_step: int = 0  # Y
    solo: int = 0
    solo_token: int = 0
    solo_token_step: int = 0
    energy: int = 0
    energy_token: int = 0
    energy_token_step: int = 0
    predicted: int = 0
    duration: int = 0
    host_gap: int = 0
    unmetered: int = 0

    def add(self, step: Step, predicted: float, price: Price) -> None:
        """Take a step in: how long it was predicted to take, and what its work is charged at."""
        stretch, seq, token = price.stretch * UNIT, price.unit.decode_seq, price.unit.decode_token
        cost_token, solo_token = int(stretch * token), int(UNIT * token)
        self.cost += int(stretch * (price.each + seq))
        self.cost_token += cost_token
        self.cost_token_step += cost_token * step.index
        self.solo += int(UNIT * (price.alone + seq))
        self.solo_token += solo_token
        self.solo_token_step += solo_token * step.index
        self._add_energy(step.index, price)
        self.predicted += int(UNIT * predicted)
        self.duration += step.duration_ns

    def _add_energy(self, step: int, price: Price) -> None:
        if price.watts is None:
            self.unmetered += 1
            return
        energy_token = int(price.watts * UNIT * price.unit.decode_token)
        self.energy += int(price.watts * UNIT * (price.each + price.unit.decode_seq))
        self.energy_token += energy_token
        self.energy_token_step += energy_token * step

    def decode_since(self, start: Sums, base: int) -> tuple[float, float]:
        """(cost, solo) in nanoseconds of a sequence that has decoded since ``start`` at context ``base + step``."""
        cost = self.cost - start.cost + base * (self.cost_token - start.cost_token)
        solo = self.solo - start.solo + base * (self.solo_token - start.solo_token)
        cost += self.cost_token_step - start.cost_token_step
        solo += self.solo_token_step - start.solo_token_step
        return cost / UNIT, solo / UNIT

    def energy_since(self, start: Sums, base: int) -> float:
        """Its nanojoules, of the steps that were metered."""
        energy = self.energy - start.energy + base * (self.energy_token - start.energy_token)
        return (energy + self.energy_token_step - start.energy_token_step) / UNIT

    def rebase(self, now: Sums, by: int) -> None:
        """Let a base that grows by ``by`` now count from now on only, in what is :meth:`decode_since` these sums.

        The larger base would count for the steps before as well: what that comes to, ``by·(X_now - X_start)``, is taken off.
        """
        self.cost += by * (now.cost_token - self.cost_token)
        self.solo += by * (now.solo_token - self.solo_token)
        self.energy += by * (now.energy_token - self.energy_token)


@dataclass(slots=True)
class TenantLoad:
    """What a tenant has in the engine now."""

    seqs: int = 0
    decoding: int = 0
    base: int = 0  # Σ (context - step) over its decoding sequences


@dataclass(slots=True)
class Account:
    """One request's open position in the ledger."""

    request: RequestInfo
    load: TenantLoad = field(default_factory=TenantLoad)
    segments: list[Segment] = field(default_factory=list)
    # The open segment: its phase, when it began, and the sums at that moment.
    phase: Phase = Phase.QUEUE
    since_ns: int = 0
    step_first: int = -1
    step_last: int = -1
    start: Sums = field(default_factory=Sums)
    context: int = 0  # tokens in the KV cache before step_first
    computed: int = 0  # tokens computed in the segment (prefill)
    base: int = 0  # context - step, while decoding
    cost: float = 0.0  # of its chunks and drafts
    solo: float = 0.0
    wasted: float = 0.0  # the part of cost that bought nothing
    # Over all segments: nanojoules, and whether every step of them was metered.
    energy: float = 0.0
    metered: bool = True
    # What will be computed a second time, [context at admission, redo_until), and why.
    redo_until: int = 0
    redo_waste: str = ""
    redo_culprit: str = ""
    preempted_by: str = ""
    high_water: int = 0  # the most tokens that had keys and values when it was preempted
    cached_tokens: int = 0
    evicted_tokens: int = 0
    preemptions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    first_token_ns: int = 0
    last_step: int = -1

    @property
    def waiting(self) -> bool:
        """Whether it is in the queue, for the first time or again."""
        return self.phase in {Phase.QUEUE, Phase.PREEMPTED}

    def begin_prefill(self, admission: Admission) -> None:
        """Open the segment of its prompt."""
        self.phase, self.since_ns = Phase.PREFILL, admission.ready_ns
        self.step_first, self.step_last = -1, -1
        self.context = admission.cached_tokens
        self.computed, self.cost, self.solo, self.wasted = 0, 0.0, 0.0, 0.0
        if self.preemptions:
            self.redo_until = self.high_water
            self.redo_waste, self.redo_culprit = Waste.RECOMPUTED_PREEMPTION, self.preempted_by
        else:
            self.cached_tokens, self.evicted_tokens = admission.cached_tokens, admission.evicted_tokens
            self.redo_until = admission.cached_tokens + admission.evicted_tokens
            self.redo_waste, self.redo_culprit = Waste.RECOMPUTED_EVICTION, admission.evicted_by

    def begin_decode(self, step: int, at_ns: int, start: Sums) -> None:
        """Open the segment in which it makes tokens, from the step after ``step`` on; ``start`` is its own."""
        self.context += self.computed
        self.phase, self.since_ns, self.start = Phase.DECODE, at_ns, start
        self.step_first = step + 1
        self.base = self.context - self.step_first
        self.cost, self.solo, self.wasted = 0.0, 0.0, 0.0
        self.load.decoding += 1
        self.load.base += self.base

    def charge(self, compute: float, price: Price) -> float:
        """Pay for work that is predicted at ``compute`` nanoseconds: its energy is booked, its cost returned."""
        if price.watts is None:
            self.metered = False
        else:
            self.energy += price.watts * compute
        return price.stretch * compute

    def take_chunk(self, step: int, tokens: int, cost: float, solo: float) -> None:
        """Add a piece of the prompt to the open segment; nanoseconds paid and nanoseconds alone."""
        if self.step_first < 0:
            self.step_first = step
        self.step_last = self.last_step = step
        self.computed += tokens
        self.cost += cost
        self.solo += solo

    def take_burst(self, burst: Burst, cost: float, solo: float) -> None:
        """Add drafts to the open segment: nanoseconds paid for them and nanoseconds alone."""
        self.cost += cost
        self.solo += solo
        self.wasted += cost * (burst.drafted - burst.accepted) / burst.drafted
        self.drafted_tokens += burst.drafted
        self.accepted_tokens += burst.accepted

    def lengthen(self, tokens: int, now: Sums) -> None:
        """Let its context be ``tokens`` longer from the next step on than one token a step makes it."""
        self.start.rebase(now, tokens)
        self.base += tokens
        self.load.base += tokens

    def in_cache(self, last_step: int) -> int:
        """Tokens that have keys and values after ``last_step``."""
        return self.base + last_step + 1 if self.phase is Phase.DECODE else self.context + self.computed

    @property
    def waste(self) -> tuple[str, int, str]:
        """Why part of the open segment is waste, how many nanoseconds of it, and who caused them."""
        if not self.wasted:
            return "", 0, ""
        if self.phase is Phase.DECODE:
            return Waste.REJECTED_DRAFT.value, round(self.wasted), ""
        return str(self.redo_waste), round(self.wasted), self.redo_culprit
