"""The intake: payloads over HTTP. It knows nothing of storage; it is handed functions to call."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from costspan.clock import now_ns
from costspan.semconv import HEADER_CLIENT, HEADER_ITEMS, HEADER_PROJECT, HEADER_SEQUENCE, HEADER_TOTAL
from costspan_collector.errors import BusyError, RefusedError
from costspan_collector.payload import ARROW_STREAM, JSON, PROTOBUF, check_ledger, check_spans, read_body
from costspan_collector.record import Record
from costspan_collector.tables import SPANS, TIME_COLUMN

_DEFAULT_PROJECT = "default"
_RETRY_AFTER_S = 1
_PREFIX = "costspan_collector_"
_NAME = re.compile(r"[!-~](?:[ -~]{0,254}[!-~])?")  # printable ASCII without spaces around it
_UINT64 = 1 << 64

Health = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the intake calls.

    Attributes:
        append: Takes a record durably; raises ``BusyError``.
        schema_of: The Arrow schema of a ledger table; raises ``BusyError`` while it is not known.
        health: The state of the collector, see ``service.py``.
    """

    append: Callable[[Record], bool]
    schema_of: Callable[[str], pa.Schema]
    health: Callable[[], Health]


def build_intake(handlers: Handlers, max_body_bytes: int) -> FastAPI:
    """The application that takes payloads and says how it is.

    Args:
        handlers: What it calls.
        max_body_bytes: Largest body, packed or unpacked.
    """
    app = FastAPI(title="costspan collector", docs_url=None, redoc_url=None, openapi_url=None)
    wire: Counter[str] = Counter()  # bytes of bodies that were taken, as they came

    def state() -> Health:
        now = handlers.health()
        return {**now, "streams": {name: {**each, "wire_bytes": wire[name]} for name, each in now["streams"].items()}}

    app.add_exception_handler(RefusedError, _refuse)
    app.add_exception_handler(BusyError, _put_off)
    app.add_exception_handler(404, _no_such_path)
    app.add_exception_handler(405, _no_such_path)

    @app.post("/v1/traces")
    async def traces(request: Request) -> Response:
        kind = _media_type(request, (PROTOBUF, JSON))
        body = await _body(request, max_body_bytes)
        await run_in_threadpool(_take_spans, handlers, body, kind, _sender(request))
        wire[SPANS] += _wire_bytes(request, body)
        answer = ExportTraceServiceResponse()
        return Response("{}" if kind == JSON else answer.SerializeToString(), media_type=kind)

    @app.post("/v1/ledger/{table}")
    async def ledger(table: str, request: Request) -> Response:
        if table not in TIME_COLUMN:
            raise RefusedError(404, f"there is no ledger table {table!r}: the tables are {', '.join(TIME_COLUMN)}")
        _media_type(request, (ARROW_STREAM,))
        body = await _body(request, max_body_bytes)
        items = await run_in_threadpool(_take_ledger, handlers, body, table, _sender(request))
        wire[table] += _wire_bytes(request, body)
        return JSONResponse({"rows": items})

    @app.get("/health")
    def health() -> Response:
        return JSONResponse(state())

    @app.get("/ready")
    def ready() -> Response:
        state = handlers.health()
        return JSONResponse({"ready": state["ready"]}, status_code=200 if state["ready"] else 503)

    @app.get("/metrics")
    def metrics() -> Response:
        return PlainTextResponse(_exposition(state()), media_type="text/plain; version=0.0.4")

    return app


@dataclass(frozen=True, slots=True)
class _Sender:
    """What the delivery headers say; ``client`` is "" for a sender that does not number its payloads."""

    project: str
    client: str
    sequence: int
    items: int | None
    total: int

    def record(self, stream: str, counted: int, payload: bytes) -> Record:
        items = counted if self.items is None else self.items
        return Record(self.project, self.client, stream, self.sequence, items, self.total, now_ns(), payload)


def _take_spans(handlers: Handlers, body: bytes, kind: str, sender: _Sender) -> None:
    payload, items = check_spans(body, kind)
    if items or sender.client:
        handlers.append(sender.record(SPANS, items, payload))


def _take_ledger(handlers: Handlers, body: bytes, table: str, sender: _Sender) -> int:
    items = check_ledger(body, handlers.schema_of(table))
    if items or sender.client:
        handlers.append(sender.record(table, items, body))
    return items


def _media_type(request: Request, accepted: tuple[str, ...]) -> str:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in accepted:
        raise RefusedError(415, f"Content-Type {given!r} is not taken here: send {' or '.join(accepted)}")
    return given


async def _body(request: Request, limit_bytes: int) -> bytes:
    try:
        return await read_body(request.stream(), request.headers.get("content-encoding", "").strip().lower(), limit_bytes)
    except ClientDisconnect as error:
        raise RefusedError(400, "the sender left before its body was whole") from error


def _wire_bytes(request: Request, body: bytes) -> int:
    """How long a body was on its way; one that came in chunks counts as it was unpacked."""
    return int(request.headers.get("content-length", len(body)))


def _sender(request: Request) -> _Sender:
    project = request.headers.get(HEADER_PROJECT, "")
    client = request.headers.get(HEADER_CLIENT, "")
    sequence = _number(request, HEADER_SEQUENCE)
    if client and not _NAME.fullmatch(client):
        raise RefusedError(400, f"{HEADER_CLIENT} must be printable ASCII of at most 256 characters")
    if bool(client) != (sequence is not None):
        raise RefusedError(400, f"{HEADER_CLIENT} and {HEADER_SEQUENCE} come together: send both, or neither")
    return _Sender(
        project if _NAME.fullmatch(project) else _DEFAULT_PROJECT,
        client,
        sequence or 0,
        _number(request, HEADER_ITEMS),
        _number(request, HEADER_TOTAL) or 0,
    )


def _number(request: Request, header: str) -> int | None:
    text = request.headers.get(header)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and int(text[:21]) < _UINT64):
        raise RefusedError(400, f"{header} is {text[:40]!r}: it must be a whole number below 2^64")
    return int(text)


def _exposition(health: Health) -> str:
    """Health as Prometheus text."""
    gauges = {"store_up": int(health["store"]["up"])} | {f"log_{name}": value for name, value in health["log"].items()}
    lines = [line for name, value in gauges.items() for line in (f"# TYPE {_PREFIX}{name} gauge", f"{_PREFIX}{name} {value}")]
    streams = health["streams"]
    for name in next(iter(streams.values())):
        kind, suffix = ("gauge", "") if name.startswith("pending") else ("counter", "_total")
        lines.append(f"# TYPE {_PREFIX}{name}{suffix} {kind}")
        lines += [f'{_PREFIX}{name}{suffix}{{stream="{stream}"}} {state[name]}' for stream, state in streams.items()]
    return "\n".join(lines) + "\n"


async def _refuse(_request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, RefusedError) else 500
    return JSONResponse({"error": str(error)}, status_code=status)


async def _put_off(_request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=503, headers={"Retry-After": str(_RETRY_AFTER_S)})


async def _no_such_path(request: Request, _error: Exception) -> Response:
    known = "POST /v1/traces or /v1/ledger/TABLE, GET /health, /ready or /metrics"
    sentence = f"there is no {request.method} {request.url.path} here: {known}"
    return JSONResponse({"error": sentence}, status_code=404)
