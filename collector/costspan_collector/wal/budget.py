"""The disk space that a collector may use for what is not in the store."""

from __future__ import annotations

import threading

from costspan_collector.errors import LogFullError
from costspan_collector.settings import MIB


class Budget:
    """Disk space that the logs of a collector and its quarantine share.

    Args:
        limit_bytes: How much they may use.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Claim space.

        Raises:
            LogFullError: There is not that much left.
        """
        with self._lock:
            if self.used_bytes + size > self.limit_bytes:
                raise LogFullError(
                    f"the log holds {self.used_bytes // MIB} MB that are not written yet, its disk budget: try again later"
                )
            self.used_bytes += size

    def claim(self, size: int) -> None:
        """Count space that is in use already, or given back when negative."""
        with self._lock:
            self.used_bytes += size
