"""Sessions: connections that keep their temporary tables and settings between statements."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from costspan_collector.embedded.failure import Failure
from costspan_collector.embedded.tree import quoted

_MOST_SESSIONS = 256
_IDLE_S, _LONGEST_IDLE_S = 60.0, 3600.0  # ClickHouse's default_session_timeout and max_session_timeout
_SESSION_NOT_FOUND, _SESSION_IS_LOCKED, _INVALID_SESSION_TIMEOUT = 372, 373, 374


def change(connection: Any, settings: Mapping[str, str]) -> None:
    """Set settings on a connection."""
    if settings:
        connection.query("SET " + ", ".join(f"{name} = {quoted(value)}" for name, value in settings.items()))


class Session:
    """One session; one statement at a time.

    Args:
        connection: The connection that keeps its state.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self.ends_s = 0.0

    @contextmanager
    def under(self, settings: Mapping[str, str]) -> Iterator[Any]:
        """The connection, with settings that hold for one statement.

        Raises:
            Failure: Another statement runs in the session.
        """
        if not self._lock.acquire(blocking=False):
            raise Failure.of(_SESSION_IS_LOCKED, "SESSION_IS_LOCKED", "Session is locked by a concurrent client")
        try:
            before = self._values(settings)
            change(self._connection, settings)
            try:
                yield self._connection
            finally:
                change(self._connection, before)
        finally:
            self._lock.release()

    def close(self) -> bool:
        """Close it, unless a statement runs in it; say whether."""
        if not self._lock.acquire(blocking=False):
            return False
        self._connection.close()
        return True

    def _values(self, names: Mapping[str, str]) -> dict[str, str]:
        if not names:
            return {}
        listed = ", ".join(quoted(name) for name in names)
        sql = f"SELECT name, value FROM system.settings WHERE name IN ({listed})"  # noqa: S608  (quoted)
        rows = self._connection.query(sql, "JSONCompactEachRow")
        return dict(json.loads(line) for line in rows.bytes().splitlines())


class Sessions:
    """The sessions that are open.

    Args:
        connect: Makes a connection.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, idle_s: str = "", *, must_exist: bool = False) -> Session:
        """A session by its name, made if there is none.

        Args:
            name: Its name.
            idle_s: How many seconds it is kept after this statement, "" for ClickHouse's default.
            must_exist: Whether it must be there already.

        Raises:
            Failure: It is not there, or the time is none.
        """
        if idle_s and not (idle_s.isdecimal() and int(idle_s) <= _LONGEST_IDLE_S):
            sentence = f"session_timeout is {idle_s!r}: give whole seconds, {_LONGEST_IDLE_S:.0f} at most"
            raise Failure.of(_INVALID_SESSION_TIMEOUT, "INVALID_SESSION_TIMEOUT", sentence)
        now_s = time.monotonic()
        with self._lock:
            self._end_idle(now_s)
            session = self._open.pop(name, None)
            if session is None and must_exist:
                raise Failure.of(_SESSION_NOT_FOUND, "SESSION_NOT_FOUND", f"Session {name!r} not found")
            session = session or Session(self._connect())
            session.ends_s = now_s + float(idle_s or _IDLE_S)
            self._open[name] = session
            return session

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            for session in self._open.values():
                session.close()
            self._open.clear()

    def _end_idle(self, now_s: float) -> None:
        excess = len(self._open) - _MOST_SESSIONS
        for place, (name, session) in enumerate(list(self._open.items())):
            if (session.ends_s < now_s or place < excess) and session.close():
                del self._open[name]
