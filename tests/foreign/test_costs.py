"""What foreign spans cost: a call that several report is bought once, and none of them breaks the law of time."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import polars as pl

from costspan import semconv
from costspan_analytics.book import Book
from costspan_analytics.model_calls import ModelCalls
from costspan_analytics.store import Store
from costspan_analytics.timeline import Timeline
from tests.collector.harness import Running
from tests.foreign.normalised import Normal, send
from tests.foreign.test_names import request

PROJECT = "bought"
USED = {"gen_ai.usage.input_tokens": 3000, "gen_ai.usage.output_tokens": 1000, "gen_ai.usage.cache_read.input_tokens": 1000}
MODEL = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt"}
RATES = {"input": "2.00", "cache_read": "0.50", "output": "8.00"}
SPANS: dict[str, tuple[str, dict[str, Any]]] = {
    # An agent adds up what is under it, LangChain's model tells what the client's tells, and that is the call.
    "agent": ("pydantic-ai", {"gen_ai.operation.name": "invoke_agent"} | USED),
    "langchain": ("opentelemetry.instrumentation.langchain", MODEL | USED),
    "task": ("opentelemetry.instrumentation.langchain", {"traceloop.span.kind": "task"}),
    "client": ("opentelemetry.instrumentation.openai.v1", MODEL | USED | {"gen_ai.response.model": "gpt-2026"}),
    "server": ("vllm.llm_engine", {"gen_ai.request.id": "1", "gen_ai.usage.prompt_tokens": 3000}),
    "unpriced": ("openlit.instrumentation.openai", MODEL | USED | {"gen_ai.request.model": "other"}),
}


def nested() -> dict[str, Any]:
    """One trace, each span under the one before; ``unpriced`` is beside ``client``."""
    made = request((name, (scope, attributes, Normal())) for name, (scope, attributes) in SPANS.items())
    spans = [each["spans"][0] for each in made["resourceSpans"][0]["scopeSpans"]]
    for under, above in zip(spans[1:], spans, strict=False):
        under["parentSpanId"] = above["spanId"]
    spans[-1]["parentSpanId"] = spans[2]["spanId"]
    for span in spans:
        span["traceId"] = spans[0]["traceId"]
    return made


def test_a_call_that_several_report_is_bought_once(collector: Running) -> None:
    send(collector, PROJECT, nested())
    collector.drained()
    store = Store(collector.store, PROJECT)
    for kind, rate in RATES.items():
        store.insert("prices", price(f"tokens.openai.gpt.{kind}", rate), token=kind)
    timeline = Timeline.load(store)
    assert timeline.calls.is_empty()
    book = Book.load(store, timeline)
    assert book.posted == (2000 * Decimal(2) + 1000 * Decimal("0.5") + 1000 * Decimal(8)) / 1_000_000
    assert book.unpriced == [f"tokens.openai.other.{kind}" for kind in ("cache_read", "input", "output")]
    assert {posting.source_id for posting in book.postings} == {f"{4:016x}", f"{6:016x}"}


def test_costspans_own_report_counts_beside_anothers(collector: Running) -> None:
    answered = MODEL | USED | {"gen_ai.response.id": "c-1"}
    own = {semconv.KIND: "generation", semconv.OUTCOME: "ok", semconv.ATTEMPT: 1, semconv.TENANT: "acme"}
    reports = (("theirs", ("langfuse-sdk", answered, Normal())), ("ours", ("costspan", answered | own, Normal())))
    send(collector, "beside", request(reports))
    collector.drained()
    found = ModelCalls.load(Store(collector.store, "beside"), no_attempts())
    assert [(row["tenant"], row["span_id"]) for row in found.bought] == [("acme", f"{2:016x}")]


def no_attempts() -> pl.DataFrame:
    columns = ("engine", "request_id", "trace_id", "parent_span_id", "model", "prompt_tokens", "output_tokens")
    return pl.DataFrame(schema=dict.fromkeys(columns, pl.String))


def price(sku: str, rate: str) -> pl.DataFrame:
    row: dict[str, Any] = {"project": PROJECT, "sku": sku, "unit": "million tokens", "rate": Decimal(rate), "currency": "USD"}
    row |= {"effective_from": pl.Series([0]).cast(pl.Datetime("ms", "UTC"))[0], "source": "list", "version": "1"}
    money, moment = pl.Decimal(38, 12), pl.Datetime("ms", "UTC")
    return pl.DataFrame([row], schema_overrides={"rate": money, "effective_from": moment})
