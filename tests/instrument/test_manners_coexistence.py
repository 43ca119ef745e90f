"""An app with tracing of its own: its spans, its sampler, its exporter stay as they were, and ours know nothing of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

import costspan
from costspan import semconv
from tests.instrument.program import ended, running
from tests.receiver import Receiver

APP = """
import json, costspan
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()

@costspan.observe
def work():
    with trace.get_tracer("app").start_as_current_span("inner"):
        deep()

@costspan.observe
def deep():
    pass

def ours():
    costspan.init()

def theirs():
    provider = TracerProvider()  # its sampler is the environment's
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)

ORDER
with trace.get_tracer("app").start_as_current_span("outer"):
    work()
work()
costspan.shutdown()
print(json.dumps([
    [span.name, f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}", span.parent and f"{span.parent.span_id:016x}"]
    for span in exporter.get_finished_spans()
]), flush=True)
"""


@pytest.mark.parametrize("order", ["ours(); theirs()", "theirs(); ours()"])
def test_nothing_of_ours_is_in_theirs_whoever_starts_first(receiver: Receiver, order: str) -> None:
    with running(APP.replace("ORDER", order), receiver) as program:
        inner, outer, alone = json.loads(program.hear())
        assert program.end() == 0, program.error
    assert [outer[0], outer[3]] == ["outer", None]
    assert [inner[0], inner[1], inner[3]] == ["inner", outer[1], outer[2]]
    assert [alone[0], alone[3]] == ["inner", None]
    deep, work, deep_alone, work_alone = ended(receiver)
    assert [span.name for span in ended(receiver)] == ["deep", "work", "deep", "work"]
    assert (work.trace_id, work.parent_id) == (outer[1], outer[2])
    assert (deep.trace_id, deep.parent_id) == (outer[1], work.span_id)
    assert (deep_alone.parent_id, work_alone.parent_id) == (work_alone.span_id, "")
    assert len({work.trace_id, work_alone.trace_id, alone[1]}) == 3


@pytest.mark.parametrize("sampler", ["always_off", "parentbased_always_off"])
def test_an_apps_sampler_decides_on_its_spans_and_on_no_other(receiver: Receiver, sampler: str) -> None:
    code = APP.replace("ORDER", "ours(); theirs()")
    with running(code, receiver, {"OTEL_TRACES_SAMPLER": sampler}) as program:
        assert json.loads(program.hear()) == []
        assert program.end() == 0, program.error
    assert [span.name for span in ended(receiver)] == ["deep", "work", "deep", "work"]


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What the app's own exporter gets."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return exporter


@costspan.observe(name="work")
def work() -> dict[str, str]:
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


@pytest.mark.parametrize("flags", [TraceFlags.DEFAULT, TraceFlags.SAMPLED])
def test_a_caller_elsewhere_is_a_parent_whether_it_is_sampled_or_not(traced: Receiver, flags: int) -> None:
    remote = SpanContext(7, 9, is_remote=True, trace_flags=TraceFlags(flags))
    token = context.attach(set_span_in_context(NonRecordingSpan(remote)))
    handed_on = work()["traceparent"]
    context.detach(token)
    span = traced.span("work")
    assert (span.trace_id, span.parent_id) == (f"{7:032x}", f"{9:016x}")
    assert handed_on == f"00-{7:032x}-{9:016x}-{flags:02x}"


def test_what_the_app_hands_on_is_its_own_and_what_we_hand_on_is_ours(traced: Receiver, exported: InMemorySpanExporter) -> None:
    token = context.attach(baggage.set_baggage("theirs", "1"))
    with trace.get_tracer("app").start_as_current_span("outer") as outer:
        assert work()["traceparent"].split("-")[2] == f"{outer.get_span_context().span_id:016x}"
        with costspan.generation(model="m", provider="p") as call:
            ours = call.headers()
    context.detach(token)
    assert ours["traceparent"].split("-")[2] == traced.span("chat m").span_id
    assert "theirs=1" in ours["baggage"]
    assert [span.name for span in exported.get_finished_spans()] == ["outer"]


def test_an_instrumented_requests_does_not_trace_our_sending(
    receiver: Receiver, exported: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = requests.Session.send
    sent: list[str] = []

    def send(session: requests.Session, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """As opentelemetry-instrumentation-requests does."""
        sent.append(str(request.url))
        if context.get_value(context._SUPPRESS_INSTRUMENTATION_KEY):
            return original(session, request, **kwargs)
        with trace.get_tracer("requests").start_as_current_span("POST"):
            return original(session, request, **kwargs)

    monkeypatch.setattr(requests.Session, "send", send)
    costspan.init(endpoint=receiver.endpoint)
    work()
    assert receiver.span("work").outcome == "ok"
    costspan.shutdown(5)
    assert sent == [f"{receiver.endpoint}/v1/traces"]
    assert exported.get_finished_spans() == ()


def test_the_apps_globals_and_the_tracers_of_others_are_as_they_were(
    receiver: Receiver, exported: InMemorySpanExporter
) -> None:
    before = (trace.get_tracer_provider(), propagate.get_global_textmap(), trace.get_current_span(), context.get_current())
    costspan.init(endpoint=receiver.endpoint)
    work()
    assert before == (
        trace.get_tracer_provider(),
        propagate.get_global_textmap(),
        trace.get_current_span(),
        context.get_current(),
    )
    costspan.shutdown(5)
    assert exported.get_finished_spans() == ()
    assert semconv.OUTCOME in next(iter(ended(receiver))).attributes
