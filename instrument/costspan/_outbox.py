"""Ended spans, until they are encoded for the collector."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from queue import Empty, SimpleQueue

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from costspan._courier import Courier
from costspan._health import Health
from costspan._trouble import counts, note, tell
from costspan.delivery import Delivery
from costspan.semconv import SDK_ERRORS

_CAPACITY = 16_384  # spans that have ended since the thread last had its turn: a second of what one process can make
_BATCH = 512
_LARGEST_BYTES = 4 << 20
_EVERY_S = 0.5
_LOOK_S = 0.005
_STRANGER_S = 3.0  # nobody wants to wait at every exit for a collector that was never there


class Outbox(SpanProcessor):
    """Takes ended spans; one thread encodes them, a :class:`Courier` delivers them.

    Ending a span takes no lock: the garbage collector may end one (a dropped generator) in the middle of ending another.
    OpenTelemetry's own batch processor neither says how many spans it dropped nor bounds a flush in time.

    Args:
        delivery: Where spans go; closed with the outbox.
        capacity: Spans kept at most until they are encoded. Beyond it new ones are dropped, and counted in the total that the
            collector is told.
    """

    def __init__(self, delivery: Delivery, capacity: int = _CAPACITY) -> None:
        self._delivery = delivery
        self._capacity = capacity
        self._courier = Courier(delivery)
        self._ended: deque[ReadableSpan] = deque()
        self._nudges: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._stopping = self._closed = self._abandoned = False
        self._thread = threading.Thread(target=self._work, name="costspan-outbox", daemon=True)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        """Take an ended span."""
        waiting = len(self._ended)
        if self._closed or waiting >= self._capacity:
            if not self._abandoned:
                self._courier.drop(1)
            return
        self._ended.append(span)
        if waiting % _BATCH == _BATCH - 1:
            self._nudges.put(None)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until everything that has ended so far is settled with the collector; whether it was in time."""
        if self._closed:
            return not self.health().waiting
        flushed = threading.Event()
        self._nudges.put(partial(self._courier.then, flushed.set))
        return flushed.wait(timeout_millis / 1000)

    def shutdown(self, timeout_s: float = 10.0) -> None:
        """Send what is waiting, for at most ``timeout_s`` seconds, and stop."""
        if self._abandoned:
            return
        self.stop(timeout_s)
        self._closed = True
        self._delivery.close()
        health = self.health()
        unsent = health.waiting + health.dropped
        if unsent:
            tell(logging.WARNING, "at least %d spans did not reach the collector", unsent)

    def stop(self, timeout_s: float, end_open: Callable[[], None] | None = None) -> None:
        """Send what is waiting, then what ``end_open`` ends, and take no more; at most for ``timeout_s`` seconds.

        A collector that no try has reached is not waited for. It takes no lock, and so may be called by the handler of a signal
        that came in the middle of anything, this included.
        """
        if not self._stopping:
            self._stopping = True
            self._nudges.put(partial(self._finish, end_open))
        began = time.monotonic()
        while self._thread.is_alive() or self._courier.is_alive:
            if time.monotonic() - began > (min(timeout_s, _STRANGER_S) if self._delivery.has_met_nobody else timeout_s):
                break
            time.sleep(_LOOK_S)

    def abandon(self) -> None:
        """Take no more spans: in a forked child, what was waiting is the parent's to send."""
        self._stopping = self._closed = self._abandoned = True
        self._ended.clear()

    def health(self) -> Health:
        """What has become of the spans so far."""
        delivery, courier = self._delivery, self._courier
        return Health(
            sent=delivery.sent,
            waiting=len(self._ended) + courier.waiting,
            dropped=courier.dropped,
            refused=delivery.refused,
            given_up=delivery.given_up,
            errors=counts(),
        )

    def _work(self) -> None:
        while not self._closed:
            try:
                then = self._nudges.get(timeout=_EVERY_S)
            except Empty:
                then = None
            self._encode()
            if then is not None:
                then()
        self._encode()
        self._courier.close()

    def _finish(self, end_open: Callable[[], None] | None) -> None:
        try:
            if end_open is not None:
                end_open()
        except Exception as error:  # noqa: BLE001  (what has ended must still go)
            note(error, "end what is still open")
        self._encode()
        self._closed = True

    def _encode(self) -> None:
        while self._ended:
            spans = [self._ended.popleft() for _ in range(min(_BATCH, len(self._ended)))]
            for body, items in self._payloads(spans):
                self._courier.take(body, items)

    def _payloads(self, spans: list[ReadableSpan]) -> Iterator[tuple[bytes, int]]:
        """Requests of a size that a collector takes, and how many spans each has. What cannot be encoded is counted as lost."""
        trouble: Exception | None = None
        body = b""
        try:
            body = _request(spans)
        except Exception as error:  # noqa: BLE001  (whatever it is, the others must still go)
            trouble = error
        if trouble is None and (len(body) <= _LARGEST_BYTES or len(spans) == 1):
            yield body, len(spans)
        elif len(spans) > 1:
            half = len(spans) // 2
            yield from self._payloads(spans[:half])
            yield from self._payloads(spans[half:])
        elif trouble is not None:
            self._courier.drop(1)
            note(trouble, "encode spans")


def _request(spans: list[ReadableSpan]) -> bytes:
    """An OTLP request. Once there have been errors of ours, its first span says how many so far."""
    request = encode_spans(spans)
    errors = sum(counts().values())
    if errors:
        first = request.resource_spans[0].scope_spans[0].spans[0]
        first.attributes.add(key=SDK_ERRORS).value.int_value = errors
    return request.SerializeToString()
