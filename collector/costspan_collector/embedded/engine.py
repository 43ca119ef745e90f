"""Runs statements on the embedded engine (chDB), each on a connection of its own, so that many threads may ask at once."""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import chdb

from costspan_collector.embedded import native
from costspan_collector.embedded.failure import Failure, denied, read_only
from costspan_collector.embedded.limits import LIMITS, Limits
from costspan_collector.embedded.policy import TAG, open_path, tables_in, tag_of, views_in
from costspan_collector.embedded.reader import Reading
from costspan_collector.embedded.sessions import Session, Sessions, change
from costspan_collector.embedded.statement import Insert, statement_of
from costspan_collector.embedded.tree import into, render
from costspan_collector.store.clickhouse import schema

_UNKNOWN_SETTING, _UNKNOWN_FORMAT = 115, 73
_ASK_AGAIN_S = 0.05
_SETTING_NAME = re.compile(r"[A-Za-z_]\w*")
# What a reader may set. Not among them: what says how much was read or would be (max_rows_to_read), and what reaches elsewhere.
_READERS_SETTINGS = re.compile(
    r"max_execution_time|max_block_size|max_result_rows|max_result_bytes|result_overflow_mode|limit|offset|extremes"
    r"|join_use_nulls|session_timezone|group_by_use_nulls|aggregate_functions_null_for_empty|union_default_mode|totals_mode"
    r"|date_time_output_format|format_csv_delimiter|output_format_(?!.*(?:schema|template|statistics))\w+"
)
# For a reader: figures about what was read are about other projects' rows too, and so is a memory of which blocks matched.
_READERS_OWN = MappingProxyType({"output_format_write_statistics": "0", "use_query_condition_cache": "0"})


@dataclass(frozen=True, slots=True)
class Query:
    """One statement and what it runs under.

    Attributes:
        sql: The statement, without data that follow it in a format.
        database: Which database names are looked up in, or "".
        default_format: Format of the result when the statement names none.
        settings: ClickHouse settings for this statement.
        parameters: Values of its ``{name:Type}``.
        session: Session to run in, or None.
        safe: Whether it may change nothing: it came by GET.
        project: None for who may do everything; else it only reads, this project's rows alone, or with "" those of all.
        number: What the engine knows it by while it runs.
    """

    sql: str
    database: str = ""
    default_format: str = "TabSeparated"
    settings: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    session: Session | None = None
    safe: bool = False
    project: str | None = None
    number: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def mark(self) -> str:
        """The comment in the statement by which it is found among those that run."""
        return f"/* {self.number} */"


@dataclass(frozen=True, slots=True)
class Done:
    """What a statement did.

    Attributes:
        format: Format of its result; "" when it has none.
        figures: Numbers about it, under ClickHouse's names.
    """

    format: str
    figures: Mapping[str, int]


class Engine:
    """The chDB in a folder.

    Args:
        folder: Where it lives; this process must own it. Its tables must be there.
        limits: What a query may take.
    """

    def __init__(self, folder: Path, limits: Limits = LIMITS) -> None:
        tables = schema()
        self.limits = limits
        self.folder = folder
        self._running: dict[str, Query] = {}
        self._defaults = {
            "max_execution_time": str(limits.time_s),
            "max_memory_usage": str(limits.memory_bytes),
            "implicit_select": "0",  # a server's default, not chDB's
        }
        self._path = open_path(folder, tables_in(tables), limits)
        self._keep_open = chdb.connect(self._path)
        self._reading = Reading(self._keep_open, tables_in(tables), views_in(tables))
        self.sessions = Sessions(self._connect)
        self.timezone: str = self._keep_open.query("SELECT timezone()", "TSVRaw").bytes().decode().strip()
        formats = self._keep_open.query("SELECT name, content_type FROM system.formats WHERE is_output", "JSONCompactEachRow")
        self.media_types: Mapping[str, str] = dict(json.loads(line) for line in formats.bytes().splitlines())
        self._formats = {name.lower(): name for name in self.media_types}

    def run(self, query: Query, sink: int, begins: Callable[[str], None]) -> Done:
        """Run a statement to its end.

        Args:
            query: The statement.
            sink: Descriptor that the result is written to, as it comes; closed at the end.
            begins: Called with the format of the result before it comes.

        Raises:
            Failure: The engine does not run it, or not to its end.
        """
        self._running[query.number] = query
        try:
            with self._connection(query) as connection:
                run = self._run if query.project is None else self._read
                return run(connection, query, _Sink(sink, begins))
        except (RuntimeError, chdb.ChdbError) as error:
            raise Failure.from_engine(error) from error
        finally:
            os.close(sink)
            del self._running[query.number]

    def insert(self, query: Query, insert: Insert, data: Iterable[bytes]) -> Done:
        """Insert rows as they come.

        Args:
            query: What the statement runs under.
            insert: The statement.
            data: The rows in its format, in pieces; if getting one raises, the insert is taken back.

        Raises:
            Failure: The engine does not take them.
        """
        try:
            with (
                self._connection(query) as connection,
                connection.send_insert(f"{query.mark} {insert.statement}", insert.format) as stream,
            ):
                for piece in data:
                    stream.append(piece)
                done = stream.finish()
        except (RuntimeError, chdb.ChdbError) as error:
            raise Failure.from_engine(error) from error
        return Done("", {"written_rows": done.rows_written, "written_bytes": done.bytes_written})

    def end(self, query: Query) -> None:
        """End a statement that runs. Any thread."""
        with self._connect() as connection:
            connection.query(f"KILL QUERY WHERE position(query, concat('/* ', '{query.number}')) > 0 ASYNC")  # not itself

    def close(self) -> None:
        """End the statements that run, and close the engine, unless others have it open."""
        while self._running:
            for query in list(self._running.values()):
                self.end(query)
            time.sleep(_ASK_AGAIN_S)
        self.sessions.close()
        self._keep_open.close()

    def _connect(self) -> Any:
        connection = chdb.connect(self._path)
        change(connection, {"max_execution_time": str(self.limits.time_s), "max_memory_usage": str(self.limits.memory_bytes)})
        return connection

    @contextmanager
    def _connection(self, query: Query) -> Iterator[Any]:
        """A connection for one statement: the session's, or a fresh one, which costs a third of a millisecond."""
        for name in query.settings:
            if not _SETTING_NAME.fullmatch(name):
                raise Failure.of(_UNKNOWN_SETTING, "UNKNOWN_SETTING", f"Unknown setting {name!r}")
        if query.session:
            with query.session.under(query.settings) as connection:
                _use(connection, query.database)
                yield connection
            return
        with self._connect() as connection:
            _use(connection, query.database)
            change(connection, query.settings if query.project is None else _readers_settings(query.settings, query.project))
            if query.safe or query.project is not None:
                connection.query(f"SET readonly = {2 if query.project is None else 1}")
            yield connection

    def _run(self, connection: Any, query: Query, sink: _Sink) -> Done:
        statement = statement_of(connection, query.sql)
        fmt = self._format(statement.format or query.default_format)
        if statement.answers:
            text = statement.into(sink.path, fmt, query.mark)
            return _answer(connection, query, sink, _Question(text, fmt, statement.text + statement.tail))
        result = connection.query(f"{query.mark} {query.sql}", fmt, params=query.parameters)
        body = result.bytes() or b""  # of a few lines: which queries a KILL ends, what a SYSTEM statement says
        sink.write(body)
        return Done(fmt if body else "", {"written_rows": result.rows_written(), "written_bytes": result.bytes_written()})

    def _read(self, connection: Any, query: Query, sink: _Sink) -> Done:
        """Run what a reader asks, after a look at it."""
        statement = statement_of(connection, query.sql)
        if statement.kind not in {"READ_ONLY", "UNKNOWN"}:
            raise read_only("This key only reads")
        about = self._reading.about_table(statement.text)
        if about:
            fmt = self._format(statement.format or query.default_format)
            question = _Question(replace(statement, text=about, tail="").into(sink.path, fmt, query.mark), fmt, about)
        else:
            tree = self._reading.checked(connection, query.sql)
            fmt = self._format(tree.pop("format_ast", {}).get("name", query.default_format))
            question = _Question(
                f"{query.mark} {render(connection, into(tree, sink.path, fmt))}", fmt, render(connection, tree)
            )
        if "Progress" in fmt:
            raise denied(f"A read key is not told how much was read, and {fmt} says it: use another format")
        done = _answer(connection, query, sink, question)
        return Done(done.format, {name: value for name, value in done.figures.items() if name.startswith("result")})

    def _format(self, name: str) -> str:
        """A format by the name that the engine has for it."""
        for known in (name, self._formats.get(name.lower(), "")):
            if known in self.media_types:
                return known
        raise Failure.of(_UNKNOWN_FORMAT, "UNKNOWN_FORMAT", f"Unknown format {name!r}")


class _Sink(NamedTuple):
    """Where a result goes."""

    descriptor: int
    begins: Callable[[str], None]

    @property
    def path(self) -> str:
        return f"/dev/fd/{self.descriptor}"

    def write(self, content: bytes) -> None:
        with os.fdopen(os.dup(self.descriptor), "wb") as file:
            file.write(content)


class _Question(NamedTuple):
    """A statement that writes its result into the sink by itself, in a format; and the same without either."""

    text: str
    format: str
    bare: str


def _answer(connection: Any, query: Query, sink: _Sink, question: _Question) -> Done:
    sink.begins(question.format)
    result = connection.query(question.text, question.format, params=query.parameters)
    if question.format == "Native" and not result.rows_read():  # a server sends names and types then, chDB nothing
        meta = json.loads(connection.query(question.bare, "JSON", params=query.parameters).bytes())["meta"]
        sink.write(native.header([(column["name"], column["type"]) for column in meta]))
    figures = {
        "read_rows": result.storage_rows_read(),
        "read_bytes": result.storage_bytes_read(),
        "result_rows": result.rows_read(),
        "result_bytes": result.bytes_read(),
    }
    return Done(question.format, figures)


def _use(connection: Any, database: str) -> None:
    if database:
        connection.query(f"USE `{database.replace('`', '')}`")


def _readers_settings(settings: Mapping[str, str], project: str) -> dict[str, str]:
    for name in settings:
        if not _READERS_SETTINGS.fullmatch(name):
            raise read_only(f"Cannot modify {name!r} setting in readonly mode: this key only reads")
    return {**settings, **_READERS_OWN, **({TAG: tag_of(project)} if project else {})}
