"""OpenTelemetry written out by hand: a span around the same work, with the attributes that an observed call has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span

DISTRIBUTION = "opentelemetry-sdk"
OUTCOME = "costspan.outcome"
ATTRIBUTES = {
    "costspan.kind": "tool",
    "costspan.tenant": "acme",
    "costspan.feature": "search",
    "costspan.unit": "T-1",
    "costspan.unit.kind": "ticket",
}
provider = TracerProvider(resource=Resource({"service.name": "bench"}))
tracer = provider.get_tracer("bench")


def start(endpoint: str) -> AbstractContextManager[object]:
    """A provider with the batching exporter."""
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
    return nullcontext()


def observe(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same work as ``function``, with a span written into it."""
    return BY_HAND[function.__name__]


def flush() -> None:
    """Send what has ended."""
    provider.force_flush()


def span(name: str) -> AbstractContextManager[Span]:
    """A current span that says who it is for."""
    return tracer.start_as_current_span(name, attributes=ATTRIBUTES)


def call() -> None:
    """Do nothing."""
    with span("call") as current:
        current.set_attribute(OUTCOME, "ok")


async def coroutine() -> None:
    """Do nothing."""
    with span("coroutine") as current:
        current.set_attribute(OUTCOME, "ok")


def generator(count: int) -> Iterator[int]:
    """Yield."""
    with span("generator") as current:
        yield from range(count)
        current.set_attribute(OUTCOME, "ok")


async def async_generator(count: int) -> AsyncIterator[int]:
    """Yield."""
    with span("async_generator") as current:
        for number in range(count):
            yield number
        current.set_attribute(OUTCOME, "ok")


async def waiting() -> None:
    """Wait for long."""
    with span("waiting") as current:
        await asyncio.sleep(60)
        current.set_attribute(OUTCOME, "ok")


async def trickle() -> AsyncIterator[int]:
    """Yield a little, then wait for long."""
    with span("trickle") as current:
        for number in range(3):
            yield number
        await asyncio.sleep(60)
        current.set_attribute(OUTCOME, "ok")


BY_HAND: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (call, coroutine, generator, async_generator, waiting, trickle)
}
