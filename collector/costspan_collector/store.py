"""The store as the collector uses it: ClickHouse, embedded (chDB) or a server, behind one client."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TypeAlias

import clickhouse_connect
import urllib3
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError

from costspan_collector.errors import ContentError, StartError, StoreAwayError

Connect: TypeAlias = Callable[[], Client]

_SCHEMA = files("costspan_collector") / "schema"
_STATEMENT_END = re.compile(r";\s*$", re.MULTILINE)

# ClickHouse's codes for a body that it cannot read into the table. All others may pass: an absent table, memory, too many
# parts, a lost connection.
_CONTENT_CODES = frozenset(
    {6, 20, 26, 27, 32, 33, 38, 41, 53, 69, 70, 72, 117, 131, 190, 349, 407, 434, 436, 444, 541, 573, 636}
)


def connect_embedded(folder: Path) -> Client:
    """A connection to the chDB in a folder; this process must own it (see :func:`own`)."""
    return clickhouse_connect.get_client(interface="chdb", path=str(folder))


def connect_server(url: str) -> Client:
    """A connection to a ClickHouse server.

    Raises:
        StoreAwayError: It does not answer.
    """
    try:
        return clickhouse_connect.get_client(dsn=url, autogenerate_session_id=False)
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
    """Run the numbered files of the schema that this store has not seen yet, in order."""
    client.command(
        "CREATE TABLE IF NOT EXISTS schema_versions (version UInt32, name String, applied DateTime64(3) DEFAULT now64(3)) "
        "ENGINE = MergeTree ORDER BY version"
    )
    known = {version for (version,) in client.query("SELECT version FROM schema_versions").result_rows}
    for file in sorted((file for file in _SCHEMA.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name):
        version = int(file.name.partition("_")[0])
        if version in known:
            continue
        for statement in _STATEMENT_END.split(file.read_text(encoding="utf-8")):
            if statement.strip():
                client.command(statement)
        client.insert("schema_versions", [[version, file.name]], column_names=["version", "name"])


def insert(work: Callable[[], object]) -> None:
    """Run an insert, and say what its failure means.

    Raises:
        ContentError: The store objects to what is in it.
        StoreAwayError: The store is away or unwell.
    """
    try:
        work()
    except DatabaseError as error:
        if error.code in _CONTENT_CODES:
            raise ContentError(str(error)) from error
        raise StoreAwayError(str(error)) from error
    except (ClickHouseError, urllib3.exceptions.HTTPError, OSError) as error:
        raise StoreAwayError(str(error)) from error
