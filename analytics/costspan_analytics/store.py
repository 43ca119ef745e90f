"""Reading the store: one connection, one window of time, queries that live in ``.sql`` files."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
import polars as pl
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError

from costspan.clock import now_ns
from costspan_analytics.errors import StoreError, WindowError

# What the driver has to say comes with its exception; it need not be on the terminal twice.
logging.getLogger("clickhouse_connect").addHandler(logging.NullHandler())

ALWAYS = 0
FOREVER = 2**63 - 1
_AGO = re.compile(r"(\d+)([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_UNKNOWN_TABLE = 60


@dataclass(frozen=True, slots=True)
class Window:
    """Nanoseconds since the Unix epoch, from ``since`` up to and without ``until``."""

    since: int = ALWAYS
    until: int = FOREVER

    @classmethod
    def parse(cls, since: str | None, until: str | None) -> Window:
        """A window up to now from what a person types: ``2h``, ``7d`` (ago), or an ISO time (UTC unless it says otherwise).

        Raises:
            WindowError: One of them is neither, or they are in the wrong order.
        """
        window = cls(_moment(since, ALWAYS), _moment(until, now_ns()))
        if window.since >= window.until:
            raise WindowError(f"--since {since} is not before --until {until}: swap them.")
        return window


def _moment(text: str | None, default: int) -> int:
    if text is None:
        return default
    try:
        if ago := _AGO.fullmatch(text):
            at = datetime.now(timezone.utc) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            at = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise WindowError(f"{text!r} is no time: write an age such as 2h or 7d, or an ISO time such as 2026-11-21.") from None
    if at.tzinfo is None:
        at = at.replace(tzinfo=timezone.utc)
    return int(at.timestamp() * 1_000_000) * 1000


@cache
def _sql(name: str) -> str:
    return (resources.files("costspan_analytics") / "queries" / f"{name}.sql").read_text(encoding="utf-8")


class Store:
    """A project's rows in a window of time.

    Args:
        url: ClickHouse's HTTP address, or that of an embedded store: ``http://user:password@host:port/database``; or a
            connection to either that is there already.
        project: Whose rows.
        window: Of which time.

    Raises:
        StoreError: Nothing answers there.
    """

    def __init__(self, url: str | Client, project: str, window: Window | None = None) -> None:
        self.project = project
        self.window = window or Window()
        self._client = _connect(url) if isinstance(url, str) else url

    def frame(self, name: str, **parameters: Any) -> pl.DataFrame:
        """The rows of the query in ``queries/{name}.sql``; project and window are given to it.

        Raises:
            StoreError: The store refuses, or is gone.
        """
        given = {"project": self.project, "since": self.window.since, "until": self.window.until, **parameters}
        try:
            frame = pl.from_arrow(self._client.query_arrow(_sql(name), parameters=given, use_strings=True))
        except DatabaseError as error:
            if f"code {_UNKNOWN_TABLE}" in str(error) or "UNKNOWN_TABLE" in str(error):
                raise StoreError("The store has no costspan tables: point a collector at it once, it creates them.") from error
            raise StoreError(f"The store refused a query ({name}): {error}") from error
        except (ClickHouseError, OSError) as error:
            raise StoreError(f"The store went away during a query ({name}): {error}") from error
        if not isinstance(frame, pl.DataFrame):
            raise StoreError(f"The store answered a query ({name}) with something that is no table.")
        return frame

    def insert(self, table: str, frame: pl.DataFrame, token: str) -> None:
        """Add rows to a table, once however often it is tried with the same token.

        Raises:
            StoreError: The store refuses, or is gone.
        """
        rows = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        try:
            self._client.insert_arrow(table, rows, settings={"insert_deduplication_token": token, "async_insert": "0"})
        except (ClickHouseError, OSError) as error:
            raise StoreError(f"The store did not take rows of {table}: {error}") from error


def _connect(url: str) -> Client:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise StoreError(f"{url!r} is no store: write its HTTP address, such as http://127.0.0.1:8123.")
    try:
        return clickhouse_connect.get_client(
            host=parts.hostname,
            port=parts.port or (8443 if parts.scheme == "https" else 8123),
            username=parts.username or "default",
            password=parts.password or "",
            database=parts.path.strip("/") or "__default__",
            secure=parts.scheme == "https",
            ca_cert=os.environ.get("REQUESTS_CA_BUNDLE"),  # the variable that the SDK's sender heeds
            autogenerate_session_id=False,  # a session takes one query at a time, and a dashboard asks from several threads
        )
    except (ClickHouseError, OSError) as error:
        if isinstance(error, DatabaseError) and error.code:
            raise StoreError(
                f"The store at {parts.hostname}:{parts.port} refuses: {error}. A key goes into its address: http://user:KEY@HOST:PORT."
            ) from error
        raise StoreError(
            f"No store answers at {parts.hostname}:{parts.port}: start one with `costspan collector`, or pass --store."
        ) from error
