"""What the ledger hands on: one record an event, made on the hot path and shipped off it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from costspan.semconv import Bound, Phase
from costspan_hooks.cost_model import NOTHING, Coefficients
from costspan_hooks.observer import EngineInfo, Removal, RequestInfo


@dataclass(slots=True)
class Segment:
    """A stretch of one request's life in one phase. Nanoseconds; steps are -1 where there is none.

    ``tokens`` are those by which its context grew: rejected drafts were computed too, and are not among them.

    ``solo + interference + deviation + host_gap`` is ``duration`` in the phases that run in the batch, and zero elsewhere.
    """

    name: Phase
    start_ns: int
    duration_ns: int
    step_first: int = -1
    step_last: int = -1
    tokens: int = 0
    context: int = 0
    cost_ns: int = 0
    solo_ns: int = 0
    interference_ns: int = 0
    deviation_ns: int = 0
    host_gap_ns: int = 0
    waste: str = ""
    waste_ns: int = 0
    culprit: str = ""


@dataclass(slots=True)
class AttemptRecord:
    """One request that has left the engine."""

    request: RequestInfo
    removal: Removal
    segments: list[Segment]
    cached_tokens: int
    evicted_tokens: int
    preemptions: int
    drafted_tokens: int
    accepted_tokens: int
    first_token_ns: int
    last_step: int
    energy_j: float | None = None


@dataclass(slots=True)
class TenantShare:
    """A tenant's part of a step."""

    name: str
    seqs: int
    tokens: int
    blocks: int
    compute_ns: float
    prefill_ns: float
    cost_ns: float


@dataclass(slots=True)
class StepRecord:
    """One step; or, with no participants, a stretch of idle time after ``step``."""

    step: int
    start_ns: int
    duration_ns: int = 0
    host_gap_ns: int = 0
    idle_ns: int = 0
    cold_start_ns: int = 0
    bound: Bound = Bound.NONE
    participants: int = 0
    prefill_tokens: int = 0
    prefill_pairs: float = 0.0
    decode_seqs: int = 0
    decode_tokens: int = 0
    drafted_tokens: int = 0
    padding: int = 0
    padding_ns: int = 0
    energy_j: float | None = None
    predicted_ns: float = 0.0
    unit: Coefficients = NOTHING
    regime: str = ""
    expert_tokens: Sequence[int] = ()
    expert_skew: float = 0.0
    tenants: list[TenantShare] = field(default_factory=list)


@dataclass(slots=True)
class EvictionRecord:
    """A cached block that went from one tenant to another."""

    at_ns: int
    step: int
    victim: str
    culprit: str
    tokens: int


@dataclass(slots=True)
class EngineRecord:
    """An engine that can take work."""

    started_ns: int
    ready_ns: int
    info: EngineInfo


LedgerRecord = AttemptRecord | StepRecord | EvictionRecord | EngineRecord
"""What a ledger hands on."""


@dataclass(slots=True)
class SampleRecord:
    """A device's heartbeat over an interval; ``None`` where the device does not say.

    ``throttle`` names why its clocks were held down, several reasons with commas between, and is "" when they were not.
    """

    host: str
    device: str
    device_kind: str
    client: str
    start_ns: int
    end_ns: int
    utilization: float | None
    memory_bytes: int | None
    power_w: float | None
    energy_j: float | None
    memory_total_bytes: int | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    throttle: str | None = None
