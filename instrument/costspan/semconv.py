"""Every attribute, phase, outcome, waste and cause name, spelled once.

OpenTelemetry's GenAI names are used wherever one exists; ``costspan.*`` otherwise. No other module spells them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType


class _Name(str, Enum):
    """A name that is its own text in f-strings, JSON and SQL parameters."""

    def __str__(self) -> str:
        return str(self.value)


class Phase(_Name):
    """Where a request's time went. Phases never overlap; ``UNACCOUNTED`` alone is a remainder."""

    CLIENT_OVERHEAD = "client_overhead"
    NETWORK = "network"
    ADMISSION = "admission"
    QUEUE = "queue"
    CACHE_HIT = "cache_hit"
    PREFILL = "prefill"
    DECODE = "decode"
    PREEMPTED = "preempted"
    STREAM = "stream"
    UNACCOUNTED = "unaccounted"


CANCELLATION_WASTE = "cancellation_waste"
"""Span under the request span from the moment a disconnect was seen to the moment the request left the batch."""


class Outcome(_Name):
    """How a call ended. A user pressing stop is not an error."""

    OK = "ok"
    ERROR = "error"
    CANCELLED = "cancelled"
    ABANDONED = "abandoned"
    TIMEOUT = "timeout"


ABORTED = (Outcome.CANCELLED, Outcome.ABANDONED, Outcome.TIMEOUT)
"""Outcomes in which the client left before the answer was whole."""


class Waste(_Name):
    """Money spent that no user got anything for."""

    AFTER_ABORT = "after_abort"
    UNDELIVERED = "undelivered"
    ABANDONED = "abandoned"
    RETRIED = "retried"
    HEDGED = "hedged"
    INVALID_OUTPUT = "invalid_output"
    RECOMPUTED_PREEMPTION = "recomputed_preemption"
    RECOMPUTED_EVICTION = "recomputed_eviction"
    REJECTED_DRAFT = "rejected_draft"
    PADDING = "padding"
    COLD_START = "cold_start"
    HOST_GAP = "host_gap"
    IDLE = "idle"


class Cause(_Name):
    """Why a request was slow."""

    LONG_PROMPT = "long_prompt"
    LONG_OUTPUT = "long_output"
    QUEUE_SURGE = "queue_surge"
    HEAD_OF_LINE = "head_of_line"
    NOISY_NEIGHBOUR = "noisy_neighbour"
    COLD_CACHE = "cold_cache"
    PREEMPTION = "preemption"
    SLOW_ENGINE = "slow_engine"
    COLD_START = "cold_start"
    ROUTING_CHANGE = "routing_change"
    SLOW_CLIENT = "slow_client"
    NETWORK = "network"
    RETRY = "retry"
    UNKNOWN = "unknown"


class Bound(_Name):
    """What kept the head of the waiting queue out of a step; ``NONE`` when nothing did."""

    NONE = "none"
    TOKEN_BUDGET = "token_budget"
    SEQ_SLOTS = "seq_slots"
    KV_BLOCKS = "kv_blocks"
    TENANT_CAP = "tenant_cap"


class Mechanism(_Name):
    """How one tenant's traffic delays another's; the queue's by what was held."""

    PREFILL = "prefill"
    DECODE = "decode"
    QUEUE_TOKEN_BUDGET = "queue_token_budget"
    QUEUE_SEQ_SLOTS = "queue_seq_slots"
    QUEUE_KV_BLOCKS = "queue_kv_blocks"
    QUEUE_TENANT_CAP = "queue_tenant_cap"
    QUEUE_STEP = "queue_step"
    """Nothing was held: the step in flight had to end first."""
    EVICTION = "eviction"
    """What was cached was pushed out, and is computed again."""
    PREEMPTION = "preemption"
    """It lost its blocks, waited and was computed again."""


class LatencyClass(_Name):
    """What a request's caller waits for: a person at a screen, or a job that is due some time."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class Kind(_Name):
    """What an observed operation is."""

    GENERATION = "generation"
    RETRIEVAL = "retrieval"
    RERANK = "rerank"
    TOOL = "tool"
    GUARD = "guard"
    AGENT = "agent"
    OPERATION = "operation"
    REVIEW = "review"
    UNIT = "unit"
    ENGINE_REQUEST = "engine_request"
    ENGINE_PHASE = "engine_phase"


# --- who: set once by the app, carried in W3C baggage under the same keys -------------------------------------
PROJECT = "costspan.project"
TENANT = "costspan.tenant"
FEATURE = "costspan.feature"
UNIT = "costspan.unit"
UNIT_KIND = "costspan.unit.kind"
ATTEMPT = "costspan.attempt"
OPERATION = "costspan.operation"
ADAPTER = "costspan.adapter"
"""The LoRA adapter that a request was computed with."""
WHO = (PROJECT, TENANT, FEATURE, UNIT, ATTEMPT)
"""The keys that travel from the app to the engine in ``baggage``."""
UNKNOWN = "unknown"
"""Traffic that names no tenant is booked to this one, and shown."""

# --- what was observed ---------------------------------------------------------------------------------------
KIND = "costspan.kind"
OUTCOME = "costspan.outcome"
PHASE = "costspan.phase"
ITEMS = "costspan.items"
"""Items that a generator delivered to its consumer."""
INVALID = "costspan.invalid"
"""Why an answer failed validation and was asked again."""
QUANTITY_PREFIX = "costspan.quantity."
"""``costspan.quantity.<sku>`` = a quantity that the price book turns into money."""
COST_USD = "costspan.cost_usd"
"""Money that only the app knows, as a decimal string."""
UNIT_STATUS = "costspan.unit.status"
UNIT_VALUE_USD = "costspan.unit.value_usd"
UNIT_REASON = "costspan.unit.reason"
"""Why a unit was rejected."""

# --- one model call, as its client saw it (nanoseconds since the Unix epoch, the client's clock) ---------------
CALL_START = "costspan.call.start_ns"
CALL_SENT = "costspan.call.sent_ns"
CALL_HEADERS = "costspan.call.headers_ns"
CALL_FIRST = "costspan.call.first_ns"
CALL_LAST = "costspan.call.last_ns"
CALL_END = "costspan.call.end_ns"
CALL_ABORT = "costspan.call.abort_ns"
CALL_DELIVERED = "costspan.call.delivered_tokens"

# --- OpenTelemetry GenAI ---------------------------------------------------------------------------------------
GEN_AI_OPERATION = "gen_ai.operation.name"
GEN_AI_PROVIDER = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
GEN_AI_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_CACHE_READ_TOKENS = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_CACHE_WRITE_TOKENS = "gen_ai.usage.cache_creation.input_tokens"
GEN_AI_REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
SERVICE_NAME = "service.name"
SERVICE_INSTANCE = "service.instance.id"

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "gen_ai.system": GEN_AI_PROVIDER,
        "gen_ai.usage.prompt_tokens": GEN_AI_INPUT_TOKENS,
        "gen_ai.usage.completion_tokens": GEN_AI_OUTPUT_TOKENS,
    }
)
"""What others call, or called, what has a name here."""

REPEATED = (KIND, OUTCOME, TENANT, FEATURE, UNIT, GEN_AI_PROVIDER, GEN_AI_RESPONSE_MODEL)
"""Attributes that the store has a column for, as they came: it keeps them there alone."""

# --- delivery headers: a sender numbers what it sends, so that a gap has a name -------------------------------
HEADER_PROJECT = "costspan-project"
HEADER_CLIENT = "costspan-client"
HEADER_SEQUENCE = "costspan-sequence"
HEADER_ITEMS = "costspan-items"
HEADER_TOTAL = "costspan-total"
HEADER_KEY = "costspan-key"

# --- SKUs of the price book --------------------------------------------------------------------------------------
SKU_GPU_HOUR = "gpu_hour"
"""``gpu_hour.<device kind>``: one hour of one device."""
SKU_REVIEW_MINUTES = "review_minutes"
"""A person's minutes on a unit of work."""
