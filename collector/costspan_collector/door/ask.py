"""What a request asks: its statement, settings and parameters, wherever ClickHouse's clients put them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Mapping
from email.parser import BytesParser
from email.policy import HTTP
from typing import NamedTuple

from starlette.requests import Request

from costspan_collector.door.compression import unpacked
from costspan_collector.embedded.engine import Engine, Query
from costspan_collector.embedded.failure import SYNTAX_ERROR, Failure, denied
from costspan_collector.embedded.statement import Insert, insert_of
from costspan_collector.errors import DeniedError
from costspan_collector.security.access import Access, Grant, sent_token

# Parameters that steer ClickHouse's HTTP interface. All others are settings, or query parameters when they begin with param_.
# Those that stand for settings are settings of the interface, which chDB has no use for.
_TRANSPORT = frozenset(
    {
        "add_http_cors_header", "buffer_size", "cancel_http_readonly_queries_on_client_close", "client_protocol_version",
        "compress", "database", "decompress", "default_format", "enable_http_compression", "http_headers_progress_interval_ms",
        "password", "query", "query_id", "quota_key", "role", "send_progress_in_http_headers", "session_check", "session_id",
        "session_timeout", "user", "wait_end_of_query",
    }
)  # fmt: skip
_PARAMETER = "param_"
_HEAD_BYTES = 1 << 20  # in which an insert says what it inserts
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_REQUIRED_PASSWORD, _AUTHENTICATION_FAILED, _NOT_IMPLEMENTED, _QUERY_IS_TOO_LARGE = 194, 516, 48, 229


class Ask(NamedTuple):
    """What a request asks.

    Attributes:
        query: The statement and what it runs under.
        insert: The same as an insert whose data follow, if it is one.
        data: Those data, in pieces.
        whole: Whether the answer shall not begin before the statement has ended.
        packed: Compressions that the answer may come in, as in Accept-Encoding.
        protocol_version: Version of ClickHouse's own protocol that blocks are to be in, 0 for none.
    """

    query: Query
    insert: Insert | None
    data: AsyncIterator[bytes]
    whole: bool = False
    packed: str = ""
    protocol_version: int = 0


def granted(request: Request, access: Access) -> Grant:
    """What the sender may do: the password of any user name is a key.

    Raises:
        Failure: Nothing, or nothing here.
    """
    if not access.guarded():
        _refuse_browsers(request)
    token = _token(request)
    try:
        grant = access.grant(token)
        grant.to_read()
    except DeniedError as error:
        if error.status == 403:
            raise denied(str(error)) from error
        if token:
            raise Failure.of(_AUTHENTICATION_FAILED, "AUTHENTICATION_FAILED", str(error)) from error
        sentence = "This store asks for a key: send it as the password of any user (X-ClickHouse-Key, basic authentication)"
        raise Failure.of(_REQUIRED_PASSWORD, "REQUIRED_PASSWORD", sentence) from error
    return grant


async def ask_of(request: Request, engine: Engine, grant: Grant) -> Ask:
    """Take a request apart.

    Raises:
        Failure: It is not one that a ClickHouse server would take.
    """
    fields = dict(request.query_params)
    most = engine.limits.statement_bytes
    body = unpacked(request.stream(), request.headers.get("content-encoding", ""))
    head = b""
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        fields |= _form(request.headers["content-type"], await _whole(body, most))
    else:
        head = await _whole(body, _HEAD_BYTES, stop=True)
    _refuse_native_compression(fields)
    named = fields.get("query", "").encode()
    insert = insert_of(named + b"\n" if named else head)
    if insert:
        data = _chain(head if named else head[insert.length :], body)
        return Ask(_query(request, fields, engine, grant, ""), insert, data)
    rest = head + await _whole(body, most - len(head))
    sql = _text(named + b"\n" + rest if named and rest else named or rest)
    packed = request.headers.get("accept-encoding", "") if fields.get("enable_http_compression", "1") != "0" else ""
    whole = fields.get("wait_end_of_query", "0") != "0"
    version = fields.get("client_protocol_version", "")
    return Ask(
        _query(request, fields, engine, grant, sql), None, body, whole, packed, int(version) if version.isdecimal() else 0
    )


def _query(request: Request, fields: Mapping[str, str], engine: Engine, grant: Grant, sql: str) -> Query:
    reads_only = bool(grant.project) or not grant.writes
    database = fields.get("database") or request.headers.get("x-clickhouse-database", "")
    if reads_only and database not in {"", "default"}:
        raise denied("A read key sees the database 'default' only")
    session = None
    if fields.get("session_id") and not reads_only:  # a reader has nothing to keep in one
        must_exist = fields.get("session_check", "0") != "0"
        session = engine.sessions.get(fields["session_id"], fields.get("session_timeout", ""), must_exist=must_exist)
    return Query(
        sql=sql,
        database=database,
        default_format=fields.get("default_format") or request.headers.get("x-clickhouse-format") or "TabSeparated",
        settings={name: value for name, value in fields.items() if name not in _TRANSPORT and not name.startswith(_PARAMETER)},
        parameters={name.removeprefix(_PARAMETER): value for name, value in fields.items() if name.startswith(_PARAMETER)},
        session=session,
        safe=request.method != "POST",
        project=grant.project if reads_only else None,
    )


def _refuse_browsers(request: Request) -> None:
    """Refuse what a web page may have sent: this port needs no password, and a page can reach loopback."""
    if "origin" in request.headers or request.url.hostname not in _LOOPBACK:
        raise denied("Not for web pages: ask from a program on this machine")


def _token(request: Request) -> str | None:
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return sent_token(request.headers) or request.headers.get("x-clickhouse-key") or request.query_params.get("password")


def _refuse_native_compression(fields: Mapping[str, str]) -> None:
    for name in ("compress", "decompress"):
        if fields.get(name, "0") not in {"", "0"}:
            sentence = f"ClickHouse's own block compression ({name}=1) is not spoken here: use HTTP's (Accept-Encoding, gzip)"
            raise Failure.of(_NOT_IMPLEMENTED, "NOT_IMPLEMENTED", sentence)


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Failure.of(SYNTAX_ERROR, "SYNTAX_ERROR", "The query is not UTF-8") from error


def _form(content_type: str, body: bytes) -> dict[str, str]:
    """The text fields of a form: how clients send parameters that are too long for a URL."""
    form = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    fields: dict[str, str] = {}
    for part in form.walk():
        name, content = part.get_param("name", header="content-disposition"), part.get_payload(decode=True)
        if part.get_filename() and name != "query":
            raise Failure.of(_NOT_IMPLEMENTED, "NOT_IMPLEMENTED", "External tables are not spoken here: insert them first")
        if isinstance(name, str) and isinstance(content, bytes):
            fields[name] = _text(content)
    return fields


async def _whole(body: AsyncIterator[bytes], most: int, *, stop: bool = False) -> bytes:
    """A body, or what comes of it until there are so many bytes, if that is where to stop."""
    whole = bytearray()
    async for piece in body:
        whole += piece
        if len(whole) > most and stop:
            break
        if len(whole) > most:
            sentence = "The statement is too long: insert data in a format (INSERT ... FORMAT JSONEachRow), which streams"
            raise Failure.of(_QUERY_IS_TOO_LARGE, "QUERY_IS_TOO_LARGE", sentence)
    return bytes(whole)


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece
