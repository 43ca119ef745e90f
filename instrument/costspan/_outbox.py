"""Ended spans on their way to the collector."""

from __future__ import annotations

import logging
import threading
from collections import deque
from queue import Empty, SimpleQueue

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, set_value
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from costspan._trouble import report
from costspan.delivery import Delivery

_logger = logging.getLogger("costspan")

_CAPACITY = 65_536  # spans: a minute without a collector at a thousand spans a second
_BATCH = 512
_EVERY_S = 0.5


class Outbox(SpanProcessor):
    """Keeps ended spans until the collector has them; one thread sends them in order.

    Ending a span takes no lock: the garbage collector may end one (a dropped generator) in the middle of ending another.
    OpenTelemetry's own batch processor neither says how many spans it dropped nor bounds a flush in time.

    Args:
        delivery: Where spans go; closed with the outbox.
        capacity: Spans kept at most. Beyond it new ones are dropped, and counted in the total that the collector is told.
    """

    def __init__(self, delivery: Delivery, capacity: int = _CAPACITY) -> None:
        self._delivery = delivery
        self._capacity = capacity
        self._waiting: deque[ReadableSpan] = deque()
        self._nudges: SimpleQueue[threading.Event | None] = SimpleQueue()
        self._losing = threading.RLock()
        self._lost = 0
        self._stopped = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="costspan-outbox", daemon=True)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        """Take an ended span."""
        waiting = len(self._waiting)
        if self._closed or waiting >= self._capacity:
            with self._losing:
                self._lost += 1
            return
        self._waiting.append(span)
        if waiting % _BATCH == _BATCH - 1:
            self._nudges.put(None)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until everything that has ended so far is settled with the collector; whether it was in time."""
        if self._closed:
            return not self._waiting
        flushed = threading.Event()
        self._nudges.put(flushed)
        return flushed.wait(timeout_millis / 1000)

    def shutdown(self, timeout_s: float = 10.0) -> None:
        """Send what is waiting, for at most ``timeout_s`` seconds, and stop."""
        if self._closed:
            return
        self._closed = True
        self._nudges.put(self._stopped)
        self._stopped.wait(timeout_s)
        self._delivery.close()
        unsent = len(self._waiting) + self._lost
        if unsent:
            _logger.warning("at least %d spans did not reach the collector", unsent)

    def abandon(self) -> None:
        """Take no more spans: in a forked child, what was waiting is the parent's to send."""
        self._closed = True
        self._waiting.clear()

    def _work(self) -> None:
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))  # an instrumented `requests` must not trace us
        while not self._stopped.is_set():
            try:
                flushed = self._nudges.get(timeout=_EVERY_S)
            except Empty:
                flushed = None
            while self._waiting:
                self._send([self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))])
            if flushed is not None:
                flushed.set()

    def _send(self, spans: list[ReadableSpan]) -> None:
        with self._losing:
            lost, self._lost = self._lost, 0
        if lost:
            self._delivery.lost(lost)
        try:
            body = encode_spans(spans).SerializeToString()
        except Exception as error:  # noqa: BLE001  (whatever it is, the next batch must still go)
            self._delivery.lost(len(spans))
            report(error, "encode spans")
        else:
            self._delivery.send("/v1/traces", body, "application/x-protobuf", len(spans))
