"""The intake over HTTP. It knows nothing of storage."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from google.protobuf import json_format
from google.protobuf.message import Message
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from costspan_collector.errors import BusyError, CollectorError, RefusedError
from costspan_collector.intake.answers import http_status, retry_after_s, status
from costspan_collector.intake.delivery import Delivery, ledger_table
from costspan_collector.intake.meters import CONTENT_TYPE
from costspan_collector.intake.pages import PATH as PAGE_PATH
from costspan_collector.intake.pages import page_routes
from costspan_collector.intake.payload import ARROW_STREAM, check_media_type, media_type, read_body
from costspan_collector.intake.room import Claim, Room
from costspan_collector.intake.signals import JSON, PROTOBUF, SIGNALS, Signal

_BODIES_AT_ONCE = 8  # of the largest size; of the usual size hundreds
_OTLP_PATHS = frozenset(signal.path for signal in SIGNALS.values())


def build_intake(delivery: Delivery, max_body_bytes: int) -> Starlette:
    """The application that takes payloads and says how it is.

    Args:
        delivery: What takes them.
        max_body_bytes: Largest body, packed or unpacked.
    """
    room = Room(_BODIES_AT_ONCE * max_body_bytes)

    async def ledger(request: Request) -> Response:
        table = ledger_table(request.path_params["table"])
        with delivery.meters.answering(table, "http"), room.claim() as claim:
            check_media_type(request.headers, (ARROW_STREAM,))
            sender = delivery.sender(request.headers)
            body = await _body(request, max_body_bytes, claim)
            items = await run_in_threadpool(delivery.take_ledger, table, body, sender, _wire_bytes(request, body))
        return JSONResponse({"rows": items})

    def health(_request: Request) -> Response:
        return JSONResponse(delivery.health())

    def ready(_request: Request) -> Response:
        state = delivery.health()
        return JSONResponse({"ready": state["ready"]}, status_code=200 if state["ready"] else 503)

    def metrics(_request: Request) -> Response:
        return Response(delivery.meters.exposition(), media_type=CONTENT_TYPE)

    return Starlette(
        routes=[
            *(
                Route(signal.path, _taking(signal, delivery, max_body_bytes, room), methods=["POST"])
                for signal in SIGNALS.values()
            ),
            Route("/v1/ledger/{table}", ledger, methods=["POST"]),
            *page_routes(delivery),
            Route("/health", health),
            Route("/ready", ready),
            Route("/metrics", metrics),
        ],
        exception_handlers={RefusedError: _answer, BusyError: _answer, 404: _no_such_path, 405: _no_such_path},
    )


def _taking(signal: Signal, delivery: Delivery, max_body_bytes: int, room: Room) -> Callable[[Request], Awaitable[Response]]:
    """What answers the requests of a signal."""

    async def take(request: Request) -> Response:
        with delivery.meters.answering(signal.stream, "http"), room.claim() as claim:
            kind = check_media_type(request.headers, (PROTOBUF, JSON))
            sender = delivery.sender(request.headers)
            body = await _body(request, max_body_bytes, claim)
            taken = await run_in_threadpool(delivery.take, signal, body, kind, sender, _wire_bytes(request, body))
        return _message(signal.answer(taken.rejected, taken.reason), kind)

    return take


async def _body(request: Request, limit_bytes: int, claim: Claim) -> bytes:
    encoding = request.headers.get("content-encoding", "").strip().lower()
    try:
        return await read_body(request.stream(), encoding, limit_bytes, claim)
    except ClientDisconnect as error:
        raise RefusedError(400, "the sender left before its body was whole") from error


def _wire_bytes(request: Request, body: bytes) -> int:
    """How long a body was on its way; one that came in chunks counts as it was unpacked."""
    return int(request.headers.get("content-length", len(body)))


def _message(message: Message, kind: str, code: int = 200, headers: dict[str, str] | None = None) -> Response:
    content = json_format.MessageToJson(message, indent=None) if kind == JSON else message.SerializeToString()
    return Response(content, code, headers, media_type=kind)


async def _answer(request: Request, error: Exception) -> Response:
    """An error: over OTLP's paths as OTLP wants it, in the request's own media type, else as a sentence in JSON."""
    if not isinstance(error, CollectorError):
        raise error
    code, after_s = http_status(error), retry_after_s(error)
    headers = {} if after_s is None else {"Retry-After": str(after_s)}
    if code == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if request.url.path not in _OTLP_PATHS:
        return JSONResponse({"error": str(error)}, code, headers)
    return _message(status(error), PROTOBUF if media_type(request.headers) == PROTOBUF else JSON, code, headers)


async def _no_such_path(request: Request, _error: Exception) -> Response:
    known = f"POST {', '.join(sorted(_OTLP_PATHS))}, {PAGE_PATH} or /v1/ledger/TABLE, GET /health, /ready or /metrics"
    return await _answer(request, RefusedError(404, f"there is no {request.method} {request.url.path} here: {known}"))
