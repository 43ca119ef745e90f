"""What becomes of an error of our own inside somebody else's app."""

from __future__ import annotations

import logging

from costspan.settings import is_strict

_logger = logging.getLogger("costspan")
_told: set[str] = set()


def report(error: Exception, doing: str) -> None:
    """Log an error the first time it is met while ``doing`` something; never break the app.

    Raises:
        Exception: The error itself, under ``COSTSPAN_STRICT=1``.
    """
    if is_strict():
        raise error
    key = f"{doing}: {type(error).__name__}"
    if key not in _told:
        _told.add(key)
        _logger.error("costspan could not %s, and goes on without", doing, exc_info=error)
