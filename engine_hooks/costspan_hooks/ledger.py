"""The step ledger: who had each nanosecond of the engine, in constant work a step (docs/ledger.md).

A decoding sequence takes part in every step between two of its transitions. So the ledger keeps running sums over steps, a
sequence remembers their values when it begins to decode, and its share is their difference: no loop over the batch. With
``s = T/T̂`` and the coefficients of step ``k``, a sequence that decodes at context ``x = base + k`` from one transition to the
next costs ``ΔF + base·ΔX + ΔY``, where ``F += s·(a/n + e)``, ``X += s·f``, ``Y += s·f·k``. With ``s = 1`` and ``a`` undivided
the same sums give the time that it would have taken alone. Only chunks and transitions cost more.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field

from costspan.semconv import Phase, Waste
from costspan_hooks.cost_model import Coefficients, CostModel, Device, Load, Roofline
from costspan_hooks.errors import ProtocolError
from costspan_hooks.observer import Admission, Chunk, ModelShape, Removal, RequestInfo, Step
from costspan_hooks.records import AttemptRecord, EvictionRecord, Segment, StepRecord, TenantShare

UNIT = 1 << 40
"""Sums are whole numbers of 1/UNIT nanosecond: the difference of two is exact, however long the engine has run."""


@dataclass(slots=True)
class Sums:
    """Running sums over all steps so far, in 1/UNIT nanoseconds; ``duration`` and ``host_gap`` in nanoseconds."""

    cost: int = 0  # F
    cost_token: int = 0  # X
    cost_token_step: int = 0  # Y
    solo: int = 0
    solo_token: int = 0
    solo_token_step: int = 0
    predicted: int = 0
    duration: int = 0
    host_gap: int = 0

    def add(self, step: int, duration: int, predicted: float, participants: int, unit: Coefficients) -> None:
        """Take a step in: its measured and predicted time, and how many shared it."""
        stretch = duration / predicted * UNIT
        cost_token, solo_token = int(stretch * unit.decode_token), int(UNIT * unit.decode_token)
        self.cost += int(stretch * (unit.fixed / participants + unit.decode_seq))
        self.cost_token += cost_token
        self.cost_token_step += cost_token * step
        self.solo += int(UNIT * (unit.fixed + unit.decode_seq))
        self.solo_token += solo_token
        self.solo_token_step += solo_token * step
        self.predicted += int(UNIT * predicted)
        self.duration += duration

    def decode_since(self, start: Sums, base: int) -> tuple[float, float]:
        """(cost, solo) in nanoseconds of a sequence that has decoded since ``start`` at context ``base + step``."""
        cost = self.cost - start.cost + base * (self.cost_token - start.cost_token)
        solo = self.solo - start.solo + base * (self.solo_token - start.solo_token)
        cost += self.cost_token_step - start.cost_token_step
        solo += self.solo_token_step - start.solo_token_step
        return cost / UNIT, solo / UNIT


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
    cost: float = 0.0  # of its chunks
    solo: float = 0.0
    # What will be computed a second time, [context at admission, redo_until), and why.
    redo_until: int = 0
    redo_waste: str = ""
    redo_culprit: str = ""
    redo_cost: float = 0.0
    high_water: int = 0  # the most tokens that had keys and values when it was preempted
    cached_tokens: int = 0
    evicted_tokens: int = 0
    preemptions: int = 0
    first_token_ns: int = 0
    last_step: int = -1

    def take_chunk(self, step: int, tokens: int, cost: float, solo: float) -> None:
        """Add a piece of the prompt to the open segment; nanoseconds paid and nanoseconds alone."""
        if self.step_first < 0:
            self.step_first = step
        self.step_last = self.last_step = step
        self.computed += tokens
        self.cost += cost
        self.solo += solo


class StepLedger:
    """Keeps the books of one engine. Called on the engine's thread alone; hands finished records to ``sink``."""

    def __init__(self, device: Device, sink: Callable[[AttemptRecord | StepRecord | EvictionRecord], None]) -> None:
        self._device = device
        self._sink = sink
        self._sums = Sums()
        self._accounts: dict[str, Account] = {}
        self._tenants: dict[str, TenantLoad] = {}
        self._admitted: list[tuple[Account, int]] = []  # since the last step, with the moment they were ready
        self._last_step = -1
        self._booked_ns = 0  # up to here every nanosecond is in a row
        self._last_end_ns = 0
        self._cold_start_ns = 0
        self._carry = 0.0  # fraction of a nanosecond owed to the next posting, so that integers add up

    # --- transitions ---------------------------------------------------------------------------------------------

    def ready(self, started_ns: int, ready_ns: int, model: ModelShape) -> None:
        """The engine's life begins: everything up to ``ready_ns`` was loading."""
        self._model = CostModel(Roofline(model, self._device))
        self._cold_start_ns = ready_ns - started_ns
        self._booked_ns = ready_ns

    def enqueued(self, request: RequestInfo) -> None:
        """Open an account in the queue."""
        account = Account(request, since_ns=request.enqueued_ns)
        # The step in flight at arrival is the first one waited through; the inbox is emptied after every step.
        in_flight = self._last_end_ns > request.enqueued_ns
        account.step_first = self._last_step if in_flight else self._last_step + 1
        self._accounts[request.request_id] = account

    def admitted(self, admission: Admission) -> None:
        """The wait ends (queue or preempted), and the prompt's computation begins."""
        account = self._account(admission.request_id)
        if account.phase not in {Phase.QUEUE, Phase.PREEMPTED}:
            raise ProtocolError(f"{admission.request_id} was admitted while in {account.phase}: report its preemption first.")
        self._close_wait(account, admission.at_ns)
        took = admission.ready_ns - admission.at_ns
        account.segments.append(Segment(Phase.CACHE_HIT, admission.at_ns, took, tokens=admission.cached_tokens))
        again = account.preemptions > 0
        account.phase, account.since_ns = Phase.PREFILL, admission.ready_ns
        account.step_first, account.step_last = -1, -1
        account.context = admission.cached_tokens
        account.computed, account.cost, account.solo, account.redo_cost = 0, 0.0, 0.0, 0.0
        if again:
            account.redo_until, account.redo_waste, account.redo_culprit = account.high_water, Waste.RECOMPUTED_PREEMPTION, ""
        else:
            account.cached_tokens, account.evicted_tokens = admission.cached_tokens, admission.evicted_tokens
            account.redo_until = admission.cached_tokens + admission.evicted_tokens
            account.redo_waste, account.redo_culprit = Waste.RECOMPUTED_EVICTION, admission.evicted_by
        account.load = self._tenants.setdefault(account.request.tenant, TenantLoad())
        account.load.seqs += 1
        self._admitted.append((account, admission.ready_ns))

    def preempted(self, request_id: str, at_ns: int) -> None:
        """The request waits again; what it had must be computed again."""
        account = self._account(request_id)
        account.high_water = max(account.high_water, self._in_cache(account))
        self._leave_batch(account, at_ns)
        account.phase, account.since_ns = Phase.PREEMPTED, at_ns
        account.step_first = self._last_step + 1
        account.preemptions += 1

    def removed(self, removal: Removal) -> None:
        """Close the account and hand its record on."""
        account = self._account(removal.request_id)
        del self._accounts[removal.request_id]
        if account.phase in {Phase.QUEUE, Phase.PREEMPTED}:
            self._close_wait(account, removal.at_ns)
        else:
            self._leave_batch(account, removal.at_ns)
        self._sink(
            AttemptRecord(
                request=account.request,
                removal=removal,
                segments=account.segments,
                cached_tokens=account.cached_tokens,
                evicted_tokens=account.evicted_tokens,
                preemptions=account.preemptions,
                first_token_ns=account.first_token_ns,
                last_step=account.last_step,
            )
        )

    def evicted(self, at_ns: int, victim: str, culprit: str, tokens: int) -> None:
        """Note whose cached block went to whom."""
        self._sink(EvictionRecord(at_ns, self._last_step + 1, victim, culprit, tokens))

    def stopped(self, at_ns: int) -> None:
        """The engine's life ends: what passed since its last turn was the host's. One that never got ready has no books."""
        if not self._booked_ns:
            return
        gap = at_ns - self._booked_ns
        self._sink(StepRecord(step=self._last_step, start_ns=at_ns, host_gap_ns=gap, cold_start_ns=self._cold_start_ns))
        self._booked_ns = at_ns

    # --- steps -----------------------------------------------------------------------------------------------------

    def idle(self, start_ns: int, end_ns: int) -> None:
        """Close a stretch of time without work as a row of its own, so that idle is seen while it lasts."""
        if self._tenants:
            raise ProtocolError("The engine was idle while it has work in the batch: only a loop with nobody to run is idle.")
        gap = start_ns - self._booked_ns
        self._sink(
            StepRecord(
                step=self._last_step,
                start_ns=start_ns,
                host_gap_ns=gap,
                idle_ns=end_ns - start_ns,
                cold_start_ns=self._cold_start_ns,
            )
        )
        self._cold_start_ns = 0
        self._booked_ns = end_ns

    def step(self, step: Step) -> None:
        """Take a step into the books."""
        chunks = [(self._account(chunk.request_id), chunk) for chunk in step.chunks]
        load = self._load(step.index, chunks)
        participants = load.decode_seqs + len(chunks)
        if participants == 0:
            raise ProtocolError(f"Step {step.index} has nobody in it: report idle time through idle().")
        regime = self._model.regime(load)
        unit = self._model.coefficients(regime)
        predicted = load.predict(unit)
        gap = step.start_ns - self._booked_ns

        self._sums.host_gap += gap
        self._start_admitted(step)
        self._sums.add(step.index, step.duration_ns, predicted, participants, unit)
        stretch = step.duration_ns / predicted
        prefill: dict[str, tuple[int, int, float]] = {}
        for account, chunk in chunks:
            compute = unit.prefill(chunk.tokens, chunk.context)
            cost = stretch * (unit.fixed / participants + compute)
            again = min(chunk.tokens, account.redo_until - chunk.context)
            if again > 0 and compute > 0:
                account.redo_cost += cost * unit.prefill(again, chunk.context) / compute
            account.take_chunk(step.index, chunk.tokens, cost, unit.fixed + compute)
            count, tokens, total = prefill.get(account.request.tenant, (0, 0, 0.0))
            prefill[account.request.tenant] = (count + 1, tokens + chunk.tokens, total + compute)
        self._sink(
            StepRecord(
                step=step.index,
                start_ns=step.start_ns,
                duration_ns=step.duration_ns,
                host_gap_ns=gap,
                cold_start_ns=self._cold_start_ns,
                bound=step.bound,
                participants=participants,
                prefill_tokens=load.prefill_tokens,
                predicted_ns=predicted,
                unit=unit,
                regime=regime,
                tenants=self._shares(step, unit, stretch, participants, prefill),
            )
        )
        self._cold_start_ns = 0
        # From the executor's own reading to the loop's is the host's: it goes into the next gap.
        self._booked_ns = step.start_ns + step.duration_ns
        self._last_step, self._last_end_ns = step.index, step.end_ns
        for account, chunk in chunks:
            if chunk.last:
                self._begin_decode(account, step)
        self._model.learn(regime, load, step.duration_ns)

    def _load(self, index: int, chunks: list[tuple[Account, Chunk]]) -> Load:
        tokens, pairs = 0, 0.0
        for _, chunk in chunks:
            tokens += chunk.tokens
            pairs += chunk.tokens * (chunk.context + chunk.tokens / 2)
        seqs, contexts = 0, 0
        for tenant in self._tenants.values():
            seqs += tenant.decoding
            contexts += tenant.base + index * tenant.decoding
        return Load(tokens, pairs, seqs, contexts)

    def _start_admitted(self, step: Step) -> None:
        """Those admitted since the last step share only the part of the gap that came after they were ready."""
        for account, ready_ns in self._admitted:
            account.start = copy(self._sums)
            account.start.host_gap -= step.start_ns - ready_ns
        self._admitted.clear()

    def _shares(
        self, step: Step, unit: Coefficients, stretch: float, participants: int, prefill: dict[str, tuple[int, int, float]]
    ) -> list[TenantShare]:
        shares = []
        for name, tenant in self._tenants.items():
            blocks = step.blocks.get(name, 0)
            if not tenant.seqs and not blocks:
                continue
            chunks, tokens, prefill_ns = prefill.get(name, (0, 0, 0.0))
            contexts = tenant.base + step.index * tenant.decoding
            compute = prefill_ns + unit.decode_seq * tenant.decoding + unit.decode_token * contexts
            cost = stretch * (unit.fixed * (chunks + tenant.decoding) / participants + compute)
            shares.append(TenantShare(name, tenant.seqs, tokens + tenant.decoding, blocks, compute, prefill_ns, cost))
        return shares

    # --- segments ----------------------------------------------------------------------------------------------------

    def _account(self, request_id: str) -> Account:
        try:
            return self._accounts[request_id]
        except KeyError:
            raise ProtocolError(f"{request_id} is not in the engine: report enqueued() before anything else of it.") from None

    def _in_cache(self, account: Account) -> int:
        if account.phase is Phase.DECODE:
            return account.base + self._last_step + 1
        return account.context + account.computed

    def _close_wait(self, account: Account, at_ns: int) -> None:
        last = self._last_step if self._last_step >= account.step_first else -1
        first = account.step_first if last >= 0 else -1
        account.segments.append(
            Segment(account.phase, account.since_ns, at_ns - account.since_ns, step_first=first, step_last=last)
        )

    def _begin_decode(self, account: Account, step: Step) -> None:
        """The prompt is whole: the segment closes with this step, and decoding begins with the next."""
        if not account.first_token_ns:
            account.first_token_ns = step.end_ns
        self._close_compute(account, step.end_ns)
        account.context = account.context + account.computed
        account.phase, account.since_ns = Phase.DECODE, step.end_ns
        account.start = copy(self._sums)
        account.start.host_gap += step.end_ns - self._booked_ns  # in the closed segment already
        account.step_first = step.index + 1
        account.base = account.context - account.step_first
        account.load.decoding += 1
        account.load.base += account.base

    def _leave_batch(self, account: Account, at_ns: int) -> None:
        self._close_compute(account, at_ns)
        account.load.seqs -= 1
        if account.phase is Phase.DECODE:
            account.load.decoding -= 1
            account.load.base -= account.base
        if not account.load.seqs:
            del self._tenants[account.request.tenant]

    def _close_compute(self, account: Account, at_ns: int) -> None:
        """Close a prefill or decode segment: its residency is what the steps and gaps it sat through were measured at."""
        now, start = self._sums, account.start
        if self._admitted and any(waiting is account for waiting, _ in self._admitted):
            # Left again before any step began.
            self._admitted = [(waiting, ready) for waiting, ready in self._admitted if waiting is not account]
            start = now
            tail = at_ns - account.since_ns
        else:
            tail = max(0, at_ns - self._booked_ns)
        cost, solo, tokens, redo = account.cost, account.solo, account.computed, account.redo_cost
        if account.phase is Phase.DECODE:
            tokens, redo = self._last_step + 1 - account.step_first, 0.0
            cost, solo = now.decode_since(start, account.base)
            if tokens:
                account.step_last = account.last_step = self._last_step
            else:
                account.step_first = account.step_last = -1
        duration, predicted = now.duration - start.duration, (now.predicted - start.predicted) / UNIT
        gap = now.host_gap - start.host_gap + tail
        account.segments.append(
            Segment(
                account.phase,
                account.since_ns,
                duration + gap,
                step_first=account.step_first,
                step_last=account.step_last,
                tokens=tokens,
                context=account.context,
                cost_ns=self._whole(cost),
                solo_ns=solo,
                interference_ns=predicted - solo,
                deviation_ns=duration - predicted,
                host_gap_ns=float(gap),
                waste=str(account.redo_waste) if redo > 0 else "",
                waste_ns=round(redo),
                culprit=account.redo_culprit if redo > 0 else "",
            )
        )

    def _whole(self, cost: float) -> int:
        """A share as whole nanoseconds; the fraction is carried to the next share, so that the total stays exact."""
        owed = cost + self._carry
        whole = round(owed)
        self._carry = owed - whole
        return whole
