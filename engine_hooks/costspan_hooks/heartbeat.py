"""The heartbeat of a device: proof that it was ours, second by second, and so the hours of the bill.

It knows nothing of steps or requests. That is the point: the ledger is checked against it.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from costspan.clock import now_ns
from costspan_hooks.records import SampleRecord

PERIOD_S = 1.0


class Heartbeat(threading.Thread):
    """Reports the interval since its last report, every second and once more when it stops.

    Args:
        device_kind: The name that the price book knows the device by.
        client: ``service.instance.id`` of this process.
        sink: Takes each sample; must not block.
    """

    def __init__(self, device_kind: str, client: str, sink: Callable[[SampleRecord], None]) -> None:
        super().__init__(name="costspan-heartbeat", daemon=True)
        self._device_kind, self._client, self._sink = device_kind, client, sink
        self._host = socket.gethostname()
        self._ended = threading.Event()
        self._since_ns = now_ns()

    def run(self) -> None:
        """Tick until stopped."""
        while not self._ended.wait(PERIOD_S):
            self._beat()
        self._beat()

    def stop(self) -> None:
        """Report the last interval and end."""
        self._ended.set()
        self.join()

    def _beat(self) -> None:
        now = now_ns()
        self._sink(
            SampleRecord(
                host=self._host,
                device="0",
                device_kind=self._device_kind,
                client=self._client,
                start_ns=self._since_ns,
                end_ns=now,
                utilization=None,
                memory_bytes=None,
                power_w=None,
                energy_j=None,
            )
        )
        self._since_ns = now
