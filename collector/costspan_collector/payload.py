"""What a payload must be before the log takes it: unpacked within its limit, well formed, and of the right shape."""

from __future__ import annotations

import base64
import zlib
from collections.abc import AsyncIterator, Callable, Iterable

import pyarrow as pa
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from costspan_collector.errors import ContentError, RefusedError
from costspan_collector.settings import MIB
from costspan_collector.tables import check_lengths, conform

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
ARROW_STREAM = "application/vnd.apache.arrow.stream"

_TRACE_ID_BYTES, _SPAN_ID_BYTES = 16, 8
_AUTO_HEADER = 32 + zlib.MAX_WBITS  # zlib or gzip, whichever the first bytes say


async def read_body(chunks: AsyncIterator[bytes], encoding: str, limit_bytes: int) -> bytes:
    """Read and unpack a body, and stop as soon as it is too large, packed or unpacked.

    Args:
        chunks: The body as it comes.
        encoding: Its ``Content-Encoding``.
        limit_bytes: Most bytes, before and after unpacking.

    Raises:
        RefusedError: 413 when too large, 415 for an unknown encoding, 400 when it cannot be unpacked.
    """
    unpack = _unpacker(encoding, limit_bytes)
    taken: list[bytes] = []
    received = size = 0
    async for chunk in chunks:
        if not chunk:
            continue
        received += len(chunk)
        if received > limit_bytes:
            raise _too_large(limit_bytes)
        taken.append(unpack(chunk, limit_bytes + 1 - size))
        size += len(taken[-1])
        if size > limit_bytes:
            raise _too_large(limit_bytes)
    unpack(b"", 0)
    return b"".join(taken)


def check_spans(body: bytes, kind: str) -> tuple[bytes, int]:
    """Check an OTLP export request.

    Args:
        body: The unpacked body.
        kind: ``PROTOBUF`` or ``JSON``.

    Returns:
        The request in protobuf, its own bytes if it came so, and how many spans it has.

    Raises:
        RefusedError: It is malformed.
    """
    request = ExportTraceServiceRequest()
    try:
        if kind == JSON:
            json_format.Parse(body, request, ignore_unknown_fields=True)
            _restore_ids(_spans(request))
            body = request.SerializeToString()
        else:
            request.ParseFromString(body)
    except (DecodeError, json_format.ParseError, ValueError) as error:
        raise RefusedError(400, f"the body is not an OTLP ExportTraceServiceRequest: {error}") from error
    items = 0
    for items, span in enumerate(_spans(request), start=1):
        if len(span.trace_id) != _TRACE_ID_BYTES or len(span.span_id) != _SPAN_ID_BYTES:
            raise RefusedError(
                400,
                f"span {items} ({span.name!r}) has ids of {len(span.trace_id)} and {len(span.span_id)} bytes: "
                f"a trace id has {_TRACE_ID_BYTES}, a span id {_SPAN_ID_BYTES}",
            )
    return body, items


def check_ledger(body: bytes, schema: pa.Schema) -> int:
    """Check an Arrow IPC stream against a table's schema.

    Returns:
        How many rows it has.

    Raises:
        RefusedError: 400 when it is malformed, 422 when it does not fit the table.
    """
    try:
        table = read_arrow(body)
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise RefusedError(400, f"the body is not a readable Arrow IPC stream: {error}") from error
    try:
        check_lengths(conform(table, schema))
    except (ContentError, pa.ArrowException) as error:
        raise RefusedError(422, str(error)) from error
    return int(table.num_rows)


def read_arrow(body: bytes) -> pa.Table:
    """The table in an Arrow IPC stream."""
    with pa.ipc.open_stream(body) as reader:
        return reader.read_all()


def _too_large(limit_bytes: int) -> RefusedError:
    return RefusedError(
        413, f"the body is larger than {limit_bytes / MIB:g} MB: send it in smaller pieces, or raise --max-body-mb"
    )


def _unpacker(encoding: str, limit_bytes: int) -> Callable[[bytes, int], bytes]:
    """A function that unpacks the next chunk up to a size; an empty chunk asks whether the body was whole."""
    if encoding in {"", "identity"}:
        return lambda chunk, _most: chunk
    if encoding not in {"gzip", "deflate"}:
        raise RefusedError(415, f"Content-Encoding {encoding!r} is unknown here: send gzip, deflate or nothing")
    stream = zlib.decompressobj(_AUTO_HEADER)

    def unpack(chunk: bytes, most: int) -> bytes:
        if not chunk:
            if not stream.eof or stream.unused_data:
                raise RefusedError(400, f"the body is not one whole {encoding} stream")
            return b""
        try:
            out = stream.decompress(chunk, most)
        except zlib.error as error:
            raise RefusedError(400, f"the body is not {encoding}: {error}") from error
        if stream.unconsumed_tail:
            raise _too_large(limit_bytes)
        return out

    return unpack


def _spans(request: ExportTraceServiceRequest) -> Iterable[Span]:
    return (span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans)


def _restore_ids(spans: Iterable[Span]) -> None:
    """Undo base64: OTLP's JSON has ids in hex, where protobuf's JSON has base64 for bytes."""
    for span in spans:
        span.trace_id = _unhex(span.trace_id)
        span.span_id = _unhex(span.span_id)
        span.parent_span_id = _unhex(span.parent_span_id)


def _unhex(misread: bytes) -> bytes:
    return bytes.fromhex(base64.b64encode(misread).decode())
