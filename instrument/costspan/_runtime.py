"""What :func:`init` starts: one tracer and one outbox a process."""

from __future__ import annotations

import atexit
import os
import threading
import uuid
from typing import TYPE_CHECKING

from opentelemetry.trace import Tracer

from costspan._trouble import report
from costspan.semconv import FEATURE, TENANT
from costspan.settings import Settings

if TYPE_CHECKING:
    from costspan._outbox import Outbox

_AT_EXIT_S = 10.0


class Runtime:
    """A tracer, the way of its spans to the collector, and who its spans work for by default."""

    def __init__(self, settings: Settings) -> None:
        # The OpenTelemetry SDK and its HTTP client are slow to import: an app that never calls init() does not wait for them.
        from costspan import tracing  # noqa: PLC0415

        client = uuid.uuid4().hex
        self.settings = settings
        self.who = {key: name for key, name in ((TENANT, settings.tenant), (FEATURE, settings.feature)) if name}
        self.outbox: Outbox = tracing.make_outbox(
            settings.endpoint, project=settings.project, client=client, api_key=settings.api_key
        )
        provider = tracing.provider_through(self.outbox, project=settings.project, service=settings.service, client=client)
        self.tracer: Tracer = provider.get_tracer("costspan")


_runtime: Runtime | None = None
_starting = threading.Lock()


def current() -> Runtime | None:
    """The runtime, if the app has called :func:`init`."""
    return _runtime


def init(
    *,
    project: str | None = None,
    endpoint: str | None = None,
    api_key: str | None = None,
    service: str | None = None,
    tenant: str | None = None,
    feature: str | None = None,
) -> None:
    """Start observing. Without this call everything else in costspan does nothing; a second call changes nothing.

    OpenTelemetry's global tracer provider is left to the app. What has not been sent when the process exits is sent then,
    for at most ten seconds.

    Args:
        project: Boundary of keys and rows; else ``COSTSPAN_PROJECT``, else ``default``.
        endpoint: Base URL of the collector; else ``COSTSPAN_ENDPOINT``, else ``http://127.0.0.1:4318``.
        api_key: Key for the collector; else ``COSTSPAN_API_KEY``, else none.
        service: Name of the app; else ``COSTSPAN_SERVICE``.
        tenant: Whose traffic, where no unit of work says otherwise; else ``COSTSPAN_TENANT``.
        feature: Part of the app, likewise; else ``COSTSPAN_FEATURE``.

    Raises:
        SettingError: The endpoint is no HTTP URL, or the project or the key cannot be sent as a header.
    """
    global _runtime  # noqa: PLW0603  (one a process is the point)
    with _starting:
        if _runtime is not None:
            return
        settings = Settings.read(
            project=project, endpoint=endpoint, api_key=api_key, service=service, tenant=tenant, feature=feature
        )
        _runtime = Runtime(settings)
        atexit.register(shutdown, _AT_EXIT_S)


def flush(timeout_s: float = 30.0) -> bool:
    """Wait until every span that has ended so far is settled: the collector has it, or has refused it and the log says why.

    Args:
        timeout_s: How long to wait at most, in seconds.

    Returns:
        Whether that was in time; true when there is nothing to send.
    """
    runtime = _runtime
    return runtime is None or runtime.outbox.force_flush(int(timeout_s * 1000))


def shutdown(timeout_s: float = _AT_EXIT_S) -> None:
    """Send what has ended, for at most ``timeout_s`` seconds, and stop observing. :func:`init` may start again."""
    global _runtime
    with _starting:
        runtime, _runtime = _runtime, None
    if runtime is not None:
        atexit.unregister(shutdown)
        runtime.outbox.shutdown(timeout_s)


def _renew_in_child() -> None:
    """A forked child is a sender of its own: with its parent's numbers, the collector would take its spans for retries."""
    global _runtime, _starting  # noqa: PLW0603
    _starting = threading.Lock()
    if _runtime is None:
        return
    _runtime.outbox.abandon()
    try:
        _runtime = Runtime(_runtime.settings)
    except Exception as error:  # noqa: BLE001  (a fork must not fail because of us)
        _runtime = None
        report(error, "start in a forked process")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_in_child)
