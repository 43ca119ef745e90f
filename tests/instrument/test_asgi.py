"""The server's clock, on real servers: what it says of every way in which a request can end, and that nobody notices it."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import fastapi
import httpx
import pytest
from fastapi.responses import StreamingResponse as FastStreamingResponse
from opentelemetry.baggage import set_baggage
from opentelemetry.context import attach, detach, get_current
from opentelemetry.trace import INVALID_SPAN, get_current_span
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

import costspan
from costspan import semconv
from costspan.clock import now_ns
from costspan.integrations.asgi import CostspanMiddleware
from costspan.semconv import Outcome
from tests.instrument.asgi_server import serving
from tests.receiver import Receiver, Span

TRACE, PAGE = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PAGE}-01"
PATIENCE_S = 10.0
Raw = Callable[[Any, Any, Any], Awaitable[None]]


def stamps(span: Span) -> list[int]:
    """The endpoint's clock in the order in which it should run; what never was is left out."""
    names = (semconv.ENDPOINT_RECEIVED, semconv.ENDPOINT_FIRST, semconv.ENDPOINT_LAST, semconv.ENDPOINT_DISCONNECT)
    return [int(span.attributes[name]) for name in names if name in span.attributes]


def endpoint(traced: Receiver) -> Span:
    """The one endpoint span there is, once it is there."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = [span for span in traced.spans() if span.attributes[semconv.KIND] == semconv.Kind.ENDPOINT]
        if found or time.monotonic() > deadline:
            assert len(found) == 1, found
            return found[0]
        time.sleep(0.01)


async def words(_request: Request) -> Response:
    async def stream() -> AsyncIterator[str]:
        for word in ("one ", "two ", "three"):
            yield word

    return StreamingResponse(stream(), media_type="text/plain")


def endless(left: threading.Event, *, pause_s: float = 0.005) -> Callable[[Request], Awaitable[Response]]:
    """A handler that streams for ever, and says when it was left."""

    async def handler(_request: Request) -> Response:
        async def stream() -> AsyncIterator[str]:
            try:
                while True:
                    yield "word "
                    await asyncio.sleep(pause_s)
            finally:
                left.set()

        return StreamingResponse(stream(), media_type="text/plain")

    return handler


def leave(url: str, path: str, *, after: bytes = b"word ", method: str = "GET", headers: str = "", body: bytes = b"") -> int:
    """Ask, read until ``after`` has come, stay a little without reading, and go; returns when, in nanoseconds."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as client:
        client.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode() + body)
        seen = b""
        while after not in seen:
            seen += client.recv(65536)
        time.sleep(0.1)
        return now_ns()


def was_left(left: threading.Event) -> bool:
    """Whether the app's stream was closed.

    Starlette's BaseHTTPMiddleware may cancel a response while it passes a piece on, not while the stream makes one: the stream
    is then left as it is, with or without us, and closed when the garbage collector finds it.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not left.wait(0.5) and time.monotonic() < deadline:
        gc.collect()
    return left.is_set()


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_a_whole_answer(traced: Receiver, http: str) -> None:
    app = Starlette(routes=[Route("/chat/{room}", words)])
    with serving(CostspanMiddleware(app), http=http) as url:
        assert httpx.get(f"{url}/chat/7", headers={"traceparent": TRACEPARENT}).text == "one two three"
    span = endpoint(traced)
    assert (span.name, span.outcome, span.attributes[semconv.HTTP_STATUS]) == ("GET /chat/{room}", Outcome.OK, 200)
    assert (span.trace_id, span.parent_id) == (TRACE, PAGE)
    assert len(stamps(span)) == 3, "nobody left"
    assert stamps(span) == sorted(stamps(span))
    assert span.start_ns == stamps(span)[0]


def test_fastapi_names_the_endpoint_by_its_template_and_what_it_does_is_under_it(traced: Receiver) -> None:
    app = fastapi.FastAPI()
    app.add_middleware(CostspanMiddleware)

    @app.get("/chat/{room}")
    async def chat(room: str) -> FastStreamingResponse:
        async def stream() -> AsyncIterator[str]:
            with costspan.generation(model="m", provider="p") as call:
                for word in call.meter(["a", "b"]):
                    yield word + room

        return FastStreamingResponse(stream())

    with serving(app) as url:
        assert httpx.get(f"{url}/chat/7").text == "a7b7"
    assert endpoint(traced).name == "GET /chat/{room}"
    assert traced.span("chat m").parent_id == endpoint(traced).span_id


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("around", [False, True])
def test_a_client_that_leaves_in_the_middle(traced: Receiver, around: bool, http: str) -> None:
    left = threading.Event()
    app = Starlette(routes=[Route("/", endless(left))])
    if around:  # the middleware that everybody writes, which reads `receive` in its own way

        async def dispatch(request: Request, go: Any) -> Response:
            return await go(request)  # type: ignore[no-any-return]  # Starlette's own type is Any here

        app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    app.add_middleware(CostspanMiddleware)
    with serving(app, http=http) as url:
        gone_ns = leave(url, "/")
        assert was_left(left), "the app was not told"
        span = endpoint(traced)
    assert (span.outcome, span.status) == (Outcome.CANCELLED, 0)
    assert gone_ns <= int(span.attributes[semconv.ENDPOINT_DISCONNECT]) == stamps(span)[-1] <= span.end_ns
    assert semconv.ENDPOINT_FIRST in span.attributes


def test_a_client_that_leaves_a_handler_that_does_not_listen(traced: Receiver) -> None:
    """Nobody in the app reads ``receive``, and uvicorn drops what is sent: the moment is known all the same."""
    asked, gone, heard_ns = threading.Event(), threading.Event(), []

    async def slow(request: Request) -> Response:
        await request.body()
        asked.set()
        await asyncio.to_thread(gone.wait, PATIENCE_S)
        heard_ns.append(now_ns())
        return PlainTextResponse("too late")

    for method, headers, body in (("GET", "", b""), ("POST", "Content-Length: 4\r\n", b"tell")):
        gone.clear()
        with serving(CostspanMiddleware(Starlette(routes=[Route("/", slow, methods=["GET", "POST"])]))) as url:
            gone_ns = leave(url, "/", after=b"", method=method, headers=headers, body=body)
            span = next(each for each in ended(traced) if each.name.startswith(method))
            gone.set()
        assert span.outcome == Outcome.ABANDONED
        assert gone_ns <= int(span.attributes[semconv.ENDPOINT_DISCONNECT])
        assert semconv.HTTP_STATUS not in span.attributes, "it ended when the client left, before there was an answer"
    assert len(heard_ns) == 2


def ended(traced: Receiver) -> Iterator[Span]:
    """The spans that end, while they do."""
    deadline, told = time.monotonic() + PATIENCE_S, 0
    while time.monotonic() < deadline:
        spans = traced.spans()
        yield from spans[told:]
        told = len(spans)
        time.sleep(0.01)


def test_listening_leaves_no_task_behind_and_a_servers_error_is_the_apps(traced: Receiver) -> None:
    error, seen = RuntimeError("the server broke"), []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x"})
        try:
            await receive()
        except RuntimeError as raised:
            seen.append(raised)

    async def request(*, broken: bool) -> None:
        told = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive() -> Any:
            for message in told:
                return message
            if broken:
                raise error
            return await asyncio.Event().wait()

        async def send(_message: Any) -> None: ...

        serving_one = asyncio.create_task(
            CostspanMiddleware(app)({"type": "http", "method": "GET", "headers": []}, receive, send)
        )
        await asyncio.wait((serving_one,), timeout=0.05)
        serving_one.cancel()
        await asyncio.wait((serving_one,))

    async def main() -> None:
        await request(broken=True)
        await request(broken=False)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert seen == [error]
    assert [span.outcome for span in traced.spans()] == [Outcome.OK, Outcome.OK]


def test_pieces_that_the_server_reads_from_a_file_by_itself(traced: Receiver) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.zerocopysend", "file": 0, "more_body": True})
        await send({"type": "http.response.zerocopysend", "file": 0})

    async def nothing(*_: Any) -> Any: ...

    asyncio.run(CostspanMiddleware(app)({"type": "http", "method": "POST", "headers": []}, nothing, nothing))
    assert endpoint(traced).outcome == Outcome.OK
    assert len(stamps(endpoint(traced))) == 3


def test_a_server_that_raises_where_the_client_is_gone(traced: Receiver) -> None:
    """ASGI 2.4: ``send`` raises an OSError, and the app sees the very one."""
    error, seen = BrokenPipeError("gone"), []

    async def server(app: Any) -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": True}

        async def send(message: Any) -> None:
            if message.get("body"):
                raise error

        try:
            await app({"type": "http", "method": "POST", "headers": [], "asgi": {"spec_version": "2.4"}}, receive, send)
        except OSError as raised:
            seen.append(raised)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})

    asyncio.run(server(CostspanMiddleware(app)))
    assert seen == [error]
    assert endpoint(traced).outcome == Outcome.CANCELLED
    assert semconv.ENDPOINT_DISCONNECT in endpoint(traced).attributes


def failing(kind: type[BaseException]) -> Callable[[Request], Awaitable[Response]]:
    async def handler(_request: Request) -> Response:
        raise kind("broken")

    return handler


@pytest.mark.parametrize(
    ("handler", "outcome", "status"),
    [
        (failing(ValueError), Outcome.ERROR, None),
        (failing(TimeoutError), Outcome.TIMEOUT, None),
        (failing(asyncio.CancelledError), Outcome.ABANDONED, None),
        (lambda _request: PlainTextResponse("no", 503), Outcome.ERROR, 503),
        (lambda _request: PlainTextResponse("no", 404), Outcome.OK, 404),
    ],
)
def test_how_a_request_ends(traced: Receiver, handler: Any, outcome: Outcome, status: int | None) -> None:
    with serving(Starlette(routes=[Route("/", handler)], middleware=[Middleware(CostspanMiddleware)])) as url:
        answered = httpx.get(url)
    assert answered.status_code == (status or 500)
    span = endpoint(traced)
    assert (span.outcome, span.attributes.get(semconv.HTTP_STATUS)) == (outcome, status)


def test_the_span_ends_with_the_answer_and_not_with_what_the_app_does_afterwards(traced: Receiver) -> None:
    release = threading.Event()

    async def handler(_request: Request) -> Response:
        return PlainTextResponse("done", background=BackgroundTask(release.wait, PATIENCE_S))

    with serving(CostspanMiddleware(Starlette(routes=[Route("/", handler)]))) as url:
        assert httpx.get(url).text == "done"
        assert endpoint(traced).outcome == Outcome.OK
        release.set()


def test_an_upload_reaches_the_app_piece_by_piece(traced: Receiver) -> None:
    async def echo(_scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message["body"], "more_body": more})

    body = bytes(range(256)) * 4096
    with serving(CostspanMiddleware(echo)) as url:
        assert httpx.post(url, content=body).content == body
    assert endpoint(traced).outcome == Outcome.OK


def test_an_app_that_polls_for_the_disconnect_is_told(traced: Receiver) -> None:
    told = threading.Event()

    async def handler(request: Request) -> Response:
        assert not await request.is_disconnected()
        while not await request.is_disconnected():  # noqa: ASYNC110  (there is nothing else to wait for)
            await asyncio.sleep(0.005)
        told.set()
        return PlainTextResponse("nobody reads this")

    with serving(CostspanMiddleware(Starlette(routes=[Route("/", handler)]))) as url:
        leave(url, "/", after=b"")
        assert told.wait(PATIENCE_S)
    assert endpoint(traced).outcome == Outcome.ABANDONED


def test_a_file(traced: Receiver, tmp_path: Any) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100_000)

    async def handler(_request: Request) -> Response:
        return FileResponse(tmp_path / "file")

    with serving(CostspanMiddleware(Starlette(routes=[Route("/", handler)]))) as url:
        assert len(httpx.get(url).content) == 100_000
        assert httpx.head(url).status_code == 200
    assert [span.outcome for span in traced.spans()] == [Outcome.OK, Outcome.OK]


@pytest.mark.parametrize(
    ("query", "headers", "parent"),
    [
        (f"?a=1&traceparent={TRACEPARENT}", {}, PAGE),  # EventSource can send no header
        (f"?traceparent={TRACEPARENT}", {"traceparent": f"00-{TRACE}-{'1' * 16}-00"}, "1" * 16),
        ("", {"traceparent": "00-nonsense-01"}, ""),
        (f"?traceparent=00-{'0' * 32}-{PAGE}-01", {}, ""),
        ("?traceparent=%ff%00", {"traceparent": "x" * 5000}, ""),
    ],
)
def test_whose_trace_it_is(traced: Receiver, query: str, headers: dict[str, str], parent: str) -> None:
    with TestClient(CostspanMiddleware(Starlette(routes=[Route("/", words)]))) as client:
        client.get(f"/{query}", headers=headers)
    assert endpoint(traced).parent_id == parent


@pytest.mark.parametrize(("trusted", "tenant"), [(False, None), (True, "acme")])
def test_a_page_does_not_choose_its_tenant(traced: Receiver, trusted: bool, tenant: str | None) -> None:
    headers = {"traceparent": TRACEPARENT, "baggage": f"{semconv.TENANT}=acme,colour=blue"}
    with TestClient(CostspanMiddleware(Starlette(routes=[Route("/", words)]), trust_baggage=trusted)) as client:
        client.get("/", headers=headers)
    assert endpoint(traced).attributes.get(semconv.TENANT) == tenant


def test_baggage_that_an_instrumentation_outside_let_in_is_not_trusted_either(traced: Receiver) -> None:
    inside = CostspanMiddleware(Starlette(routes=[Route("/", words)]))

    async def outside(scope: Any, receive: Any, send: Any) -> None:
        token = attach(set_baggage(semconv.TENANT, "acme", set_baggage("colour", "blue", get_current())))
        await inside(scope, receive, send)
        detach(token)

    with TestClient(outside) as client:
        client.get("/")
    assert semconv.TENANT not in endpoint(traced).attributes


def test_the_apps_own_tracing_begins_as_it_would_without_us(traced: Receiver) -> None:
    """A caller's span as its parent would have a sampler that follows parents take every request."""
    seen = []

    async def handler(_request: Request) -> Response:
        seen.append(get_current_span())
        with costspan.unit("ticket", "T-1"):
            return PlainTextResponse("done")

    inside = CostspanMiddleware(Starlette(routes=[Route("/", handler)]))
    with TestClient(CostspanMiddleware(Starlette(routes=[Mount("/", inside)]))) as client:
        client.get("/", headers={"traceparent": TRACEPARENT})
    assert seen == [INVALID_SPAN]
    unit, outer, inner = traced.spans()
    assert {unit.trace_id, inner.trace_id, outer.trace_id} == {TRACE}
    assert (unit.parent_id, inner.parent_id, outer.parent_id) == (inner.span_id, outer.span_id, PAGE)


def test_what_is_being_answered_when_the_process_exits_is_told(traced: Receiver) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        costspan.shutdown(5)
        await send({"type": "http.response.body", "body": b"y"})

    async def nothing(*_: Any) -> Any: ...

    asyncio.run(CostspanMiddleware(app)({"type": "http", "method": "POST", "headers": []}, nothing, nothing))
    assert endpoint(traced).outcome == Outcome.CANCELLED
    assert len(stamps(endpoint(traced))) == 3


def test_websockets_mounts_and_lifespan_are_left_alone(traced: Receiver) -> None:
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    inner = Starlette(routes=[Route("/in/{x}", words)])
    app = CostspanMiddleware(Starlette(routes=[WebSocketRoute("/ws", echo), Mount("/sub", inner)]))
    with TestClient(app) as client:
        with client.websocket_connect("/ws") as open_socket:
            open_socket.send_text("hi")
            assert open_socket.receive_text() == "hi"
        assert client.get("/sub/in/1").text == "one two three"
        assert client.get("/nowhere").status_code == 404
    assert [span.name for span in traced.spans()] == ["GET /in/{x}", "GET"]


def test_before_init_the_app_gets_the_very_messages_and_callables() -> None:
    seen: list[object] = []

    async def app(*given: Any) -> None:
        seen.extend(given)

    async def nothing() -> None: ...

    scope = {"type": "http"}
    asyncio.run(CostspanMiddleware(app)(scope, nothing, nothing))  # type: ignore[arg-type]  # never called
    assert [id(each) for each in seen] == [id(scope), id(nothing), id(nothing)]


def test_without_an_asyncio_loop_the_apps_own_listening_is_heard(traced: Receiver) -> None:
    """As under trio: there is no task to wait in."""

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    told = iter([{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(told)

    async def send(_message: Any) -> None: ...

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    with pytest.raises(StopIteration):
        CostspanMiddleware(app)(scope, receive, send).send(None)
    assert endpoint(traced).outcome == Outcome.CANCELLED
