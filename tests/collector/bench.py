"""Logs, a store and a writer under a test's hand, to be stopped where a crash would stop them."""

from __future__ import annotations

import shutil
from pathlib import Path

from clickhouse_connect.driver.client import Client

from costspan_collector.errors import StoreAwayError
from costspan_collector.store.clickhouse import apply_schema, connect_embedded
from costspan_collector.store.sinks import LedgerSink, SignalSink, Sink
from costspan_collector.store.tables import arrow_schema
from costspan_collector.store.writer import Writer
from costspan_collector.wal.budget import Budget
from costspan_collector.wal.log import Log
from costspan_collector.wal.quarantine import Quarantine
from costspan_collector.wal.record import Record
from tests.collector.harness import record


class Bench:
    """Logs, a store and a writer that a test drives by hand, and can stop between any two of its moves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.opened: list[Client] = []
        self.client = self._connect_embedded()
        apply_schema(self.client)
        self.away = False
        self.open()

    def open(self) -> None:
        budget = Budget(1 << 30)
        self.logs = {stream: Log(self.folder / "log" / stream, budget) for stream in ("spans", "evictions")}
        schema = arrow_schema(self.client, "evictions")
        sinks: dict[str, Sink] = {"spans": SignalSink("spans"), "evictions": LedgerSink("evictions", schema)}
        self.writer = Writer(
            self.logs, sinks.__getitem__, self._connect, Quarantine(self.folder / "quarantine", budget), "bench"
        )

    def _connect(self) -> Client:
        if self.away:
            raise StoreAwayError("away")
        return self._connect_embedded()

    def _connect_embedded(self) -> Client:
        self.opened.append(connect_embedded(self.folder / "store"))
        return self.opened[-1]

    def close(self) -> None:
        """Close the engine, which ends with its last connection."""
        while self.opened:
            self.opened.pop().close()

    def crash_after_insert(self, stream: str) -> None:
        """Insert the next range, and be gone before the cursor moves."""
        span = self.logs[stream].next_range(1 << 20)
        assert span
        self.logs[stream].intend(span)
        self.writer._insert_range(self.writer._connected(), stream, span)
        self.open()

    def lose_the_last_part(self, table: str) -> None:
        """What a kill between the token's log and the part's rename leaves: the token without the rows."""
        query = "SELECT path FROM system.parts WHERE active AND table = {table:String} ORDER BY modification_time"
        path = self.client.query(query, parameters={"table": table}).result_rows[-1][0]
        self.close()
        shutil.rmtree(path)
        self.client = self._connect_embedded()
        self.open()

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        return [tuple(row) for row in self.client.query(sql).result_rows]


def spoilt(sequence: int) -> Record:
    """A record that the store refuses; it would pass no intake."""
    return record(sequence, b"\x0a\xff\xff\xff\x0fno spans", client="")
