"""What the check of a request keeps: the same over protobuf and JSON, and never anything else than what is right."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

from costspan_collector.errors import RefusedError
from costspan_collector.intake.signals import JSON, PROTOBUF, SIGNALS, Checked

TRACES = SIGNALS["spans"]
Ids = tuple[bytes, bytes]


def an_id(size: int) -> st.SearchStrategy[bytes]:
    return st.one_of(st.binary(min_size=size, max_size=size), st.binary(max_size=2 * size), st.just(bytes(size)))


PAYLOADS = st.lists(st.lists(st.tuples(an_id(16), an_id(8)), max_size=6), max_size=4)


def is_right(ids: Ids) -> bool:
    trace, span = ids
    return len(trace) == 16 and len(span) == 8 and any(trace) and any(span)


def as_protobuf(scopes: list[list[Ids]]) -> bytes:
    request = ExportTraceServiceRequest()
    for scope in scopes:
        spans = request.resource_spans.add().scope_spans.add().spans
        for trace, span in scope:
            spans.add(trace_id=trace, span_id=span, name="n")
    return request.SerializeToString()


def as_json(scopes: list[list[Ids]]) -> bytes:
    spans = [[{"traceId": trace.hex(), "spanId": span.hex(), "name": "n"} for trace, span in scope] for scope in scopes]
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": scope}]} for scope in spans]}).encode()


def ids_in(checked: Checked) -> list[Ids]:
    request = ExportTraceServiceRequest.FromString(checked.payload)
    scopes = (scope for resource in request.resource_spans for scope in resource.scope_spans)
    return [(span.trace_id, span.span_id) for scope in scopes for span in scope.spans]


@given(PAYLOADS)
def test_exactly_the_right_spans_are_kept(scopes: list[list[Ids]]) -> None:
    sent = [ids for scope in scopes for ids in scope]
    right = [ids for ids in sent if is_right(ids)]
    for body, kind in ((as_protobuf(scopes), PROTOBUF), (as_json(scopes), JSON)):
        if sent and not right:
            with pytest.raises(RefusedError, match=f"nothing of the {len(sent)} spans is taken: span 'n' has ids of"):
                TRACES.check(body, kind)
            continue
        checked = TRACES.check(body, kind)
        assert ids_in(checked) == right
        assert (checked.items, checked.rejected, bool(checked.reason)) == (len(right), len(sent) - len(right), right != sent)
        if kind == PROTOBUF and right == sent:
            assert checked.payload is body


def test_the_points_of_every_metric_are_counted() -> None:
    request = ExportMetricsServiceRequest()
    metrics = request.resource_metrics.add().scope_metrics.add().metrics
    for kind in ("gauge", "sum", "histogram", "exponential_histogram", "summary"):
        metric = Metric(name=kind)
        getattr(metric, kind).data_points.add()
        getattr(metric, kind).data_points.add()
        metrics.append(metric)
    metrics.add(name="of no type")
    assert SIGNALS["metrics"].check(request.SerializeToString(), PROTOBUF).items == 10


@given(st.binary(max_size=300), st.sampled_from(sorted(SIGNALS)), st.sampled_from([PROTOBUF, JSON]))
def test_any_bytes_are_taken_or_refused(body: bytes, stream: str, kind: str) -> None:
    with suppress(RefusedError):
        SIGNALS[stream].check(body, kind)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = [
    *("resourceSpans", "scopeSpans", "spans", "resourceMetrics", "scopeMetrics", "metrics", "sum", "dataPoints"),
    *("resourceLogs", "scopeLogs", "logRecords", "resource", "attributes", "key", "value", "traceId", "spanId"),
    *("timeUnixNano", "kind", "body", "intValue", "asInt", "bucketCounts"),
]
_LIKE_OTLP = st.recursive(
    _JSON,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(_FIELDS), inner, max_size=3),
    max_leaves=12,
)


@given(_LIKE_OTLP, st.sampled_from(sorted(SIGNALS)))
def test_any_json_is_taken_or_refused(read: object, stream: str) -> None:
    with suppress(RefusedError):
        SIGNALS[stream].check(json.dumps(read).encode(), JSON)
