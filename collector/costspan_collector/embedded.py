"""Runs statements on the embedded engine (chDB), each on a connection of its own, so that many threads may ask at once."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import chdb

_MOST_SESSIONS = 256
_SESSION_IDLE_S = 60.0  # ClickHouse's default_session_timeout
_UNKNOWN_EXCEPTION, _SYNTAX_ERROR, _UNKNOWN_SETTING = 1002, 62, 115
_ERROR_CODE = re.compile(r"Code: (\d+)\.")
_SETTING_NAME = re.compile(r"[A-Za-z_]\w*")
_TRAILING_FORMAT = re.compile(r"\bFORMAT\s+(\w+)\s*;?\s*\Z", re.IGNORECASE)
_ANSWERS = re.compile(r"\s*(?:SELECT|WITH|SHOW|DESC|DESCRIBE|EXISTS|EXPLAIN|CHECK|\()", re.IGNORECASE)
# An insert whose data follow in a format: everything up to the data.
_INSERT = re.compile(
    rb"\s*(INSERT\s+INTO\s+(?:TABLE\s+)?[\w.`\"]+\s*(?:\((?:[^()`\"]|`[^`]*`|\"[^\"]*\")*\))?(?:\s*SETTINGS\s[^\n]*?)?)"
    rb"\s*\bFORMAT\s+(\w+)[ \t;]*\r?\n?",
    re.IGNORECASE,
)


class Failure(Exception):  # noqa: N818  (an answer of the engine's, never raised beyond the door)
    """What the engine says instead of a result.

    Args:
        code: ClickHouse's error code.
        message: Its message.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Query:
    """One statement and what it runs under.

    Attributes:
        statement: The SQL, and after it whatever data it inserts.
        database: Which database names are looked up in, or "".
        default_format: Format of the result when the statement names none.
        settings: ClickHouse settings for this statement.
        parameters: Values of its ``{name:Type}``.
        session: Session to run in, or "".
        read_only: Whether it may change nothing.
    """

    statement: bytes
    database: str = ""
    default_format: str = "TabSeparated"
    settings: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    session: str = ""
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a statement did.

    Attributes:
        body: The result, in its format.
        format: Name of the format; "" when the statement has no result.
        summary: Figures about it, under ClickHouse's names.
    """

    body: bytes
    format: str
    summary: dict[str, str]


@dataclass(slots=True)
class _Session:
    connection: Any
    lock: threading.Lock
    used_s: float


class Engine:
    """The chDB in a folder.

    Args:
        folder: Where it lives; this process must own it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = os.path.realpath(folder)  # chDB compares paths as text
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._sessions_lock = threading.Lock()
        self.timezone = self.run(Query(b"SELECT timezone()")).body.decode().strip()

    def run(self, query: Query) -> Outcome:
        """Run a statement.

        Raises:
            Failure: The engine does not.
        """
        with self._connection(query) as connection:
            try:
                return self._run(connection, query)
            except (RuntimeError, chdb.ChdbError) as error:
                raise _failure(error) from error
            except UnicodeDecodeError as error:
                raise Failure(
                    _SYNTAX_ERROR, f"Code: {_SYNTAX_ERROR}. DB::Exception: The query is not UTF-8. (SYNTAX_ERROR)"
                ) from error

    def close(self) -> None:
        """Close the sessions."""
        with self._sessions_lock:
            for session in self._sessions.values():
                session.connection.close()
            self._sessions.clear()

    def _run(self, connection: Any, query: Query) -> Outcome:
        _prepare(connection, query)
        insert = _INSERT.match(query.statement)
        if insert:
            return _insert(connection, insert, query.statement[insert.end() :])
        sql = query.statement.decode()
        named = _TRAILING_FORMAT.search(sql)
        fmt = named[1] if named else query.default_format
        result = connection.query(sql, fmt, params=query.parameters)
        body = result.bytes() or b""
        if not body and fmt == "Native":
            body = self._native_header(query, _TRAILING_FORMAT.sub("", sql))
        summary = {"read_rows": result.rows_read(), "read_bytes": result.bytes_read()}
        return Outcome(body, fmt if body or _ANSWERS.match(sql) else "", {name: str(value) for name, value in summary.items()})

    def _native_header(self, query: Query, sql: str) -> bytes:
        """The names and types of an empty result: a server sends them, chDB sends nothing."""
        probe = replace(query, session="", read_only=True)  # a statement that changes things is not run twice
        try:
            with self._connection(probe) as connection:
                _prepare(connection, probe)
                meta = json.loads(connection.query(sql, "JSON", params=query.parameters).bytes())["meta"]
        except (RuntimeError, chdb.ChdbError, ValueError):
            return b""
        columns = b"".join(_counted(column["name"]) + _counted(column["type"]) for column in meta)
        return bytes([*_varint(len(meta)), 0]) + columns

    @contextmanager
    def _connection(self, query: Query) -> Iterator[Any]:
        """A connection for one statement: the session's, or a fresh one, which costs a third of a millisecond."""
        for name in query.settings:
            if not _SETTING_NAME.fullmatch(name):
                raise Failure(
                    _UNKNOWN_SETTING, f"Code: {_UNKNOWN_SETTING}. DB::Exception: Unknown setting {name!r}. (UNKNOWN_SETTING)"
                )
        if not query.session or query.read_only:
            connection = chdb.connect(self._path)
            try:
                yield connection
            finally:
                connection.close()
            return
        session = self._session(query.session)
        with session.lock:
            try:
                yield session.connection
            finally:
                for name in query.settings:  # they were for this statement only
                    session.connection.query(f"SET {name} = DEFAULT")

    def _session(self, name: str) -> _Session:
        now_s = time.monotonic()
        with self._sessions_lock:
            session = self._sessions.pop(name, None) or _Session(chdb.connect(self._path), threading.Lock(), now_s)
            session.used_s = now_s
            self._sessions[name] = session
            for oldest, other in list(self._sessions.items()):
                if len(self._sessions) <= _MOST_SESSIONS and now_s - other.used_s < _SESSION_IDLE_S:
                    break
                if not other.lock.locked() and other is not session:
                    self._sessions.pop(oldest).connection.close()
            return session


def _insert(connection: Any, insert: re.Match[bytes], data: bytes) -> Outcome:
    with connection.send_insert(insert[1].decode(), insert[2].decode()) as stream:
        stream.append(data)
        done = stream.finish()
    return Outcome(b"", "", {"written_rows": str(done.rows_written), "written_bytes": str(done.bytes_written)})


def _prepare(connection: Any, query: Query) -> None:
    if query.database:
        connection.query(f"USE `{query.database.replace('`', '')}`")
    for name, value in query.settings.items():
        connection.query(f"SET {name} = {_quote(value)}")
    if query.read_only:
        connection.query("SET readonly = 2")


def _counted(text: str) -> bytes:
    raw = text.encode()
    return bytes(_varint(len(raw))) + raw


def _varint(value: int) -> list[int]:
    low, rest = value & 0x7F, value >> 7
    return [low | 0x80, *_varint(rest)] if rest else [low]


def _quote(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _failure(error: Exception) -> Failure:
    message = str(error)
    message = message[max(message.find("Code: "), 0) :]
    code = _ERROR_CODE.match(message)
    return Failure(int(code[1]) if code else _UNKNOWN_EXCEPTION, message)
