"""A proxy that does not pass a disconnect on: when its client has left, it reads the answer to its end all the same."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

_READ_BYTES = 1 << 16
_PATIENCE_S = 10.0


@contextmanager
def deaf_proxy(target: int) -> Iterator[str]:
    """Pass connections on to a port of this machine; yields the base URL to use instead."""
    listening: Future[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        stop, relays = asyncio.Event(), set[asyncio.Task[None]]()
        server = await asyncio.start_server(
            lambda *ends: relays.add(asyncio.create_task(_relay(target, *ends))), "127.0.0.1", 0
        )
        listening.set_result((server.sockets[0].getsockname()[1], asyncio.get_running_loop(), stop))
        await stop.wait()
        server.close()
        for relay in relays:
            relay.cancel()
        await asyncio.gather(*relays, return_exceptions=True)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    port, loop, stop = listening.result(_PATIENCE_S)
    yield f"http://127.0.0.1:{port}"
    loop.call_soon_threadsafe(stop.set)
    thread.join(_PATIENCE_S)


async def _relay(target: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    answers, questions = await asyncio.open_connection("127.0.0.1", target)
    asking = asyncio.create_task(_copy(reader, questions))
    try:
        await _copy(answers, writer)
    finally:
        asking.cancel()
        for end in (questions, writer):
            end.transport.abort()
        await asyncio.gather(asking, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read to the end, whether or not anybody is there to be told."""
    told = True
    while piece := await reader.read(_READ_BYTES):
        if told:
            try:
                writer.write(piece)
                await writer.drain()
            except OSError:
                told = False
