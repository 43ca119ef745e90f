"""Metrics and logs after a crash: the rows of a payload that are not stored are stored, and no other again."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from clickhouse_connect.driver.client import Client
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

from costspan_collector.security.content import part_logs
from costspan_collector.store.sinks import SignalSink, complete
from costspan_collector.wal.record import encode
from tests.collector.harness import record

DAY_NS = 86_400_000_000_000
EARLY = (-1 << 63) % (1 << 64)  # a time that the store reads as before 1970
TIMES = (5, 5, DAY_NS, DAY_NS + 1, EARLY)


def metrics(times: Iterable[int]) -> bytes:
    """A data point of every type at each time."""
    request = ExportMetricsServiceRequest()
    scope = request.resource_metrics.add().scope_metrics.add()
    for at_ns in times:
        for kind in ("gauge", "sum", "histogram", "exponential_histogram", "summary"):
            metric = Metric(name=kind)
            getattr(metric, kind).data_points.add(time_unix_nano=at_ns)
            scope.metrics.append(metric)
    return request.SerializeToString()


def logs(times: Iterable[int]) -> bytes:
    """A log record at each time, or only observed then."""
    request = ExportLogsServiceRequest()
    scope = request.resource_logs.add().scope_logs.add()
    for at, at_ns in enumerate(times):
        scope.log_records.add(**{"observed_time_unix_nano" if at % 2 else "time_unix_nano": at_ns})
    return request.SerializeToString()


@pytest.mark.parametrize(("stream", "made", "each"), [("metrics", metrics, 5), ("logs", logs, 1)])
@pytest.mark.parametrize("there", [(), (5, 5), (DAY_NS, EARLY), TIMES])
def test_what_is_missing_is_completed(store: Client, stream: str, made: type, each: int, there: tuple[int, ...]) -> None:
    sink = SignalSink(stream)
    whole = [record(number, made(TIMES), stream=stream, items=each * len(TIMES)) for number in (1, 2)]
    part = record(1, made(there), stream=stream)  # arrived when the first did
    sink.insert(store, encode(part), "part")
    for _ in range(2):
        complete(sink, store, b"".join(map(encode, whole)), "whole", recut=True)
        counts = store.query(f"SELECT received, count() FROM {stream} GROUP BY received").result_rows  # noqa: S608
        assert [count for _, count in counts] == [each * len(TIMES)] * 2
        assert store.query("SELECT count() FROM deliveries WHERE stream = {s:String}", {"s": stream}).result_rows == [(2,)]


def test_a_text_that_came_in_the_same_instant_hides_no_other(store: Client) -> None:
    """Log records outside any trace have neither ids nor, often, times that tell their texts apart."""

    def told(number: int, text: str) -> bytes:
        request = ExportLogsServiceRequest()
        entry = request.resource_logs.add().scope_logs.add().log_records.add(time_unix_nano=5)
        entry.attributes.add(key="gen_ai.input.messages").value.string_value = text
        return encode(record(number, part_logs(request.SerializeToString(), lambda kept: kept), stream="logs"))

    sink = SignalSink("logs")
    sink.insert(store, told(2, "what came a millisecond later"), "neighbour")
    for _ in range(2):
        complete(sink, store, told(1, "what was not stored"), "doubtful", recut=True)
        assert store.query("SELECT text FROM payloads ORDER BY received").result_rows == [
            ("what was not stored",),
            ("what came a millisecond later",),
        ]
