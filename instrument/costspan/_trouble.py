"""What becomes of an error of our own inside somebody else's app."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from contextlib import suppress

from costspan.settings import is_strict

_logger = logging.getLogger("costspan")
_counts: Counter[str] = Counter()
_counting = threading.RLock()  # re-entrant: the garbage collector may run into trouble in the middle of counting other trouble
_told: set[str] = set()
_unraised: list[Exception] = []


def report(error: Exception, doing: str) -> None:
    """Count an error, and log it the first time it is met while ``doing`` something; never break the app.

    Raises:
        Exception: The error itself, under ``COSTSPAN_STRICT=1``.
    """
    _count(error, doing)
    if is_strict():
        raise error


def note(error: Exception, doing: str) -> None:
    """Like :func:`report`, on a thread of our own: under ``COSTSPAN_STRICT=1`` the next :func:`raise_noted` raises it."""
    _count(error, doing)
    if is_strict():
        _unraised.append(error)


def raise_noted() -> None:
    """Raise what was noted since the last time.

    Raises:
        Exception: The first error that was noted.
    """
    noted = _unraised[:]
    _unraised.clear()
    if noted:
        raise noted[0]


def tell(level: int, message: str, *values: object, error: Exception | None = None) -> None:
    """Log something; a log handler of the app's that fails is none of ours."""
    with suppress(Exception):
        _logger.log(level, message, *values, exc_info=error)


def counts() -> dict[str, int]:
    """How often something went wrong since the start, by what was being done."""
    with _counting:
        return dict(_counts)


def renew() -> None:
    """Begin anew, in a forked child too: its parent's errors are its parent's to tell, and a thread of it may hold the lock."""
    global _counting  # noqa: PLW0603  (one a process)
    _counting = threading.RLock()
    _counts.clear()
    _unraised.clear()


def _count(error: Exception, doing: str) -> None:
    with _counting:
        _counts[doing] += 1
    key = f"{doing}: {type(error).__name__}"
    if key not in _told and not is_strict():
        _told.add(key)
        tell(logging.ERROR, "costspan could not %s, and goes on without", doing, error=error)
