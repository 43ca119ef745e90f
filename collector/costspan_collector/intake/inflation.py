"""How large an Arrow IPC stream becomes when it is read, told from what it declares.

Its buffers may be compressed, and a dictionary may put a long text into every row for a byte.
"""

from __future__ import annotations

import struct
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from costspan_collector.errors import RefusedError
from costspan_collector.settings import MIB

MOST_BYTES = 128 * MIB
# Fields of the tables in Arrow's Message.fbs and Schema.fbs, in the order in which they are declared there.
_HEADER_TYPE, _HEADER = 1, 2
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_DICTIONARY_DATA = 1
_BUFFERS, _COMPRESSION = 2, 3
_NOT_COMPRESSED = -1


def check_declared(body: bytes) -> None:
    """Check the sizes that compressed buffers declare, before any is unpacked.

    Raises:
        RefusedError: 413, they are too large; 400, they are not there.
        pyarrow.ArrowException: It is no Arrow IPC stream.
    """
    try:
        declared = sum(map(_unpacked_bytes, pa.ipc.MessageReader.open_stream(body)))
    except struct.error as error:
        raise RefusedError(
            400, f"the body is not a readable Arrow IPC stream: a buffer lies outside of it ({error})"
        ) from error
    if declared > MOST_BYTES:
        raise _too_large(declared)


def check_decoded(table: pa.Table) -> None:
    """Check how long the texts of dictionaries become, before any is written out.

    Raises:
        RefusedError: 413, they are too long.
    """
    decoded = sum(_decoded_bytes(column) for column in table.columns)
    if decoded > MOST_BYTES:
        raise _too_large(decoded)


def _too_large(size: int) -> RefusedError:
    return RefusedError(413, f"the rows unpack to {size // MIB} MB, and {MOST_BYTES // MIB} are the most: send fewer at once")


def _unpacked_bytes(message: Any) -> int:
    """What the buffers of a message declare, 0 for one whose buffers are as they are."""
    fields = message.metadata.to_pybytes()  # verified by Arrow, so offsets lead to where they should
    root = _follow(fields, 0)
    kind, batch = _field(fields, root, _HEADER_TYPE), _follow(fields, _field(fields, root, _HEADER))
    if fields[kind] == _DICTIONARY_BATCH:
        batch = _follow(fields, _field(fields, batch, _DICTIONARY_DATA))
    elif fields[kind] != _RECORD_BATCH:
        return 0
    buffers = _field(fields, batch, _BUFFERS)
    if not _field(fields, batch, _COMPRESSION) or not buffers:
        return 0
    start = _follow(fields, buffers)
    (count,) = struct.unpack_from("<I", fields, start)
    packed = memoryview(message.body)
    size = 0
    for at in range(count):
        offset, length = struct.unpack_from("<qq", fields, start + 4 + 16 * at)
        if length:
            (declared,) = struct.unpack_from("<q", packed, offset)
            size += length if declared == _NOT_COMPRESSED else max(declared, 0)
    return size


def _follow(fields: bytes, at: int) -> int:
    """Where the offset at a place leads."""
    return at + int(struct.unpack_from("<I", fields, at)[0])


def _field(fields: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table is, 0 when it is not there."""
    layout = table - struct.unpack_from("<i", fields, table)[0]
    (size,) = struct.unpack_from("<H", fields, layout)
    place = 4 + 2 * number
    offset = struct.unpack_from("<H", fields, layout + place)[0] if place < size else 0
    return table + offset if offset else 0


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _decoded_bytes(column: Any) -> int:
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.list_flatten(column)
    if not (pa.types.is_dictionary(column.type) and _is_text(column.type.value_type)):
        return 0
    return sum(pc.sum(pc.take(pc.binary_length(chunk.dictionary), chunk.indices)).as_py() or 0 for chunk in column.chunks)
