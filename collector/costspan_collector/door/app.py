"""ClickHouse's HTTP interface in front of the embedded store, so that everything else connects to it exactly as to a server."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from costspan_collector.door.answer import Answer, summary, tell_failure
from costspan_collector.door.ask import Ask, ask_of, granted
from costspan_collector.door.work import Works
from costspan_collector.embedded.engine import Done, Engine
from costspan_collector.embedded.failure import NOT_IMPLEMENTED, Failure, read_only
from costspan_collector.security.access import Access

_METHODS = frozenset({"GET", "HEAD", "POST"})
_BROKEN_OFF = "ASGI callable returned without completing response."


def build_door(engine: Engine, access: Access) -> Starlette:
    """The application that answers ClickHouse's clients.

    Args:
        engine: What runs their statements.
        access: Who may do what.
    """
    # An answer that breaks off is meant to: without its end a client knows that the result is not whole.
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.getMessage() != _BROKEN_OFF)
    return Starlette(
        routes=[Route("/", _Door(engine, access)), Route("/ping", _healthy), Route("/replicas_status", _healthy)],
        exception_handlers={404: _no_such_page},
    )


def _header_text(text: str) -> str:
    """A text if it can stand in a header, else ""."""
    return text if text.isascii() and text.isprintable() else ""


async def _healthy(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("Ok.\n")


async def _no_such_page(request: Request, _error: Exception) -> PlainTextResponse:
    return PlainTextResponse(f"There is no handle {request.url.path}: statements go to /, /ping says whether it is up\n", 404)


class _Door:
    """Statements, one a request."""

    def __init__(self, engine: Engine, access: Access) -> None:
        self._engine = engine
        self._access = access
        self._works = Works(engine)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        headers = {
            "X-ClickHouse-Query-Id": _header_text(request.query_params.get("query_id", "")) or str(uuid.uuid4()),
            "X-ClickHouse-Server-Display-Name": "costspan",
            "X-ClickHouse-Timezone": self._engine.timezone,
        }
        try:
            if request.method not in _METHODS:
                raise Failure.of(NOT_IMPLEMENTED, "NOT_IMPLEMENTED", f"{request.method} is not spoken here: use GET or POST")
            grant = granted(request, self._access)
            ask = await ask_of(request, self._engine, grant)
            with self._works.place("" if ask.query.project is None else grant.key):
                await self._serve(ask, headers, scope, receive, send)
        except Failure as failure:
            await tell_failure(failure, headers, send)
        except ClientDisconnect:
            pass

    async def _serve(self, ask: Ask, headers: Mapping[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        started_ns = time.monotonic_ns()
        done = Done("", {})
        if ask.insert and (ask.query.safe or ask.query.project is not None):
            raise read_only("Cannot insert in readonly mode: by GET, or with a key that only reads")
        if ask.insert:
            done = await self._works.insert(ask.query, ask.insert, ask.data)
        elif ask.query.sql.strip():
            await Answer(self._works.begin(ask.query), ask, headers, self._engine)(scope, receive, send)
            return
        figures = {"X-ClickHouse-Summary": summary(done, time.monotonic_ns() - started_ns)} if ask.insert else {}
        await PlainTextResponse("" if ask.insert else "Ok.\n", headers={**headers, **figures})(scope, receive, send)
