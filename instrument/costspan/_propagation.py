"""Who a request works for, as it travels: ``traceparent`` and W3C ``baggage``."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from opentelemetry.baggage import get_all, set_baggage
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from costspan.semconv import ATTEMPT, WHO

_TRACE = TraceContextTextMapPropagator()


def carry(context: Context, who: Mapping[str, str]) -> Context:
    """A context that also says ``who``. Empty names change nothing; spaces around a name, which no header keeps, are cut."""
    for key, name in who.items():
        if name.strip():
            context = set_baggage(key, name.strip(), context)
    return context


def who_attributes(context: Context) -> dict[str, str | int]:
    """What a context says of who it works for, as span attributes."""
    found: dict[str, str | int] = {key: str(name) for key, name in get_all(context).items() if key in WHO}
    attempt = found.pop(ATTEMPT, None)
    if isinstance(attempt, str) and attempt.isdecimal():
        found[ATTEMPT] = int(attempt)
    return found


def outgoing_headers(context: Context, defaults: Mapping[str, str]) -> dict[str, str]:
    """The headers that hand a context on: ``traceparent``, ``baggage``, and ``tracestate`` where there is one.

    Args:
        context: What to hand on, foreign baggage included.
        defaults: Baggage where the context has none under the same key.
    """
    headers: dict[str, str] = {}
    _TRACE.inject(headers, context)
    # Everything but unreserved characters is escaped, so that readers that take "+" for a space and those that do not agree.
    baggage = {**defaults, **get_all(context)}
    members = [f"{quote(key, safe='')}={quote(str(value), safe='')}" for key, value in baggage.items()]
    if members:
        headers["baggage"] = ",".join(members)
    return headers
