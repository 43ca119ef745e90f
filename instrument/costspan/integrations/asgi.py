"""The server's clock: one span a request of a Starlette, FastAPI or other ASGI app.

::

    from costspan.integrations.asgi import CostspanMiddleware

    app.add_middleware(CostspanMiddleware)

The span continues the page's trace, and everything that the app does for the request is under it. It says when the request
came, when the first and the last piece of the answer went out, and when the server heard that its client was gone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from opentelemetry.baggage import get_all, remove_baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context, get_current
from opentelemetry.trace import SpanKind, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from costspan import _runtime
from costspan._observation import Observation, start
from costspan._outcome import outcome_of
from costspan._propagation import as_current
from costspan._trouble import report
from costspan.clock import now_ns
from costspan.semconv import (
    ENDPOINT_DISCONNECT,
    ENDPOINT_FIRST,
    ENDPOINT_LAST,
    ENDPOINT_RECEIVED,
    HTTP_STATUS,
    WHO,
    Kind,
    Outcome,
)

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_TRACE = TraceContextTextMapPropagator()
_BAGGAGE = W3CBaggagePropagator()
_TRACEPARENT = "traceparent"
_DISCONNECT = "http.disconnect"
_PIECES = frozenset({"http.response.body", "http.response.zerocopysend"})
_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
_SERVER_ERROR = 500
_FLUSH_S = 5.0


class CostspanMiddleware:
    """Pure ASGI: nothing is buffered, and what the app receives and sends passes as it is, when it is.

    Websockets are left alone, and so is everything before ``costspan.init()``. When the server stops, the app's lifespan ends
    once what has been observed is sent, after five seconds at the latest: right after it, uvicorn dies of the signal.

    Args:
        app: The app inside.
        trust_baggage: Whether callers may say, in ``baggage``, whose work a request is. Leave it off where browsers call: a
            page must not choose its tenant.
    """

    def __init__(self, app: App, *, trust_baggage: bool = False) -> None:
        self.app = app
        self._trust_baggage = trust_baggage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http" or _runtime.current() is None:
            await self.app(scope, receive, _flushing(send) if scope["type"] == "lifespan" else send)
            return
        received_ns = now_ns()
        observation = start(
            scope["method"],
            Kind.ENDPOINT,
            {ENDPOINT_RECEIVED: received_ns},
            within=_incoming(scope, trusted=self._trust_baggage),
            start_ns=received_ns,
            role=SpanKind.SERVER,
        )
        if observation.context is None:
            await self.app(scope, receive, send)
            return
        # The caller's span is the parent of ours alone: the app's own tracing begins as it would without us.
        observation.context = set_span_in_context(get_current_span(), observation.context)
        await _Exchange(scope, receive, send, observation).serve(self.app)


def _flushing(send: Send) -> Send:
    async def flush_first(message: Message) -> None:
        if message["type"].startswith("lifespan.shutdown.") and _runtime.current() is not None:
            try:
                await asyncio.get_running_loop().run_in_executor(None, _runtime.flush, _FLUSH_S)
            except Exception as error:  # noqa: BLE001  (the server is to stop)
                report(error, "flush when a server stops")
        await send(message)

    return flush_first


class _Exchange:
    """One request and its answer while they pass."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, observation: Observation) -> None:
        self._scope = scope
        self._send = send
        self._observation = observation
        self._ear = _Ear(receive, self._left)
        self._status = self._first_ns = self._last_ns = 0
        self._whole = self._ended = False
        observation.on_exit = self._cut

    async def serve(self, app: App) -> None:
        """Run the app, and end the span if neither a whole answer nor a client that left has."""
        self._observation.__enter__()
        try:
            if _has_no_body(self._scope):
                await self._ear.hold()
            await app(self._scope, self._ear.receive, self.send)
            self._end(Outcome.ERROR)  # it returned, and its answer was not whole
        except BaseException as error:
            outcome = outcome_of(error)
            self._end(self._unfinished if outcome is Outcome.CANCELLED else outcome, error)
            raise
        finally:
            self._ear.stop()
            self._observation.leave()

    async def send(self, message: Message) -> None:
        """Pass a message of the app's on to the server."""
        kind = message["type"]
        if kind == "http.response.start":
            self._status = message["status"]
        elif kind in _PIECES:
            if message.get("body") or kind != "http.response.body":
                self._last_ns = now_ns()
                self._first_ns = self._first_ns or self._last_ns
            self._whole = not message.get("more_body", False)
        elif kind == "http.response.pathsend":  # the server sends the file by itself
            self._first_ns = self._last_ns = now_ns()
            self._whole = True
        try:
            await self._send(message)
        except OSError:  # the client is gone, say servers of ASGI 2.4
            self._whole = False
            self._left()
            raise
        if self._whole:
            self._end(Outcome.ERROR if self._status >= _SERVER_ERROR else Outcome.OK)

    @property
    def _unfinished(self) -> Outcome:
        return Outcome.CANCELLED if self._first_ns else Outcome.ABANDONED

    def _cut(self) -> None:
        """The process exits."""
        self._end(self._unfinished)

    def _left(self) -> None:
        """The server has heard that the client is gone; after a whole answer that is no news."""
        if not self._whole:
            self._end(self._unfinished, disconnect_ns=now_ns())

    def _end(self, outcome: Outcome, error: BaseException | None = None, *, disconnect_ns: int = 0) -> None:
        if self._ended:
            return
        self._ended = True
        template = getattr(self._scope.get("route"), "path", None)  # the framework knows it once the app has run
        if isinstance(template, str):
            self._observation.span.update_name(f"{self._scope['method']} {template}")
        told = {
            ENDPOINT_FIRST: self._first_ns,
            ENDPOINT_LAST: self._last_ns,
            ENDPOINT_DISCONNECT: disconnect_ns,
            HTTP_STATUS: self._status,
        }
        self._observation.end(outcome, error, attributes={key: number for key, number in told.items() if number})


class _Ear:
    """What the server says to the app, and the client's leaving, which the server says to nobody who does not ask.

    Once a request's body is whole, all that can still come is its disconnect. From then on it is waited for here, and whoever
    in the app asks is told when it comes. While there is a body to come, only the app reads: nothing is taken in early.
    """

    def __init__(self, receive: Receive, left: Callable[[], None]) -> None:
        self._receive = receive
        self._left = left
        self._held: deque[Message] = deque()
        self._listening: asyncio.Task[Message] | None = None

    async def hold(self) -> None:
        """Read the one message of a request without a body, for the app to find."""
        self._held.append(await self._next())

    async def receive(self) -> Message:
        """The next message, to the app."""
        if self._held:
            return self._held.popleft()
        listening = self._listening
        if listening is None:
            return await self._next()
        if not listening.done():  # or it would yield, and whoever polls in a cancelled scope would never be told
            await asyncio.wait((listening,))
        return {"type": _DISCONNECT} if listening.cancelled() else listening.result()

    def stop(self) -> None:
        """The app is done."""
        listening = self._listening
        if listening is None or listening.cancel():
            return
        if not listening.cancelled():
            listening.exception()  # the server's error, that nobody asked for

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == _DISCONNECT:
            self._left()
        elif not message.get("more_body", False):
            self._listen()
        return message

    def _listen(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # trio's: the client's leaving is heard where the app listens
            return
        self._listening = loop.create_task(self._disconnect())

    async def _disconnect(self) -> Message:
        while True:
            message = await self._receive()
            if message["type"] == _DISCONNECT:
                self._left()
                return message


def _has_no_body(scope: Scope) -> bool:
    """Whether a request says that nothing follows its headers."""
    length = next((value for name, value in scope["headers"] if name == b"content-length"), None)
    if length is None:
        chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
        return scope["method"] in _WITHOUT_BODY and not chunked
    return bool(length == b"0")


def _incoming(scope: Scope, *, trusted: bool) -> Context:
    """The context that a request is served in: the caller's trace, and the caller's baggage where it is trusted.

    Where an instrumentation of the app's own stands outside, the trace is already the current one.
    """
    context = get_current()
    try:
        carrier = dict(_carried(scope))
        if not get_current_span(as_current(context)).get_span_context().is_valid:
            context = _TRACE.extract(carrier, context)
        if trusted:
            return _BAGGAGE.extract(carrier, context)
        for key in get_all(context):
            if key in WHO:
                context = remove_baggage(key, context)
    except Exception as error:  # noqa: BLE001  (whatever a stranger sends, the request is served)
        report(error, "read a request's headers")
    return context


def _carried(scope: Scope) -> Iterator[tuple[str, str]]:
    """What hands a trace on: headers, or where the caller can set none (``EventSource``), the query string."""
    query = scope.get("query_string", b"")
    if _TRACEPARENT.encode() in query:
        for value in parse_qs(query.decode("latin-1")).get(_TRACEPARENT, []):
            yield _TRACEPARENT, value
    for name, value in scope["headers"]:
        if name in {b"traceparent", b"tracestate", b"baggage"}:
            yield name.decode("latin-1"), value.decode("latin-1")
