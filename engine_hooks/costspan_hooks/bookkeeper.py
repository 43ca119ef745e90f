"""The thread that keeps the books: the engine's pays no more than one entry in a ring for anything it tells."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from costspan_hooks.energy import EnergyCurve
from costspan_hooks.errors import ProtocolError
from costspan_hooks.ledger import StepLedger
from costspan_hooks.meter import Meter
from costspan_hooks.records import LedgerRecord
from costspan_hooks.ring import Call, Ring

_logger = logging.getLogger("costspan")

PERIOD_S = 0.1
"""How often the ring is emptied."""
_ROWS = {"step": "steps", "removed": "attempts", "evicted": "evictions"}
"""The table that lacks a row when one of these calls is lost. An idle stretch that is lost is time that nobody booked."""


class Bookkeeper:
    """Carries out on its own thread what the engine's tells the ledger.

    Nothing that goes wrong here reaches the engine. What cannot be booked is left out, counted as lost rows of the table that
    lacks it, and said once: the audit then shows a gap with a name, and time that is unexplained rather than somebody's.

    Args:
        sink: Takes what the ledger hands on.
        lost: Told how many rows a table lacks.
        meter: Of the engine's energy, if there is any.
    """

    def __init__(
        self, sink: Callable[[LedgerRecord], None], lost: Callable[[str, int], None], meter: Meter | None = None
    ) -> None:
        self._energy = EnergyCurve(meter) if meter else None
        self.ledger = StepLedger(sink, self._energy.between if self._energy else None)
        self.ring = Ring(self._start_over)
        self._lost = lost
        self._told: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="costspan-ledger", daemon=True)
        self._thread.start()

    def stop(self, at_ns: int) -> None:
        """Book what is left, and that the engine stopped."""
        self._stopping.set()
        self._thread.join()
        self.ring.end()
        self._work()
        self._book(self.ledger.stopped, (at_ns,))

    def _run(self) -> None:
        while not self._stopping.wait(PERIOD_S):
            self._work()

    def _work(self) -> None:
        calls = list(self.ring.take())
        if self._energy:
            self._energy.read()  # after them, so that the energy of each is known
        for call, arguments in calls:
            self._book(call, arguments)

    def _book(self, call: Call, arguments: tuple[Any, ...]) -> None:
        try:
            call(*arguments)
        except ProtocolError as error:
            # It was refused before anything was changed by it.
            if call == self.ledger.step:
                self.ledger.skip(*arguments)
            self._leave_out(call.__name__, 1)
            self._tell(call.__name__, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the engine and its next request must not suffer from it
            self._start_over(Counter({call.__name__: 1}))
            self._tell(type(error).__name__, error)

    def _start_over(self, lost: Counter[str]) -> None:
        for name, count in lost.items():
            self._leave_out(name, count)
        self.ledger.start_over()
        self._tell("lost", f"{sum(lost.values())} events of the engine could not be booked")

    def _leave_out(self, name: str, count: int) -> None:
        if table := _ROWS.get(name):
            self._lost(table, count)

    def _tell(self, what: str, trouble: object) -> None:
        if what not in self._told:
            self._told.add(what)
            _logger.error("the ledger lacks something; `costspan audit` shows how much: %s", trouble)
