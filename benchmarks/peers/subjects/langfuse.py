"""Langfuse, as its documentation says: ``@observe``, and attributes propagated from a block around the work."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from langfuse import Langfuse, get_client, propagate_attributes
from langfuse import observe as decorator

DISTRIBUTION = "langfuse"


def start(endpoint: str) -> AbstractContextManager[object]:
    """A client with its own queue and exporter."""
    Langfuse(public_key="pk-lf-1", secret_key="sk-lf-1", base_url=endpoint)  # noqa: S106  (of no account)
    return propagate_attributes(user_id="acme", session_id="T-1", metadata={"feature": "search"})


def observe(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate."""
    return decorator(as_type="tool")(function)


def flush() -> None:
    """Send what has ended."""
    get_client().flush()
