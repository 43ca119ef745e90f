"""A callable of the same kind as another, that observes each call of it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, TypeVar, cast, final

from costspan._observation import Observation
from costspan._steps import Begin, async_generator, generator
from costspan.semconv import Outcome

F = TypeVar("F", bound=Callable[..., Any])


@contextmanager
def _block() -> Iterator[None]:
    yield


@asynccontextmanager
async def _async_block() -> AsyncIterator[None]:
    yield


_HELPER, _ASYNC_HELPER = _block.__code__, _async_block.__code__  # every function that they decorate has the same


def observed(function: F, begin: Begin) -> F:
    """A function of the same kind as ``function``, so that frameworks that look at the kind see no difference."""
    code = getattr(function, "__code__", None)
    if code is _HELPER:
        wrapper = _context_manager(function, begin)
    elif code is _ASYNC_HELPER:
        wrapper = _async_context_manager(function, begin)
    elif inspect.isasyncgenfunction(function):
        wrapper = async_generator(function, begin)
    elif inspect.iscoroutinefunction(function) or (code is not None and code.co_flags & inspect.CO_ITERABLE_COROUTINE):
        wrapper = _coroutine(function, begin)
    elif inspect.isgeneratorfunction(function):
        wrapper = generator(function, begin)
    else:
        wrapper = _function(function, begin)
    return cast("F", functools.wraps(function)(wrapper))


def _function(function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        observation = begin(args, kwargs)
        observation.__enter__()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            observation.__exit__(type(error), error, error.__traceback__)
            raise
        if type(result) in _UNDONE and observation.context is not None:
            observation.leave()
            return _observed_work(result, observation)
        observation.__exit__(None, None, None)
        return result

    return wrapper


def _coroutine(function: Callable[..., Any], begin: Begin) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        with begin(args, kwargs):
            return await function(*args, **kwargs)

    return wrapper


# The span of a context manager is that of its block, and current inside.


def _context_manager(function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    @contextmanager
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        with begin(args, kwargs), function(*args, **kwargs) as entered:
            yield entered

    return wrapper


def _async_context_manager(function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    @asynccontextmanager
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        with begin(args, kwargs):
            async with function(*args, **kwargs) as entered:
                yield entered

    return wrapper


_UNDONE = {CoroutineType: _coroutine, GeneratorType: generator, AsyncGeneratorType: async_generator}
"""What a plain function may return whose work is still to be done, and what observes that."""


@final
class _Returned:
    """Work that a plain function has returned, until somebody begins to do it: if nobody ever does, its span ends here."""

    def __init__(self, work: Any, observation: Observation) -> None:
        self.work = work
        self._observation: Observation | None = observation
        self._dropped = Outcome.CANCELLED if isinstance(work, CoroutineType) else Outcome.ABANDONED
        observation.on_exit = functools.partial(observation.end, self._dropped)

    def __del__(self) -> None:
        if self._observation is not None:
            self._observation.end(self._dropped)
            if isinstance(self.work, CoroutineType):
                self.work.close()  # the coroutine around it complains already that nobody awaited it

    def begin(self) -> Observation:
        """Hand the span over to whoever does the work."""
        observation, self._observation = self._observation, None
        assert observation is not None  # noqa: S101  (a coroutine or a generator begins once)
        return observation


def _observed_work(work: Any, observation: Observation) -> Any:
    observe = cast("Callable[..., Callable[..., Any]]", _UNDONE[type(work)])
    result = observe(lambda returned: returned.work, lambda args, _kwargs: args[0].begin())(_Returned(work, observation))
    result.__name__, result.__qualname__ = work.__name__, work.__qualname__
    return result
