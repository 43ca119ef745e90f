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
    ENDPOINT = "endpoint"
    """A request that the app answers."""
    PAGE = "page"
    """What a browser saw of an answer."""
    ENGINE_REQUEST = "engine_request"
    ENGINE_PHASE = "engine_phase"


class Tokens(_Name):
    """What providers charge for at prices of their own. A token is one of them only."""

    INPUT = "input"
    """Read, and neither from a cache nor into one."""
    CACHE_READ = "cache_read"
    CACHE_WRITE = "cache_write"
    OUTPUT = "output"
    """Reasoning included."""


# --- who: set once by the app, carried in W3C baggage under the same keys -------------------------------------
PROJECT = "costspan.project"
TENANT = "costspan.tenant"
FEATURE = "costspan.feature"
UNIT = "costspan.unit"
UNIT_KIND = "costspan.unit.kind"
ATTEMPT = "costspan.attempt"
OPERATION = "costspan.operation"
REPLACES = "costspan.replaces"
"""The span of the try that this one took over from: a client library asked again by itself."""
ADAPTER = "costspan.adapter"
"""The LoRA adapter that a request was computed with."""
WHO = (PROJECT, TENANT, FEATURE, UNIT, UNIT_KIND, ATTEMPT)
"""The keys that travel from the app to the engine in ``baggage``."""
UNKNOWN = "unknown"
"""Traffic that names no tenant is booked to this one, and shown."""

# --- what was observed ---------------------------------------------------------------------------------------
KIND = "costspan.kind"
OUTCOME = "costspan.outcome"
PHASE = "costspan.phase"
ITEMS = "costspan.items"
"""Items that a generator delivered to its consumer."""
ITEMS_FIRST = "costspan.items.first_ns"
ITEMS_LAST = "costspan.items.last_ns"
"""When the first and the last of them were handed over."""
CONSUMER = "costspan.consumer_ns"
"""Nanoseconds in which a generator stood still because its consumer had the item; the rest of its span it worked."""
CAPTURED_PREFIX = "costspan.captured."
"""``costspan.captured.<name>`` = an argument that the app lets be captured."""
INVALID = "costspan.invalid"
"""Why an answer failed validation and was asked again."""
QUANTITY_PREFIX = "costspan.quantity."
"""``costspan.quantity.<sku>`` = a quantity that the price book turns into money."""
COST_USD = "costspan.cost_usd"
"""Money that only the app knows, as a decimal string."""
UNIT_STATUS = "costspan.unit.status"
UNIT_STATUS_AT = "costspan.unit.status_ns"
"""When a unit was resolved or rejected, in nanoseconds since the Unix epoch; the last decides."""
UNIT_VALUE_USD = "costspan.unit.value_usd"
UNIT_REASON = "costspan.unit.reason"
"""Why a unit was rejected."""
SDK_ERRORS = "costspan.sdk.errors"
"""How many errors of costspan's own the process has had so far; on one span of each payload, once there is one."""

# --- one model call, as its client saw it (nanoseconds since the Unix epoch, the client's clock) ---------------
CALL_START = "costspan.call.start_ns"
CALL_SENT = "costspan.call.sent_ns"
CALL_HEADERS = "costspan.call.headers_ns"
CALL_FIRST = "costspan.call.first_ns"
CALL_LAST = "costspan.call.last_ns"
CALL_END = "costspan.call.end_ns"
CALL_ABORT = "costspan.call.abort_ns"
CALL_DELIVERED = "costspan.call.delivered_tokens"

# --- the same answer where it passes on its way (nanoseconds since the Unix epoch, each by its own process's clock) ------
ENDPOINT_RECEIVED = "costspan.endpoint.received_ns"
ENDPOINT_FIRST = "costspan.endpoint.first_ns"
ENDPOINT_LAST = "costspan.endpoint.last_ns"
ENDPOINT_DISCONNECT = "costspan.endpoint.disconnect_ns"
"""When the app's server heard that its client was gone."""
PAGE_START = "costspan.page.start_ns"
PAGE_HEADERS = "costspan.page.headers_ns"
PAGE_FIRST = "costspan.page.first_ns"
PAGE_LAST = "costspan.page.last_ns"
PAGE_STOP = "costspan.page.stop_ns"
"""When the stop button was pressed, or the tab closed."""
PAGE_SHOWN = "costspan.page.shown_tokens"

# --- OpenTelemetry GenAI ---------------------------------------------------------------------------------------
GEN_AI_OPERATION = "gen_ai.operation.name"
GEN_AI_PROVIDER = "gen_ai.provider.name"
OWN_PROVIDER = "costspan"
"""The provider's name of an engine of one's own, whose time is in the ledger."""
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
GEN_AI_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_CACHE_READ_TOKENS = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_CACHE_WRITE_TOKENS = "gen_ai.usage.cache_creation.input_tokens"
GEN_AI_REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
SERVICE_NAME = "service.name"
SERVICE_INSTANCE = "service.instance.id"

GEN_AI_RESPONSE_ID = "gen_ai.response.id"
GEN_AI_FINISH_REASONS = "gen_ai.response.finish_reasons"
ERROR_TYPE = "error.type"
EXCEPTION_TYPE = "exception.type"
HTTP_STATUS = "http.response.status_code"

# --- what others call it: read from what they send, see tests/foreign ------------------------------------------
USAGE_DETAILS = "langfuse.observation.usage_details"
"""Langfuse's JSON of counts. Each is read like an attribute that is named :data:`USAGE_PREFIX` and the count's own name."""
USAGE_PREFIX = "langfuse.usage."
CACHE_READ_APART = "costspan.usage.cache_read_apart"
CACHE_WRITE_APART = "costspan.usage.cache_write_apart"
REASONING_APART = "costspan.usage.reasoning_apart"
"""Counts that their source leaves out of the input and the output; no span has them under these names."""

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        # OpenTelemetry until 1.36, and vLLM
        "gen_ai.system": GEN_AI_PROVIDER,
        "gen_ai.usage.prompt_tokens": GEN_AI_INPUT_TOKENS,
        "gen_ai.usage.completion_tokens": GEN_AI_OUTPUT_TOKENS,
        "gen_ai.usage.cache_write.input_tokens": GEN_AI_CACHE_WRITE_TOKENS,
        "gen_ai.workflow.name": FEATURE,
        # SGLang
        "gen_ai.usage.cached_tokens": GEN_AI_CACHE_READ_TOKENS,
        # OpenLLMetry, new and old
        "gen_ai.usage.reasoning_tokens": GEN_AI_REASONING_TOKENS,
        "gen_ai.usage.cache_read_input_tokens": GEN_AI_CACHE_READ_TOKENS,
        "gen_ai.usage.cache_creation_input_tokens": GEN_AI_CACHE_WRITE_TOKENS,
        "gen_ai.response.finish_reason": GEN_AI_FINISH_REASONS,
        "gen_ai.response.stop_reason": GEN_AI_FINISH_REASONS,
        "llm.usage.reasoning_tokens": GEN_AI_REASONING_TOKENS,
        "llm.response.finish_reason": GEN_AI_FINISH_REASONS,
        "llm.response.stop_reason": GEN_AI_FINISH_REASONS,
        "llm.request.type": KIND,
        "traceloop.span.kind": KIND,
        "traceloop.workflow.name": FEATURE,
        "traceloop.association.properties.customer_id": TENANT,
        # OpenLIT
        "gen_ai.usage.prompt_tokens_details.cached_tokens": GEN_AI_CACHE_READ_TOKENS,
        "gen_ai.usage.prompt_tokens_details.cache_creation_tokens": GEN_AI_CACHE_WRITE_TOKENS,
        "gen_ai.usage.completion_tokens_details.reasoning_tokens": GEN_AI_REASONING_TOKENS,
        # OpenInference
        "openinference.span.kind": KIND,
        "llm.provider": GEN_AI_PROVIDER,
        "llm.system": GEN_AI_PROVIDER,
        "llm.request.model_name": GEN_AI_REQUEST_MODEL,
        "llm.response.model_name": GEN_AI_RESPONSE_MODEL,
        "llm.model_name": GEN_AI_RESPONSE_MODEL,
        "embedding.model_name": GEN_AI_RESPONSE_MODEL,
        "reranker.model_name": GEN_AI_RESPONSE_MODEL,
        "llm.token_count.prompt": GEN_AI_INPUT_TOKENS,
        "llm.token_count.prompt_details.cache_read": GEN_AI_CACHE_READ_TOKENS,
        "llm.token_count.prompt_details.cache_write": GEN_AI_CACHE_WRITE_TOKENS,
        "llm.token_count.completion": GEN_AI_OUTPUT_TOKENS,
        "llm.token_count.completion_details.reasoning": GEN_AI_REASONING_TOKENS,
        "llm.finish_reason": GEN_AI_FINISH_REASONS,
        # Langfuse: what it calls itself leaves the parts out of the whole; what it passes on of OpenAI's does not
        "langfuse.observation.type": KIND,
        "langfuse.observation.model.name": GEN_AI_RESPONSE_MODEL,
        "langfuse.trace.name": FEATURE,
        "langfuse.usage.input": GEN_AI_INPUT_TOKENS,
        "langfuse.usage.input_tokens": GEN_AI_INPUT_TOKENS,
        "langfuse.usage.prompt_tokens": GEN_AI_INPUT_TOKENS,
        "langfuse.usage.output": GEN_AI_OUTPUT_TOKENS,
        "langfuse.usage.output_tokens": GEN_AI_OUTPUT_TOKENS,
        "langfuse.usage.completion_tokens": GEN_AI_OUTPUT_TOKENS,
        "langfuse.usage.cached_tokens": GEN_AI_CACHE_READ_TOKENS,
        "langfuse.usage.cache_write_tokens": GEN_AI_CACHE_WRITE_TOKENS,
        "langfuse.usage.reasoning_tokens": GEN_AI_REASONING_TOKENS,
        "langfuse.usage.cache_read_input_tokens": CACHE_READ_APART,
        "langfuse.usage.input_cached_tokens": CACHE_READ_APART,
        "langfuse.usage.input_cache_read": CACHE_READ_APART,
        "langfuse.usage.cache_creation_input_tokens": CACHE_WRITE_APART,
        "langfuse.usage.input_cache_creation": CACHE_WRITE_APART,
        "langfuse.usage.output_reasoning": REASONING_APART,
        "langfuse.usage.output_reasoning_tokens": REASONING_APART,
        # Pydantic AI and Logfire
        "gen_ai.usage.details.cache_read_tokens": GEN_AI_CACHE_READ_TOKENS,
        "gen_ai.usage.details.cache_write_tokens": GEN_AI_CACHE_WRITE_TOKENS,
        "gen_ai.usage.details.cached_tokens": GEN_AI_CACHE_READ_TOKENS,
        "gen_ai.usage.details.reasoning_tokens": GEN_AI_REASONING_TOKENS,
    }
)
"""What others call, or called, what has a name here. Where a span has several names of one thing, the first counts.

Whoever uses an app (``user.id``, ``session.id``) is neither a tenant nor a unit of work, and stays an attribute."""

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        **{kind.value: kind for kind in Kind},
        # gen_ai.operation.name
        "chat": Kind.GENERATION,
        "text_completion": Kind.GENERATION,
        "generate_content": Kind.GENERATION,
        "embeddings": Kind.GENERATION,
        "execute_tool": Kind.TOOL,
        "create_agent": Kind.AGENT,
        "invoke_agent": Kind.AGENT,
        "invoke_workflow": Kind.OPERATION,
        "execute_task": Kind.OPERATION,
        "moderation": Kind.GUARD,
        "vectordb": Kind.RETRIEVAL,
        "vector_db_retrieve": Kind.RETRIEVAL,
        "memory_search": Kind.RETRIEVAL,
        # OpenInference, OpenLLMetry and Langfuse, in lower case
        "llm": Kind.GENERATION,
        "completion": Kind.GENERATION,
        "embedding": Kind.GENERATION,
        "retriever": Kind.RETRIEVAL,
        "reranker": Kind.RERANK,
        "guardrail": Kind.GUARD,
        "chain": Kind.OPERATION,
        "workflow": Kind.OPERATION,
        "task": Kind.OPERATION,
        "evaluator": Kind.OPERATION,
        "span": Kind.OPERATION,
        "event": Kind.OPERATION,
        "prompt": Kind.OPERATION,
        "unknown": Kind.OPERATION,
    }
)
"""What a span is, by what it says of itself."""

ENGINE_SCOPES = ("vllm", "sglang")
"""How the scopes of engines' own spans begin: theirs are of the server's side, whatever the client's span says as well."""

APART: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("openlit", "anthropic"): GEN_AI_INPUT_TOKENS,
        ("openlit", "aws.bedrock"): GEN_AI_INPUT_TOKENS,
        ("opentelemetry.instrumentation.bedrock", ""): GEN_AI_INPUT_TOKENS,
        ("openinference.instrumentation.bedrock", ""): GEN_AI_INPUT_TOKENS,
        ("@arizeai/openinference-instrumentation-bedrock", ""): GEN_AI_INPUT_TOKENS,
        ("openlit", "gemini"): GEN_AI_OUTPUT_TOKENS,
        ("openlit", "gcp.gemini"): GEN_AI_OUTPUT_TOKENS,
    }
)
"""Who leaves cached tokens out of the input count, or reasoning out of the output count: the beginning of a scope's name, and a
provider or "" for all. OpenTelemetry counts both in, and so does everybody else: OpenAI's API and what passes its counts on,
OpenLLMetry, OpenInference and Logfire where they add up Anthropic's."""

ERRORS: Mapping[str, Outcome] = MappingProxyType(
    {
        "timeout": Outcome.TIMEOUT,
        "TimeoutError": Outcome.TIMEOUT,
        "asyncio.exceptions.TimeoutError": Outcome.TIMEOUT,
        "APITimeoutError": Outcome.TIMEOUT,
        "openai.APITimeoutError": Outcome.TIMEOUT,
        "anthropic.APITimeoutError": Outcome.TIMEOUT,
        "httpx.ReadTimeout": Outcome.TIMEOUT,
        "408": Outcome.TIMEOUT,
        "504": Outcome.TIMEOUT,
        "CancelledError": Outcome.CANCELLED,
        "asyncio.exceptions.CancelledError": Outcome.CANCELLED,
        "GeneratorExit": Outcome.CANCELLED,
    }
)
"""What an error's type says of how a call ended; any other is an ``error``."""

REPEATED = (KIND, OUTCOME, TENANT, FEATURE, UNIT, GEN_AI_PROVIDER, GEN_AI_RESPONSE_MODEL)
"""Attributes that the store has a column for, as they came: it keeps them there alone."""

# --- delivery headers: a sender numbers what it sends, so that a gap has a name -------------------------------
HEADER_PROJECT = "costspan-project"
HEADER_CLIENT = "costspan-client"
HEADER_SEQUENCE = "costspan-sequence"
HEADER_ITEMS = "costspan-items"
HEADER_TOTAL = "costspan-total"
HEADER_KEY = "costspan-key"

# --- CONTENT: attributes that hold what people and models wrote ------------------------------------------------------
CONTENT = (
    # OpenTelemetry, old and new
    "gen_ai.input.messages",
    "gen_ai.output.messages",
    "gen_ai.system_instructions",
    "gen_ai.tool.definitions",
    "gen_ai.tool.call.arguments",
    "gen_ai.tool.call.result",
    "gen_ai.retrieval.query.text",
    "gen_ai.retrieval.documents",
    "gen_ai.memory.query.text",
    "gen_ai.memory.records",
    "gen_ai.evaluation.explanation",
    "gen_ai.prompt",
    "gen_ai.completion",
    # OpenLLMetry
    "gen_ai.prompt.",
    "gen_ai.completion.",
    "gen_ai.task.input",
    "gen_ai.task.output",
    "llm.request.functions.",
    "traceloop.entity.input",
    "traceloop.entity.output",
    "traceloop.prompt.template",
    "traceloop.prompt.template_variables",
    "traceloop.prompt.template_variables.",
    "mcp.response.value",
    # OpenInference
    "input.value",
    "output.value",
    "llm.input_messages.",
    "llm.output_messages.",
    "llm.prompts",
    "llm.prompts.",
    "llm.choices.",
    "llm.prompt_template.template",
    "llm.prompt_template.variables",
    "llm.function_call",
    "llm.tools.",
    "tool.parameters",
    "retrieval.documents.",
    "reranker.query",
    "reranker.input_documents.",
    "reranker.output_documents.",
    "embedding.text",
    "embedding.embeddings.",
    "document.content",
    # Langfuse
    "langfuse.observation.input",
    "langfuse.observation.output",
    "langfuse.observation.metadata",
    "langfuse.observation.metadata.",
    "langfuse.observation.status_message",
    "langfuse.trace.input",
    "langfuse.trace.output",
    "langfuse.trace.metadata",
    "langfuse.trace.metadata.",
    "langfuse.experiment.metadata",
    "langfuse.experiment.item.metadata",
    "langfuse.experiment.item.expected_output",
    # Logfire and Pydantic AI
    "request_data",
    "response_data",
    "events",
    "all_messages_events",
    "pydantic_ai.all_messages",
    "final_result",
    "tool_arguments",
    "tool_response",
    "prompt",
    "raw_input",
    "input",
    "output",
    "response",
    # OpenLIT
    "gen_ai.content.prompt",
    "gen_ai.content.completion",
    "gen_ai.content.reasoning",
    "gen_ai.content.revised_prompt",
    "gen_ai.tool.args",
    "gen_ai.response.tool_calls",
    "gen_ai.workflow.input",
    "gen_ai.workflow.output",
    "gen_ai.framework.pipeline.input_data",
    "gen_ai.framework.pipeline.output_data",
    "gen_ai.agent.context",
    "gen_ai.agent.instructions",
    "gen_ai.agent.goal",
    "gen_ai.agent.next_goal",
    "gen_ai.agent.action.tool_input",
    "gen_ai.agent.final_result",
    "gen_ai.agent.step_messages",
    "gen_ai.memory.search.query",
    "gen_ai.vectordb.search.query",
    "gen_ai.extraction.instruction",
    "mcp.tool.arguments",
    "mcp.tool.result",
    "mcp.result",
    "mcp.params",
    "mcp.sampling.messages",
    "mcp.fastmcp.prompt.arguments",
    "mcp.completion.argument.value",
    "mcp.completion.values",
    # Vercel's AI SDK
    "ai.prompt",
    "ai.prompt.",
    "ai.response.text",
    "ai.response.object",
    "ai.response.reasoning",
    "ai.response.toolCalls",
    "ai.result.text",
    "ai.result.object",
    "ai.result.toolCalls",
    "ai.toolCall.args",
    "ai.toolCall.result",
    "ai.value",
    "ai.values",
    # MLflow
    "mlflow.spanInputs",
    "mlflow.spanOutputs",
    "mlflow.chat.tools",
    "mlflow.chunk.value",
    "mlflow.trace.intermediate_outputs",
)
"""Names of attributes that hold prompts, answers, tool calls and documents; one that ends with a dot stands for all that begin
with it. They are dropped unless a project asks for them to be kept."""

CONTENT_EVENTS = (
    "gen_ai.system.message",
    "gen_ai.user.message",
    "gen_ai.assistant.message",
    "gen_ai.tool.message",
    "gen_ai.choice",
    "gen_ai.content.prompt",
    "gen_ai.content.completion",
    "gen_ai.client.inference.operation.details",
    "gen_ai.evaluation.result",
)
"""Events, of spans and of logs, whose body is content whatever it says."""

EVENT_NAME = "event.name"
"""Where a log record of old says which event it is."""

# --- SKUs of the price book --------------------------------------------------------------------------------------
SKU_GPU_HOUR = "gpu_hour"
"""``gpu_hour.<device kind>``: one hour of one device."""
SKU_TOKENS = "tokens"
"""``tokens.<provider>.<model>.<kind>``: a million tokens that a provider charges for; the kinds are :class:`Tokens`."""
SKU_REVIEW_MINUTES = "review_minutes"
"""A person's minutes on a unit of work."""
SKU_COST_USD = "cost_usd"
"""``cost_usd.<kind>``: dollars that an app reports itself (:data:`COST_USD`); an invoice of that name is set against them."""
