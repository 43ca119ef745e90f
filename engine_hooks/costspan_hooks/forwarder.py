"""Takes payloads from the spool to the collector."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from costspan.channel import Channel, RefusedError
from costspan_hooks.spool import Spool, read

_logger = logging.getLogger("costspan")

_PERIOD_S = 0.2
"""How soon it notices that it was closed."""


class Forwarder(threading.Thread):
    """Sends what is spooled, unchanged and in order, until it is closed.

    A payload goes with the numbers that its engine gave it, so that the collector stores it once, however often a crash here or
    there makes it arrive.

    Args:
        spool: What it takes from.
        collector: Base URL of the collector.

    Raises:
        SettingError: That is no URL.
    """

    def __init__(self, spool: Spool, collector: str) -> None:
        super().__init__(name="costspan-forwarder", daemon=True)
        self._spool = spool
        self._channel = Channel(collector)
        self._closed = threading.Event()
        self._told: set[str] = set()

    def run(self) -> None:
        """Forward until closed."""
        while not self._closed.is_set():
            path = self._spool.first(_PERIOD_S)
            if path is None:
                continue
            try:
                self._forward(path)
            except OSError as error:  # the disk; the payload stays where it is
                self._tell(f"cannot take {path.name} off the spool, trying on: {error}")
                self._closed.wait(1)

    def close(self, patience_s: float) -> bool:
        """Go on for a moment, then end.

        Returns:
            Whether everything was settled; what was not is on disk.
        """
        settled = self._spool.wait_empty(patience_s)
        self._closed.set()
        self.join()
        return settled

    def health(self) -> dict[str, str | bool]:
        """Where it sends to, and whether that works."""
        return {"url": self._channel.endpoint, "up": not self._channel.trouble, "trouble": self._channel.trouble}

    def _forward(self, path: Path) -> None:
        try:
            payload = read(path)
            if self._channel.send(payload.path, payload.body, payload.headers, self._closed):
                self._spool.settle()
        except FileNotFoundError:
            self._tell("a payload was removed from the spool before it was sent")
            self._spool.settle()
        except RefusedError as refusal:
            self._refuse(f"the collector refused {payload.path} {refusal}")
        except ValueError as error:
            self._refuse(f"a file in the spool is no payload: {error}")

    def _refuse(self, reason: str) -> None:
        self._tell(f"{reason}; such payloads go to the spool's quarantine")
        self._spool.settle(reason)

    def _tell(self, trouble: str) -> None:
        """Log a trouble the first time it is met."""
        if trouble not in self._told:
            self._told.add(trouble)
            _logger.error(trouble)
