"""A tracer provider whose spans are numbered, kept and acknowledged on their way to the collector."""

from __future__ import annotations

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from costspan._outbox import Outbox
from costspan.delivery import Delivery
from costspan.semconv import PROJECT, SERVICE_INSTANCE, SERVICE_NAME

_STREAM = "spans"


def make_provider(endpoint: str, *, project: str, service: str, client: str) -> TracerProvider:
    """A provider for one process. It is private: OpenTelemetry's global provider stays the app's.

    Args:
        endpoint: Base URL of the collector.
        project: Boundary of keys and rows.
        service: ``service.name`` of the process.
        client: ``service.instance.id`` of the process, different in every process that sends.

    Raises:
        SettingError: The endpoint is no HTTP URL, or a name cannot be sent as a header.
    """
    return provider_through(
        make_outbox(endpoint, project=project, client=client), project=project, service=service, client=client
    )


def make_outbox(endpoint: str, *, project: str, client: str, api_key: str | None = None) -> Outbox:
    """The way of spans to the collector."""
    return Outbox(Delivery(endpoint, project=project, client=client, stream=_STREAM, api_key=api_key))


def provider_through(outbox: Outbox, *, project: str, service: str, client: str) -> TracerProvider:
    """A provider whose spans leave through ``outbox``."""
    # Every span counts in sums of time and money, so a caller's sampling decision is not followed.
    provider = TracerProvider(
        sampler=ALWAYS_ON,
        resource=Resource({SERVICE_NAME: service, SERVICE_INSTANCE: client, PROJECT: project}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(outbox)
    return provider
