"""From a sender to the log, however the payload came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import BoundedSemaphore
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from costspan_collector.errors import RefusedError
from costspan_collector.intake.meters import Meters
from costspan_collector.intake.page import Beacon
from costspan_collector.intake.payload import check_ledger
from costspan_collector.intake.sender import Sender, read_sender
from costspan_collector.intake.signals import JSON, PROTOBUF, Checked, Signal
from costspan_collector.security.gate import Admission
from costspan_collector.store.tables import SPANS, TIME_COLUMN
from costspan_collector.wal.record import Record

Health = Mapping[str, Any]

# A request takes many times its size while it is checked, and more than these at once are no faster: the work holds the GIL.
_CHECKING = MappingProxyType({PROTOBUF: BoundedSemaphore(2), JSON: BoundedSemaphore(1)})


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the intake calls.

    Attributes:
        admit: Lets a key in to a project; raises ``DeniedError`` and ``QuotaError``, see ``gate.py``.
        admit_page: The same for a page, by its key, project and origin.
        welcomes: Whether pages of an origin may send anything at all.
        append: Takes a record durably; raises ``BusyError``.
        schema_of: The Arrow schema of a ledger table; raises ``BusyError`` while it is not known.
        health: The state of the collector, see ``service.py``.
    """

    admit: Callable[[str | None, str], Admission]
    admit_page: Callable[[str, str, str], Admission]
    welcomes: Callable[[str], bool]
    append: Callable[[Record], bool]
    schema_of: Callable[[str], pa.Schema]
    health: Callable[[], Health]


class Delivery:
    """Takes payloads from those who may send them, and counts their bytes.

    Args:
        handlers: What it calls.
    """

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers
        self._wire: Counter[str] = Counter()
        self.meters = Meters(self.health)

    def sender(self, headers: Mapping[str, str]) -> Sender:
        """Who sends, and that it may; see :func:`read_sender`."""
        return read_sender(headers, self._handlers.admit)

    def take(self, signal: Signal, body: bytes, kind: str, sender: Sender, wire_bytes: int) -> Checked:
        """Take an OTLP request; on return it is on disk.

        Args:
            signal: Of what it is one.
            body: It, unpacked.
            kind: Its media type.
            sender: Who sent it.
            wire_bytes: How long it was on its way.

        Returns:
            What was taken, and what was left out.

        Raises:
            RefusedError: It is wrong.
            BusyError: It cannot be taken now.
        """
        sender.admission.charge(len(body))
        with _CHECKING[kind]:
            checked = signal.check(body, kind)
        payload = signal.part(checked.payload, sender.admission.rule.keep) if signal.part else checked.payload
        self._append(sender, signal.stream, checked.items, payload, wire_bytes)
        return checked

    def take_ledger(self, table: str, body: bytes, sender: Sender, wire_bytes: int) -> int:
        """Take rows of a ledger table; on return they are on disk. See :meth:`take`.

        Returns:
            How many.
        """
        sender.admission.charge(len(body))
        items = check_ledger(body, self._handlers.schema_of(table), sender.admission.only)
        self._append(sender, table, items, body, wire_bytes)
        return items

    def take_page(self, body: bytes, origin: str) -> None:
        """Take a page's beacon; on return it is on disk. See :meth:`take`.

        Args:
            body: It.
            origin: The origin of the page, as its browser says.
        """
        beacon = Beacon.read(body)
        admission = self._handlers.admit_page(beacon.key, beacon.project, origin)
        admission.charge(len(body))
        self._append(Sender(admission, "", 0, None, 0), SPANS, 1, beacon.payload(), len(body))

    def welcomes(self, origin: str) -> bool:
        """Whether pages of an origin may send beacons, of some project."""
        return self._handlers.welcomes(origin)

    def health(self) -> Health:
        """The state of the collector, with the bytes of the bodies that were taken, as they came."""
        now = self._handlers.health()
        streams = {name: {**each, "wire_bytes": self._wire[name]} for name, each in now["streams"].items()}
        return {**now, "streams": streams}

    def _append(self, sender: Sender, stream: str, items: int, payload: bytes, wire_bytes: int) -> None:
        if items or sender.client:
            self._handlers.append(sender.record(stream, items, payload))
        self._wire[stream] += wire_bytes


def ledger_table(name: str) -> str:
    """The name of a ledger table.

    Raises:
        RefusedError: 404, there is none of that name.
    """
    if name not in TIME_COLUMN:
        raise RefusedError(404, f"there is no ledger table {name!r}: the tables are {', '.join(TIME_COLUMN)}")
    return name
