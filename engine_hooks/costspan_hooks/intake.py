"""What a sidecar takes on its socket: what a collector takes over TCP, so that an engine need not know which of them it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from costspan.semconv import HEADER_CLIENT, HEADER_ITEMS, HEADER_PROJECT, HEADER_SEQUENCE, HEADER_TOTAL
from costspan_hooks.errors import SpoolFullError
from costspan_hooks.spool import MIB, Payload

_RETRY_AFTER_S = 1
_LEDGER = "/v1/ledger/{table}"
_TRACES = "/v1/traces"
_PROTOBUF = "application/x-protobuf"
_NUMBERS = (HEADER_PROJECT, HEADER_CLIENT, HEADER_SEQUENCE, HEADER_ITEMS, HEADER_TOTAL)
_PASSED_ON = (*_NUMBERS, "content-type", "content-encoding")


def build_intake(put: Callable[[Payload], None], health: Callable[[], dict[str, Any]], limit_bytes: int) -> FastAPI:
    """The application on the socket.

    Args:
        put: Keeps a payload durably; raises ``SpoolFullError``.
        health: What the sidecar holds.
        limit_bytes: Largest payload.
    """
    app = FastAPI(title="costspan sidecar", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(SpoolFullError, _put_off)
    app.add_exception_handler(404, _no_such_path)
    app.add_exception_handler(405, _no_such_path)

    @app.post(_TRACES)
    @app.post(_LEDGER)
    async def take(request: Request) -> Response:
        try:
            body = await _body(request, limit_bytes)
        except ClientDisconnect:
            return Response(status_code=400)  # to nobody
        if body is None:
            return JSONResponse({"error": f"the body is larger than the spool, {limit_bytes / MIB:g} MB"}, status_code=413)
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        await run_in_threadpool(put, Payload(request.url.path, headers, body))
        kind = request.headers.get("content-type", "")
        return Response("" if kind == _PROTOBUF else "{}", media_type=kind if kind == _PROTOBUF else "application/json")

    @app.get("/health")
    def state() -> Response:
        return JSONResponse(health())

    return app


async def _body(request: Request, limit_bytes: int) -> bytes | None:
    """The body as it came, packed or not; ``None`` when it is too large."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        chunks.append(chunk)
        size += len(chunk)
        if size > limit_bytes:
            return None
    return b"".join(chunks)


async def _put_off(_request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=503, headers={"Retry-After": str(_RETRY_AFTER_S)})


async def _no_such_path(request: Request, _error: Exception) -> Response:
    sentence = f"there is no {request.method} {request.url.path} here: POST {_TRACES} or {_LEDGER}, GET /health"
    return JSONResponse({"error": sentence}, status_code=404)
