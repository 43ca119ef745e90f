"""The collector put together: data folder, logs, writer, store."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from costspan.clock import now_ns
from costspan_collector.errors import BusyError, StartError, StoreAwayError
from costspan_collector.files import write_whole
from costspan_collector.intake.signals import SIGNALS
from costspan_collector.settings import EMBEDDED, Settings
from costspan_collector.store.clickhouse import apply_schema, connect_embedded, connect_server, own
from costspan_collector.store.sinks import LedgerSink, SignalSink, Sink
from costspan_collector.store.tables import METRICS, SPANS, TIME_COLUMN, arrow_schema
from costspan_collector.store.upkeep import Upkeep
from costspan_collector.store.writer import Writer
from costspan_collector.wal.budget import Budget
from costspan_collector.wal.log import Log
from costspan_collector.wal.quarantine import Quarantine
from costspan_collector.wal.record import Record

QUARANTINE = "quarantine"
"""The folder in the data folder with what the store refuses."""

_DRAIN_S = 20.0
_GRACE_S = 1.0
_NS_PER_S = 1_000_000_000
_STREAMS = (*SIGNALS, *TIME_COLUMN)
_BY_CONTENT = frozenset({SPANS, METRICS})  # two equal log records may be two; no two spans are equal, nor data points


class Collector:
    """Takes records durably and writes them to the store until closed.

    Args:
        settings: What it is told.

    Raises:
        StartError: The data folder cannot be used, or the embedded store does not open.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = own(settings.data)
        self._schemas: dict[str, pa.Schema] = {}
        self._keep_open = self._open_embedded() if settings.store == EMBEDDED else None
        folder = settings.data / "log"
        self._budget = Budget(settings.disk_budget_bytes)
        self._logs = {
            stream: Log(folder / stream, self._budget, self._wake, by_content=stream in _BY_CONTENT) for stream in _STREAMS
        }
        self._quarantine = Quarantine(settings.data / QUARANTINE, self._budget)
        self._writer = Writer(self._logs, self._sink_of, self._connect, self._quarantine, _identity(folder))
        self._writer.start()
        self._upkeep = Upkeep(self._visit, settings.keep)
        self._upkeep.start()

    @property
    def store_folder(self) -> Path:
        """Where the embedded store lives."""
        return self._settings.data / "store"

    def append(self, record: Record) -> bool:
        """Take a record; see :meth:`Log.append`."""
        return self._logs[record.stream].append(record)

    def schema_of(self, table: str) -> pa.Schema:
        """The Arrow schema of a ledger table.

        Raises:
            BusyError: The store has not been reached yet.
        """
        if table not in self._schemas:
            raise BusyError(f"the store has not been reached yet, so nothing is known about {table}: send it again later")
        return self._schemas[table]

    def health(self) -> dict[str, Any]:
        """The collector's state: whether it takes payloads, and per stream what it took, wrote and holds."""
        streams = {
            stream: {
                "pending_bytes": log.pending_bytes,
                "pending_records": log.pending_records,
                "oldest_pending_seconds": _age_s(log.oldest_ns()),
                "accepted_records": log.accepted_records,
                "accepted_items": log.accepted_items,
                "written_records": self._writer.written_records[stream],
                "inserts": self._writer.inserts[stream],
                "insert_seconds": self._writer.insert_seconds[stream],
                "quarantined_records": self._writer.quarantined_records[stream],
            }
            for stream, log in self._logs.items()
        }
        return {
            "ready": bool(self._schemas) and self._budget.used_bytes < self._budget.limit_bytes,
            "pending_bytes": sum(state["pending_bytes"] for state in streams.values()),
            "pending_records": sum(state["pending_records"] for state in streams.values()),
            "store": {"up": bool(self._schemas) and not self._writer.trouble, "trouble": self._writer.trouble},
            "quarantine": {"records": self._quarantine.records, "bytes": self._quarantine.bytes},
            "log": {"used_bytes": self._budget.used_bytes, "budget_bytes": self._budget.limit_bytes},
            "streams": streams,
        }

    def close(self) -> bool:
        """Stop taking records and write what the logs hold.

        Returns:
            Whether all of it was written; what was not is written after the next start.
        """
        deadline = time.monotonic() + _DRAIN_S
        written = self._writer.stop(_DRAIN_S)
        self._upkeep.stop(max(deadline - time.monotonic(), _GRACE_S))
        if not self._writer.ended:  # the folder stays this process's until it ends: a cursor may still move
            return False
        for log in self._logs.values():
            log.close()
        if self._keep_open:
            self._keep_open.close()
        os.close(self._lock)
        return written

    def _wake(self) -> None:
        self._writer.wake()

    def _open_embedded(self) -> Client:
        """Open the engine for as long as the collector lives: it would close with its last connection."""
        os.chdir(self._settings.data)  # chDB keeps a cache of schemas in the working directory
        try:
            client = connect_embedded(self.store_folder)
            apply_schema(client)
        except (ClickHouseError, RuntimeError) as error:
            raise StartError(f"the embedded store in {self.store_folder} does not open: {error}") from error
        return client

    def _connect(self) -> Client:
        if self._settings.store == EMBEDDED:
            client = connect_embedded(self.store_folder)
        else:
            client = connect_server(self._settings.store)
            apply_schema(client)
        self._schemas = {table: arrow_schema(client, table) for table in TIME_COLUMN}
        return client

    def _visit(self) -> Client:
        """A connection to a store that is there and has its tables."""
        if self._settings.store == EMBEDDED:
            return connect_embedded(self.store_folder)
        if not self._schemas:
            raise StoreAwayError("the store has not been reached yet")
        return connect_server(self._settings.store)

    def _sink_of(self, stream: str) -> Sink:
        return SignalSink(stream) if stream in SIGNALS else LedgerSink(stream, self._schemas[stream])


def _age_s(at_ns: int | None) -> float:
    return 0.0 if at_ns is None else max(now_ns() - at_ns, 0) / _NS_PER_S


def _identity(folder: Path) -> str:
    """The name of these logs in the store's memory of tokens; a folder that starts over gets another."""
    path = folder / "identity"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, uuid.uuid4().hex.encode())
    return path.read_text()
