"""OTLP over HTTP and gRPC: the exporters of opentelemetry-python as they are, and what its specification says of the rest."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]  # ships no types
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # ships no types
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import LogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

from costspan_collector.security import keys
from tests.collector.conftest import Start
from tests.collector.harness import PROTOBUF, Running, delivery, sentence, spans

JSON = "application/json"
PATHS = ("/v1/traces", "/v1/metrics", "/v1/logs")
TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
AT_NS = 1_790_000_000_000_000_000


class Exporters(NamedTuple):
    spans: SpanExporter
    metrics: MetricExporter
    logs: LogRecordExporter


def over_http(collector: Running, compression: Compression = Compression.NoCompression) -> Exporters:
    return Exporters(
        OTLPSpanExporter(f"{collector.url}/v1/traces", compression=compression),
        OTLPMetricExporter(f"{collector.url}/v1/metrics", compression=compression),
        OTLPLogExporter(f"{collector.url}/v1/logs", compression=compression),
    )


def over_grpc(collector: Running, compression: grpc.Compression = grpc.Compression.NoCompression) -> Exporters:
    return Exporters(
        GrpcSpanExporter(collector.grpc, insecure=True, compression=compression),
        GrpcMetricExporter(collector.grpc, insecure=True, compression=compression),
        GrpcLogExporter(collector.grpc, insecure=True, compression=compression),
    )


WAYS: dict[str, Callable[[Running], Exporters]] = {
    "http": over_http,
    "http-gzip": lambda collector: over_http(collector, Compression.Gzip),
    "http-deflate": lambda collector: over_http(collector, Compression.Deflate),
    "grpc": over_grpc,
    "grpc-gzip": lambda collector: over_grpc(collector, grpc.Compression.Gzip),
}


def rows(collector: Running, sql: str, **parameters: Any) -> list[dict[str, Any]]:
    collector.drained()
    with collector.client() as client:
        return list(client.query(sql, parameters=parameters).named_results())


@pytest.mark.parametrize("way", WAYS)
def test_what_the_exporters_of_opentelemetry_send_becomes_rows(collector: Running, way: str) -> None:
    exporters = WAYS[way](collector)
    resource = Resource({"service.name": f"shop-{way}", "service.instance.id": "shop-1", "host.name": "h"})
    trace_id, span_id = export_span_and_log(exporters, resource)
    export_metrics(exporters, resource)

    span = rows(collector, "SELECT * FROM spans WHERE trace_id = {id:String}", id=trace_id)
    assert [(each["span_id"], each["name"], each["service"], each["client"]) for each in span] == [
        (span_id, "pay", f"shop-{way}", "shop-1")
    ]
    (log,) = rows(collector, "SELECT * FROM logs WHERE trace_id = {id:String}", id=trace_id)
    assert (log["span_id"], log["severity"], log["level"], log["event"]) == (span_id, 13, "WARN", "card.declined")
    assert (log["body"], log["attributes"], log["at_ns"]) == ("", {"attempt": "2"}, AT_NS)  # a body is content
    assert (log["service"], log["client"], log["resource"]["host.name"]) == (f"shop-{way}", "shop-1", "h")

    metrics = {
        each["name"]: each
        for each in rows(collector, "SELECT * FROM metrics WHERE service = {name:String}", name=f"shop-{way}")
    }
    assert {name: (each["type"], each["temporality"]) for name, each in metrics.items()} == {
        "orders": ("sum", "cumulative"),
        "stock": ("gauge", ""),
        "wait": ("histogram", "cumulative"),
        "size": ("exponential_histogram", "cumulative"),
    }
    assert (metrics["orders"]["value"], metrics["orders"]["unit"], metrics["orders"]["monotonic"]) == (3.0, "1", True)
    assert (metrics["stock"]["value"], metrics["stock"]["attributes"]) == (2.5, {"shelf": "7"})
    wait = metrics["wait"]
    assert (wait["count"], wait["sum"], wait["min"], wait["max"]) == (2, 30.0, 10.0, 20.0)
    assert sum(wait["bucket_counts"]) == 2
    assert len(wait["bucket_counts"]) == len(wait["bucket_bounds"]) + 1
    assert (metrics["size"]["count"], sum(metrics["size"]["positive_counts"]), metrics["size"]["zero_count"]) == (3, 2, 1)


def export_span_and_log(exporters: Exporters, resource: Resource) -> tuple[str, str]:
    """Send a span and a log record inside of it; their ids."""
    tracers = TracerProvider(resource=resource)
    tracers.add_span_processor(SimpleSpanProcessor(exporters.spans))
    loggers = LoggerProvider(resource=resource)
    loggers.add_log_record_processor(SimpleLogRecordProcessor(exporters.logs))
    with tracers.get_tracer("test").start_as_current_span("pay") as span:
        loggers.get_logger("test").emit(
            LogRecord(
                timestamp=AT_NS,
                severity_number=SeverityNumber.WARN,
                severity_text="WARN",
                body="the card of Ada Lovelace was declined",
                attributes={"attempt": 2},
                event_name="card.declined",
            )
        )
        context = span.get_span_context()
    loggers.shutdown()
    tracers.shutdown()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def export_metrics(exporters: Exporters, resource: Resource) -> None:
    """Send one data point of each type that the SDK has."""
    reader = PeriodicExportingMetricReader(exporters.metrics, export_interval_millis=float("inf"))
    exponential = View(instrument_name="size", aggregation=ExponentialBucketHistogramAggregation())
    provider = MeterProvider([reader], resource, views=[exponential])
    meter = provider.get_meter("test")
    meter.create_counter("orders", unit="1").add(3)
    meter.create_gauge("stock").set(2.5, {"shelf": 7})
    for value in (10, 20):
        meter.create_histogram("wait", unit="ms").record(value)
    for value in (0, 3, 300):
        meter.create_histogram("size").record(value)
    assert provider.force_flush()
    provider.shutdown()


# --- partial success -----------------------------------------------------------------------------------------------------


def some_wrong() -> tuple[ExportTraceServiceRequest, list[str]]:
    """Six spans, of which three are wrong each in its own way, and the ids of the right ones."""
    request = ExportTraceServiceRequest.FromString(spans(6, seed=5).body)
    right = request.resource_spans[0].scope_spans[0].spans
    right[0].trace_id = b"short"
    right[2].span_id = b""
    right[5].trace_id = bytes(16)
    return request, [right[at].span_id.hex() for at in (1, 3, 4)]


def test_right_spans_are_kept_and_wrong_ones_named(collector: Running) -> None:
    request, right = some_wrong()
    answer = collector.post("/v1/traces", request.SerializeToString(), headers=delivery(1, client="partial", items=6))
    assert answer.status_code == 200
    partial = ExportTraceServiceResponse.FromString(answer.content).partial_success
    assert partial.rejected_spans == 3
    assert "span 'decode' has ids of 5 and 8 bytes" in partial.error_message
    stored = rows(collector, "SELECT span_id FROM spans WHERE span_id IN {ids:Array(String)}", ids=right)
    assert sorted(each["span_id"] for each in stored) == sorted(right)
    assert rows(collector, "SELECT items FROM deliveries WHERE client = 'partial'") == [{"items": 6}]  # as its sender counts


def test_wrong_ids_in_json_are_a_partial_success_too(collector: Running) -> None:
    def span(trace_id: Any, span_id: Any) -> dict[str, Any]:
        return {"traceId": trace_id, "spanId": span_id, "name": "j"}

    wrong = [span("no hex", "ab" * 8), span("ab" * 16, None), span("ab" * 15, "ab" * 8), span(7, [])]
    body = {"resourceSpans": [{"scopeSpans": [{"spans": [*wrong, span("0A" * 16, "0b" * 8)]}]}]}
    answer = collector.post("/v1/traces", json.dumps(body).encode(), JSON)
    assert (answer.status_code, answer.headers["content-type"]) == (200, JSON)
    assert answer.json()["partialSuccess"]["rejectedSpans"] == "4"
    assert len(rows(collector, "SELECT 1 FROM spans WHERE trace_id = {id:String}", id="0a" * 16)) == 1


def test_a_histogram_that_does_not_add_up_is_left_out(collector: Running) -> None:
    request = ExportMetricsServiceRequest()
    metrics = request.resource_metrics.add().scope_metrics.add().metrics
    points = metrics.add(name="partial.wait").histogram.data_points
    points.add(time_unix_nano=AT_NS, count=1, bucket_counts=[1], explicit_bounds=[1.0, 2.0])
    points.add(time_unix_nano=AT_NS, count=7)
    metrics.add().gauge.data_points.add(time_unix_nano=AT_NS, as_int=1)
    answer = collector.post("/v1/metrics", request.SerializeToString())
    assert answer.status_code == 200
    assert b"'partial.wait'" in answer.content
    assert rows(collector, "SELECT count FROM metrics WHERE name IN ('partial.wait', '')") == [{"count": 7}]


# --- HTTP ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("kind", "empty"), [(PROTOBUF, b""), (JSON, b"{}")])
def test_an_empty_request_is_right(collector: Running, path: str, kind: str, empty: bytes) -> None:
    before = collector.health()["pending_records"]
    answer = collector.post(path, empty, kind)
    assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, kind, empty)
    assert collector.health()["pending_records"] == before


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("kind", "wrong"), [(PROTOBUF, b"\x0a\xff"), (JSON, b'{"x": '), (JSON, b"[" * 100_000), (JSON, b"[]")])
def test_an_error_is_a_status_in_the_media_type_of_the_request(collector: Running, path: str, kind: str, wrong: bytes) -> None:
    answer = collector.post(path, wrong, kind)
    assert (answer.status_code, answer.headers["content-type"]) == (400, kind)
    if kind == PROTOBUF:
        assert Status.FromString(answer.content).code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    else:
        assert answer.json()["code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "OTLP" in sentence(answer)
    assert "retry-after" not in answer.headers


def test_what_is_unknown_in_json_is_ignored(collector: Running) -> None:
    span = {
        "traceId": "AB" * 16,
        "spanId": "cd" * 8,
        "parentSpanId": "",
        "name": "later",
        "kind": 3,
        "startTimeUnixNano": 5,
        "endTimeUnixNano": "9",
        "flags": 257,
        "inTheFuture": {"deep": [1]},
        "attributes": [{"key": "n", "value": {"intValue": "7"}}, {"key": "m", "value": {"newValue": 1}}],
        "links": [{"traceId": "ef" * 16, "spanId": "01" * 8}],
        "status": {"code": 2},
    }
    body = {"resourceSpans": [{"scopeSpans": [{"spans": [span], "future": 1}]}], "future": None}
    assert collector.post("/v1/traces", json.dumps(body).encode(), f"{JSON}; charset=utf-8").status_code == 200
    (row,) = rows(collector, "SELECT * FROM spans WHERE trace_id = {id:String}", id="ab" * 16)
    assert (row["span_id"], row["span_kind"], row["status"], row["duration_ns"]) == ("cd" * 8, "client", "error", 4)
    assert (row["attributes"], row["links.trace_id"], row["links.span_id"]) == ({"n": "7", "m": ""}, ["ef" * 16], ["01" * 8])


def test_metrics_and_logs_in_json(collector: Running) -> None:
    exemplar = {"traceId": "ab" * 16, "spanId": "cd" * 8, "asDouble": 1, "timeUnixNano": "5"}
    point = {"asInt": "9007199254740993", "timeUnixNano": str(AT_NS), "exemplars": [exemplar]}
    total = {"dataPoints": [point], "aggregationTemporality": 1, "isMonotonic": True}
    metrics = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "json.total", "sum": total}]}]}]}
    assert collector.post("/v1/metrics", json.dumps(metrics).encode(), JSON).status_code == 200
    (row,) = rows(collector, "SELECT * FROM metrics WHERE name = 'json.total'")
    assert (row["type"], row["temporality"], row["value"], row["at_ns"]) == ("sum", "delta", 2.0**53, AT_NS)

    entry = {"traceId": "ab" * 16, "spanId": "cd" * 7, "observedTimeUnixNano": str(AT_NS), "severityNumber": 17}
    logs = {"resourceLogs": [{"scopeLogs": [{"scope": {"name": "json"}, "logRecords": [entry]}]}]}
    assert collector.post("/v1/logs", json.dumps(logs).encode(), JSON).status_code == 200
    (row,) = rows(collector, "SELECT * FROM logs WHERE scope = 'json'")
    assert (row["trace_id"], row["span_id"], row["at_ns"], row["severity"]) == ("ab" * 16, "", AT_NS, 17)  # no id of 7 bytes


@pytest.mark.parametrize("pack", [zlib.compress, lambda body: body], ids=["deflate", "identity"])
def test_encodings(collector: Running, pack: Callable[[bytes], bytes]) -> None:
    encoding = "deflate" if pack is zlib.compress else "identity"
    answer = collector.post("/v1/traces", pack(spans(1, seed=11).body), headers={"content-encoding": encoding})
    assert answer.status_code == 200


def test_what_logs_say_is_kept_where_a_project_asks_for_it(start: Start, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "projects.toml").write_text('[projects.kept]\ncontent = "keep"\n')
    collector = start()
    request = ExportLogsServiceRequest()
    entries = request.resource_logs.add().scope_logs.add().log_records
    entries.add(time_unix_nano=1).body.string_value = "mail to ada@example.org"
    entries.add(time_unix_nano=2).body.kvlist_value.values.add(key="n").value.int_value = 7
    entries.add(time_unix_nano=3)
    for project in ("kept", "dropped"):
        headers = {"costspan-project": project}
        assert collector.post("/v1/logs", request.SerializeToString(), headers=headers).status_code == 200
    said = rows(collector, "SELECT project, body FROM logs ORDER BY project, at_ns")
    assert [(each["project"], each["body"]) for each in said] == [
        *(("dropped", body) for body in ("", "", "")),
        *(("kept", body) for body in ("mail to [email]", '{"n": 7}', "")),
    ]


def test_nobody_adds_content_to_a_request(collector: Running) -> None:
    """The field of the request in which content.py puts what a project keeps is not for senders."""
    forged = b"\xc2\x3e\x0c\x4a\x0a\x0a\x03key\x12\x03\x0a\x01x"
    batch = spans(1, seed=12)
    assert collector.post("/v1/traces", batch.body + forged).status_code == 200
    assert rows(collector, "SELECT span_id FROM spans WHERE span_id = {id:String}", id=batch.ids[0])
    assert rows(collector, "SELECT * FROM payloads") == []


# --- gRPC ----------------------------------------------------------------------------------------------------------------


def call(
    collector: Running,
    body: bytes,
    metadata: Mapping[str, str] | None = None,
    method: str = TRACES,
    compression: grpc.Compression | None = None,
) -> bytes:
    with grpc.insecure_channel(collector.grpc) as channel:
        export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        return export(body, metadata=tuple((metadata or {}).items()), timeout=20, compression=compression)


def refused(collector: Running, body: bytes, metadata: Mapping[str, str] | None = None, **more: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as error:
        call(collector, body, metadata, **more)
    return error.value


def status(error: grpc.RpcError) -> Any:
    """The details that came with an error, or None."""
    details = [each.value for each in error.trailing_metadata() or () if each.key == "grpc-status-details-bin"]
    return Status.FromString(details[0]) if details else None


def test_a_numbered_payload_comes_by_metadata_and_counts_once(collector: Running) -> None:
    batch = spans(3, seed=21)
    for _ in range(2):
        assert call(collector, batch.body, delivery(1, client="over-grpc", items=3, project="shop")) == b""
        collector.drained()
    stored = rows(collector, "SELECT project FROM spans WHERE span_id IN {ids:Array(String)}", ids=batch.ids)
    assert stored == [{"project": "shop"}] * 3
    assert rows(collector, "SELECT sequence, items FROM deliveries WHERE client = 'over-grpc'") == [{"sequence": 1, "items": 3}]


def test_a_partial_success_over_grpc(collector: Running) -> None:
    request, _ = some_wrong()
    assert (
        ExportTraceServiceResponse.FromString(call(collector, request.SerializeToString())).partial_success.rejected_spans == 3
    )


@pytest.mark.parametrize(
    ("body", "metadata", "says"),
    [
        (b"\x0a\xff", {}, "not an OTLP"),
        (b"", {"costspan-client": "c"}, "send both"),
        (spans(1).body, {"costspan-items": "-1"}, "whole number"),
    ],
)
def test_what_is_wrong_over_grpc_is_not_to_be_sent_again(
    collector: Running, body: bytes, metadata: dict[str, str], says: str
) -> None:
    error = refused(collector, body, metadata)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert says in (error.details() or "")
    assert status(error).details == []


def test_other_calls_are_not_known(collector: Running) -> None:
    error = refused(collector, b"", method="/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export")
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_over_the_limit_is_refused_packed_or_not(collector: Running, compression: grpc.Compression) -> None:
    error = refused(collector, bytes(40 << 20), compression=compression)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert status(error) is None  # so no RetryInfo: not to be sent again


# --- later, and with a key -----------------------------------------------------------------------------------------------


def test_a_full_log_says_when_to_try_again(start: Start) -> None:
    collector = start("--store", "http://127.0.0.1:1", "--disk-budget-mb", "1")
    answers = [collector.post("/v1/traces", spans(4000, seed=seed).body) for seed in range(4)]
    last = answers[-1]
    assert (answers[0].status_code, last.status_code, last.headers["retry-after"]) == (200, 503, "1")
    said = Status.FromString(last.content)
    assert said.code == grpc.StatusCode.UNAVAILABLE.value[0]
    error = refused(collector, spans(4000, seed=4).body)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert status(error) == said
    retry = RetryInfo()
    assert said.details[0].Unpack(retry)
    assert retry.retry_delay.seconds == 1


def test_a_used_up_quota_says_when_to_try_again(start: Start, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "projects.toml").write_text("[default]\nquota_mb_per_minute = 0.001\n")
    collector = start()
    assert collector.post("/v1/traces", spans(50).body).status_code == 200
    answer = collector.post("/v1/traces", b"{}", JSON)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["code"] == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    error = refused(collector, b"")
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = RetryInfo()
    assert status(error).details[0].Unpack(retry)
    assert retry.retry_delay.seconds >= 1


def test_a_key_is_asked_for(start: Start, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with keys.changing(data / keys.FILE) as kept:
        key, token = keys.make(name="", project="shop", reads=False, writes=True)
        kept.append(key)
    collector = start()
    body = spans(1).body
    answer = collector.post("/v1/logs", b"{}", JSON)
    assert (answer.status_code, answer.headers["www-authenticate"], answer.json()["code"]) == (401, "Bearer", 16)
    assert refused(collector, body).code() is grpc.StatusCode.UNAUTHENTICATED
    assert (
        refused(collector, body, {"costspan-key": token, "costspan-project": "other"}).code()
        is grpc.StatusCode.PERMISSION_DENIED
    )
    bearer = {"authorization": f"Bearer {token}"}
    assert call(collector, body, bearer) == b""
    assert collector.post("/v1/traces", spans(1, seed=1).body, headers=bearer).status_code == 200
    assert collector.health()["streams"]["spans"]["accepted_items"] == 2
