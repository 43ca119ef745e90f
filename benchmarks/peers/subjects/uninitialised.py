"""costspan in an app that has not called ``init``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import costspan

DISTRIBUTION = "costspan"


def start(_endpoint: str) -> AbstractContextManager[object]:
    """Nothing is started."""
    return nullcontext()


def observe(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate."""
    return costspan.observe(kind=costspan.Kind.TOOL)(function)


def flush() -> None:
    """Nothing to flush."""
