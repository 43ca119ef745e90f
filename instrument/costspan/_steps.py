"""The span of a generator: from its first step to its last, current inside only."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from functools import partial
from typing import Any, final

from costspan._observation import CONTEXT, SILENT, Attribute, Observation, detach
from costspan._outcome import outcome_of
from costspan.clock import epoch_ns
from costspan.semconv import CONSUMER, ITEMS, ITEMS_FIRST, ITEMS_LAST, Outcome

Begin = Callable[[tuple[Any, ...], dict[str, Any]], Observation]
"""Opens the span of a call, given its arguments."""


@final
class Steps:
    """What a generator has delivered, and how long it stood still. Stamps are ``time.monotonic_ns()``; 0 if never.

    Attributes:
        items: Items handed to the consumer.
        first_ns: When the first was.
        handed_ns: When the last was.
        resumed_ns: When the consumer last came back.
        idle_ns: How long it has been away in all, until then.
    """

    __slots__ = ("_closing", "_observation", "first_ns", "handed_ns", "idle_ns", "items", "resumed_ns")

    def __init__(self, observation: Observation) -> None:
        self._observation = observation
        self._closing = False
        self.items = self.first_ns = self.handed_ns = self.resumed_ns = self.idle_ns = 0
        if observation is not SILENT:
            observation.on_exit = self._cut

    def thrown(self, error: BaseException) -> BaseException:
        """Note what the consumer throws in."""
        self._closing = isinstance(error, GeneratorExit)
        return error

    def end(self, error: BaseException) -> None:
        """End the span with what the generator raised in the end."""
        exhausted = isinstance(error, (StopIteration, StopAsyncIteration))
        if self._closing and (exhausted or isinstance(error, GeneratorExit)):
            outcome = Outcome.CANCELLED
        else:
            outcome = Outcome.OK if exhausted else outcome_of(error)
        self._end(outcome, error)

    def _cut(self) -> None:
        """The process exits, in the middle of a step or while the consumer has the item."""
        if self.resumed_ns < self.handed_ns:
            self.idle_ns += time.monotonic_ns() - self.handed_ns
        self._end(Outcome.CANCELLED, None)

    def _end(self, outcome: Outcome, error: BaseException | None) -> None:
        attributes: dict[str, Attribute] = {ITEMS: self.items}
        if self.items:
            attributes[ITEMS_FIRST] = epoch_ns(self.first_ns)
            attributes[ITEMS_LAST] = epoch_ns(self.handed_ns)
            attributes[CONSUMER] = self.idle_ns
        elif outcome is Outcome.CANCELLED:
            outcome = Outcome.ABANDONED
        self._observation.end(outcome, error, attributes=attributes)


# Both loops are written out, with what every item needs in local names: a microsecond an item is all there is. The context that
# a step leaves is the one that the next finds. Only OpenTelemetry's is exchanged, and not the whole of contextvars: a generator
# shares its consumer's variables, with us as without.


def generator(function: Callable[..., Generator[Any, Any, Any]], begin: Begin) -> Callable[..., Generator[Any, Any, Any]]:
    """A generator function that observes each generator that ``function`` makes."""

    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        generator = function(*args, **kwargs)
        observation = begin(args, kwargs)
        del args, kwargs
        if observation.context is None:
            return (yield from generator)
        steps, context = Steps(observation), observation.context
        enter, current, leave, now, send = CONTEXT.set, CONTEXT.get, CONTEXT.reset, time.monotonic_ns, generator.send
        resume: Callable[[Any], Any] = send
        value: Any = None
        try:
            while True:
                token = enter(context)
                try:
                    item = resume(value)
                finally:
                    context = current()
                    leave(token)
                steps.handed_ns = handed_ns = now()
                if not steps.items:
                    steps.first_ns = handed_ns
                steps.items += 1
                try:
                    value = yield item
                except BaseException as error:  # noqa: BLE001  (all of it is the generator's to handle)
                    value, resume = steps.thrown(error), generator.throw
                else:
                    resume = send
                steps.resumed_ns = resumed_ns = now()
                steps.idle_ns += resumed_ns - handed_ns
        except BaseException as error:
            steps.end(error)
            if isinstance(error, StopIteration):
                return error.value
            raise
        finally:
            value = None  # else an error that went through would keep this frame alive

    return wrapper


def async_generator(function: Callable[..., AsyncGenerator[Any, Any]], begin: Begin) -> Callable[..., AsyncGenerator[Any, Any]]:
    """An async generator function that observes each async generator that ``function`` makes."""

    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        generator = function(*args, **kwargs)
        observation = begin(args, kwargs)
        del args, kwargs
        steps, context = Steps(observation), observation.context
        enter, current, leave, now, send = CONTEXT.set, CONTEXT.get, detach, time.monotonic_ns, generator.asend
        resume: Callable[[Any], Any] = partial(_begin_unseen, send)
        value: Any = None
        try:
            while True:
                token = None if context is None else enter(context)
                try:
                    item = await resume(value)
                finally:
                    if token is not None:
                        context = current()
                        leave(token)
                steps.handed_ns = handed_ns = now()
                if not steps.items:
                    steps.first_ns = handed_ns
                steps.items += 1
                try:
                    value = yield item
                except BaseException as error:  # noqa: BLE001  (all of it is the generator's to handle)
                    value, resume = steps.thrown(error), generator.athrow
                else:
                    resume = send
                steps.resumed_ns = resumed_ns = now()
                steps.idle_ns += resumed_ns - handed_ns
        except BaseException as error:
            steps.end(error)
            if isinstance(error, StopAsyncIteration):
                return
            raise
        finally:
            value = None  # else an error that went through would keep this frame alive

    return wrapper


def _begin_unseen(send: Callable[[Any], Awaitable[Any]], value: Any) -> Awaitable[Any]:
    """Begin a generator unknown to its event loop, which ends by closing all that it knows at once: that around it does it."""
    met = sys.get_asyncgen_hooks().firstiter
    sys.set_asyncgen_hooks(firstiter=None)
    try:
        return send(value)
    finally:
        sys.set_asyncgen_hooks(firstiter=met)
