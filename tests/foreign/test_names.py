"""One meaning for what each source says in names and counts of its own.

The rows are what the sources' current code emits: vLLM's ``OutputProcessor.do_tracing``, SGLang's ``make_span_attrs``, the
instrumentations of Anthropic, Bedrock and Gemini by OpenLIT, OpenLLMetry and OpenInference, Langfuse's callback for LangChain.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from costspan import semconv
from costspan.semconv import Kind
from tests.collector.harness import Running
from tests.foreign.normalised import Normal, attributes, send, spans

ANTHROPIC = {
    "gen_ai.provider.name": "anthropic",
    "gen_ai.operation.name": "chat",
    "gen_ai.response.model": "claude",
    "gen_ai.usage.output_tokens": 7,
    "gen_ai.usage.cache_read.input_tokens": 1000,
    "gen_ai.usage.cache_creation.input_tokens": 200,
}
CLAUDE = Normal("generation", "anthropic", "claude", 1240, 1000, 200, 7)
BEDROCK = ANTHROPIC | {"gen_ai.provider.name": "aws.bedrock"}
GEMINI = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "flash", "gen_ai.usage.reasoning_tokens": 90}
OPEN_INFERENCE = {
    "openinference.span.kind": "LLM",
    "llm.provider": "anthropic",
    "llm.model_name": "claude",
    "llm.token_count.completion": 7,
    "llm.token_count.prompt_details.cache_read": 1000,
    "llm.token_count.prompt_details.cache_write": 200,
}
VLLM = {
    "gen_ai.request.id": "cmpl-1",
    "gen_ai.usage.prompt_tokens": 30,
    "gen_ai.usage.completion_tokens": 9,
    "gen_ai.latency.e2e": 0.5,
}
USAGE = "langfuse.observation.usage_details"
LANGFUSE = {"langfuse.observation.type": "generation", "langfuse.observation.model.name": "m"}
OLD = {
    "gen_ai.system": "openai",
    "llm.request.type": "chat",
    "gen_ai.request.model": "gpt-4",
    "gen_ai.usage.prompt_tokens": 30,
    "gen_ai.usage.completion_tokens": 9,
    "llm.usage.reasoning_tokens": 4,
}
CASES: dict[str, tuple[str, dict[str, Any], Normal]] = {
    # cached tokens: inside the input count, or beside it
    "opentelemetry": ("opentelemetry.util.genai.handler", ANTHROPIC | {"gen_ai.usage.input_tokens": 1240}, CLAUDE),
    "openllmetry": ("opentelemetry.instrumentation.anthropic", ANTHROPIC | {"gen_ai.usage.input_tokens": 1240}, CLAUDE),
    "openlit": ("openlit.instrumentation.anthropic", ANTHROPIC | {"gen_ai.usage.input_tokens": 40}, CLAUDE),
    "openlit, much uncached": (
        "openlit.instrumentation.anthropic",
        ANTHROPIC | {"gen_ai.usage.input_tokens": 5000},
        CLAUDE._replace(input_tokens=6200),
    ),
    "openlit, openai": (
        "openlit.instrumentation.openai",
        ANTHROPIC | {"gen_ai.provider.name": "openai", "gen_ai.usage.input_tokens": 5000},
        CLAUDE._replace(provider="openai", input_tokens=5000),
    ),
    "openllmetry, bedrock": (
        "opentelemetry.instrumentation.bedrock",
        BEDROCK | {"gen_ai.usage.input_tokens": 5000},
        CLAUDE._replace(provider="aws.bedrock", input_tokens=6200),
    ),
    "openinference": ("openinference.instrumentation.anthropic", OPEN_INFERENCE | {"llm.token_count.prompt": 1240}, CLAUDE),
    "openinference, bedrock": (
        "openinference.instrumentation.bedrock",
        OPEN_INFERENCE | {"llm.token_count.prompt": 5000},
        CLAUDE._replace(input_tokens=6200),
    ),
    "more cached than there was input": ("somebody's own", ANTHROPIC | {"gen_ai.usage.input_tokens": 40}, CLAUDE),
    # reasoning: inside the output count, or beside it
    "openlit, gemini": (
        "openlit.instrumentation.google_ai_studio",
        GEMINI | {"gen_ai.provider.name": "gemini", "gen_ai.usage.output_tokens": 100},
        Normal("generation", "gemini", "flash", output_tokens=190, reasoning_tokens=90),
    ),
    "openlit, o3": (
        "openlit.instrumentation.openai",
        GEMINI | {"gen_ai.provider.name": "openai", "gen_ai.usage.output_tokens": 100},
        Normal("generation", "openai", "flash", output_tokens=100, reasoning_tokens=90),
    ),
    # Langfuse's JSON: its own counts are apart, OpenAI's are not
    "langfuse": (
        "langfuse-sdk",
        LANGFUSE | {USAGE: '{"input": 40, "output": 7, "cache_read_input_tokens": 1000, "cache_creation_input_tokens": 200}'},
        CLAUDE._replace(provider="", model="m"),
    ),
    "langfuse, langchain": (
        "langfuse-sdk",
        LANGFUSE | {USAGE: '{"input": 10, "output": 5, "total": 45, "input_cache_read": 20, "output_reasoning": 10}'},
        Normal("generation", "", "m", 30, 20, 0, 15, 10),
    ),
    "langfuse, openai": (
        "langfuse-sdk",
        LANGFUSE
        | {
            USAGE: '{"prompt_tokens": 30, "completion_tokens": 15, "prompt_tokens_details": {"cached_tokens": 20}, '
            '"completion_tokens_details": {"reasoning_tokens": 10, "audio_tokens": 0}, "total_tokens": 45}'
        },
        Normal("generation", "", "m", 30, 20, 0, 15, 10),
    ),
    # old names
    "openllmetry until 0.4": (
        "opentelemetry.instrumentation.openai.v1",
        OLD,
        Normal("generation", "openai", "gpt-4", 30, 0, 0, 9, 4),
    ),
    # engines' own spans
    "vllm": ("vllm.llm_engine", VLLM | {"gen_ai.response.model": "qwen"}, Normal("engine_request", "", "qwen", 30, 0, 0, 9)),
    "sglang": (
        "sglang server",
        VLLM | {"gen_ai.usage.cached_tokens": 20, "gen_ai.response.model": "qwen"},
        Normal("engine_request", "", "qwen", 30, 20, 0, 9),
    ),
    "sglang, aborted": (
        "sglang server",
        VLLM | {"gen_ai.response.finish_reasons": ["abort"]},
        Normal("engine_request", "", "", 30, 0, 0, 9, outcome="cancelled"),
    ),
    "vllm starts": ("vllm.worker", {"code.function": "load_model"}, Normal("", "", "", outcome="")),
    # what a span is
    "usage alone": ("somebody's own", {"gen_ai.usage.input_tokens": 3}, Normal("generation", "", "", 3)),
    "tool": ("pydantic-ai", {"gen_ai.operation.name": "execute_tool"}, Normal("tool", "", "")),
    "agent": ("strands", {"gen_ai.operation.name": "invoke_agent"}, Normal("agent", "", "")),
    "embeddings": ("otel", {"gen_ai.operation.name": "embeddings"}, Normal("generation", "", "")),
    "retriever": (
        "openinference.instrumentation.langchain",
        {"openinference.span.kind": "RETRIEVER"},
        Normal("retrieval", "", ""),
    ),
    "reranker": (
        "openinference.instrumentation.haystack",
        {"openinference.span.kind": "RERANKER", "reranker.model_name": "r"},
        Normal("rerank", "", "r"),
    ),
    "guardrail": ("langfuse-sdk", {"langfuse.observation.type": "guardrail"}, Normal("guard", "", "")),
    "vector store": ("openlit", {"gen_ai.operation.name": "vectordb"}, Normal("retrieval", "", "")),
    "task": ("traceloop.tracer", {"traceloop.span.kind": "task"}, Normal("operation", "", "")),
    "chain": ("langfuse-sdk", {"langfuse.observation.type": "chain"}, Normal("operation", "", "")),
    "anything else": ("opentelemetry.instrumentation.flask", {"http.route": "/"}, Normal("", "", "", outcome="")),
    "ours": ("costspan", {semconv.KIND: "review", semconv.GEN_AI_OPERATION: "chat"}, Normal("review", "", "", outcome="")),
    # who
    "a user is no tenant": (
        "langfuse-sdk",
        LANGFUSE | {"user.id": "u", "session.id": "s", "langfuse.trace.name": "answer"},
        Normal("generation", "", "m", feature="answer"),
    ),
    # an error
    "timeout": (
        "otel",
        OLD | {"error.type": "openai.APITimeoutError"},
        Normal("generation", "openai", "gpt-4", 30, 0, 0, 9, 4, "timeout"),
    ),
    "error": ("otel", OLD | {"error.type": "429"}, Normal("generation", "openai", "gpt-4", 30, 0, 0, 9, 4, "error")),
}


def request(cases: Iterable[tuple[str, tuple[str, dict[str, Any], Normal]]]) -> dict[str, Any]:
    """An OTLP/JSON request with one span a case."""
    scopes = [
        {
            "scope": {"name": scope},
            "spans": [
                {
                    "traceId": f"{at + 1:032x}",
                    "spanId": f"{at + 1:016x}",
                    "name": name,
                    "kind": 3,
                    "startTimeUnixNano": str(1_790_000_000_000_000_000 + at),
                    "endTimeUnixNano": str(1_790_000_001_000_000_000 + at),
                    "attributes": [{"key": key, "value": _value(value)} for key, value in attributes.items()],
                    "status": {"code": 2} if "error.type" in attributes else {},
                }
            ],
        }
        for at, (name, (scope, attributes, _)) in enumerate(cases)
    ]
    return {"resourceSpans": [{"scopeSpans": scopes}]}


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(each) for each in value]}}
    return {{int: "intValue", float: "doubleValue", str: "stringValue"}[type(value)]: value}


@pytest.fixture(scope="module")
def normal(collector: Running) -> dict[str, list[Normal]]:
    send(collector, "names", request(CASES.items()))
    collector.drained()
    return spans(collector, "names")


@pytest.mark.parametrize("name", CASES)
def test_every_source_means_the_same(normal: dict[str, list[Normal]], name: str) -> None:
    assert normal[name] == [CASES[name][2]]


def test_nothing_that_came_is_lost(collector: Running, normal: dict[str, list[Normal]]) -> None:
    assert len(normal) == len(CASES)
    columns = set(semconv.REPEATED)
    for (_, sent, _), kept in zip(CASES.values(), attributes(collector, "names"), strict=True):
        assert set(sent) - columns <= set(kept)


def test_the_table_of_names_leads_to_names_of_ours() -> None:
    ours = {value for name, value in vars(semconv).items() if isinstance(value, str) and not name.startswith("_")}
    assert set(semconv.ALIASES.values()) <= ours
    assert not set(semconv.ALIASES) & set(semconv.ALIASES.values())
    assert set(semconv.KINDS.values()) <= set(Kind)
