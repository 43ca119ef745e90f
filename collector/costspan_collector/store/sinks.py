"""Where a range of the log goes: one insert with a token, and, when a former insert may have happened, a second look.

The token makes an insert that is tried again a no-op. It is not enough: ClickHouse (26.9) writes the token to its
deduplication log *before* it renames the finished part into place, so a process killed between the two remembers a token
whose rows it does not have. So after a doubtful insert the rows of the range are looked up, and those that are not there are
inserted under a token of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_connect.driver.client import Client
from google.protobuf.message import DecodeError

from costspan_collector.errors import ContentError, StoreAwayError
from costspan_collector.intake.payload import read_arrow
from costspan_collector.security.content import contents_without
from costspan_collector.store.clickhouse import ask, insert
from costspan_collector.store.landing import LANDINGS
from costspan_collector.store.tables import DELIVERIES, PAYLOADS, TIME_COLUMN, conform
from costspan_collector.wal.record import Record, TornRecordError, decode_all, encode

_ENVELOPE = (files("costspan_collector") / "schema" / "landing.proto").read_text(encoding="utf-8")
_COMMON = MappingProxyType(
    {
        "max_partitions_per_insert_block": "0",  # spans of many days may come at once
        # In a cluster an insert is done when the shards have it, and of each shard most replicas.
        "distributed_foreground_insert": "1",
        "insert_quorum": "auto",
        "async_insert": "0",  # a server's default is to gather inserts; each of these has a token of its own
    }
)
_LANDING = MappingProxyType(
    {
        "format_schema_source": "string",
        "format_schema": _ENVELOPE,
        "input_format_protobuf_oneof_presence": "1",
        # The blocks of an insert must be cut alike when it is tried again: each has its own token.
        "input_format_parallel_parsing": "0",
        "max_insert_threads": "1",
    }
)
_NS_PER_MS = 1_000_000
_TEXT = ("project", "toUnixTimestamp64Milli(received)", "trace_id", "span_id", "toUInt64(start_ns)", "name")
_AGAIN = "/again-{}"
_ATTEMPTS = 4
_STRETCH_MS = 60_000


class Sink(Protocol):
    """Inserts the records of one stream."""

    def insert(self, client: Client, data: bytes, token: str) -> None:
        """Insert whole records.

        Raises:
            ContentError: The store objects to what is in them, and stored none of it.
            StoreAwayError: Whether they are stored is unknown.
        """

    def missing(self, client: Client, data: bytes) -> Callable[[str], None] | None:
        """Look up whole records in the store.

        Returns:
            What inserts those of their rows that the store does not have, under a token; None when it has them all.

        Raises:
            ContentError: The records cannot be read.
            StoreAwayError: Whether they are stored is unknown.
        """


def complete(sink: Sink, client: Client, data: bytes, token: str, *, recut: bool) -> None:
    """Insert whole records that may be stored already, in whole or in part, and see that each row is there once.

    What is there is not inserted again, even when the store has forgotten the token since. An insert may still be running: its
    token lets only one succeed, so the same comes first. What is then missing goes in under a token not used yet, or used
    by an earlier attempt at just this.

    Args:
        sink: Where they go.
        client: A connection to the store.
        data: The records.
        token: Their token.
        recut: Whether they may have been inserted under other tokens, so that their own says nothing.

    Raises:
        ContentError: The store objects to what is in them.
        StoreAwayError: Whether they are stored is unknown.
    """
    for attempt in range(_ATTEMPTS):
        rest = sink.missing(client, data)
        if rest is None:
            return
        if attempt == 0 and not recut:
            sink.insert(client, data, token)
        else:
            rest(token + _AGAIN.format(attempt))
    if sink.missing(client, data) is not None:
        raise StoreAwayError("the store takes rows and does not show them")


class SignalSink:
    """The payloads of one of OTLP's signals land as they are in the log; views make rows of them.

    Args:
        stream: The signal's stream.
    """

    def __init__(self, stream: str) -> None:
        self._landing = LANDINGS[stream]

    def insert(self, client: Client, data: bytes, token: str) -> None:
        """See :class:`Sink`."""
        landing = self._landing
        settings = _settings(token, _LANDING | {"format_schema_message_name": landing.envelope})
        insert(lambda: client.raw_insert(landing.table, insert_block=data, fmt="Protobuf", settings=settings))

    def missing(self, client: Client, data: bytes) -> Callable[[str], None] | None:
        """See :class:`Sink`."""
        records = _records(data)
        stored = _stored(client, self._landing.rows, self._landing.key, records)
        texts = _stored(client, PAYLOADS, _TEXT, records)
        rest = b"".join(encode(left) for record in records if (left := self._without(record, stored, texts)))
        untold = _untold(client, records)

        def insert_rest(token: str) -> None:
            if rest:
                self.insert(client, rest, token)
            _insert_deliveries(client, untold, token)

        return insert_rest if rest or untold else None

    def _without(self, record: Record, stored: set[tuple[Any, ...]], texts: set[tuple[Any, ...]]) -> Record | None:
        """A record with the items and texts that are not stored, and no client, so that it counts as no delivery."""
        request = self._landing.request()
        try:
            request.ParseFromString(record.payload)
        except DecodeError as error:
            raise ContentError(str(error)) from error
        count = 0
        for items in self._landing.lists(request):
            left = [item for item in items if self._landing.key_of(record, item) not in stored]
            del items[:]
            items.extend(left)
            count += len(left)
        arrived = record.project, record.received_ns // _NS_PER_MS
        contents = contents_without(request, lambda *text: (*arrived, *text) in texts)
        request.DiscardUnknownFields()
        payload = request.SerializeToString() + contents
        left_over = count or contents
        return Record(record.project, "", record.stream, 0, count, 0, record.received_ns, payload) if left_over else None


class LedgerSink:
    """The Arrow payloads of a ledger table, joined into one.

    Args:
        table: The table.
        schema: Its Arrow schema.
    """

    def __init__(self, table: str, schema: pa.Schema) -> None:
        self._table = table
        self._schema = schema

    def insert(self, client: Client, data: bytes, token: str) -> None:
        """See :class:`Sink`."""
        records = _records(data)
        self._insert_rows(client, self._rows(records), token)
        _insert_deliveries(client, records, token)

    def missing(self, client: Client, data: bytes) -> Callable[[str], None] | None:
        """See :class:`Sink`."""
        records = _records(data)
        rows = self._rows(records)
        stored = self._stored_rows(client, rows)
        rest = rows.filter(pa.array([key not in stored for key in self._keys(rows)], pa.bool_()))
        untold = _untold(client, records)

        def insert_rest(token: str) -> None:
            self._insert_rows(client, rest, token)
            _insert_deliveries(client, untold, token)

        return insert_rest if rest.num_rows or untold else None

    def _rows(self, records: Iterable[Record]) -> pa.Table:
        try:
            return pa.concat_tables(
                [self._schema.empty_table(), *(conform(read_arrow(record.payload), self._schema) for record in records)]
            )
        except (pa.ArrowException, OSError) as error:
            raise ContentError(str(error)) from error

    def _insert_rows(self, client: Client, rows: pa.Table, token: str) -> None:
        if rows.num_rows:
            insert(lambda: client.insert_arrow(self._table, rows.combine_chunks(), settings=_settings(token)))

    def _identity(self) -> list[str]:
        """The columns that tell rows apart: those that compare exactly and are always there."""
        return [
            field.name
            for field in self._schema
            if not (field.nullable or pa.types.is_nested(field.type) or pa.types.is_floating(field.type))
        ]

    def _keys(self, rows: pa.Table) -> list[tuple[Any, ...]]:
        return list(zip(*(rows.column(name).to_pylist() for name in self._identity()), strict=True))

    def _stored_rows(self, client: Client, rows: pa.Table) -> set[tuple[Any, ...]]:
        if not rows.num_rows:
            return set()
        time = TIME_COLUMN[self._table]
        bounds = pc.min_max(rows.column(time))
        column = f"toUnixTimestamp64Milli({time})" if pa.types.is_timestamp(bounds.type.field("min").type) else time
        found: pa.Table = ask(
            lambda: client.query_arrow(
                f"SELECT {', '.join(self._identity())} FROM {self._table} "  # noqa: S608  (names from our own schema)
                f"WHERE {column} BETWEEN {{first:Int64}} AND {{last:Int64}}",
                parameters={
                    name: bounds[bound].cast(pa.int64()).as_py() for name, bound in (("first", "min"), ("last", "max"))
                },
            )
        )
        identity = pa.schema([self._schema.field(name) for name in self._identity()])
        return set(self._keys(found.cast(identity)))


def _records(data: bytes) -> list[Record]:
    try:
        return decode_all(data)
    except TornRecordError as error:
        raise ContentError(f"the log is damaged: {error}") from error


def _settings(token: str, more: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    return {**_COMMON, **more, "insert_deduplication_token": token}


def _insert_deliveries(client: Client, records: Iterable[Record], token: str) -> None:
    rows = [
        (
            record.project,
            record.client,
            record.stream,
            record.sequence,
            record.items,
            record.total,
            record.received_ns // _NS_PER_MS,
        )
        for record in records
        if record.client
    ]
    if rows:
        insert(lambda: client.insert(DELIVERIES, rows, settings=_settings(token + "/deliveries")))


def _untold(client: Client, records: list[Record]) -> list[Record]:
    """The records whose delivery is not in the store."""
    stored = _stored(client, DELIVERIES, ("project", "client", "stream", "sequence"), records)
    return [
        record
        for record in records
        if record.client and (record.project, record.client, record.stream, record.sequence) not in stored
    ]


def _stored(client: Client, table: str, key: tuple[str, ...], records: Iterable[Record]) -> set[tuple[Any, ...]]:
    """Keys of the rows that arrived when these records did."""
    found: set[tuple[Any, ...]] = set()
    for first, last in _stretches(record.received_ns // _NS_PER_MS for record in records):
        query = partial(
            client.query,
            f"SELECT {', '.join(key)} FROM {table} "  # noqa: S608  (names from this file)
            "WHERE received BETWEEN fromUnixTimestamp64Milli({first:Int64}) AND fromUnixTimestamp64Milli({last:Int64})",
            parameters={"first": first, "last": last + 1},
        )
        found.update(map(tuple, ask(query).result_rows))
    return found


def _stretches(arrivals_ms: Iterable[int]) -> list[tuple[int, int]]:
    """The times between which records arrived, without long gaps: a clock that was set makes one of days."""
    stretches: list[tuple[int, int]] = []
    for at in sorted(arrivals_ms):
        if stretches and at - stretches[-1][1] <= _STRETCH_MS:
            stretches[-1] = (stretches[-1][0], at)
        else:
            stretches.append((at, at))
    return stretches
