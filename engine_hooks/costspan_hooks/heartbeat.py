"""The heartbeat of an engine's devices: proof that they were ours, second by second, and so the hours of the bill.

It knows nothing of steps or requests. That is the point: the ledger is checked against it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from costspan_hooks.nvml import visible_gpus
from costspan_hooks.records import SampleRecord
from costspan_hooks.sampler import Sampler

PERIOD_S = 1.0


class Heartbeat(threading.Thread):
    """Reports the interval since its last report, every second and once more when it stops.

    Args:
        device_kind: The name that the price book knows the devices by.
        client: ``service.instance.id`` of this process.
        sink: Takes each sample; must not block.
        gpus: How many of the GPUs that this process sees it computes on, the first ones; ``None`` for all.
    """

    def __init__(self, device_kind: str, client: str, sink: Callable[[SampleRecord], None], *, gpus: int | None = None) -> None:
        super().__init__(name="costspan-heartbeat", daemon=True)
        self._sampler = Sampler(visible_gpus()[:gpus], device_kind, client)
        self._sink = sink
        self._ended = threading.Event()

    def run(self) -> None:
        """Tick until stopped."""
        while not self._ended.wait(PERIOD_S):
            self._beat()
        self._beat()

    def stop(self) -> int:
        """Report the last interval and end.

        Returns:
            When that interval ended, nanoseconds since the Unix epoch.
        """
        self._ended.set()
        self.join()
        return self._sampler.until_ns

    def _beat(self) -> None:
        for sample in self._sampler.take():
            self._sink(sample)
