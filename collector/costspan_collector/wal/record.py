"""The form of a record in the log: a length-delimited protobuf message, ``Envelope`` in ``schema/landing.proto``.

The payload comes last and is the sender's own bytes, so that a range of the log is the body of
``INSERT INTO landing FORMAT Protobuf``. Fields are always written, in the order of their numbers; nothing else is a record.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

_VARINT, _FIXED32, _BYTES = 0, 5, 2
_PROJECT, _CLIENT, _STREAM = 1, 2, 3
_NUMBERS = (4, 5, 6, 7)  # sequence, items, total, received
_CRC, _REQUEST = 8, 15
_CRC_BYTES = 4
_LONGEST_VARINT = 10
_LONGEST_HEAD = 3 * 300  # bytes of a record before its numbers: length, project, client, stream
_BETWEEN = rb"[\x80-\xff]{0,9}[\x00-\x7f]"
_NUMBERS_AND_CRC = re.compile(rb"\x20%b\x28%b\x30%b\x38%b\x45.{4}\x7a" % ((_BETWEEN,) * 4), re.DOTALL)


class TornRecordError(ValueError):
    """The bytes are not a whole record."""


@dataclass(frozen=True, slots=True)
class Record:
    """One payload, with what its sender said about it.

    Attributes:
        project: Boundary of keys and rows.
        client: The sender, or "" when it does not number what it sends.
        stream: ``spans``, or the name of a ledger table.
        sequence: The sender's number of this payload in this stream.
        items: Spans or rows in it.
        total: The sender's count of items so far, these included.
        received_ns: When it arrived, nanoseconds since the Unix epoch.
        payload: The sender's bytes, unpacked but otherwise unchanged.
    """

    project: str
    client: str
    stream: str
    sequence: int
    items: int
    total: int
    received_ns: int
    payload: bytes


def encode(record: Record) -> bytes:
    """The bytes of a record; its checksum covers all fields but itself."""
    head = bytearray()
    for number, text in ((_PROJECT, record.project), (_CLIENT, record.client), (_STREAM, record.stream)):
        head += field(number, text.encode())
    for number, value in zip(_NUMBERS, (record.sequence, record.items, record.total, record.received_ns), strict=True):
        head += _tag(number, _VARINT) + _varint(value)
    crc = zlib.crc32(record.payload, zlib.crc32(head))
    head += _tag(_CRC, _FIXED32) + crc.to_bytes(_CRC_BYTES, "little")
    head += _tag(_REQUEST, _BYTES) + _varint(len(record.payload))
    return b"".join((_varint(len(head) + len(record.payload)), head, record.payload))


def field(number: int, raw: bytes) -> bytes:
    """A field of bytes, as protobuf encodes it."""
    return _tag(number, _BYTES) + _varint(len(raw)) + raw


def decode(buffer: memoryview, at: int = 0) -> tuple[Record, int]:
    """Read the record that starts at an offset.

    Returns:
        The record, and the offset after it.

    Raises:
        TornRecordError: There is no whole record with a matching checksum.
    """
    start, end = _frame(buffer, at)
    texts, numbers, at = _head(buffer, start, end)
    checked = buffer[start:at]
    at = _expect(buffer, at, end, _CRC, _FIXED32)
    crc = int.from_bytes(buffer[at : at + _CRC_BYTES], "little")
    at = _expect(buffer, at + _CRC_BYTES, end, _REQUEST, _BYTES)
    length, at = _read_varint(buffer, at, end)
    payload = buffer[at:end]
    if length != len(payload) or zlib.crc32(payload, zlib.crc32(checked)) != crc:
        raise TornRecordError("the checksum does not match")
    project, client, stream = texts
    sequence, items, total, received_ns = numbers
    return Record(project, client, stream, sequence, items, total, received_ns, bytes(payload)), end


def received_ns(head: bytes) -> int:
    """When the record arrived that some bytes begin with, its checksum unread.

    Raises:
        TornRecordError: They do not begin with a record, or are too few.
    """
    view = memoryview(head)
    _, start = _read_varint(view, 0, len(view))
    _, numbers, _ = _head(view, start, len(view))
    return numbers[-1]


def decode_all(data: bytes) -> list[Record]:
    """Every record of a range of the log.

    Raises:
        TornRecordError: One of them is not whole.
    """
    view, at = memoryview(data), 0
    records: list[Record] = []
    while at < len(data):
        record, at = decode(view, at)
        records.append(record)
    return records


def record_ends(data: bytes) -> list[int]:
    """Where each whole record at the start of some bytes ends, checksums unread."""
    view, at = memoryview(data), 0
    ends: list[int] = []
    while at < len(data):
        try:
            _, at = _frame(view, at)
        except TornRecordError:
            break
        ends.append(at)
    return ends


def next_record(buffer: memoryview, at: int) -> int | None:
    """Where the first whole record past damaged bytes starts; None when there is none.

    Args:
        buffer: A segment of the log.
        at: Where the damage starts.
    """
    for found in _NUMBERS_AND_CRC.finditer(buffer, at):
        for start in range(max(found.start() - _LONGEST_HEAD, at), found.start()):
            try:
                decode(buffer, start)
            except TornRecordError:
                continue
            return start
    return None


def _frame(buffer: memoryview, at: int) -> tuple[int, int]:
    """Where the body of the record at an offset starts and ends."""
    length, start = _read_varint(buffer, at, len(buffer))
    if start + length > len(buffer):
        raise TornRecordError("the record is longer than what is left")
    return start, start + length


def _head(buffer: memoryview, at: int, end: int) -> tuple[list[str], list[int], int]:
    """The fields before the checksum, and where that begins."""
    texts: list[str] = []
    numbers: list[int] = []
    for number in (_PROJECT, _CLIENT, _STREAM):
        at = _expect(buffer, at, end, number, _BYTES)
        length, at = _read_varint(buffer, at, end)
        texts.append(_text(buffer[at : at + length]))
        at += length
    for number in _NUMBERS:
        at = _expect(buffer, at, end, number, _VARINT)
        value, at = _read_varint(buffer, at, end)
        numbers.append(value)
    return texts, numbers, at


def _tag(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(buffer: memoryview, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(_LONGEST_VARINT):
        if at + shift >= end:
            break
        byte = buffer[at + shift]
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, at + shift + 1
    raise TornRecordError("a number does not end")


def _expect(buffer: memoryview, at: int, end: int, number: int, wire: int) -> int:
    if at >= end or buffer[at] != number << 3 | wire:
        raise TornRecordError(f"field {number} is not where it belongs")
    return at + 1


def _text(raw: memoryview) -> str:
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError as error:
        raise TornRecordError("a name is not text") from error
