"""Where a range of the log goes: one insert with a token, and, when a former insert may have happened, a second look.

The token makes an insert that is tried again a no-op. It is not enough: ClickHouse (26.9) writes the token to its
deduplication log *before* it renames the finished part into place, so a process killed between the two remembers a token
whose rows it does not have. So after a doubtful insert the rows of the range are looked up, and those that are not there are
inserted under a token of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from itertools import chain
from types import MappingProxyType
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_connect.driver.client import Client
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans

from costspan_collector.errors import ContentError
from costspan_collector.payload import read_arrow
from costspan_collector.record import Record, TornRecordError, decode_all, encode
from costspan_collector.store import insert
from costspan_collector.tables import DELIVERIES, SPANS, TIME_COLUMN, conform

_ENVELOPE = (files("costspan_collector") / "schema" / "landing.proto").read_text(encoding="utf-8")
_COMMON = MappingProxyType({"max_partitions_per_insert_block": "0"})  # spans of many days may come at once
_LANDING = MappingProxyType(
    {
        "format_schema_source": "string",
        "format_schema": _ENVELOPE,
        "format_schema_message_name": "Envelope",
        "input_format_protobuf_oneof_presence": "1",
        # The blocks of an insert must be cut alike when it is tried again: each has its own token.
        "input_format_parallel_parsing": "0",
        "max_insert_threads": "1",
    }
)
_NS_PER_MS = 1_000_000
_AGAIN = "/again"


class Sink(Protocol):
    """Inserts the records of one stream."""

    def insert(self, client: Client, data: bytes, token: str) -> None:
        """Insert whole records.

        Raises:
            ContentError: The store objects to what is in them, and stored none of it.
            StoreAwayError: Whether they are stored is unknown.
        """

    def complete(self, client: Client, data: bytes, token: str) -> None:
        """Insert whichever rows of these records the store does not have.

        Raises:
            StoreAwayError: Whether they are stored is unknown.
        """


class SpanSink:
    """Spans go to ``landing`` as they are in the log; views make rows of them."""

    def insert(self, client: Client, data: bytes, token: str) -> None:
        """See :class:`Sink`."""
        insert(lambda: client.raw_insert("landing", insert_block=data, fmt="Protobuf", settings=_settings(token, _LANDING)))

    def complete(self, client: Client, data: bytes, token: str) -> None:
        """See :class:`Sink`."""
        records = _records(data)
        requests = [_request(record) for record in records]
        starts = [_signed(span.start_time_unix_nano) for request in requests for scope in _scopes(request) for span in scope.spans]
        stored = _stored(client, SPANS, ("trace_id", "span_id"), records, ("start_ns", starts))
        left = (_without(record, request, stored) for record, request in zip(records, requests, strict=True))
        missing = b"".join(encode(record) for record in left if record)
        if missing:
            self.insert(client, missing, token + _AGAIN)
        _complete_deliveries(client, records, token)


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

    def complete(self, client: Client, data: bytes, token: str) -> None:
        """See :class:`Sink`."""
        records = _records(data)
        rows = self._rows(records)
        stored = self._stored_rows(client, rows)
        missing = rows.filter(pa.array([key not in stored for key in self._keys(rows)], pa.bool_()))
        self._insert_rows(client, missing, token + _AGAIN)
        _complete_deliveries(client, records, token)

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
        found: list[pa.Table] = []
        insert(
            lambda: found.append(
                client.query_arrow(
                    f"SELECT {', '.join(self._identity())} FROM {self._table} "  # noqa: S608  (names from our own schema)
                    f"WHERE {column} BETWEEN {{first:Int64}} AND {{last:Int64}}",
                    parameters={
                        name: bounds[bound].cast(pa.int64()).as_py() for name, bound in (("first", "min"), ("last", "max"))
                    },
                )
            )
        )
        identity = pa.schema([self._schema.field(name) for name in self._identity()])
        return set(self._keys(found[0].cast(identity)))


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


def _complete_deliveries(client: Client, records: list[Record], token: str) -> None:
    stored = _stored(client, DELIVERIES, ("project", "client", "stream", "sequence"), records)
    missing = [record for record in records if (record.project, record.client, record.stream, record.sequence) not in stored]
    _insert_deliveries(client, missing, token + _AGAIN)


def _stored(
    client: Client, table: str, key: tuple[str, ...], records: Iterable[Record], pruned_by: tuple[str, list[int]] | None = None
) -> set[tuple[Any, ...]]:
    """Keys of the rows that arrived when these records did.

    Args:
        client: The store.
        table: The table.
        key: The columns of the key.
        records: The records.
        pruned_by: A column that the table is sorted by and the values in the records, so that not all of it is read.
    """
    column, values = pruned_by or ("0", [0])
    arrivals = [record.received_ns // _NS_PER_MS for record in records]
    found: list[Any] = []
    insert(
        lambda: found.extend(
            client.query(
                f"SELECT {', '.join(key)} FROM {table} "  # noqa: S608  (names from this file)
                f"WHERE {column} BETWEEN {{least:Int64}} AND {{most:Int64}} "
                "AND toUnixTimestamp64Milli(received) BETWEEN {first:Int64} AND {last:Int64}",
                parameters={
                    "least": min(values, default=0),
                    "most": max(values, default=0),
                    "first": min(arrivals),
                    "last": max(arrivals),
                },
            ).result_rows
        )
    )
    return set(found)


def _request(record: Record) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    try:
        request.ParseFromString(record.payload)
    except DecodeError as error:
        raise ContentError(str(error)) from error
    return request


def _signed(unsigned: int) -> int:
    """What the store makes of an unsigned number: a sender may put any into a time."""
    return (unsigned + (1 << 63)) % (1 << 64) - (1 << 63)


def _scopes(request: ExportTraceServiceRequest) -> Iterable[ScopeSpans]:
    return chain.from_iterable(resource.scope_spans for resource in request.resource_spans)


def _without(record: Record, request: ExportTraceServiceRequest, stored: set[tuple[Any, ...]]) -> Record | None:
    """A record with the spans that are not stored, and no client, so that it is not counted as a delivery again."""
    left = 0
    for scope in _scopes(request):
        spans = [span for span in scope.spans if (span.trace_id.hex(), span.span_id.hex()) not in stored]
        del scope.spans[:]
        scope.spans.extend(spans)
        left += len(spans)
    return (
        Record(record.project, "", record.stream, 0, left, 0, record.received_ns, request.SerializeToString()) if left else None
    )
