"""Carrying on elsewhere: in another thread, another process, another day."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextvars import Token
from types import TracebackType
from typing import Any, TypeVar, cast, final

from opentelemetry.baggage import remove_baggage
from opentelemetry.context import Context, attach, get_current

from costspan import _runtime
from costspan._observation import detach
from costspan._propagation import incoming_context, outgoing_headers
from costspan._trouble import report
from costspan.semconv import ATTEMPT, PROJECT

F = TypeVar("F", bound=Callable[..., Any])


def bind(function: F) -> F:
    """Have a function run in the trace and the unit of work of here and now, wherever and however often it is called.

    Threads do not inherit them, tasks do: ``pool.submit(costspan.bind(work), document)``. A pool of processes takes it as well.

    Args:
        function: A function or a coroutine function.

    Raises:
        TypeError: It is a generator function, whose inside runs wherever it is read.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError("bind the function that reads a generator, not the generator: it runs wherever it is read")
    if _runtime.current() is None:
        return function
    context = get_current()
    if not inspect.iscoroutinefunction(function):
        return cast(F, _Bound(function, context))

    @functools.wraps(function)
    async def bound(*args: Any, **kwargs: Any) -> Any:
        with _Inside(context):
            return await function(*args, **kwargs)

    return cast(F, bound)


def outgoing() -> dict[str, str]:
    """What to send along with a message, a job or a request, so that whoever takes it carries on the trace and the unit.

    W3C headers by lower-case name: ``traceparent`` inside anything observed, and ``baggage``. Empty before ``init()``.
    """
    return _headers_of(get_current())


def incoming(headers: Mapping[str, str]) -> _Inside:
    """Carry on what :func:`outgoing` handed on: ``with costspan.incoming(message.headers):``, in sync and async code alike.

    What was around the block does not show inside it. Headers that say nothing leave everything as it is. Whoever writes them
    says who pays: take them from your own services only.

    Args:
        headers: Of the message, in any case; ``os.environ`` where a process was handed them in its environment.
    """
    if _runtime.current() is None:
        return _NOWHERE
    try:
        return _Inside(incoming_context(headers) or None)
    except Exception as error:  # noqa: BLE001  (whatever a broker calls headers)
        report(error, "read headers")
        return _NOWHERE


class _Inside:
    """A block that runs in a context; ``None`` leaves the context as it is."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: Context | None) -> None:
        self._context = context
        self._token: Token[Context] | None = None

    def __enter__(self) -> None:
        if self._context is not None:
            self._token = attach(self._context)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._token is not None:
            detach(self._token)


_NOWHERE = _Inside(None)


@final
class _Bound:
    """A function and the context that it runs in. In another process, the context is what headers hand on."""

    def __init__(self, function: Callable[..., Any], context: Context) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._context = context

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Inside(self._context):
            return self._function(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[..., _Bound], tuple[Any, ...]]:
        return _rebound, (self._function, _headers_of(self._context))


def _rebound(function: Callable[..., Any], headers: Mapping[str, str]) -> _Bound:
    return _Bound(function, incoming_context(headers))


def _headers_of(context: Context) -> dict[str, str]:
    runtime = _runtime.current()
    if runtime is None:
        return {}
    # Which try of a model call something was sent in says nothing of the calls that follow from it.
    return outgoing_headers(remove_baggage(ATTEMPT, context), {PROJECT: runtime.settings.project, **runtime.who})
