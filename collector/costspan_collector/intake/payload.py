"""What a body must be before the log takes it: unpacked within its limit, and a ledger's of the right shape."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from costspan_collector.errors import ContentError, RefusedError
from costspan_collector.intake.inflation import check_declared, check_decoded
from costspan_collector.intake.room import Claim
from costspan_collector.settings import MIB
from costspan_collector.store.tables import check_lengths, conform

ARROW_STREAM = "application/vnd.apache.arrow.stream"

_AUTO_HEADER = 32 + zlib.MAX_WBITS  # zlib or gzip, whichever the first bytes say


def media_type(headers: Mapping[str, str]) -> str:
    """What a request says its body is, "" when it does not."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def check_media_type(headers: Mapping[str, str], accepted: tuple[str, ...]) -> str:
    """The media type of a request, which must be one of a few.

    Raises:
        RefusedError: 415, it is another.
    """
    given = media_type(headers)
    if given not in accepted:
        raise RefusedError(415, f"Content-Type {given!r} is not taken here: send {' or '.join(accepted)}")
    return given


async def read_body(chunks: AsyncIterator[bytes], encoding: str, limit_bytes: int, claim: Claim) -> bytes:
    """Read and unpack a body, and stop as soon as it is too large, packed or unpacked.

    Args:
        chunks: The body as it comes.
        encoding: Its ``Content-Encoding``.
        limit_bytes: Most bytes, before and after unpacking.
        claim: The room that it takes up.

    Raises:
        BusyError: There is no room for it now.
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
        claim.grow(len(taken[-1]))
        size += len(taken[-1])
        if size > limit_bytes:
            raise _too_large(limit_bytes)
    unpack(b"", 0)
    return b"".join(taken)


def check_ledger(body: bytes, schema: pa.Schema, project: str = "") -> int:
    """Check an Arrow IPC stream against a table's schema.

    Args:
        body: The stream.
        schema: What its columns must be.
        project: The only project that its rows may be for, "" for any.

    Returns:
        How many rows it has.

    Raises:
        RefusedError: 400 when it is malformed, 422 when it does not fit the table or has rows of another project.
    """
    try:
        check_declared(body)
        table = read_arrow(body)
        table.validate(full=True)
        check_decoded(table)
    except (pa.ArrowException, OSError) as error:
        raise RefusedError(400, f"the body is not a readable Arrow IPC stream: {error}") from error
    try:
        check_lengths(conform(table, schema))
    except (ContentError, pa.ArrowException) as error:
        raise RefusedError(422, str(error)) from error
    if project:
        _check_project(table, project)
    return int(table.num_rows)


def _check_project(table: pa.Table, project: str) -> None:
    for other in pc.unique(table.column("project").cast(pa.string())).to_pylist():
        if other != project:
            raise RefusedError(422, f"the key is for project {project!r}, and a row names {other!r}: use that one's key")


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
