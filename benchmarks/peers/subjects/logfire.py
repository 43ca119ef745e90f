"""Logfire, as its documentation says: ``@logfire.instrument``, and attributes as baggage."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import logfire

DISTRIBUTION = "logfire"


def start(endpoint: str) -> AbstractContextManager[object]:
    """Its own exporter, to a Logfire of one's own; without the console, as in production."""
    advanced = logfire.AdvancedOptions(base_url=endpoint)
    logfire.configure(token="none", service_name="bench", console=False, advanced=advanced)  # noqa: S106  (of no account)
    return logfire.set_baggage(tenant="acme", feature="search", unit="T-1")


def observe(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate; it asks to be told that a generator is meant."""
    return logfire.instrument(allow_generator=True)(function)


def flush() -> None:
    """Send what has ended."""
    logfire.force_flush()
