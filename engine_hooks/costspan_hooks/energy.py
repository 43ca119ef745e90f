"""Energy over time, from a meter that is read now and then."""

from __future__ import annotations

from bisect import bisect_left

from costspan.clock import now_ns
from costspan_hooks.meter import Meter

KEPT = 1024
"""Readings remembered: far more than pass between an event and its entry in the books."""


class EnergyCurve:
    """What a meter has counted at each moment: straight lines between its readings.

    Read it after the events whose energy is asked for: then every one of them lies between two readings, and what they come to
    is exactly what the meter counted.

    Args:
        meter: Read once now.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._moments: list[int] = []
        self._joules: list[float | None] = []
        self.read()

    def read(self) -> None:
        """Ask the meter."""
        self._moments.append(now_ns())
        self._joules.append(self._meter.joules())
        if len(self._moments) > 2 * KEPT:
            del self._moments[:-KEPT], self._joules[:-KEPT]

    def between(self, start_ns: int, end_ns: int) -> float | None:
        """Joules from one moment to another, of what was metered of it; ``None`` where the meter did not say."""
        if end_ns <= self._moments[0]:
            return None
        start, end = self._at(start_ns), self._at(end_ns)
        return None if start is None or end is None else end - start

    def _at(self, moment_ns: int) -> float | None:
        after = bisect_left(self._moments, moment_ns)
        if after == len(self._moments):
            return self._joules[-1]
        then = self._joules[after]
        if after == 0 or self._moments[after] == moment_ns:  # nothing is known before the first reading
            return then
        before = self._joules[after - 1]
        if before is None or then is None:
            return None
        length = self._moments[after] - self._moments[after - 1]
        return before + (then - before) * (moment_ns - self._moments[after - 1]) / length
