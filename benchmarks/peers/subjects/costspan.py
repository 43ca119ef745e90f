"""costspan, as its users start it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import costspan

DISTRIBUTION = "costspan"


def start(endpoint: str) -> AbstractContextManager[object]:
    """Initialise; the work is for one unit."""
    costspan.init(endpoint=endpoint, service="bench")
    return costspan.unit("ticket", "T-1", tenant="acme", feature="search")


def observe(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate."""
    return costspan.observe(kind=costspan.Kind.TOOL)(function)


def flush() -> None:
    """Send what has ended."""
    costspan.flush()


def metered_call(count: int) -> None:
    """Model calls of no tokens, with the headers that they send."""
    for _ in range(count):
        with costspan.generation(model="m", provider="p") as call:
            call.headers()


def metered_item(count: int) -> None:
    """One model call of many tokens."""
    with costspan.generation(model="m", provider="p") as call:
        for _ in call.meter(range(count)):
            pass


EXTRA = {"metered_call": metered_call, "metered_item": metered_item}
