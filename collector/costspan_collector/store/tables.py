"""Ledger tables: which exist, and what a payload for one must look like."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_connect.driver.client import Client

from costspan_collector.errors import ContentError

SPANS = "spans"
METRICS = "metrics"
LOGS = "logs"
DELIVERIES = "deliveries"
PAYLOADS = "payloads"
TIME_COLUMN = MappingProxyType(
    {
        "engines": "started_ns",
        "attempts": "enqueued_ns",
        "steps": "start_ns",
        "evictions": "at_ns",
        "gpu_samples": "start_ns",
        "prices": "effective_from",
        "invoices": "start_ns",
    }
)
"""The tables that a ledger payload may be for, each with the column that says when a row happened."""

_ARROW = MappingProxyType(
    {
        "String": pa.string(),
        "Int64": pa.int64(),
        "UInt16": pa.uint16(),
        "UInt32": pa.uint32(),
        "UInt64": pa.uint64(),
        "Float32": pa.float32(),
        "Float64": pa.float64(),
        "DateTime64(3)": pa.timestamp("ms", "UTC"),
        "Decimal(38, 12)": pa.decimal128(38, 12),
    }
)


def arrow_schema(client: Client, table: str) -> pa.Schema:
    """The Arrow schema of a table in the store; a column of a Nested is a list column named ``nested.column``.

    Columns with a DEFAULT came later than their table, and older senders know nothing of them: a payload may leave them out.
    """
    described = client.query(f"DESCRIBE TABLE {table}").named_results()
    return pa.schema(
        [_field(column["name"], column["type"]).with_metadata({"default": column["default_type"]}) for column in described]
    )


def _field(name: str, kind: str) -> pa.Field[Any]:
    wrapped = {wrapper: kind.removeprefix(wrapper)[1:-1] for wrapper in ("Array", "Nullable", "LowCardinality")}
    if kind.startswith("Array("):
        return pa.field(name, pa.list_(_field("item", wrapped["Array"])), nullable=False)
    if kind.startswith("Nullable("):
        return _field(name, wrapped["Nullable"]).with_nullable(nullable=True)
    if kind.startswith("LowCardinality("):
        return _field(name, wrapped["LowCardinality"])
    return pa.field(name, _ARROW[kind], nullable=False)


def conform(payload: pa.Table, schema: pa.Schema) -> pa.Table:
    """A payload in exactly a table's schema.

    Columns may come in any order, and texts as any Arrow text (large, dictionary-encoded). A column that is not there is
    filled with null where it may be, and where it has a default with its type's zero.

    Raises:
        ContentError: It does not fit; the sentence names the first wrong column and what it must be.
    """
    for name in payload.schema.names:
        if name not in schema.names:
            raise ContentError(f"there is no column {name!r}: the columns are {', '.join(schema.names)}")
    return pa.table([_conform_column(payload, field) for field in schema], schema=schema)


def _conform_column(payload: pa.Table, field: pa.Field[Any]) -> pa.ChunkedArray[Any]:
    indices = payload.schema.get_all_field_indices(field.name)
    if not indices and (field.nullable or (field.metadata or {}).get(b"default")):
        return pa.chunked_array([_zeros(payload.num_rows, field)])
    if len(indices) != 1:
        how = "is missing" if not indices else f"comes {len(indices)} times"
        raise ContentError(f"column {field.name!r} {how}: it must be there once, as {field.type}")
    column = payload.column(indices[0])
    if not _acceptable(column.type, field.type):
        raise ContentError(f"column {field.name!r} is {column.type}: it must be {field.type}")
    if not field.nullable and _nulls(column):
        raise ContentError(f"column {field.name!r} has nulls: every row needs a {field.type}")
    return column.cast(field.type)


def _zeros(count: int, field: pa.Field[Any]) -> pa.Array[Any]:
    zero: Any = [] if pa.types.is_list(field.type) else "" if pa.types.is_string(field.type) else 0
    zeros: pa.Array[Any] = pa.array([None if field.nullable else zero] * count, field.type)
    return zeros


def _acceptable(given: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_list(wanted):
        return (pa.types.is_list(given) or pa.types.is_large_list(given)) and _acceptable(given.value_type, wanted.value_type)
    if pa.types.is_string(wanted):
        text = given.value_type if pa.types.is_dictionary(given) else given
        return bool(pa.types.is_string(text) or pa.types.is_large_string(text))
    return bool(given.equals(wanted))


def _nulls(column: pa.ChunkedArray[Any]) -> bool:
    if column.null_count:
        return True
    return pa.types.is_nested(column.type) and pc.list_flatten(column).null_count > 0


def check_lengths(payload: pa.Table) -> None:
    """Check that the lists of a Nested agree in every row.

    Raises:
        ContentError: Two of them differ in length.
    """
    first: dict[str, str] = {}
    for name in payload.schema.names:
        nested, dot, _ = name.partition(".")
        if not dot:
            continue
        other = first.setdefault(nested, name)
        if not pc.list_value_length(payload.column(name)).equals(pc.list_value_length(payload.column(other))):
            raise ContentError(
                f"columns {other!r} and {name!r} differ in length: the lists of {nested!r} must be equally long in every row"
            )
