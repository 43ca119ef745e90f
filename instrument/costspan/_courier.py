"""Encoded spans on their way to the collector."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, set_value

from costspan._trouble import note
from costspan.delivery import Delivery, compressed

_ROOM_BYTES = 32 << 20  # five minutes without a collector at a thousand spans a second of some hundred bytes, compressed


@dataclass(frozen=True)
class _Parcel:
    body: bytes
    encoding: str
    items: int


class Courier:
    """Takes payloads of spans, and delivers them in order; one thread sends.

    Spans wait encoded and compressed: as objects they take fifty times the room.

    Args:
        delivery: How they are delivered; closed by the owner.
        room_bytes: How much may wait. What comes beyond it is dropped.

    Attributes:
        dropped: Spans that were dropped, here or before they came here.
    """

    def __init__(self, delivery: Delivery, room_bytes: int = _ROOM_BYTES) -> None:
        self.dropped = 0
        self._delivery = delivery
        self._room_bytes = room_bytes
        self._way: SimpleQueue[_Parcel | Callable[[], object] | None] = SimpleQueue()
        # Two sums each, of what came and of what left: each has one thread that adds to it, so that none takes a lock.
        self._came_bytes = self._left_bytes = 0
        self._came = self._left = 0
        self._dropping = threading.RLock()  # re-entrant: the garbage collector may end a span in the middle of dropping another
        self._told_dropped = 0
        self._thread = threading.Thread(target=self._work, name="costspan-courier", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Spans that have come and are not settled."""
        return self._came - self._left

    @property
    def is_alive(self) -> bool:
        """Whether it has not been closed, or still sends what came before."""
        return self._thread.is_alive()

    def take(self, body: bytes, items: int) -> None:
        """Take a payload. To be called by one thread only."""
        body, encoding = compressed(body)
        if self._came_bytes - self._left_bytes + len(body) > self._room_bytes:
            self.drop(items)
            return
        self._came_bytes += len(body)
        self._came += items
        self._way.put(_Parcel(body, encoding, items))

    def drop(self, items: int) -> None:
        """Count spans that will never be sent; the collector is told with the next payload."""
        with self._dropping:
            self.dropped += items

    def then(self, call: Callable[[], object]) -> None:
        """Call something once all that was taken so far is settled."""
        self._way.put(call)

    def close(self) -> None:
        """End the thread once all that was taken so far is settled, and the collector knows what it did not get."""
        self._way.put(None)

    def _work(self) -> None:
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))  # an instrumented `requests` must not trace us
        while (what := self._way.get()) is not None:
            if isinstance(what, _Parcel):
                self._send(what)
                self._left_bytes += len(what.body)
                self._left += what.items
            else:
                what()
        self._tell_dropped()
        if self._delivery.owes:  # no later payload will show the gap
            self._send(_Parcel(b"", "", 0))
        self._delivery.hang_up()  # an interpreter that takes itself apart is no place for it

    def _send(self, parcel: _Parcel) -> None:
        try:
            self._tell_dropped()
            self._delivery.send("/v1/traces", parcel.body, "application/x-protobuf", parcel.items, encoding=parcel.encoding)
        except Exception as error:  # noqa: BLE001  (whatever it is, the next must still go)
            self._delivery.given_up += parcel.items
            note(error, "send spans")

    def _tell_dropped(self) -> None:
        dropped = self.dropped
        if dropped > self._told_dropped:
            self._delivery.lost(dropped - self._told_dropped)
            self._told_dropped = dropped
