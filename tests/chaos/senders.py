"""Senders that deliver as real ones do: each payload until it is acknowledged, numbered or not."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import NamedTuple
from urllib.parse import urlsplit

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from benchmarks.spans import Traffic
from costspan import semconv
from tests.collector.harness import ARROW, PROTOBUF, evictions, ipc

_TIMEOUT_S = 10.0
_AGAIN_S = 0.03
_DAY_NS = 86_400_000_000_000


class Made(NamedTuple):
    """A payload and the ids of what is in it."""

    path: str
    kind: str
    body: bytes
    ids: list[str]


@dataclass
class Sender(threading.Thread):
    """Sends payloads of one stream one after the other until told to stop, then sees the last one through.

    Args:
        stream: What it sends.
        project: Whose.
        numbered: Whether it numbers its payloads.
        target: Where the collector is now.
        stop: Set when it shall stop.
        seed: Of all that is random.
    """

    stream: str
    project: str
    numbered: bool
    target: Callable[[], str]
    stop: threading.Event
    seed: int
    delivered: list[list[str]] = field(default_factory=list)  # the ids in each payload that was acknowledged
    refused: str = ""

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self._rng = random.Random(self.seed)
        self._traffic = Traffic(self.seed, requests=3, pages=2) if self.stream == "spans" else None
        self._connection: HTTPConnection | None = None
        self.client = f"{self.stream}-{self.seed}" if self.numbered else ""

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        """Send."""
        try:
            while not self.stop.is_set() and not self.refused:
                self._deliver(len(self.delivered) + 1)
                time.sleep(self._rng.expovariate(100))
        finally:
            self._disconnect()

    def _deliver(self, number: int) -> None:
        made = self._make(number)
        headers = {"content-type": made.kind, semconv.HEADER_PROJECT: self.project}
        if self.client:
            headers |= {
                semconv.HEADER_CLIENT: self.client,
                semconv.HEADER_SEQUENCE: str(number),
                semconv.HEADER_ITEMS: str(len(made.ids)),
                semconv.HEADER_TOTAL: str(sum(len(each) for each in self.delivered) + len(made.ids)),
            }
        while (status := self._post(made, headers)) != 200:
            if status not in {None, 503}:
                self.refused = str(status)
                return
            time.sleep(_AGAIN_S)
        self.delivered.append(made.ids)

    def _make(self, number: int) -> Made:
        now_ns = time.time_ns() - self._rng.choice((0, 0, 0, _DAY_NS))
        ids = [f"{self.seed * 1_000_000 + number * 10 + at}" for at in range(self._rng.randint(1, 5))]
        if self._traffic:
            payload = self._traffic.payload(now_ns)
            return Made("/v1/traces", PROTOBUF, payload.body, [bytes(one).hex() for one in payload.span_ids])
        if self.stream == "evictions":
            rows = evictions(map(int, ids))
            rows = rows.set_column(0, "project", [[self.project] * len(ids)])
            return Made("/v1/ledger/evictions", ARROW, ipc(rows), ids)
        if self.stream == "metrics":
            request = ExportMetricsServiceRequest()
            points = request.resource_metrics.add().scope_metrics.add().metrics.add(name="m").gauge.data_points
            for one in ids:
                points.add(time_unix_nano=now_ns, as_int=int(one))
            return Made("/v1/metrics", PROTOBUF, request.SerializeToString(), ids)
        logs = ExportLogsServiceRequest()
        scope = logs.resource_logs.add().scope_logs.add()
        for one in ids:
            scope.log_records.add(time_unix_nano=now_ns, event_name=one)
        return Made("/v1/logs", PROTOBUF, logs.SerializeToString(), ids)

    def _post(self, made: Made, headers: dict[str, str]) -> int | None:
        """Send it once; the status, or None when there was no answer, whether it arrived or not."""
        try:
            if self._connection is None:
                where = urlsplit(self.target())
                self._connection = HTTPConnection(where.hostname or "", where.port, timeout=_TIMEOUT_S)
                self._connection.connect()
        except OSError:
            self._disconnect()
            return None
        try:
            self._connection.request("POST", made.path, made.body, headers)
            answer = self._connection.getresponse()
            answer.read()
        except (OSError, HTTPException):
            self._disconnect()
            return None
        return answer.status

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None
