"""What :func:`init` starts: one tracer and one outbox a process."""

from __future__ import annotations

import os
import threading
import uuid
from typing import TYPE_CHECKING

from opentelemetry.trace import Tracer

from costspan import _collecting, _ending, _trouble
from costspan._health import Health
from costspan.errors import SettingError
from costspan.semconv import FEATURE, TENANT
from costspan.settings import Settings, is_disabled

if TYPE_CHECKING:
    from costspan._outbox import Outbox


class Runtime:
    """A tracer, the way of its spans to the collector, and who its spans work for by default."""

    def __init__(self, settings: Settings) -> None:
        # The OpenTelemetry SDK and its HTTP client are slow to import: an app that never calls init() does not wait for them.
        from costspan import tracing  # noqa: PLC0415

        client = uuid.uuid4().hex
        self.settings = settings
        self.who = {key: name for key, name in ((TENANT, settings.tenant), (FEATURE, settings.feature)) if name}
        resource = tracing.resource(project=settings.project, service=settings.service, client=client)
        self.outbox: Outbox = tracing.make_outbox(
            settings.endpoint, project=settings.project, client=client, api_key=settings.api_key
        )
        self.tracer: Tracer = tracing.provider_through(self.outbox, resource).get_tracer("costspan")


_runtime: Runtime | None = None
_latest: Runtime | None = None
"""The one that runs, or has run last: what it has not sent yet may still be on its way."""
_starting = threading.RLock()


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

    It does not wait for the collector, and leaves OpenTelemetry's global tracer provider to the app. When the process exits,
    what is still open is ended, and what has not been sent is sent: for at most ten seconds, five when ``SIGTERM`` ends it,
    which costspan handles where nobody else does, and three when the collector was never there. Before ``os._exit`` call
    :func:`flush`.

    With ``COSTSPAN_DISABLED=1`` or ``OTEL_SDK_DISABLED=true`` it does nothing.

    Args:
        project: Boundary of keys and rows; else ``COSTSPAN_PROJECT``, else ``default``.
        endpoint: Base URL of the collector; else ``COSTSPAN_ENDPOINT``, else ``http://127.0.0.1:4318``.
        api_key: Key for the collector; else ``COSTSPAN_API_KEY``, else none.
        service: Name of the app; else ``COSTSPAN_SERVICE``, else ``OTEL_SERVICE_NAME``, else the ``service.name`` in
            ``OTEL_RESOURCE_ATTRIBUTES``.
        tenant: Whose traffic, where no unit of work says otherwise; else ``COSTSPAN_TENANT``.
        feature: Part of the app, likewise; else ``COSTSPAN_FEATURE``.

    Raises:
        SettingError: A setting cannot work: the endpoint is no HTTP URL, or the project or the key cannot be sent as a header.
    """
    global _runtime, _latest  # noqa: PLW0603  (one a process is the point)
    if is_disabled():
        return
    with _starting:
        if _runtime is not None:
            return
        settings = Settings.read(
            project=project, endpoint=endpoint, api_key=api_key, service=service, tenant=tenant, feature=feature
        )
        _trouble.renew()
        try:
            _latest = _runtime = Runtime(settings)
            _collecting.protect()
            _ending.prepare(shutdown, stop=_stop, flush=flush)
        except SettingError:
            raise
        except Exception as error:  # noqa: BLE001  (no thread can be started any more, say)
            _trouble.report(error, "start")


def flush(timeout_s: float = 30.0) -> bool:
    """Wait until every span that has ended so far is settled: the collector has it, or has refused it and the log says why.

    Args:
        timeout_s: How long to wait at most, in seconds.

    Returns:
        Whether that was in time; true when there is nothing to send.
    """
    runtime = _runtime
    in_time = runtime is None or runtime.outbox.force_flush(int(timeout_s * 1000))
    _trouble.raise_noted()
    return in_time


def shutdown(timeout_s: float = _ending.AT_EXIT_S) -> None:
    """End what is still open, send what has ended, for at most ``timeout_s`` seconds, and stop observing.

    :func:`init` may start again.
    """
    runtime = _latest
    if runtime is None:
        return
    _stop(timeout_s)
    runtime.outbox.shutdown(0)
    if _runtime is None:
        _ending.cancel(shutdown)  # not before: a signal may come meanwhile
    _trouble.raise_noted()


def health() -> Health:
    """How costspan is doing in this process: what has become of its spans since :func:`init`, and what went wrong."""
    runtime = _latest
    return Health(errors=_trouble.counts()) if runtime is None else runtime.outbox.health()


def _stop(timeout_s: float) -> None:
    """Begin nothing new, end what is open and send it all. Takes no lock: it may have interrupted anything, itself included."""
    global _runtime
    from costspan._observation import end_open  # noqa: PLC0415  (it imports this)

    runtime, _runtime = _latest, None
    if runtime is not None:
        runtime.outbox.stop(timeout_s, end_open)


def _renew_in_child() -> None:
    """A forked child is a sender of its own: with its parent's numbers, the collector would take its spans for retries."""
    global _runtime, _latest, _starting  # noqa: PLW0603
    _starting = threading.RLock()
    _trouble.renew()
    parents, was_running = _latest, _runtime is not None
    _runtime = _latest = None
    if parents is None:
        return
    parents.outbox.abandon()
    if not was_running:
        return
    try:
        _latest = _runtime = Runtime(parents.settings)
        _ending.prepare_worker(shutdown)
    except Exception as error:  # noqa: BLE001  (a fork must not fail because of us)
        _runtime = None
        _trouble.note(error, "start in a forked process")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_in_child)
