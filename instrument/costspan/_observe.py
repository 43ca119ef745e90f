"""The decorator: one span a call, ended exactly once however the call ends."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextvars import Token
from decimal import Decimal
from types import TracebackType
from typing import Any, TypeVar, cast, overload

from opentelemetry.context import Context, attach, get_current

from costspan._observation import Observation, amount, detach, start
from costspan._outcome import outcome_of
from costspan.semconv import ITEMS, QUANTITY_PREFIX, Kind, Outcome

F = TypeVar("F", bound=Callable[..., Any])


@overload
def observe(function: F, /) -> F: ...


@overload
def observe(
    *,
    name: str | None = None,
    kind: Kind = Kind.OPERATION,
    quantities: Mapping[str, float | str | Decimal] | None = None,
) -> Callable[[F], F]: ...


def observe(
    function: F | None = None,
    /,
    *,
    name: str | None = None,
    kind: Kind = Kind.OPERATION,
    quantities: Mapping[str, float | str | Decimal] | None = None,
) -> F | Callable[[F], F]:
    """Observe every call of a function, coroutine, generator or async generator.

    The span of a generator lasts from its first step until it is exhausted, raises, or is closed or dropped; it says how many
    items were delivered, and is current inside the generator only, never in its consumer.

    Args:
        function: What to observe, when used without parentheses.
        name: Name of the span; the function's own by default.
        kind: What the operation is.
        quantities: What each call uses, by SKU of the price book: ``{"rerank_calls": 1}``.

    Raises:
        TypeError: It is put over ``@staticmethod`` or ``@classmethod`` instead of under it, or over something not callable.
        ValueError: ``kind`` is not a kind, or a quantity is not a number.
    """
    kind = Kind(kind)
    amounts = {QUANTITY_PREFIX + sku: amount(value) for sku, value in (quantities or {}).items()}

    def decorate(function: F) -> F:
        if isinstance(function, (staticmethod, classmethod)) or not callable(function):
            raise TypeError(f"put @costspan.observe directly over a function, not over {type(function).__name__}")
        title = name or str(getattr(function, "__qualname__", type(function).__name__))

        def begin() -> Observation:
            observation = start(title, kind)
            if amounts:
                observation.add(amounts)
            return observation

        return _wrapped(function, begin)

    return decorate if function is None else decorate(function)


def _wrapped(function: F, begin: Callable[[], Observation]) -> F:
    """A callable of the same kind as ``function``, so that frameworks that look at the kind see no difference."""
    if inspect.isasyncgenfunction(function):
        wrapper = _async_generator(function, begin)
    elif inspect.isgeneratorfunction(function):
        wrapper = _generator(function, begin)
    elif inspect.iscoroutinefunction(function):

        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with begin():
                return await function(*args, **kwargs)

    else:

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with begin():
                return function(*args, **kwargs)

    return cast(F, functools.wraps(function)(wrapper))


class _Steps:
    """The span of a generator: a ``with`` block around each step, which ends it when the step is the last.

    The context that a step leaves is the one that the next finds, and its consumer sees none of it.
    """

    def __init__(self, observation: Observation) -> None:
        self._observation = observation
        self._context = observation.context
        self._token: Token[Context] | None = None
        self._items = 0
        self._closing = False

    def __enter__(self) -> None:
        if self._context is not None:
            self._token = attach(self._context)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._token is not None:
            self._context = get_current()
            detach(self._token)
        if error is None:
            self._items += 1
            return
        exhausted = isinstance(error, (StopIteration, StopAsyncIteration))
        outcome = Outcome.CANCELLED if self._closing else Outcome.OK if exhausted else outcome_of(error)
        self._observation.end(outcome, error, attributes={ITEMS: self._items})

    def thrown(self, error: BaseException) -> BaseException:
        """Note what the consumer throws in."""
        self._closing = isinstance(error, GeneratorExit)
        return error


def _generator(function: Callable[..., Generator[Any, Any, Any]], begin: Callable[[], Observation]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        generator = function(*args, **kwargs)
        steps = _Steps(begin())
        resume: Callable[[Any], Any] = generator.send
        value: Any = None
        try:
            while True:
                with steps:
                    item = resume(value)
                try:
                    value, resume = (yield item), generator.send
                except BaseException as error:  # noqa: BLE001  (all of it is the generator's to handle)
                    value, resume = steps.thrown(error), generator.throw
        except StopIteration as stop:
            return stop.value
        finally:
            value = None  # else an error that went through would keep this frame alive

    return wrapper


def _async_generator(function: Callable[..., AsyncGenerator[Any, Any]], begin: Callable[[], Observation]) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        generator = function(*args, **kwargs)
        steps = _Steps(begin())
        resume: Callable[[Any], Any] = generator.asend
        value: Any = None
        try:
            while True:
                with steps:
                    item = await resume(value)
                try:
                    value, resume = (yield item), generator.asend
                except BaseException as error:  # noqa: BLE001  (all of it is the generator's to handle)
                    value, resume = steps.thrown(error), generator.athrow
        except StopAsyncIteration:
            return
        finally:
            value = None  # else an error that went through would keep this frame alive

    return wrapper
