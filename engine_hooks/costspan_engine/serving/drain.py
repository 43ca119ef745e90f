"""A server that finishes what it began before it goes."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from costspan_engine.serving.server import EngineApp

_logger = logging.getLogger("costspan")

_LAST_BYTES_S = 1.0
"""Clients have this long to read what was sent to them, once there is nothing more to send."""


class Server(uvicorn.Server):
    """Serves an engine; :meth:`leave` is the way to end it.

    Args:
        app: The engine's.
        drain_timeout_s: What is in flight then has this long to finish.
        ready: Called with the server's URL when it listens.
    """

    def __init__(self, app: EngineApp, *, drain_timeout_s: float, ready: Callable[[str], None]) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", lifespan="on", ws="none"))
        self._app = app
        self._drain_timeout_s = drain_timeout_s
        self._ready = ready
        self._hurry = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None

    def leave(self) -> None:
        """Finish what is in flight and end; called again, hand it back and end now. Event loop only."""
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        else:
            self._hurry.set()

    async def _drain(self) -> None:
        await self._app.drain(self._drain_timeout_s, self._hurry)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if self.started and sockets:
            host, port, *_ = sockets[0].getsockname()
            self._ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close all connections; a client that does not read must not hold the others' server."""
        cut = asyncio.get_running_loop().call_later(_LAST_BYTES_S, self._cut)
        await super().shutdown(sockets)
        cut.cancel()

    def _cut(self) -> None:
        connections = list(self.server_state.connections)
        if connections:
            _logger.warning("%d clients did not read to the end; their connections are cut.", len(connections))
        for connection in connections:
            connection.transport.abort()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the command: uvicorn would raise each again after a clean stop."""
        yield
