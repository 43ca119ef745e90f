"""The calls of a model API: their paths, and how to read their answers."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

from costspan._generation import Generation

SENDER: ContextVar[Any] = ContextVar("costspan-sender", default=None)
"""The only HTTP client whose requests are the current call's, where that is known: others fetch it a token, or the like."""

Reader = Callable[[Any], int]
"""Takes an answer or an item of one, tells the call what it says of itself, and returns how many tokens it carries."""


class Api(NamedTuple):
    """One call that an API offers.

    Attributes:
        path: How its path ends.
        kind: ``gen_ai.operation.name``.
        read: Makes a reader of one call's answer.
    """

    path: str
    kind: str
    read: Callable[[Generation], Reader]


def api_at(apis: tuple[Api, ...], path: str) -> Api | None:
    """Which of them is at a path; the first that fits."""
    return next((api for api in apis if path.endswith(api.path)), None)


def text(item: Any, name: str) -> str:
    """An attribute that is text, or ""."""
    found = getattr(item, name, None)
    return found if isinstance(found, str) else ""


def count(item: Any, name: str) -> int:
    """An attribute that is a number of things, or 0."""
    found = getattr(item, name, None)
    return found if isinstance(found, int) else 0
