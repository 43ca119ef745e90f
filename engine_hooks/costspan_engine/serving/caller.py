"""Who asks, from the W3C headers ``traceparent`` and ``baggage``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from opentelemetry import baggage, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from costspan import semconv

_MAX_ATTEMPT = 65_535  # the store counts attempts in 16 bits


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is and which span it continues; the fields are those of ``RequestInfo``."""

    tenant: str
    feature: str
    unit: str
    attempt: int
    trace_id: str
    parent_span_id: str

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> Caller:
        """Read the headers (lower-case names); what is missing or malformed is unknown, never an error."""
        context = W3CBaggagePropagator().extract(headers)
        span = trace.get_current_span(TraceContextTextMapPropagator().extract(headers)).get_span_context()
        who = {key: str(value) for key, value in baggage.get_all(context).items()}
        return cls(
            tenant=who.get(semconv.TENANT) or semconv.UNKNOWN,
            feature=who.get(semconv.FEATURE, ""),
            unit=who.get(semconv.UNIT, ""),
            attempt=_attempt(who.get(semconv.ATTEMPT, "")),
            trace_id=trace.format_trace_id(span.trace_id) if span.is_valid else "",
            parent_span_id=trace.format_span_id(span.span_id) if span.is_valid else "",
        )


def _attempt(text: str) -> int:
    return min(max(1, int(text)), _MAX_ATTEMPT) if text.isascii() and text.isdecimal() else 1
