"""A tracer provider whose spans are numbered, kept and acknowledged on their way to the collector."""

from __future__ import annotations

import random

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from costspan._outbox import Outbox
from costspan.delivery import Delivery
from costspan.errors import SettingError
from costspan.semconv import PROJECT, SERVICE_INSTANCE, SERVICE_NAME
from costspan.settings import is_unicode

LONGEST_VALUE = 8192
"""Characters of an attribute's value. What is longer is cut: a span of ours is no place for content."""

_STREAM = "spans"
_UNNAMED = "unknown_service"
_MOST_ATTRIBUTES = 1024  # beyond it the SDK drops the oldest, which are those that say what the span is
_MOST_OTHERS = 128


def make_provider(endpoint: str, *, project: str, service: str, client: str) -> TracerProvider:
    """A provider for one process. It is private: OpenTelemetry's global provider stays the app's.

    Args:
        endpoint: Base URL of the collector.
        project: Boundary of keys and rows.
        service: ``service.name`` of the process; "" for what ``OTEL_RESOURCE_ATTRIBUTES`` says.
        client: ``service.instance.id`` of the process, different in every process that sends.

    Raises:
        SettingError: The endpoint is no HTTP URL, or a name cannot be sent as a header.
    """
    return provider_through(
        make_outbox(endpoint, project=project, client=client), resource(project=project, service=service, client=client)
    )


def make_outbox(endpoint: str, *, project: str, client: str, api_key: str | None = None) -> Outbox:
    """The way of spans to the collector."""
    return Outbox(Delivery(endpoint, project=project, client=client, stream=_STREAM, api_key=api_key))


def resource(*, project: str, service: str, client: str) -> Resource:
    """What the process says of itself with every payload: ``OTEL_RESOURCE_ATTRIBUTES``, and what is given.

    Raises:
        SettingError: Something of it is not Unicode.
    """
    theirs = OTELResourceDetector().detect()
    name = service or theirs.attributes.get(SERVICE_NAME) or _UNNAMED
    whole = theirs.merge(Resource({PROJECT: project, SERVICE_INSTANCE: client, SERVICE_NAME: name}))
    for key, value in whole.attributes.items():
        if not is_unicode(key + str(value)):
            raise SettingError(f"{key!r} in OTEL_RESOURCE_ATTRIBUTES is not Unicode, and cannot be sent")
    return whole


def provider_through(outbox: Outbox, resource: Resource) -> TracerProvider:
    """A provider whose spans leave through ``outbox``.

    Everything that OpenTelemetry's SDK would take from the app's ``OTEL_*`` variables is said here: they are about the app's
    own spans. Only the resource's attributes are about the process, and so about ours too.
    """
    provider = TracerProvider(
        sampler=ALWAYS_ON,  # every span counts in sums of time and money, so a caller's sampling decision is not followed
        resource=resource,
        shutdown_on_exit=False,
        id_generator=_Ids(),
        span_limits=_limits(),
        meter_provider=NoOpMeterProvider(),
    )
    provider.add_span_processor(outbox)
    return provider


class _Ids(IdGenerator):
    """Random ids that are nobody else's: apps seed Python's shared generator, and expect their own numbers of it."""

    def __init__(self) -> None:
        self._bits = random.Random().getrandbits  # noqa: S311  (ids, not secrets)

    def generate_span_id(self) -> int:
        """64 random bits, not all zero."""
        return self._bits(64) or self.generate_span_id()

    def generate_trace_id(self) -> int:
        """128 random bits, not all zero."""
        return self._bits(128) or self.generate_trace_id()

    def is_trace_id_random(self) -> bool:
        """They are."""
        return True


def _limits() -> SpanLimits:
    return SpanLimits(
        max_attributes=_MOST_ATTRIBUTES,
        max_span_attributes=_MOST_ATTRIBUTES,
        max_event_attributes=_MOST_OTHERS,
        max_link_attributes=_MOST_OTHERS,
        max_events=_MOST_OTHERS,
        max_links=_MOST_OTHERS,
        max_attribute_length=LONGEST_VALUE,
        max_span_attribute_length=LONGEST_VALUE,
    )
