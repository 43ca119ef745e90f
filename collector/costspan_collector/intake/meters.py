"""What ``/metrics`` says: how requests were answered, counted here, and the collector's state when it is asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from costspan_collector.errors import CollectorError
from costspan_collector.intake.answers import http_status

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_PREFIX = "costspan_collector_"
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_GAUGES = {
    "pending_bytes": "Bytes in the log that are not in the store yet.",
    "pending_records": "Payloads in the log that are not in the store yet.",
    "oldest_pending_seconds": "Age of the oldest payload that is not in the store yet, 0 when there is none.",
}
_COUNTERS = {
    "accepted_records": "Payloads taken.",
    "accepted_items": "Spans, data points, log records or rows taken.",
    "written_records": "Payloads written to the store.",
    "quarantined_records": "Payloads that the store refused, set aside.",
    "wire_bytes": "Bytes of the bodies of payloads taken, as they came.",
}

Health = Mapping[str, Any]


class Meters:
    """The meters of one collector.

    Args:
        health: Its state, see ``service.py``.
    """

    def __init__(self, health: Callable[[], Health]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_State(health))
        self._requests = Counter(
            _PREFIX + "requests",
            "Payloads answered, by stream, protocol and HTTP status; of gRPC, the status that HTTP would have.",
            ("stream", "protocol", "code"),
            registry=self._registry,
        )
        self._acknowledged = Histogram(
            _PREFIX + "acknowledgement_seconds",
            "From a payload's headers to its acknowledgement, when it is on disk.",
            ("stream", "protocol"),
            registry=self._registry,
            buckets=_BUCKETS_S,
        )

    @contextmanager
    def answering(self, stream: str, protocol: str) -> Iterator[None]:
        """Count an answer to a payload, and how long it took when it was taken.

        Args:
            stream: The stream it is for.
            protocol: ``http`` or ``grpc``.
        """
        began_s, code = time.perf_counter(), 500
        try:
            yield
            code = 200
        except CollectorError as error:
            code = http_status(error)
            raise
        finally:
            self._requests.labels(stream, protocol, str(code)).inc()
            if code == 200:
                self._acknowledged.labels(stream, protocol).observe(time.perf_counter() - began_s)

    def exposition(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


class _State(Collector):
    def __init__(self, health: Callable[[], Health]) -> None:
        self._health = health

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering does not ask for the state."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The state as it is now."""
        health = self._health()
        streams: Mapping[str, Mapping[str, float]] = health["streams"]
        yield GaugeMetricFamily(_PREFIX + "store_up", "1 while the store takes what it is sent.", int(health["store"]["up"]))
        yield GaugeMetricFamily(_PREFIX + "log_used_bytes", "Disk space that the log uses.", health["log"]["used_bytes"])
        yield GaugeMetricFamily(_PREFIX + "log_limit_bytes", "Disk space that it may use.", health["log"]["budget_bytes"])
        for name, kept in health["quarantine"].items():
            yield GaugeMetricFamily(f"{_PREFIX}quarantine_{name}", f"What the quarantine holds, in {name}.", kept)
        for name, said in _GAUGES.items():
            yield _filled(GaugeMetricFamily(_PREFIX + name, said, labels=("stream",)), streams, name)
        for name, said in _COUNTERS.items():
            yield _filled(CounterMetricFamily(_PREFIX + name, said, labels=("stream",)), streams, name)
        inserts = SummaryMetricFamily(_PREFIX + "insert_seconds", "Time that inserts into the store took.", labels=("stream",))
        for stream, state in streams.items():
            inserts.add_metric((stream,), count_value=int(state["inserts"]), sum_value=state["insert_seconds"])
        yield inserts


def _filled(family: GaugeMetricFamily | CounterMetricFamily, streams: Mapping[str, Mapping[str, float]], name: str) -> Metric:
    for stream, state in streams.items():
        family.add_metric((stream,), state[name])
    return family
