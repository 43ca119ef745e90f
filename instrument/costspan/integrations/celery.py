"""Celery's tasks as part of the work of whoever published them.

A task carries on the trace, the unit, the tenant and the feature that it was published in, whichever worker runs it, and
whenever. Each time that it is run is one span with an outcome of its own; Celery's retries are tries of one operation, the
task. What else a try does, model calls and costs, is under its span, and is waste where another try had to replace it.

::

    costspan.init(service="worker")
    costspan.instrument("celery")  # in what publishes, and in what the worker imports

Celery's own signals do it, so that prefork, threads and ``task_always_eager`` are alike. What kills a worker's process outright
(``SIGKILL``, a hard time limit) is told by the worker's main process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, MutableMapping
from types import ModuleType
from typing import Any, final
from weakref import WeakValueDictionary

from opentelemetry.context import Context, get_current
from opentelemetry.trace import SpanKind

from costspan._handover import outgoing
from costspan._observation import Attribute, Observation, start
from costspan._outcome import outcome_of
from costspan._propagation import incoming_context
from costspan._runtime import shutdown
from costspan._trouble import report
from costspan.clock import now_ns
from costspan.integrations._patch import Change
from costspan.semconv import ATTEMPT, ERROR_TYPE, INVALID, OPERATION, Kind, Outcome

_HEADER = "costspan"
"""One header of a message holds all of ours: ``traceparent`` may be that of the app's own OpenTelemetry."""
_OPEN, _WITHIN, _UNTIL = "_costspan_try", "_costspan_within", "_costspan_until"
_TIME_LIMITS = frozenset({"SoftTimeLimitExceeded", "TimeLimitExceeded"})
_PATIENCE_S = 5.0
_interrupted: list[Observation] = []
_received: WeakValueDictionary[str, Any] = WeakValueDictionary()


def patches(_celery: ModuleType) -> list[Change]:
    """Follow the tasks that this process publishes and runs."""
    from celery import signals  # noqa: PLC0415  (it is the app's)

    return [
        _Ear(signals.before_task_publish, _publish),
        _Ear(signals.task_received, _receive),
        _Ear(signals.task_prerun, _begin),
        _Ear(signals.task_postrun, _end),
        _Ear(signals.task_failure, _lose),
        _Ear(signals.task_revoked, _revoke),
        _Ear(signals.worker_process_shutdown, _leave),
    ]


@final
class _Ear:
    """Something that is done on a signal of Celery's."""

    def __init__(self, signal: Any, listen: Callable[..., None]) -> None:
        self._signal = signal
        self._listen = listen
        signal.connect(self._hear, weak=False)

    def undo(self) -> None:
        self._signal.disconnect(self._hear)

    def _hear(self, **said: Any) -> None:
        try:
            self._listen(**said)
        except Exception as error:  # noqa: BLE001  (the task goes on)
            report(error, "follow a task")


def _publish(headers: MutableMapping[str, Any] | None = None, **_: Any) -> None:
    from celery import current_task  # noqa: PLC0415

    if headers is None:
        return
    again = current_task.request if current_task and current_task.request.id == headers.get("id") else None
    # A task that publishes itself again is tried again, on behalf of whoever published it first.
    handed_on = outgoing() if again is None else again.get(_HEADER)
    if handed_on:
        headers[_HEADER] = handed_on


def _receive(request: Any, **_: Any) -> None:
    _received[request.id] = request


def _begin(task: Any, **_: Any) -> None:
    request = task.request
    # A worker's thread may still be in the context of the task before, where somebody else's instrumentation left it.
    within = _around(task) if request.is_eager else incoming_context(_handed_on(request.get(_HEADER)))
    role = SpanKind.INTERNAL if request.is_eager else SpanKind.CONSUMER
    running = start(task.name, Kind.OPERATION, _number(request.id, request.retries), within=within, role=role)
    running.__enter__()
    vars(request).update({_OPEN: running, _WITHIN: within})


def _around(task: Any) -> Context:
    """What an eager task runs in. Its retries are run inside of it: beside it in the trace, and from then on instead of it."""
    *outer, request = task.request_stack.stack
    before = next((each for each in reversed(outer) if each.id == request.id), None)
    if before is None or _WITHIN not in vars(before):
        return get_current()
    vars(before)[_UNTIL] = now_ns()
    around: Context = vars(before)[_WITHIN]
    return around


def _end(task: Any, retval: object, state: str | None, **_: Any) -> None:
    error = sys.exc_info()[1] if state is None else retval if isinstance(retval, BaseException) else None
    running: Observation | None = vars(task.request).pop(_OPEN, None)
    if running is None:
        return
    if state is None and isinstance(error, SystemExit):
        _interrupted.append(running)  # its process is being ended
        return
    if get_current() is running.context:
        running.leave()
    attributes: dict[str, Attribute] = {}
    if state == "RETRY":
        cause = getattr(error, "exc", None)
        error = cause if isinstance(cause, BaseException) else None
        if error is None:
            attributes[INVALID] = "asked to be run again"
    elif state in {"SUCCESS", "IGNORED"}:
        error = None
    if error is not None:
        attributes[ERROR_TYPE] = type(error).__name__
    running.end(_outcome(error), error, attributes=attributes, end_ns=vars(task.request).get(_UNTIL))


def _leave(**_: Any) -> None:
    """A process of the pool is about to leave by ``os._exit``. What task it is in the middle of, its parent tells."""
    # A thread of ours that works on holds up the last word to the pool: its second SIGTERM then finds this process with the
    # pool's lock in its hands, and the worker's warm shutdown waits for ever.
    for running in _interrupted:
        running.on_exit = _interrupted.clear
    shutdown(_PATIENCE_S)


def _lose(task_id: str, exception: BaseException, sender: Any, **_: Any) -> None:
    """A process was killed in the middle of a task; what it knew of it is lost, and its parent speaks for it."""
    request = _received.get(task_id)
    if request is not None and _OPEN not in vars(
        sender.request
    ):  # else it is this process that runs it, and that says so itself
        headers = request.request_dict
        _tell(sender.name, headers.get(_HEADER), _number(task_id, headers.get("retries")), _outcome(exception), exception)


def _revoke(sender: Any, request: Any, expired: bool, **_: Any) -> None:
    """A task came to nothing: it was not begun, or was killed."""
    outcome = Outcome.TIMEOUT if expired else Outcome.CANCELLED
    _tell(sender.name, request.get(_HEADER), _number(request.id, request.retries), outcome)


def _tell(
    name: str, header: object, number: dict[str, Attribute], outcome: Outcome, error: BaseException | None = None
) -> None:
    """The whole of a try that nobody else tells of, from the moment that it was begun, if it was."""
    request = _received.pop(str(number[OPERATION]), None)
    began = None if request is None or request.time_start is None else round(request.time_start * 1e9)
    within, role = incoming_context(_handed_on(header)), SpanKind.CONSUMER
    told = start(name, Kind.OPERATION, number, within=within, start_ns=began, role=role)
    told.end(outcome, error, attributes={} if error is None else {ERROR_TYPE: type(error).__name__})


def _number(task_id: str, retries: int | None) -> dict[str, Attribute]:
    return {OPERATION: task_id, ATTEMPT: (retries or 0) + 1}


def _handed_on(header: object) -> Mapping[str, str]:
    return header if isinstance(header, Mapping) else {}


def _outcome(error: BaseException | None) -> Outcome:
    return Outcome.TIMEOUT if type(error).__name__ in _TIME_LIMITS else outcome_of(error)
