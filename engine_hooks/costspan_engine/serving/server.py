"""The OpenAI-compatible HTTP server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from math import ceil
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from costspan.clock import now_ns
from costspan_engine.engine import Engine, Output
from costspan_engine.errors import RequestError
from costspan_engine.serving import metrics
from costspan_engine.serving.delivery import Generation
from costspan_engine.serving.desk import RECEIVED, Desk, Served
from costspan_engine.serving.limits import Gate, Limits
from costspan_engine.serving.post import PostOffice
from costspan_engine.serving.protocol import error_body, error_headers
from costspan_hooks.observer import EngineObserver

if TYPE_CHECKING:
    from costspan_engine.compute.memory import MemoryReport  # imports torch

_FAREWELL_S = 1.0
"""Clients have this long to take the news that their request is handed back."""


class EngineApp:
    """The ASGI application; it starts the engine when the server starts, and stops it when the server has stopped.

    Args:
        engine: Not started yet.
        served: What callers may ask for.
        observer: The engine's.
        limits: What is taken on at most.
        report: Where the memory went, for the metrics.
    """

    def __init__(
        self,
        engine: Engine,
        served: Served,
        observer: EngineObserver,
        limits: Limits | None = None,
        report: MemoryReport | None = None,
    ) -> None:
        office = PostOffice(engine)
        self._gate = Gate(limits or Limits(), office)
        desk = Desk(engine, office, served, observer, self._gate)
        self._in_flight = desk.in_flight

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            loop = asyncio.get_running_loop()

            def deliver(outputs: list[Output]) -> None:
                loop.call_soon_threadsafe(office.sort, outputs)

            engine.start(deliver)
            yield
            await asyncio.to_thread(engine.stop)

        self._app = FastAPI(title="costspan engine", lifespan=lifespan, openapi_url=None)
        _add_errors(self._app, self._gate)
        _add_generation(self._app, desk, self._gate)
        _add_models(self._app, engine, served)
        _add_state(self._app, engine, self._gate, report)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Note when a request came in, before anything else is done with it."""
        scope[RECEIVED] = now_ns()
        await self._app(scope, receive, send)

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Let nobody in any more and finish what is here; what is not done in time, or by a hurry, is handed back."""
        self._gate.close(seconds)
        done = asyncio.create_task(self._in_flight.none.wait())
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait({done, hurried}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not done.done():
            self._in_flight.hand_back()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(done, _FAREWELL_S)


def _add_generation(app: FastAPI, desk: Desk, gate: Gate) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def chat(http: Request) -> Generation:
        return await desk.chat(http, await _body(http, gate.limits.max_body))

    @app.post("/v1/completions", response_model=None)
    async def completion(http: Request) -> Generation:
        return await desk.completion(http, await _body(http, gate.limits.max_body))

    @app.post("/v1/requests/{request_id:path}/cancel")
    async def cancel(request_id: str) -> dict[str, object]:
        if not desk.in_flight.cancel(request_id):
            message = f"No request {request_id!r} is in flight; give an answer's id or the X-Request-Id that you sent."
            raise RequestError(message, status=404, code="request_not_found", param="id")
        return {"id": request_id, "object": "request.cancellation", "cancelled": True}


def _add_models(app: FastAPI, engine: Engine, served: Served) -> None:
    common = {"object": "model", "created": int(time.time()), "owned_by": "costspan", "max_model_len": engine.max_context}
    known: dict[str, dict[str, object]] = {served.name: {"id": served.name, **common}}
    known |= {name: {"id": name, **common, "parent": served.name} for name in served.adapters}

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": list(known.values())}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, object]:
        if name not in known:
            raise RequestError(f"The model {name!r} does not exist here.", status=404, code="model_not_found", param="model")
        return known[name]


def _add_state(app: FastAPI, engine: Engine, gate: Gate, report: MemoryReport | None) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        if not engine.alive:
            return JSONResponse({"status": "engine stopped"}, 503)
        if gate.closing:
            return JSONResponse({"status": "draining"}, 503, {"retry-after": str(ceil(gate.seconds_left))})
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics_text() -> PlainTextResponse:
        return PlainTextResponse(metrics.render(engine, gate, report), media_type=metrics.CONTENT_TYPE)


def _add_errors(app: FastAPI, gate: Gate) -> None:
    def answer(http: Request, error: RequestError, more: Mapping[str, str] | None = None) -> JSONResponse:
        gate.refused[error.code] += 1
        headers = error_headers(error) | dict(more or {})
        if gate.closing:
            headers["connection"] = "close"  # or the next request of a client would meet a socket that has just gone
        if request_id := http.headers.get("x-request-id"):
            headers["x-request-id"] = request_id
        return JSONResponse(error_body(error), error.status, headers)

    @app.exception_handler(RequestError)
    async def refused(http: Request, error: RequestError) -> JSONResponse:
        return answer(http, error)

    @app.exception_handler(HTTPException)
    async def unknown(http: Request, error: HTTPException) -> JSONResponse:
        message = f"{http.method} {http.url.path}: {error.detail}."
        return answer(http, RequestError(message, status=error.status_code, code="unknown_url"), error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it: the client left while it sent its request


async def _body(http: Request, most: int) -> bytes:
    body, size = bytearray(), 0
    async for piece in http.stream():
        size += len(piece)
        if size <= most:
            body += piece
        elif size > 2 * most:
            break  # up to here it is read and thrown away, or the client would meet a reset and not this answer
    if size > most:
        raise RequestError(f"The body is over {most:,} bytes; send less.", status=413, code="body_too_large")
    return bytes(body)
