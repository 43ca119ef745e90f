"""OpenLIT, as its documentation says: ``@openlit.trace``, in a block with attributes, which its decorator does not heed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import openlit
from opentelemetry import trace

DISTRIBUTION = "openlit"
PRICES = Path(__file__).with_name("openlit_prices.json")  # it would fetch them from the internet


def start(endpoint: str) -> AbstractContextManager[object]:
    """Its batching exporter."""
    openlit.init(otlp_endpoint=endpoint, application_name="bench", pricing_json=str(PRICES))
    return openlit.using_attributes({"tenant": "acme", "feature": "search", "unit": "T-1"})


def observe(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate."""
    return openlit.trace(function)


def flush() -> None:
    """Send what has ended."""
    trace.get_tracer_provider().force_flush()
