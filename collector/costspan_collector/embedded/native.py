"""ClickHouse's Native format, as far as chDB leaves something to do.

chDB writes blocks as they were before protocol versions: clickhouse-go (Grafana's plugin) asks for a version in which a block
begins with some information about it, and each column's data with a flag. To put these in, the ends of columns must be found.

Layouts: ``src/Formats/NativeWriter.cpp`` and ``src/DataTypes/Serializations`` of ClickHouse.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from costspan_collector.embedded.failure import NOT_IMPLEMENTED, Failure

WITH_FLAGS = 54454
"""The protocol version from which on columns have a flag (DBMS_MIN_REVISION_WITH_CUSTOM_SERIALIZATION)."""

_INFORMATION = b"\x01\x00\x02\xff\xff\xff\xff\x00"  # field 1: no overflow; field 2: no bucket; end
_PLAIN = b"\x00"  # no custom serialization
_ADDITIONAL_KEYS = 1 << 9
_WIDTHS = {
    **dict.fromkeys(("UInt8", "Int8", "Bool", "Enum8", "Nothing"), 1),
    **dict.fromkeys(("UInt16", "Int16", "Date", "Enum16", "BFloat16"), 2),
    **dict.fromkeys(("UInt32", "Int32", "Float32", "DateTime", "Date32", "IPv4", "Time"), 4),
    **dict.fromkeys(("UInt64", "Int64", "Float64", "DateTime64", "Time64"), 8),
    **dict.fromkeys(("UInt128", "Int128", "UUID", "IPv6"), 16),
    **dict.fromkeys(("UInt256", "Int256"), 32),
}
_TYPE = re.compile(r"(\w+)(?:\((.*)\))?", re.DOTALL)
_PARTS = re.compile(r"'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`|[(),]|[^'`(),]+")
_NAMED = re.compile(r"\A(?:`(?:[^`\\]|\\.)*`|\w+) (?=\w)(.*)\Z", re.DOTALL)


def header(columns: Sequence[tuple[str, str]]) -> bytes:
    """A block without rows: the names and types of columns."""
    return bytes([*_varint(len(columns)), 0]) + b"".join(_counted(name) + _counted(kind) for name, kind in columns)


class Reviser:
    """Puts into a stream of blocks what a protocol version has more."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._wanted = 0

    def take(self, piece: bytes) -> bytes:
        """Take a piece of the stream, and give the blocks that are whole by then.

        Raises:
            Failure: A column is of a type whose layout is not known here.
        """
        self._held += piece
        if len(self._held) < self._wanted:
            return b""
        cursor, revised = _Cursor(bytes(self._held)), bytearray()
        end = 0
        while end < len(cursor.data):
            try:
                revised += _block(cursor)
            except _Short:
                self._wanted = 2 * (len(cursor.data) - end)  # a large block is not looked at with every piece
                break
            end, self._wanted = cursor.at, 0
        del self._held[:end]
        return bytes(revised)

    def rest(self) -> bytes:
        """The blocks that are whole at the end."""
        self._wanted = 0
        return self.take(b"")


class _Short(Exception):  # noqa: N818  (no error: there is more to come)
    """A block is not whole yet."""


class _Kind(NamedTuple):
    name: str
    inner: tuple[str, ...]


class _Cursor:
    """A place in bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.data):
            raise _Short

    def fixed(self) -> int:
        self.skip(8)
        return int.from_bytes(self.data[self.at - 8 : self.at], "little")

    def varint(self) -> int:
        value = shift = 0
        while True:
            self.skip(1)
            byte = self.data[self.at - 1]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def text(self) -> str:
        self.skip(length := self.varint())
        return self.data[self.at - length : self.at].decode()


def _block(cursor: _Cursor) -> bytes:
    """One block as it is in the version."""
    start = cursor.at
    columns, rows = cursor.varint(), cursor.varint()
    pieces = [_INFORMATION, cursor.data[start : cursor.at]]
    for _ in range(columns):
        start = cursor.at
        cursor.text()
        kind = cursor.text()
        pieces += [cursor.data[start : cursor.at], _PLAIN]
        start = cursor.at
        if rows:
            _skip_prefix(cursor, kind)
            _skip(cursor, kind, rows)
        pieces.append(cursor.data[start : cursor.at])
    return b"".join(pieces)


def _skip_prefix(cursor: _Cursor, kind: str) -> None:
    """Pass what comes before a column's data: a version number for each dictionary in it."""
    name, inner = _parsed(kind)
    if name == "LowCardinality":
        cursor.skip(8)
        return
    for part in inner:
        _skip_prefix(cursor, part)


def _skip(cursor: _Cursor, kind: str, rows: int) -> None:
    name, inner = _parsed(kind)
    if name in _WIDTHS:
        cursor.skip(_WIDTHS[name] * rows)
    elif name == "String":
        for _ in range(rows):
            cursor.skip(cursor.varint())
    elif name == "Nullable":
        cursor.skip(rows)
        _skip(cursor, inner[0], rows)
    elif name in {"Tuple", "SimpleAggregateFunction"}:
        for part in inner:
            _skip(cursor, part, rows)
    elif name in {"Array", "Map"}:
        cursor.skip(8 * (rows - 1))
        length = cursor.fixed()
        for part in inner:
            _skip(cursor, part, length)
    else:
        _skip_dictionary(cursor, inner[0], rows)


def _skip_dictionary(cursor: _Cursor, kind: str, rows: int) -> None:
    if not rows:
        return
    flags = cursor.fixed()
    if flags & _ADDITIONAL_KEYS:
        name, inner = _parsed(kind)
        _skip(cursor, inner[0] if name == "Nullable" else kind, cursor.fixed())
    cursor.skip(cursor.fixed() << (flags & 0xFF))


@lru_cache(maxsize=4096)
def _parsed(kind: str) -> _Kind:
    """The name of a type, and the types inside of it that have data."""
    found = _TYPE.fullmatch(kind)
    name, arguments = (found[1], _split(found[2] or "")) if found else (kind, [])
    inner: tuple[str, ...] = ()
    if name.startswith("Interval"):
        name = "Int64"
    elif name == "Decimal":
        widths = ((9, "Int32"), (18, "Int64"), (38, "Int128"), (76, "Int256"))
        name = next(width for most, width in widths if int(arguments[0]) <= most)
    elif name == "FixedString":
        name, inner = "Tuple", ("UInt8",) * int(arguments[0])
    elif name in {"Nullable", "Array", "Map", "LowCardinality"}:
        inner = tuple(arguments)
    elif name == "Tuple":
        inner = tuple(_NAMED.sub(r"\1", argument) for argument in arguments)
    elif name == "SimpleAggregateFunction":
        inner = tuple(arguments[-1:])
    elif name not in _WIDTHS and name != "String":
        sentence = f"Native with a protocol version is not spoken for {kind}: convert the column, or ask for another format"
        raise Failure.of(NOT_IMPLEMENTED, "NOT_IMPLEMENTED", sentence)
    return _Kind(name, inner)


def _split(arguments: str) -> list[str]:
    parts, depth = [""], 0
    for mark in _PARTS.findall(arguments):
        depth += (mark == "(") - (mark == ")")
        if mark == "," and not depth:
            parts.append("")
        else:
            parts[-1] += mark
    return [part.strip() for part in parts if part.strip()]


def _counted(text: str) -> bytes:
    raw = text.encode()
    return bytes(_varint(len(raw))) + raw


def _varint(value: int) -> list[int]:
    low, rest = value & 0x7F, value >> 7
    return [low | 0x80, *_varint(rest)] if rest else [low]
