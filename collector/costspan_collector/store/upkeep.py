"""What a collector does for its store beside writing: drop what is too old, close days that are over."""

from __future__ import annotations

import logging
import threading

from costspan_collector.errors import StoreAwayError
from costspan_collector.store.clickhouse import Connect
from costspan_collector.store.retention import Keep, apply_retention
from costspan_collector.store.rollups import close_days

_EVERY_S = 3600.0
_AGAIN_S = 30.0

_logger = logging.getLogger(__name__)


class Upkeep:
    """Looks after a store, on a thread of its own between :meth:`start` and :meth:`stop`.

    Several collectors may look after the same store: each finds done what another did.

    Args:
        connect: Opens a connection to the store; raises ``StoreAwayError``.
        keep: How long the store keeps what.
    """

    def __init__(self, connect: Connect, keep: Keep) -> None:
        self._connect = connect
        self._keep = keep
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="costspan-upkeep", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End, after what is being done, or after a time."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        said = ""
        while not self._stopping.is_set():
            pause_s = _AGAIN_S
            try:
                self._look()
                said, pause_s = "", _EVERY_S
            except StoreAwayError:
                pass  # the writer says so
            except Exception as error:  # noqa: BLE001  (whatever it is, the collector goes on, and this is tried again)
                if said != (said := str(error)):
                    _logger.warning("the store's days are not closed, nor its old rows dropped; trying on: %s", error)
            self._stopping.wait(pause_s)

    def _look(self) -> None:
        client = self._connect()
        try:
            apply_retention(client, self._keep)
            close_days(client)
        finally:
            client.close()
