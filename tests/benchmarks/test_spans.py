"""The spans that benchmarks and tests send."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from benchmarks.pages import Payload
from benchmarks.spans import Traffic
from costspan import semconv

T = 1_790_000_000_000_000_000
SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def payload() -> Payload:
    return Traffic(1, requests=300, pages=1).payload(T)


def spans_of(payload: Payload) -> list[Span]:
    request = ExportTraceServiceRequest.FromString(payload.body)
    return list(chain.from_iterable(scope.spans for resource in request.resource_spans for scope in resource.scope_spans))


def text(span: Span, name: str) -> str:
    return next((each.value.string_value for each in span.attributes if each.key == name), "")


def number(span: Span, name: str) -> int:
    return next((each.value.int_value for each in span.attributes if each.key == name), 0)


def test_it_says_which_ids_it_made(payload: Payload) -> None:
    spans = spans_of(payload)
    assert sorted(span.span_id.hex() for span in spans) == sorted(payload.ids())
    assert {span.trace_id for span in spans} == {row.tobytes() for row in payload.trace_ids}
    assert payload.spans == len(spans) == len({span.span_id for span in spans})


def test_a_request_is_a_tree_whose_times_lie_within_each_other(payload: Payload) -> None:
    spans = {span.span_id: span for span in spans_of(payload)}
    for span in spans.values():
        assert T - 900 * SECOND < span.start_time_unix_nano <= span.end_time_unix_nano <= T
        if parent := spans.get(span.parent_span_id):
            assert parent.trace_id == span.trace_id
            assert parent.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= parent.end_time_unix_nano
    assert sum(not span.parent_span_id for span in spans.values()) == 300


def test_a_client_reads_what_its_stamps_say(payload: Payload) -> None:
    for span in spans_of(payload):
        if span.parent_span_id:
            continue
        assert number(span, semconv.CALL_START) == span.start_time_unix_nano
        assert number(span, semconv.CALL_END) == span.end_time_unix_nano
        names = (semconv.CALL_START, semconv.CALL_SENT, semconv.CALL_HEADERS, semconv.CALL_FIRST, semconv.CALL_LAST)
        assert [number(span, name) for name in names] == sorted(number(span, name) for name in names)


def test_values_are_spread_as_in_life(payload: Payload) -> None:
    spans = [span for span in spans_of(payload) if not span.parent_span_id]
    tenants = Counter(text(span, semconv.TENANT) for span in spans)
    assert tenants.most_common(1)[0][1] > 10
    assert len(tenants) > 50
    assert len({text(span, semconv.UNIT) for span in spans}) > 290
    outcomes = Counter(text(span, semconv.OUTCOME) for span in spans)
    assert outcomes["ok"] > 250
    assert outcomes["cancelled"] > 0
    tokens = sorted(number(span, semconv.GEN_AI_INPUT_TOKENS) for span in spans)
    assert tokens[-1] > 5 * tokens[150] > 0


def test_there_are_twelve_attributes_a_span(payload: Payload) -> None:
    spans = spans_of(payload)
    mean = sum(len(span.attributes) for span in spans) / len(spans)
    assert 11.5 < mean < 12.5
    assert Traffic(1, requests=300, pages=1).attributes_per_span == pytest.approx(mean)


def test_the_same_seed_sends_the_same_and_no_payload_comes_twice() -> None:
    one, same, other = Traffic(2, requests=3, pages=1), Traffic(2, requests=3, pages=1), Traffic(3, requests=3, pages=1)
    first, again = one.payload(T), one.payload(T)
    assert first.body == same.payload(T).body
    assert not {*first.ids()} & ({*again.ids()} | {*other.payload(T).ids()})
    assert {text(span, semconv.UNIT) for span in spans_of(first)} != {text(span, semconv.UNIT) for span in spans_of(again)}
