"""tenacity's retries as tries of one operation.

Every call of a retried function becomes an operation, named after the function, and each time that tenacity runs it an attempt
with an outcome of its own; an answer that a ``retry_if_result`` turned down is one that failed validation. In the middle of an
operation that the app named, they are attempts of that one. Where ``Retrying`` is a loop, each ``with attempt:`` is one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, final

from opentelemetry.context import get_current

from costspan import _runtime
from costspan._attempt import Attempt, joinable
from costspan._operation import Operation
from costspan._trouble import report
from costspan.clock import now_ns
from costspan.integrations._patch import Patch

_STATE = "_costspan"


def patches(library: ModuleType) -> Iterable[Patch]:
    """Follow what runs a function, decides whether to run it again, and hears how it went."""
    yield Patch(library.Retrying, "__call__", _call)
    yield Patch(library.AsyncRetrying, "__call__", _acall)
    yield Patch(library.BaseRetrying, "iter", functools.partial(_iter, library))
    yield Patch(library.AsyncRetrying, "iter", functools.partial(_aiter, library))
    yield Patch(library.AttemptManager, "__enter__", _enter)
    yield Patch(library.AttemptManager, "__aenter__", _aenter)
    yield Patch(library.RetryCallState, "set_result", _set_result)
    yield Patch(library.RetryCallState, "set_exception", _set_exception)


@final
class _Run:
    """What becomes of one retried call: the try that is open, or has ended and is not yet judged."""

    def __init__(self, operation: Operation | None) -> None:
        self._operation = operation
        self._attempt: Attempt | None = None
        self._error: BaseException | None = None
        self._end_ns = 0

    def begin(self) -> None:
        """The function is run."""
        self._attempt = Attempt(self._operation)
        self._attempt.__enter__()
        self._error, self._end_ns = None, 0

    def ended(self, error: BaseException | None) -> None:
        """The function has returned or raised."""
        if self._attempt is not None and not self._end_ns:
            self._attempt.leave()
            self._error, self._end_ns = error, now_ns()

    def judge(self, *, again: bool) -> None:
        """It is known whether it is run again."""
        if self._attempt is not None and self._end_ns:
            if again and self._error is None:
                self._attempt.invalid("its retry condition turned the result down")
            self._attempt.end(self._error, self._end_ns)
            self._attempt = self._error = None


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  (the app goes on)
            report(error, "follow a retry")

    return guarded


@_guarded
def _begin(state: Any) -> None:
    if _runtime.current() is None:
        return
    run = vars(state).get(_STATE)
    if run is None:
        # A loop may be left without a word, so what it is of has no span that would wait for its end.
        run = _Run(joinable(get_current()) or Operation(""))
        setattr(state, _STATE, run)
    run.begin()


@_guarded
def _ended(state: Any, error: BaseException | None) -> None:
    run = vars(state).get(_STATE)
    if run is not None:
        run.ended(error)
        if state.fn is None:  # a loop's: it may never be asked whether it goes on
            run.judge(again=False)


@_guarded
def _judge(state: Any, *, again: bool) -> None:
    run = vars(state).get(_STATE)
    if run is not None:
        run.judge(again=again)


def _operation_of(patch: Patch, retrying: Any, function: Any) -> Operation | None:
    """What a call of a retried function opens: nothing where it is a try of something that is open already."""
    if not (patch.on and retrying.enabled) or _runtime.current() is None or joinable(get_current()) is not None:
        return None
    return Operation(str(getattr(function, "__qualname__", type(function).__name__)))


def _call(patch: Patch) -> Callable[..., Any]:
    def call(self: Any, fn: Any, *args: Any, **kwargs: Any) -> Any:
        operation = _operation_of(patch, self, fn)
        if operation is None:
            return patch.original(self, fn, *args, **kwargs)
        with operation:
            return patch.original(self, fn, *args, **kwargs)

    return call


def _acall(patch: Patch) -> Callable[..., Any]:
    async def call(self: Any, fn: Any, *args: Any, **kwargs: Any) -> Any:
        operation = _operation_of(patch, self, fn)
        if operation is None:
            return await patch.original(self, fn, *args, **kwargs)
        with operation:
            return await patch.original(self, fn, *args, **kwargs)

    return call


def _iter(library: ModuleType, patch: Patch) -> Callable[..., Any]:
    def iter(self: Any, retry_state: Any) -> Any:  # noqa: A001  (tenacity's name)
        do = None
        try:
            do = patch.original(self, retry_state)
        finally:
            _judge(retry_state, again=isinstance(do, library.DoSleep))
        # What is neither this nor the one below waits in ways of its own (tornado's), in which a context would get lost.
        if patch.on and isinstance(self, library.Retrying) and isinstance(do, library.DoAttempt) and retry_state.fn is not None:
            _begin(retry_state)
        return do

    return iter


def _aiter(library: ModuleType, patch: Patch) -> Callable[..., Any]:
    async def iter(self: Any, retry_state: Any) -> Any:  # noqa: A001  (tenacity's name)
        do = None
        try:
            do = await patch.original(self, retry_state)
        finally:
            _judge(retry_state, again=isinstance(do, library.DoSleep))
        if patch.on and isinstance(do, library.DoAttempt) and retry_state.fn is not None:
            _begin(retry_state)
        return do

    return iter


def _enter(patch: Patch) -> Callable[..., Any]:
    def enter(self: Any) -> Any:
        if patch.on:
            _begin(self.retry_state)
        return patch.original(self)

    return enter


def _aenter(patch: Patch) -> Callable[..., Any]:
    async def enter(self: Any) -> Any:
        if patch.on:
            _begin(self.retry_state)
        return await patch.original(self)

    return enter


def _set_result(patch: Patch) -> Callable[..., Any]:
    def set_result(self: Any, val: Any) -> None:
        _ended(self, None)
        patch.original(self, val)

    return set_result


def _set_exception(patch: Patch) -> Callable[..., Any]:
    def set_exception(self: Any, exc_info: Any) -> None:
        _ended(self, exc_info[1])
        patch.original(self, exc_info)

    return set_exception
