"""How much a project may send: a bucket that fills with time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from costspan_collector.errors import QuotaError
from costspan_collector.settings import MIB

_ROUNDING_S = 1e-6


class Quota:
    """Bytes a minute, of which a minute's worth may come at once.

    A payload is let in as long as anything is left, and charged once its size is known, so the last one may overdraw: then
    nothing is let in until time has paid for it. So no payload is too large to ever pass.

    Args:
        bytes_per_minute: How much.
        clock: Seconds that only grow.
        setting: What raises it, in projects.toml.
    """

    def __init__(
        self,
        bytes_per_minute: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        setting: str = "quota_mb_per_minute",
    ) -> None:
        self._limit = float(bytes_per_minute)
        self._per_second = bytes_per_minute / 60
        self._clock = clock
        self._setting = setting
        self._left = self._limit
        self._at = clock()
        self._lock = threading.Lock()

    def check(self, project: str) -> None:
        """Check that something is left.

        Raises:
            QuotaError: It is used up; says when that is over.
        """
        with self._lock:
            left = self._fill()
        if left <= 0:
            raise QuotaError(
                f"project {project!r} has used up its {self._limit / MIB:g} MB a minute: send more slowly, "
                f"or raise {self._setting} in projects.toml",
                retry_after_s=math.ceil(-left / self._per_second + _ROUNDING_S),
            )

    def charge(self, size: int) -> None:
        """Take bytes that were let in out of it."""
        with self._lock:
            self._left = self._fill() - size

    def _fill(self) -> float:
        now = self._clock()
        self._left = min(self._limit, self._left + (now - self._at) * self._per_second)
        self._at = now
        return self._left
