"""The store as the collector uses it: ClickHouse, embedded (chDB) or a server, behind one client."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import TypeAlias, TypeVar

import clickhouse_connect
import urllib3
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError

from costspan import semconv
from costspan_collector.embedded.policy import open_path, tables_in
from costspan_collector.errors import ContentError, StartError, StoreAwayError

Connect: TypeAlias = Callable[[], Client]
Answer = TypeVar("Answer")

SCHEMA_FILES = (
    "CREATE TABLE IF NOT EXISTS schema_files (name String, digest String, applied DateTime64(3) DEFAULT now64(3)) "
    "ENGINE = ReplacingMergeTree(applied) ORDER BY name"
)
"""Makes the table that says which files of the schema a store has."""
TOPOLOGY = "topology"
"""The name in that table which says that a store is a cluster."""

_SCHEMA = files("costspan_collector") / "schema"
_VIEWS = "views/"
_STATEMENT_END = re.compile(r";[ \t]*(?:--.*)?$", re.MULTILINE)
_MATERIALIZED = re.compile(r"CREATE MATERIALIZED VIEW IF NOT EXISTS (\w+) TO \w+ AS\n")
_NEW_PLAN = "run what `costspan store plan` of this version prints"
_NEW_STORE = "start with an empty folder (--data) or database"

# What ClickHouse says of a body that it cannot read into the table. All else may pass, or is not the body's fault: an absent
# table, one of other columns, memory, too many parts, a lost connection.
_CONTENT_CODES = MappingProxyType(
    {
        6: "CANNOT_PARSE_TEXT",
        26: "CANNOT_PARSE_QUOTED_STRING",
        27: "CANNOT_PARSE_INPUT_ASSERTION_FAILED",
        32: "ATTEMPT_TO_READ_AFTER_EOF",
        33: "CANNOT_READ_ALL_DATA",
        38: "CANNOT_PARSE_DATE",
        41: "CANNOT_PARSE_DATETIME",
        69: "ARGUMENT_OUT_OF_BOUND",
        70: "CANNOT_CONVERT_TYPE",
        72: "CANNOT_PARSE_NUMBER",
        117: "INCORRECT_DATA",
        128: "TOO_LARGE_ARRAY_SIZE",
        131: "TOO_LARGE_STRING_SIZE",
        190: "SIZES_OF_ARRAYS_DONT_MATCH",
        321: "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE",
        349: "CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN",
        407: "DECIMAL_OVERFLOW",
        436: "PROTOBUF_BAD_CAST",
        444: "UNKNOWN_PROTOBUF_FORMAT",
        469: "VIOLATED_CONSTRAINT",
    }
)
_CONNECT_S = 10
_ANSWER_S = 60  # then an insert counts as doubtful, and is tried again under its token


def connect_embedded(folder: Path) -> Client:
    """A connection to the chDB in a folder; this process must own it (see :func:`own`)."""
    return clickhouse_connect.get_client(interface="chdb", path=open_path(folder, tables_in(schema())))


def connect_server(url: str) -> Client:
    """A connection to a ClickHouse server.

    Raises:
        StoreAwayError: It does not answer.
    """
    try:
        return clickhouse_connect.get_client(
            dsn=url,
            secure=url.startswith("https:"),
            ca_cert=os.environ.get("REQUESTS_CA_BUNDLE"),  # the variable that the SDK's sender heeds
            autogenerate_session_id=False,
            connect_timeout=_CONNECT_S,
            send_receive_timeout=_ANSWER_S,
        )
    except (ClickHouseError, urllib3.exceptions.HTTPError, OSError) as error:
        raise StoreAwayError(f"no ClickHouse server answers at {url}: {error}") from error


def own(data: Path) -> int:
    """Make this process the one that owns a data folder.

    Returns:
        The descriptor of the lock; the folder is owned until it is closed.

    Raises:
        StartError: The folder cannot be written, or another process owns it.
    """
    try:
        data.mkdir(parents=True, exist_ok=True)
        lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StartError(f"cannot write in the data folder {data} ({error.strerror}): choose another with --data") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(lock, 32).decode(errors="replace").strip()
        os.close(lock)
        raise StartError(
            f"process {owner} already uses the data folder {data}: stop it, or choose another with --data"
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def apply_schema(client: Client) -> None:
    """Make a store's tables and views what this version wants.

    Numbered files make tables and change them: each runs once, in order. Views are defined anew when their text has changed.

    Raises:
        StartError: The store was made by a version that is not known here.
    """
    client.command(SCHEMA_FILES)
    known = {str(row[0]): str(row[1]) for row in client.query("SELECT name, digest FROM schema_files FINAL").result_rows}
    for name, text in schema().items():
        digest = hashlib.sha256(text.encode()).hexdigest()
        if known.get(name) == digest:
            continue
        if TOPOLOGY in known:
            raise StartError(f"this store is a cluster, made by another version of costspan ({name} differs): {_NEW_PLAN}")
        if name in known and not name.startswith(_VIEWS):
            raise StartError(f"this store was made by another version of costspan ({name} differs): {_NEW_STORE}")
        if not known and name.startswith("001") and client.query("EXISTS TABLE spans").result_rows[0][0]:
            raise StartError(f"this store was made by an early version of costspan: {_NEW_STORE}")
        for statement in statements(text):
            client.command(_redefined(statement) if name in known else statement)
        client.insert("schema_files", [[name, digest]], column_names=["name", "digest"])


def schema() -> dict[str, str]:
    """The SQL files of the schema, in the order in which they apply: tables, then views.

    ``${NAME}`` in them stands for a file of ``schema/parts``, or for a table of ``costspan.semconv`` as an array.
    """
    filled = {
        "ALIASES": _array(semconv.ALIASES),
        "MEANINGS": _array(semconv.ALIASES.values()),
        "KINDS": _array(semconv.KINDS),
        "KIND_MEANINGS": _array(semconv.KINDS.values()),
        "ERRORS": _array(semconv.ERRORS),
        "ERROR_MEANINGS": _array(semconv.ERRORS.values()),
        "ENGINE_SCOPES": _array(semconv.ENGINE_SCOPES),
        "USAGE_DETAILS": semconv.USAGE_DETAILS,
        "USAGE_PREFIX": semconv.USAGE_PREFIX,
        "APART_SCOPES": _array(scope for scope, _ in semconv.APART),
        "APART_PROVIDERS": _array(provider for _, provider in semconv.APART),
        "APART_COUNTS": _array(semconv.APART.values()),
        "REPEATED": _array(semconv.REPEATED),
        **{name.removesuffix(".sql").upper(): text.strip() for name, text in _texts("parts").items()},
    }
    texts = _texts(".") | {_VIEWS + name: text for name, text in _texts("views").items()}
    return {name: Template(text).substitute(filled) for name, text in texts.items()}


def statements(text: str) -> list[str]:
    """The statements of a SQL file, each with the comments above it."""
    return [statement.strip() for statement in _STATEMENT_END.split(text) if statement.strip()]


def _texts(folder: str) -> dict[str, str]:
    found = sorted((file for file in (_SCHEMA / folder).iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return {file.name: file.read_text(encoding="utf-8") for file in found}


def _array(names: Iterable[str]) -> str:
    return "[" + ", ".join(f"'{name}'" for name in names) + "]"


def _redefined(statement: str) -> str:
    """A materialized view cannot be replaced, but its query can be: nothing that arrives meanwhile is missed."""
    return _MATERIALIZED.sub(r"ALTER TABLE \1 MODIFY QUERY\n", statement)


def ask(work: Callable[[], Answer]) -> Answer:
    """Run a query of our own; whatever the store says against it, it is not a sender's fault.

    Raises:
        StoreAwayError: The store is away or unwell.
    """
    try:
        return work()
    except (ClickHouseError, urllib3.exceptions.HTTPError, OSError) as error:
        raise StoreAwayError(str(error), answered=bool(getattr(error, "code", None))) from error


def insert(work: Callable[[], object]) -> None:
    """Run an insert, and say what its failure means.

    Raises:
        ContentError: The store objects to what is in it.
        StoreAwayError: The store is away or unwell.
    """
    try:
        ask(work)
    except StoreAwayError as error:
        cause = error.__cause__
        if isinstance(cause, DatabaseError) and cause.code in _CONTENT_CODES:
            raise ContentError(str(error)) from cause
        raise
