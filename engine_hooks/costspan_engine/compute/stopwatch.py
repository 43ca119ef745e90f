"""How long a device computed, told by its own clock."""

from __future__ import annotations

from typing import Protocol

import torch

from costspan.clock import now_ns


class Stopwatch(Protocol):
    """Runs from its making on."""

    def stop(self) -> None:
        """Mark the end of what was asked of the device so far; does not wait for it."""

    def wait_ns(self) -> int:
        """Wait for the marked end; nanoseconds from the start to there."""


class HostWatch:
    """For a device that is the host itself."""

    def __init__(self) -> None:
        self._start_ns = self._end_ns = now_ns()

    def stop(self) -> None:
        """Mark the end."""
        self._end_ns = now_ns()

    def wait_ns(self) -> int:
        """Nanoseconds."""
        return self._end_ns - self._start_ns


class CudaWatch:
    """Two events in the device's own queue."""

    def __init__(self) -> None:
        self._start, self._end = (torch.Event("cuda", enable_timing=True) for _ in range(2))
        self._start.record()

    def stop(self) -> None:
        """Put the end into the queue."""
        self._end.record()

    def wait_ns(self) -> int:
        """Nanoseconds between the two."""
        self._end.synchronize()
        return round(self._start.elapsed_time(self._end) * 1e6)


def stopwatch(device: torch.device) -> Stopwatch:
    """One that has started."""
    return CudaWatch() if device.type == "cuda" else HostWatch()
