"""The step ledger: who had each nanosecond of the engine, in constant work a step (docs/ledger.md).

A decoding sequence takes part in every step between two of its transitions. So the ledger keeps running sums over steps, a
sequence remembers their values when it begins to decode, and its share is their difference: no loop over the batch. With
``s = T/T̂`` and the coefficients of step ``k``, a sequence that decodes at context ``x = base + k`` from one transition to the
next costs ``ΔF + base·ΔX + ΔY``, where ``F += s·(a/n + e)``, ``X += s·f``, ``Y += s·f·k``. With ``s = 1`` and ``a`` undivided
the same sums give the time that it would have taken alone. Drafts that were right make ``base`` larger, from then on. Only
chunks, bursts and transitions cost more.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

from costspan.semconv import Phase
from costspan_hooks.accounts import UNIT, Account, Price, Sums, TenantLoad
from costspan_hooks.cost_model import CostModel, Load, Roofline
from costspan_hooks.errors import ProtocolError
from costspan_hooks.observer import Admission, Burst, Chunk, EngineInfo, Removal, RequestInfo, Step
from costspan_hooks.records import AttemptRecord, EngineRecord, EvictionRecord, LedgerRecord, Segment, StepRecord, TenantShare
from costspan_hooks.shares import Extra, Strangers, make_whole

_UNBOOKED = -1
"""No moment: what came before is not known, or was lost."""


class StepLedger:
    """Keeps the books of one engine, on one thread.

    Args:
        sink: Takes finished records.
        joules: The engine's energy from one moment to another, as far as it is known; ``None`` where nothing meters it.
    """

    def __init__(self, sink: Callable[[LedgerRecord], None], joules: Callable[[int, int], float | None] | None = None) -> None:
        self._sink = sink
        self._joules = joules
        self._sums = Sums()
        self._accounts: dict[str, Account] = {}
        self._tenants: dict[str, TenantLoad] = {}
        self._admitted: list[tuple[Account, int]] = []  # since the last step, with the moment they were ready
        self._last_step = -1
        self._booked_ns = _UNBOOKED  # up to here every nanosecond is in a row
        self._incomplete = False  # something of what the engine told was lost
        self._last_end_ns = 0
        self._cold_start_ns = 0
        self._carry = 0.0  # fraction of a nanosecond owed to the next posting, so that integers add up

    # --- transitions ---------------------------------------------------------------------------------------------

    def ready(self, started_ns: int, ready_ns: int, engine: EngineInfo) -> None:
        """The engine's life begins: everything up to ``ready_ns`` was loading."""
        self._model = CostModel(Roofline(engine.model, engine.device))
        self._cold_start_ns, self._cold_joules = ready_ns - started_ns, self._energy(started_ns, ready_ns)
        self._booked_ns = ready_ns
        self._sink(EngineRecord(started_ns, ready_ns, engine))

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
        if not account.waiting:
            raise ProtocolError(f"{admission.request_id} was admitted while in {account.phase}: report its preemption first.")
        self._close_wait(account, admission.at_ns)
        took = admission.ready_ns - admission.at_ns
        account.segments.append(Segment(Phase.CACHE_HIT, admission.at_ns, took, tokens=admission.cached_tokens))
        account.begin_prefill(admission)
        account.load = self._tenants.setdefault(account.request.tenant, TenantLoad())
        account.load.seqs += 1
        self._admitted.append((account, admission.ready_ns))

    def preempted(self, request_id: str, at_ns: int, culprit: str) -> None:
        """The request waits again; what it had must be computed again."""
        account = self._account(request_id)
        account.high_water = max(account.high_water, account.in_cache(self._last_step))
        account.preempted_by = culprit
        self._leave_batch(account, at_ns)
        account.phase, account.since_ns = Phase.PREEMPTED, at_ns
        account.step_first = self._last_step + 1
        account.preemptions += 1

    def removed(self, removal: Removal) -> None:
        """Close the account and hand its record on."""
        account = self._account(removal.request_id)
        del self._accounts[removal.request_id]
        if account.waiting:
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
                drafted_tokens=account.drafted_tokens,
                accepted_tokens=account.accepted_tokens,
                first_token_ns=account.first_token_ns,
                last_step=account.last_step,
                energy_j=account.energy / 1e9 if self._joules and account.metered else None,
            )
        )

    def evicted(self, at_ns: int, victim: str, culprit: str, tokens: int) -> None:
        """Note whose cached block went to whom."""
        self._sink(EvictionRecord(at_ns, self._last_step + 1, victim, culprit, tokens))

    def stopped(self, at_ns: int) -> None:
        """The engine's life ends: what passed since its last turn was the host's. One that never got ready has no books."""
        if self._booked_ns == _UNBOOKED:
            return
        self._close(StepRecord(step=self._last_step, start_ns=at_ns, host_gap_ns=self._gap(at_ns)), at_ns)

    # --- what was lost -----------------------------------------------------------------------------------------------

    def skip(self, step: Step) -> None:
        """Leave a step out that cannot be booked: its time is nobody's, and no part of the gap before the next."""
        self._booked_ns = _UNBOOKED
        self._last_step, self._last_end_ns = step.index, step.end_ns

    def start_over(self) -> None:
        """Forget whoever is in the engine: something of what it told was lost, and nothing sure is known of them.

        Until they have left they are strangers: steps tell how many of them decode, and their share of a step is booked to no
        request. Whoever comes from now on is booked as ever.
        """
        self._accounts.clear()
        self._tenants.clear()
        self._admitted.clear()
        self._booked_ns = _UNBOOKED
        self._incomplete = True

    # --- steps -----------------------------------------------------------------------------------------------------

    def idle(self, start_ns: int, end_ns: int) -> None:
        """Close a stretch of time without work as a row of its own, so that idle is seen while it lasts."""
        if self._tenants:
            raise ProtocolError("The engine was idle while it has work in the batch: only a loop with nobody to run is idle.")
        record = StepRecord(step=self._last_step, start_ns=start_ns, host_gap_ns=self._gap(start_ns), idle_ns=end_ns - start_ns)
        self._close(record, end_ns)

    def _gap(self, start_ns: int) -> int:
        """The host's time before a moment, since the last one that is booked."""
        return 0 if self._booked_ns == _UNBOOKED else start_ns - self._booked_ns

    def _energy(self, start_ns: int, end_ns: int) -> float | None:
        return self._joules(start_ns, end_ns) if self._joules else None

    def _close(self, record: StepRecord, end_ns: int) -> None:
        """Hand on the row of all that passed since the last one: with the first goes what loading took."""
        record.energy_j = self._energy(record.start_ns if self._booked_ns == _UNBOOKED else self._booked_ns, end_ns)
        if self._cold_start_ns:
            record.cold_start_ns = self._cold_start_ns
            if record.energy_j is not None and self._cold_joules is not None:
                record.energy_j += self._cold_joules
            self._cold_start_ns = 0
        self._booked_ns = end_ns
        self._sink(record)

    def step(self, step: Step) -> None:
        """Take a step into the books."""
        chunks = [(account, chunk) for chunk in step.chunks if (account := self._member(chunk.request_id))]
        bursts = [(account, burst) for burst in step.bursts if (account := self._speculating(burst))]
        strangers = self._strangers(step, len(chunks))
        load = self._load(step, bursts, strangers)
        participants = load.decode_seqs + len(step.chunks)
        if participants == 0:
            raise ProtocolError(f"Step {step.index} has nobody in it: report idle time through idle().")
        regime = self._model.regime(load)
        unit = self._model.coefficients(regime)
        predicted = load.predict(unit)
        gap, end_ns = self._gap(step.start_ns), step.start_ns + step.duration_ns
        joules = self._energy(step.start_ns, end_ns)
        price = Price(
            unit,
            stretch=step.duration_ns / predicted,
            each=unit.fixed / participants,
            alone=unit.fixed + step.padding * unit.decode_seq,
            watts=None if joules is None else joules * 1e9 / predicted,
        )

        self._sums.host_gap += gap
        self._start_admitted(step)
        self._sums.add(step, predicted, price)
        extra = self._charge_chunks(step.index, chunks, price)
        self._charge_drafts(step.index, bursts, price, extra)
        drafted = sum(burst.drafted for _, burst in bursts)
        shares = self._shares(step, price, extra)
        if strangers:
            shares.append(strangers.share(price))
        padding_ns = self._whole(price.stretch * step.padding * unit.decode_seq) if step.padding else 0
        make_whole(shares, step.duration_ns - padding_ns)
        self._close(
            StepRecord(
                step=step.index,
                start_ns=step.start_ns,
                duration_ns=step.duration_ns,
                host_gap_ns=gap,
                bound=step.bound,
                participants=participants,
                prefill_tokens=load.prefill_tokens - drafted,
                prefill_pairs=load.prefill_pairs,
                decode_seqs=load.decode_seqs,
                decode_tokens=load.decode_tokens,
                drafted_tokens=drafted,
                padding=step.padding,
                padding_ns=padding_ns,
                predicted_ns=predicted,
                unit=unit,
                regime=regime,
                expert_tokens=step.experts,
                expert_skew=step.expert_skew,
                tenants=shares,
            ),
            end_ns,  # from the executor's own reading to the loop's is the host's: it goes into the next gap
        )
        self._last_step, self._last_end_ns = step.index, step.end_ns
        for account, chunk in chunks:
            if chunk.last:
                self._begin_decode(account, step)
        for account, burst in bursts:
            account.lengthen(burst.accepted, self._sums)
        if not strangers:
            self._model.learn(regime, load, step.duration_ns)

    def _member(self, request_id: str) -> Account | None:
        """Who takes part in a step; ``None`` for a stranger, whom there can be since something was lost."""
        return self._accounts.get(request_id) if self._incomplete else self._account(request_id)

    def _speculating(self, burst: Burst) -> Account | None:
        account = self._member(burst.request_id)
        if account and account.phase is not Phase.DECODE:
            raise ProtocolError(f"{burst.request_id} had drafts while in {account.phase}: only a decoding request has any.")
        if not 0 <= burst.accepted <= burst.drafted or not burst.drafted:
            raise ProtocolError(
                f"{burst.request_id} had {burst.accepted} of {burst.drafted} drafts accepted: report bursts with drafts only."
            )
        return account

    def _strangers(self, step: Step, known_chunks: int) -> Strangers | None:
        seqs = sum(tenant.decoding for tenant in self._tenants.values())
        decoding = max(0, step.decoding - seqs)
        if not decoding and known_chunks == len(step.chunks):
            return None
        contexts = sum(tenant.base for tenant in self._tenants.values()) + step.index * seqs
        chunks = [chunk for chunk in step.chunks if chunk.request_id not in self._accounts]
        return Strangers(decoding, contexts // seqs * decoding if seqs else 0, chunks)

    def _load(self, step: Step, bursts: list[tuple[Account, Burst]], strangers: Strangers | None) -> Load:
        tokens, pairs = 0, 0.0
        for chunk in step.chunks:
            tokens += chunk.tokens
            pairs += chunk.tokens * (chunk.context + chunk.tokens / 2)
        for account, burst in bursts:  # drafts are a chunk that comes after the newest token
            tokens += burst.drafted
            pairs += burst.drafted * (account.base + step.index + 1 + burst.drafted / 2)
        seqs, bases = 0, 0
        for tenant in self._tenants.values():
            seqs += tenant.decoding
            bases += tenant.base
        contexts = bases + step.index * seqs
        if strangers:
            seqs, contexts = seqs + strangers.decoding, contexts + strangers.context
        return Load(tokens, pairs, seqs, contexts, step.padding)

    def _charge_chunks(self, step: int, chunks: list[tuple[Account, Chunk]], price: Price) -> dict[str, Extra]:
        """Book chunks to their requests; returns what they come to by tenant."""
        extra: dict[str, Extra] = {}
        for account, chunk in chunks:
            compute = price.unit.prefill(chunk.tokens, chunk.context)
            cost = account.charge(price.each + compute, price)
            again = min(chunk.tokens, account.redo_until - chunk.context)
            if again > 0 and compute > 0:
                account.wasted += cost * price.unit.prefill(again, chunk.context) / compute
            account.take_chunk(step, chunk.tokens, cost, price.alone + compute)
            own = extra.get(account.request.tenant) or extra.setdefault(account.request.tenant, Extra())
            own.chunks += 1
            own.tokens += chunk.tokens
            own.prefill_ns += compute
        return extra

    def _charge_drafts(self, step: int, bursts: list[tuple[Account, Burst]], price: Price, extra: dict[str, Extra]) -> None:
        """Book drafts to their requests, and add what they come to by tenant to ``extra``."""
        for account, burst in bursts:
            compute = price.unit.prefill(burst.drafted, account.base + step + 1)
            account.take_burst(burst, account.charge(compute, price), compute)
            own = extra.get(account.request.tenant) or extra.setdefault(account.request.tenant, Extra())
            own.tokens += burst.drafted
            own.draft_ns += compute

    def _start_admitted(self, step: Step) -> None:
        """Those admitted since the last step share only the part of the gap that came after they were ready."""
        for account, ready_ns in self._admitted:
            account.start = copy(self._sums)
            account.start.host_gap -= step.start_ns - ready_ns
        self._admitted.clear()

    def _shares(self, step: Step, price: Price, extra: dict[str, Extra]) -> list[TenantShare]:
        shares, index, held = [], step.index, step.blocks
        stretch, each, seq, token = price.stretch, price.each, price.unit.decode_seq, price.unit.decode_token
        for name, tenant in self._tenants.items():
            blocks, seqs, decoding = held.get(name, 0), tenant.seqs, tenant.decoding
            if not seqs and not blocks:
                continue
            compute = seq * decoding + token * (tenant.base + index * decoding)
            if own := extra.get(name):
                compute += own.prefill_ns + own.draft_ns
                cost, tokens = stretch * (each * (own.chunks + decoding) + compute), own.tokens + decoding
                shares.append(TenantShare(name, seqs, tokens, blocks, compute, own.prefill_ns, cost))
            else:
                shares.append(TenantShare(name, seqs, decoding, blocks, compute, 0.0, stretch * (each * decoding + compute)))
        return shares

    # --- segments ----------------------------------------------------------------------------------------------------

    def _account(self, request_id: str) -> Account:
        try:
            return self._accounts[request_id]
        except KeyError:
            raise ProtocolError(f"{request_id} is not in the engine: report enqueued() before anything else of it.") from None

    def _close_wait(self, account: Account, at_ns: int) -> None:
        last = self._last_step if self._last_step >= account.step_first else -1
        first = account.step_first if last >= 0 else -1
        culprit = account.preempted_by if account.phase is Phase.PREEMPTED else ""
        account.segments.append(
            Segment(
                account.phase, account.since_ns, at_ns - account.since_ns, step_first=first, step_last=last, culprit=culprit
            )
        )

    def _begin_decode(self, account: Account, step: Step) -> None:
        """The prompt is whole: the segment closes with this step, and decoding begins with the next."""
        if not account.first_token_ns:
            account.first_token_ns = step.end_ns
        self._close_compute(account, step.end_ns)
        start = copy(self._sums)
        start.host_gap += step.end_ns - self._booked_ns  # in the closed segment already
        account.begin_decode(step.index, step.end_ns, start)

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
            tail = max(0, self._gap(at_ns))
        cost, solo, tokens = account.cost, account.solo, account.computed
        if account.phase is Phase.DECODE:
            tokens = account.in_cache(self._last_step) - account.context
            shared, alone = now.decode_since(start, account.base)
            cost, solo = cost + shared, solo + alone
            account.energy += now.energy_since(start, account.base)
            account.metered &= now.unmetered == start.unmetered
            if tokens:
                account.step_last = account.last_step = self._last_step
            else:
                account.step_first = account.step_last = -1
        # Whole nanoseconds, so that the parts add up to the segment exactly.
        duration, predicted, solo = now.duration - start.duration, (now.predicted - start.predicted) // UNIT, round(solo)
        gap = now.host_gap - start.host_gap + tail
        waste, waste_ns, culprit = account.waste
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
                host_gap_ns=gap,
                waste=waste,
                waste_ns=waste_ns,
                culprit=culprit,
            )
        )

    def _whole(self, cost: float) -> int:
        """A share as whole nanoseconds; the fraction is carried to the next share, so that the total stays exact."""
        owed = cost + self._carry
        whole = round(owed)
        self._carry = owed - whole
        return whole
