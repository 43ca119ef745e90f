"""Laminar, as its documentation says: ``@observe`` with who the call is for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from urllib.parse import urlsplit

from lmnr import Laminar
from lmnr import observe as decorator

DISTRIBUTION = "lmnr"


def start(endpoint: str) -> AbstractContextManager[object]:
    """Its batching exporter, over HTTP."""
    where = urlsplit(endpoint)
    base = f"{where.scheme}://{where.hostname}"
    Laminar.initialize(project_api_key="none", base_url=base, http_port=where.port, force_http=True)
    return nullcontext()


def observe(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate."""
    return decorator(span_type="TOOL", user_id="acme", session_id="T-1", metadata={"feature": "search"})(function)


def flush() -> None:
    """Send what has ended."""
    Laminar.flush()
