"""OpenLLMetry (traceloop-sdk), as its documentation says: ``@tool``, and association properties."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from opentelemetry import trace
from traceloop.sdk import Traceloop
from traceloop.sdk.decorators import tool

DISTRIBUTION = "traceloop-sdk"


def start(endpoint: str) -> AbstractContextManager[object]:
    """Its batching exporter, and none of its own telemetry."""
    Traceloop.init(app_name="bench", api_endpoint=endpoint, telemetry_enabled=False)
    Traceloop.set_association_properties({"tenant": "acme", "feature": "search", "unit": "T-1"})
    return nullcontext()


def observe(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate."""
    return tool(name=function.__name__)(function)


def flush() -> None:
    """Send what has ended."""
    trace.get_tracer_provider().force_flush()
