"""Samples of devices over intervals without gaps: proof that they were ours, and what they were doing."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import asdict

from costspan.clock import now_ns
from costspan_hooks.nvml import Gpu
from costspan_hooks.records import SampleRecord


class Sampler:
    """Takes a sample of each device, over the time since the last one.

    A process without a GPU is a device of its own, called by its client's name, of which nothing is measured.

    Args:
        gpus: The devices; none for the process itself.
        device_kind: The name that the price book knows them by; "" for the driver's own name of each GPU.
        client: ``service.instance.id`` of this process.

    Attributes:
        until_ns: End of the last sample.
    """

    def __init__(self, gpus: Sequence[Gpu], device_kind: str, client: str) -> None:
        self._gpus, self._device_kind, self._client = gpus, device_kind, client
        self._host = socket.gethostname()
        self.until_ns = now_ns()
        self._joules = [gpu.joules() for gpu in gpus]

    def take(self) -> list[SampleRecord]:
        """A sample of each device over the interval that ends now: its energy, and readings at its end."""
        now = now_ns()
        samples = [self._sample(at, gpu, now) for at, gpu in enumerate(self._gpus)] or [
            SampleRecord(self._host, self._client, self._device_kind, self._client, self.until_ns, now, None, None, None, None)
        ]
        self.until_ns = now
        return samples

    def _sample(self, at: int, gpu: Gpu, now: int) -> SampleRecord:
        before, after = self._joules[at], gpu.joules()
        if after is not None:  # an interval in which it did not answer is part of the next one's energy
            self._joules[at] = after
        used = None if before is None or after is None or after < before else after - before  # a reloaded driver counts from 0
        return SampleRecord(
            host=self._host,
            device=gpu.uuid,
            device_kind=self._device_kind or gpu.name,
            client=self._client,
            start_ns=self.until_ns,
            end_ns=now,
            energy_j=used,
            **asdict(gpu.read()),
        )
