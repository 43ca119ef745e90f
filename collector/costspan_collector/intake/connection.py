"""HTTP with a peer that may be hostile."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

WHOLE_WITHIN_S = 60.0
"""How long a request may take to arrive, from its first byte, or a connection's first request from its beginning."""
_MOST_AROUND_BODY = 512 << 10
"""Bytes of head, trailers and framing beside the body; twice what one read of the socket may bring, so that two requests in one
read are not taken for one."""

_MOST_AFTER_ANSWER = 64 << 20
"""Bytes of a body that are read when it is refused already: a peer that is cut off while it sends does not see the answer."""


class GuardedProtocol(HttpToolsProtocol):
    """Ends connections whose requests dribble in or whose heads do not end; bodies are for the application to limit."""

    _timer: asyncio.TimerHandle | None = None
    _read = _body = _around = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Start waiting for the first request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what is no body."""
        self._read = len(data)
        self._around += len(data)
        super().data_received(data)
        if self._around > _MOST_AROUND_BODY + self._body and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        """Start waiting for the rest of a request."""
        super().on_message_begin()
        self._around, self._body = self._read, 0
        self._wait()

    def on_body(self, body: bytes) -> None:
        """Count what is body, and hang up on a peer that has its answer and sends on and on."""
        self._body += len(body)
        self._around -= len(body)
        super().on_body(body)
        if self.cycle.response_complete and self._body > _MOST_AFTER_ANSWER:
            self.transport.abort()

    def on_message_complete(self) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().on_message_complete()

    def _wait(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(WHOLE_WITHIN_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
