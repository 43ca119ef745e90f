"""Who a request works for, as it travels: ``traceparent`` and W3C ``baggage``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from urllib.parse import quote

from opentelemetry.baggage import get_all, set_baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context, create_key
from opentelemetry.trace import set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from costspan._trouble import report
from costspan.semconv import ATTEMPT, WHO

CURRENT = create_key("costspan-observation")
"""Where a context has the observation that it is in. OpenTelemetry's current span stays the app's own: in its place ours would
be the parent of spans that go elsewhere, and would have every one of them sampled."""

_TRACE = TraceContextTextMapPropagator()
_BAGGAGE = W3CBaggagePropagator()

# What every receiver of baggage takes (https://www.w3.org/TR/baggage/#limits). Of more, some take nothing at all.
_MEMBERS = 64
_BYTES = 8_192
_MEMBER_BYTES = 4_096
_NAME_BYTES = 1_024
"""Of one name of ours, escaped: all of them fit, whatever else travels along."""
_ESCAPED = 12
"""Bytes of the longest character, escaped."""


def carry(context: Context, who: Mapping[str, str]) -> Context:
    """A context that also says ``who``. Empty names change nothing; spaces around a name, which no header keeps, are cut."""
    for key, name in who.items():
        whole = clean(name)
        if whole:
            kept = _short(whole)
            if kept != whole:
                report(
                    ValueError(f"{key} has {len(whole)} characters, and is cut to {kept!r}: name it shorter"),
                    "carry a long name",
                )
            context = set_baggage(key, kept, context)
    return context


def as_current(context: Context) -> Context:
    """The context for those who look for a parent, or for what to hand on: the span of ours that it is in comes first."""
    observation = context.get(CURRENT)
    return context if observation is None else set_span_in_context(observation.span, context)  # type: ignore[attr-defined]


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
        context: What to hand on, foreign baggage included as far as receivers must take it.
        defaults: Baggage where the context has none under the same key.
    """
    headers: dict[str, str] = {}
    _TRACE.inject(headers, as_current(context))
    baggage = ",".join(_members({**defaults, **get_all(context)}))
    if baggage:
        headers["baggage"] = baggage
    return headers


def incoming_context(headers: Mapping[str, str]) -> Context:
    """The context that headers hand on, whatever the case of their names; empty where they say nothing that can be read."""
    lower = {key.lower(): value for key, value in headers.items() if key.lower() in {"traceparent", "tracestate", "baggage"}}
    return _BAGGAGE.extract(lower, _TRACE.extract(lower, Context()))


def _members(baggage: Mapping[str, object]) -> Iterator[str]:
    """The members of a header that no receiver refuses: who it is for first, then of the rest what there is room for."""
    left, room = _MEMBERS, _BYTES
    for key, value in sorted(baggage.items(), key=lambda pair: pair[0] not in WHO):
        text = _short(clean(str(value))) if key in WHO else str(value)
        # Everything but unreserved characters is escaped: readers that take "+" for a space and those that do not agree.
        member = f"{quote(key, safe='', errors='replace')}={quote(text, safe='', errors='replace')}"
        if left and len(member) <= min(room, _MEMBER_BYTES):
            left, room = left - 1, room - len(member) - 1
            yield member


def clean(name: str) -> str:
    """Without the spaces around it, and without halves of characters, which have no UTF-8."""
    return (name if name.isascii() else name.encode(errors="replace").decode()).strip()


def _short(name: str) -> str:
    """The name, or where it is too long its beginning and a mark of the whole: the same in every process, and no other's."""
    if len(name) * _ESCAPED <= _NAME_BYTES or len(quote(name, safe="")) <= _NAME_BYTES:
        return name
    mark = "~" + hashlib.sha256(name.encode()).hexdigest()[:16]
    room, kept = _NAME_BYTES - len(mark), 0
    while (room := room - len(quote(name[kept], safe=""))) >= 0:
        kept += 1
    return name[:kept] + mark
