"""An answer on its way to a client: a result as the engine makes it, never whole in memory, or what went wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import tempfile
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import IO

import anyio
from starlette.types import Message, Receive, Scope, Send

from costspan_collector.door.ask import Ask
from costspan_collector.door.compression import packer
from costspan_collector.door.work import Work
from costspan_collector.embedded.engine import Done, Engine
from costspan_collector.embedded.failure import Failure
from costspan_collector.embedded.native import WITH_FLAGS, Reviser

_HELD_BYTES = 1 << 20  # held back in memory, so that an early error still has its status
_WHOLE_BYTES = 1 << 26  # held back on disk, for who asks for nothing before the end (wait_end_of_query)
_PIECE_BYTES = 1 << 18
_TEXT = "text/plain; charset=UTF-8"
_EXCEPTION_TAG = "X-ClickHouse-Exception-Tag"
_FIGURES = ("read_rows", "read_bytes", "written_rows", "written_bytes", "result_rows", "result_bytes")

# As ClickHouse has them (exceptionCodeToHTTPStatus), but 403 for what only reads, 503 when too many ask, and 400 for all that
# is not the store's own fault.
_STATUS: Mapping[int, int] = MappingProxyType(
    {194: 401, 229: 413, 48: 501, 159: 408, 779: 415, 202: 503}
    | dict.fromkeys((164, 192, 193, 497, 512, 516), 403)
    | dict.fromkeys((46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 152, 336, 511), 404)
    | dict.fromkeys((49, 210, 241, 243, 394, 1001, 1002), 500)
    | dict.fromkeys((76, 209, 439), 503)
)


class Answer:
    """An ASGI application for one request whose statement runs.

    Args:
        work: The statement.
        ask: What was asked.
        headers: Headers of every answer.
        engine: What runs it.
    """

    def __init__(self, work: Work, ask: Ask, headers: Mapping[str, str], engine: Engine) -> None:
        self._work = work
        self._ask = ask
        self._headers = dict(headers)
        self._engine = engine
        self._packing = packer(ask.packed)
        self._reviser = Reviser() if ask.protocol_version >= WITH_FLAGS else None
        self._started_ns = time.monotonic_ns()

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Tell the result; whatever happens, the statement has ended when this returns."""
        gone = asyncio.create_task(_gone(receive))
        telling = asyncio.create_task(self._tell(send))
        with contextlib.suppress(asyncio.CancelledError):  # the server is ending: so is this, once the statement has
            await asyncio.wait({gone, telling}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        telling.cancel()
        with contextlib.suppress(asyncio.CancelledError, TimeoutError, OSError):  # a client that left, or that stalls
            await telling
        with contextlib.suppress(asyncio.CancelledError):  # the engine ends what is left when it closes
            await self._work.end()

    async def _tell(self, send: Send) -> None:
        with tempfile.SpooledTemporaryFile(_HELD_BYTES, dir=str(self._engine.folder)) as held:
            try:
                whole = await self._hold(held)
                done = await self._work.done() if whole else Done(self._work.format, {})
            except Failure as failure:
                await tell_failure(failure, self._headers, send)
                return
            await self._begin(send, done, held.tell() if whole else None)
            held.seek(0)
            while piece := held.read(_PIECE_BYTES):
                await self._send(send, piece)
        if not whole and not await self._tell_rest(send):
            return
        await self._send(send, b"", last=True)

    async def _hold(self, held: IO[bytes]) -> bool:
        """Hold back the beginning of the result, and say whether that is all."""
        most = _WHOLE_BYTES if self._ask.whole else _HELD_BYTES
        while held.tell() < most:
            piece = await self._read()
            if not piece:
                return True
            held.write(piece)
        return False

    async def _read(self) -> bytes:
        while piece := await self._work.read(_PIECE_BYTES):
            if self._reviser and self._work.format == "Native":
                piece = self._reviser.take(piece)
            if piece:
                return piece
        return self._reviser.rest() if self._reviser else b""

    async def _tell_rest(self, send: Send) -> bool:
        """Send the result on as it comes; if it breaks off, say why, leave the answer without an end, and return False."""
        try:
            while piece := await self._read():
                await self._send(send, piece)
            await self._work.done()
        except Failure as failure:
            tag, text = self._headers[_EXCEPTION_TAG], f"{failure}\n"
            size = len(text.encode())
            parting = f"\r\n__exception__\r\n{tag}\r\n{text}{size} {tag}\r\n__exception__\r\n"
            await self._send(send, parting.encode(), flush=True)
            return False
        return True

    async def _begin(self, send: Send, done: Done, length: int | None) -> None:
        if done.format:
            self._headers["X-ClickHouse-Format"] = done.format
        self._headers["Content-Type"] = self._engine.media_types.get(done.format, _TEXT)
        self._headers["X-ClickHouse-Summary"] = summary(done, time.monotonic_ns() - self._started_ns)
        if length is None:
            self._headers[_EXCEPTION_TAG] = secrets.token_hex(8)
        if self._packing:
            self._headers["Content-Encoding"] = self._packing[0]
        elif length is not None:
            self._headers["Content-Length"] = str(length)
        await send(_start(200, self._headers))

    async def _send(self, send: Send, piece: bytes, *, flush: bool = False, last: bool = False) -> None:
        if self._packing:
            piece = self._packing[1].compress(piece) if piece else b""
            if flush or last:
                piece += self._packing[1].flush()
        if piece or last:
            message = {"type": "http.response.body", "body": piece, "more_body": not last}
            with anyio.fail_after(self._engine.limits.stall_s):  # asyncio.wait_for may lose a cancellation before Python 3.12
                await send(message)


def summary(done: Done, elapsed_ns: int) -> str:
    """The header X-ClickHouse-Summary: figures as texts."""
    return json.dumps({name: str(done.figures.get(name, 0)) for name in _FIGURES} | {"elapsed_ns": str(elapsed_ns)})


async def tell_failure(failure: Failure, headers: Mapping[str, str], send: Send) -> None:
    """Answer with what went wrong."""
    body = f"{failure}\n".encode()
    all_headers = {
        **headers,
        "Content-Type": _TEXT,
        "Content-Length": str(len(body)),
        "X-ClickHouse-Exception-Code": str(failure.code),
    }
    status = _STATUS.get(failure.code, 400)
    if status == 401:
        all_headers["WWW-Authenticate"] = 'Basic realm="ClickHouse server HTTP API"'
    await send(_start(status, all_headers))
    await send({"type": "http.response.body", "body": body})


def _start(status: int, headers: Mapping[str, str]) -> Message:
    raw = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": raw}


async def _gone(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
