"""Where OTLP's signals land in the store, and what tells the rows of each apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from costspan_collector.intake.signals import data_points
from costspan_collector.store.tables import LOGS, METRICS, SPANS
from costspan_collector.wal.record import Record

Key = tuple[Any, ...]

_SPAN = ("project", "trace_id", "span_id")
_IN_PAYLOAD = ("project", "toUnixTimestamp64Nano(received)", "toUInt64(at_ns)")


@dataclass(frozen=True, slots=True)
class Landing:
    """The way of a signal into the store.

    Attributes:
        table: What the log is inserted into as it is; views make rows of it.
        envelope: The message of ``landing.proto`` that the log's records are.
        rows: The table that has the rows.
        request: The message in a record's payload.
        lists: The lists of items in a request; what is taken out of them is not stored.
        key: Expressions over a row that tell it from others; rows that agree in them come in one part, so all of them are
            stored or none.
        key_of: The same of an item in a record.
    """

    table: str
    envelope: str
    rows: str
    request: Callable[[], Any]
    lists: Callable[[Any], Iterable[Any]]
    key: tuple[str, ...]
    key_of: Callable[[Record, Any], Key]


def _spans(request: ExportTraceServiceRequest) -> Iterable[Any]:
    return (scope.spans for resource in request.resource_spans for scope in resource.scope_spans)


def _points(request: ExportMetricsServiceRequest) -> Iterable[Any]:
    scopes = (scope for resource in request.resource_metrics for scope in resource.scope_metrics)
    return (data_points(metric) for scope in scopes for metric in scope.metrics)


def _entries(request: ExportLogsServiceRequest) -> Iterable[Any]:
    return (scope.log_records for resource in request.resource_logs for scope in resource.scope_logs)


def _span_key(record: Record, span: Span) -> Key:
    return record.project, span.trace_id.hex(), span.span_id.hex()


def _point_key(record: Record, point: Any) -> Key:
    return record.project, record.received_ns, point.time_unix_nano


def _entry_key(record: Record, entry: LogRecord) -> Key:
    return record.project, record.received_ns, entry.time_unix_nano or entry.observed_time_unix_nano


LANDINGS = MappingProxyType(
    {
        SPANS: Landing("landing", "Envelope", SPANS, ExportTraceServiceRequest, _spans, _SPAN, _span_key),
        METRICS: Landing(
            "landing_metrics", "MetricsEnvelope", METRICS, ExportMetricsServiceRequest, _points, _IN_PAYLOAD, _point_key
        ),
        LOGS: Landing("landing_logs", "LogsEnvelope", LOGS, ExportLogsServiceRequest, _entries, _IN_PAYLOAD, _entry_key),
    }
)
"""By stream."""
