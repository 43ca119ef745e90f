"""OTLP's signals: what a request of each must be, and which of its items are left out when they are wrong.

A request that cannot be read is refused whole, because nothing in it can be told from the rest. Of one that can be read, each
item that the store could not file is left out, the rest is taken, and the answer says how many and why; a request of which
nothing is left is refused whole, so that a sender that gets everything wrong does not count it as delivered.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.metrics.v1.metrics_pb2 import HistogramDataPoint, Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from costspan_collector.errors import RefusedError
from costspan_collector.intake.outline import check_json_outline, check_outline
from costspan_collector.security.content import Keep, part_logs, part_spans
from costspan_collector.store.tables import LOGS, METRICS, SPANS

PROTOBUF = "application/x-protobuf"
JSON = "application/json"

_TRACE_ID_BYTES, _SPAN_ID_BYTES = 16, 8
_NO_TRACE, _NO_SPAN = bytes(_TRACE_ID_BYTES), bytes(_SPAN_ID_BYTES)
_IDS = attrgetter("trace_id", "span_id")
_ID_KEYS = ("traceId", "spanId", "parentSpanId")


@dataclass(frozen=True, slots=True)
class Checked:
    """A request that the log may take.

    Attributes:
        payload: It, in protobuf: its own bytes, unless it came as JSON or something was left out.
        items: How many items it holds.
        rejected: How many were left out.
        reason: What is wrong with the first of those, "" when there is none.
    """

    payload: bytes
    items: int
    rejected: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Signal:
    """One of OTLP's signals.

    Attributes:
        stream: The stream of the log that it goes to.
        path: Where it comes over HTTP.
        service: The gRPC service that takes it.
        request: What comes.
        response: What is answered.
        rejected: The field of a partial success that counts what was left out.
        screen: Takes wrong items out of a request; says how many it holds then, how many it held, and what was wrong first.
        part: Takes content out of a request's bytes, see ``content.py``; None where there can be none.
    """

    stream: str
    path: str
    service: str
    request: Callable[[], Any]
    response: Callable[[], Any]
    rejected: str
    screen: Callable[[Any], tuple[int, int, str]]
    part: Callable[[bytes, Keep | None], bytes] | None = None

    def check(self, body: bytes, kind: str) -> Checked:
        """Check a request.

        Args:
            body: Its bytes, unpacked.
            kind: :data:`PROTOBUF` or :data:`JSON`.

        Raises:
            RefusedError: 400, it cannot be read, or there is nothing right in it.
        """
        check_json_outline(body) if kind == JSON else check_outline(body)
        request = self.request()
        try:
            if kind == JSON:
                _read_json(body, request)
            else:
                request.ParseFromString(body)
        except (DecodeError, json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise RefusedError(400, f"the body is not an OTLP {request.DESCRIPTOR.name}: {error}") from error
        right, all_items, reason = self.screen(request)
        if all_items and not right:
            raise RefusedError(400, f"nothing of the {all_items} {self.stream} is taken: {reason}")
        changed = kind == JSON or right < all_items
        if len(UnknownFieldSet(request)):  # what content.py adds is not for senders to add
            request.DiscardUnknownFields()
            changed = True
        return Checked(request.SerializeToString() if changed else body, right, all_items - right, reason)

    def answer(self, rejected: int, reason: str) -> Message:
        """The response to a request that was taken, but for some items."""
        response: Message = self.response()
        if rejected:
            response.partial_success.error_message = reason  # type: ignore[attr-defined]  # of all three responses
            setattr(response.partial_success, self.rejected, rejected)  # type: ignore[attr-defined]
        return response


def _read_json(body: bytes, request: Message) -> None:
    read = json.loads(body, object_hook=_with_ids)
    if not isinstance(read, dict):
        raise TypeError("it is no JSON object")
    json_format.ParseDict(read, request, ignore_unknown_fields=True)


def _with_ids(value: dict[str, Any]) -> dict[str, Any]:
    """Ids as protobuf's JSON has bytes, in base64: OTLP's JSON has them in hex. What is no hex becomes an id of no bytes."""
    for key in _ID_KEYS:
        if key in value:
            value[key] = base64.b64encode(_unhexed(value[key])).decode()
    return value


def _unhexed(value: Any) -> bytes:
    try:
        return bytes.fromhex(value)
    except (TypeError, ValueError):
        return b""


# --- traces --------------------------------------------------------------------------------------------------------------


def _screen_spans(request: ExportTraceServiceRequest) -> tuple[int, int, str]:
    right = count = 0
    reason = ""
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            count += len(scope.spans)
            wrong = [
                at
                for at, (trace, span) in enumerate(map(_IDS, scope.spans))
                if len(trace) != _TRACE_ID_BYTES or len(span) != _SPAN_ID_BYTES or trace == _NO_TRACE or span == _NO_SPAN
            ]
            if wrong:
                reason = reason or _ids_of(scope.spans[wrong[0]])
                for at in reversed(wrong):
                    del scope.spans[at]
            right += len(scope.spans)
    return right, count, reason


def _ids_of(span: Span) -> str:
    return (
        f"span {span.name!r} has ids of {len(span.trace_id)} and {len(span.span_id)} bytes: "
        f"a trace id has {_TRACE_ID_BYTES}, a span id {_SPAN_ID_BYTES}, and neither has only zeros"
    )


# --- metrics -------------------------------------------------------------------------------------------------------------


def _screen_points(request: ExportMetricsServiceRequest) -> tuple[int, int, str]:
    right = count = 0
    reason = ""
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                points = data_points(metric)
                count += len(points)
                wrong = _wrong_points(metric, points)
                right += len(points)
                reason = reason or wrong
    return right, count, reason


def data_points(metric: Metric) -> Any:
    """The data points of a metric, of whichever type it is; none of one without a type."""
    kind = metric.WhichOneof("data")
    return getattr(metric, kind).data_points if kind else []


def _wrong_points(metric: Metric, points: Any) -> str:
    """Take the wrong ones out of a metric's points; what is wrong with the first, "" when all are right."""
    if points and not metric.name:
        del points[:]
        return "a metric has no name: its data points cannot be told from others"
    if not metric.HasField("histogram"):
        return ""
    right = [point for point in points if _has_buckets(point)]
    if len(right) == len(points):
        return ""
    del points[:]
    points.extend(right)
    return f"metric {metric.name!r} has a histogram whose buckets are not one more than their bounds"


def _has_buckets(point: HistogramDataPoint) -> bool:
    counts, bounds = len(point.bucket_counts), len(point.explicit_bounds)
    return counts == bounds + 1 or (counts == 0 and bounds == 0)


# --- logs ----------------------------------------------------------------------------------------------------------------


def _count_entries(request: ExportLogsServiceRequest) -> tuple[int, int, str]:
    """No log record is wrong: OTLP asks for ids that are none to be read as no ids."""
    count = sum(len(scope.log_records) for resource in request.resource_logs for scope in resource.scope_logs)
    return count, count, ""


_SERVICES = "opentelemetry.proto.collector"
_TRACES = Signal(
    SPANS,
    "/v1/traces",
    f"{_SERVICES}.trace.v1.TraceService",
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
    "rejected_spans",
    _screen_spans,
    part_spans,
)
_METRICS = Signal(
    METRICS,
    "/v1/metrics",
    f"{_SERVICES}.metrics.v1.MetricsService",
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
    "rejected_data_points",
    _screen_points,
)
_LOGS = Signal(
    LOGS,
    "/v1/logs",
    f"{_SERVICES}.logs.v1.LogsService",
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
    "rejected_log_records",
    _count_entries,
    part_logs,
)
SIGNALS = MappingProxyType({signal.stream: signal for signal in (_TRACES, _METRICS, _LOGS)})
"""By stream."""
