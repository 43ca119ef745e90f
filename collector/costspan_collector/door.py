"""ClickHouse's HTTP interface in front of the embedded store, so that everything else connects to it exactly as to a server."""

from __future__ import annotations

import gzip
import json
import uuid
import zlib
from collections.abc import Callable, Mapping
from email.parser import BytesParser
from email.policy import HTTP
from types import MappingProxyType

import lz4.frame  # type: ignore[import-untyped]  # ships no types
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.concurrency import run_in_threadpool

from costspan_collector.embedded import Engine, Failure, Outcome, Query

# Parameters that steer ClickHouse's HTTP interface. All others are settings, or query parameters when they begin with param_.
_TRANSPORT = frozenset(
    {
        "buffer_size",
        "client_protocol_version",
        "compress",
        "database",
        "decompress",
        "default_format",
        "password",
        "query",
        "query_id",
        "quota_key",
        "role",
        "session_check",
        "session_id",
        "session_timeout",
        "user",
        "wait_end_of_query",
    }
)
_PARAMETER = "param_"
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_ACCESS_DENIED, _UNKNOWN_COMPRESSION, _CANNOT_DECOMPRESS = 497, 89, 271
_STATUS = MappingProxyType({60: 404, 81: 404, 164: 403, _ACCESS_DENIED: 403})  # unknown table or database; read-only, denied
_MEDIA_TYPE = MappingProxyType(
    {"JSON": "application/json", "JSONEachRow": "application/x-ndjson", "Native": "application/octet-stream"}
)
_UNPACK: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType(
    {"": bytes, "identity": bytes, "gzip": gzip.decompress, "deflate": zlib.decompress, "lz4": lz4.frame.decompress}
)


def build_door(engine: Engine) -> FastAPI:
    """The application that answers ClickHouse's clients.

    Args:
        engine: What runs their statements.
    """
    app = FastAPI(title="costspan store", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/ping")
    def ping() -> Response:
        return PlainTextResponse("Ok.\n")

    @app.api_route("/", methods=["GET", "POST"])
    async def root(request: Request) -> Response:
        headers = {
            "X-ClickHouse-Query-Id": request.query_params.get("query_id") or str(uuid.uuid4()),
            "X-ClickHouse-Timezone": engine.timezone,
        }
        try:
            _refuse_browsers(request)
            query = _take_apart(request, await request.body())
            if not query.statement.strip():
                return PlainTextResponse("Ok.\n", headers=headers)
            outcome = await run_in_threadpool(engine.run, query)
        except Failure as failure:
            headers["X-ClickHouse-Exception-Code"] = str(failure.code)
            return PlainTextResponse(f"{failure}\n", status_code=_STATUS.get(failure.code, 400), headers=headers)
        return _answer(outcome, headers)

    return app


def _refuse_browsers(request: Request) -> None:
    """Refuse what a web page may have sent: this port needs no password, and a page can reach loopback."""
    if "origin" in request.headers or request.url.hostname not in _LOOPBACK:
        raise Failure(
            _ACCESS_DENIED, f"Code: {_ACCESS_DENIED}. DB::Exception: Not for web pages: ask from a program on this machine"
        )


def _take_apart(request: Request, body: bytes) -> Query:
    fields = dict(request.query_params)
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        fields |= _form(request.headers["content-type"], body)
        body = b""
    else:
        body = _unpacked(body, request.headers.get("content-encoding", ""))
    named = fields.get("query", "").encode()
    return Query(
        statement=named + b"\n" + body if named and body else named or body,
        database=fields.get("database", ""),
        default_format=fields.get("default_format", "TabSeparated"),
        settings={name: value for name, value in fields.items() if name not in _TRANSPORT and not name.startswith(_PARAMETER)},
        parameters={name.removeprefix(_PARAMETER): value for name, value in fields.items() if name.startswith(_PARAMETER)},
        session=fields.get("session_id", ""),
        read_only=request.method == "GET",
    )


def _form(content_type: str, body: bytes) -> dict[str, str]:
    """The text fields of a form: how clients send parameters that are too long for a URL."""
    form = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    fields: dict[str, str] = {}
    for part in form.walk():
        name, content = part.get_param("name", header="content-disposition"), part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(content, bytes):
            fields[name] = content.decode()
    return fields


def _unpacked(body: bytes, encoding: str) -> bytes:
    if encoding not in _UNPACK:
        raise Failure(
            _UNKNOWN_COMPRESSION, f"Code: {_UNKNOWN_COMPRESSION}. DB::Exception: Unknown Content-Encoding {encoding!r}"
        )
    try:
        return _UNPACK[encoding](body)
    except (OSError, EOFError, zlib.error, RuntimeError) as error:
        raise Failure(
            _CANNOT_DECOMPRESS, f"Code: {_CANNOT_DECOMPRESS}. DB::Exception: The body is not {encoding}: {error}"
        ) from error


def _answer(outcome: Outcome, headers: dict[str, str]) -> Response:
    headers["X-ClickHouse-Summary"] = json.dumps(outcome.summary)
    if outcome.format:
        headers["X-ClickHouse-Format"] = outcome.format
    return Response(outcome.body, headers=headers, media_type=_MEDIA_TYPE.get(outcome.format, "text/plain; charset=UTF-8"))
