"""Compression of bodies, in pieces: what is unpacked is never larger than a piece, however small it came."""

from __future__ import annotations

import sys
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import Protocol

import lz4.frame  # type: ignore[import-untyped]  # ships no types

from costspan_collector.embedded.failure import Failure

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_PIECE_BYTES = 1 << 20
_GZIP, _DEFLATE = 31, 15  # zlib's names for them
_GZIP_LEVEL = 3  # ClickHouse's http_zlib_compression_level
_UNKNOWN_COMPRESSION, _CANNOT_DECOMPRESS = 89, 271


class _Unpacks(Protocol):
    """Unpacks a stream, as lz4's and zstd's decompressors do."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""

    @property
    def unused_data(self) -> bytes:
        """What came after its end."""

    @property
    def needs_input(self) -> bool:
        """Whether it has nothing more to give before it gets more."""

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """Take some of it, and give so many bytes at most."""


class Packs(Protocol):
    """Compresses a stream."""

    def compress(self, data: bytes) -> bytes:
        """Take some of it, and give what is ready."""

    def flush(self) -> bytes:
        """Give the rest."""


class _Inflate:
    """zlib's decompressor with the manners of the others."""

    def __init__(self, window_bits: int) -> None:
        self._inner = zlib.decompressobj(window_bits)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class _Lz4:
    """lz4's compressor, which has to be begun."""

    def __init__(self) -> None:
        self._inner = lz4.frame.LZ4FrameCompressor()
        self._begun = b""

    def compress(self, data: bytes) -> bytes:
        begin = b"" if self._inner.started() else self._inner.begin()
        return bytes(begin + self._inner.compress(data))

    def flush(self) -> bytes:
        begin = b"" if self._inner.started() else self._inner.begin()
        return bytes(begin + self._inner.flush())


_UNPACKERS: Mapping[str, Callable[[], _Unpacks]] = MappingProxyType(
    {
        "gzip": lambda: _Inflate(_GZIP),
        "deflate": lambda: _Inflate(_DEFLATE),
        "lz4": lz4.frame.LZ4FrameDecompressor,
        "zstd": zstd.ZstdDecompressor,
    }
)
_PACKERS: Mapping[str, Callable[[], Packs]] = MappingProxyType(
    {
        "lz4": _Lz4,
        "zstd": zstd.ZstdCompressor,
        "gzip": lambda: zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP),
        "deflate": lambda: zlib.compressobj(_GZIP_LEVEL, wbits=_DEFLATE),
    }
)


def packer(accepted: str) -> tuple[str, Packs] | None:
    """The compression to answer with, and its name.

    Args:
        accepted: The header Accept-Encoding.
    """
    offered = {
        part.partition(";")[0].strip().lower() for part in accepted.split(",") if not part.replace(" ", "").endswith(";q=0")
    }
    return next(((name, make()) for name, make in _PACKERS.items() if name in offered), None)


async def unpacked(body: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    """A body as it was before it was compressed.

    Args:
        body: The body, in pieces.
        encoding: The header Content-Encoding.

    Raises:
        Failure: The encoding is not known, or the body is not in it.
    """
    if encoding in {"", "identity"}:
        async for piece in body:
            yield piece
        return
    make = _UNPACKERS.get(encoding)
    if make is None:
        known = ", ".join(_UNPACKERS)
        raise Failure.of(_UNKNOWN_COMPRESSION, "UNKNOWN_COMPRESSION_METHOD", f"Unknown Content-Encoding {encoding!r}: {known}")
    unpacker = make()
    try:
        async for packed in body:
            data = packed
            while data or not (unpacker.needs_input or unpacker.eof):
                if unpacker.eof:
                    unpacker = make()  # one stream after another
                yield unpacker.decompress(data, _PIECE_BYTES)
                data = unpacker.unused_data if unpacker.eof else b""
    except (OSError, EOFError, zlib.error, zstd.ZstdError, RuntimeError) as error:
        raise _cannot_unpack(encoding, error) from error
    if not unpacker.eof:
        raise _cannot_unpack(encoding, "it is cut off")


def _cannot_unpack(encoding: str, why: object) -> Failure:
    return Failure.of(_CANNOT_DECOMPRESS, "CANNOT_DECOMPRESS", f"The body is not {encoding}: {why}")
