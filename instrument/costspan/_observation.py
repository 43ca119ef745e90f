"""One span of ours while it is open."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from decimal import Context as Precision
from decimal import Decimal
from types import TracebackType
from typing import final

from opentelemetry.context import Context, attach, get_current, get_value, set_value
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode

from costspan import _runtime
from costspan._outcome import outcome_of
from costspan._propagation import CURRENT, as_current, who_attributes
from costspan._trouble import report
from costspan.clock import now_ns
from costspan.semconv import KIND, OUTCOME, Kind, Outcome

CONTEXT: ContextVar[Context] = attach(get_current()).var
"""Where OpenTelemetry keeps the current context: its own functions around it cost more than the rest of a generator's step."""
_LONGEST_MESSAGE = 8192  # the SDK bounds attributes, and no message
EXACT = Precision(prec=60)
"""How money is added up: the app's own precision may be coarse."""
Attribute = str | bool | int | float
_adding = threading.RLock()  # re-entrant: the garbage collector may run an app's cost() inside another
_open: dict[int, Observation] = {}  # by identity; a dictionary's own operations are atomic, so that each is ended by one thread


def detach(token: Token[Context]) -> None:
    """Undo an ``attach``. What is dropped in the middle is closed elsewhere, and its context has died where it was."""
    try:  # noqa: SIM105  (suppress() costs more than the rest)
        CONTEXT.reset(token)
    except ValueError:
        pass


@final
class Observation:
    """An open span, and the context that its inside runs in. As a ``with`` block it ends with what the block raises.

    Args:
        span: The span; ``INVALID_SPAN`` makes every method do nothing.
        context: What is current inside; ``None`` leaves the context as it is.

    Attributes:
        on_exit: How whoever measures it ends it when the process exits; ``end(Outcome.CANCELLED)`` where nobody does.
    """

    __slots__ = ("_amounts", "_token", "context", "on_exit", "span")

    def __init__(self, span: Span, context: Context | None) -> None:
        self.span = span
        self.context = None if context is None else set_value(CURRENT, self, context)
        self.on_exit: Callable[[], None] | None = None
        self._amounts: dict[str, Decimal] = {}
        self._token: Token[Context] | None = None
        if context is not None:
            _open[id(self)] = self

    def __enter__(self) -> Observation:
        if self.context is not None:
            self._token = CONTEXT.set(self.context)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.context is None:
            return
        self.leave()
        self.end(outcome_of(error), error)

    @property
    def is_open(self) -> bool:
        """Whether it is this process's, and has not ended."""
        return id(self) in _open

    def leave(self) -> None:
        """Give the context back; the span stays open."""
        token, self._token = self._token, None
        if token is None:
            return
        try:
            CONTEXT.reset(token)
        except ValueError:  # entered elsewhere: a task closes what another opened, threads take turns with one generator
            if CONTEXT.get() is self.context:
                CONTEXT.set(Context() if token.old_value is Token.MISSING else token.old_value)

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        """Set attributes of a span that is still open."""
        if self.is_open:
            self.span.set_attributes(attributes)
        elif self.context is not None and self.on_exit is not _cut and _runtime.current() is not None:
            report(RuntimeError(f"{', '.join(attributes)} came after the block had ended"), "describe a span")

    def add(self, amounts: Mapping[str, Decimal]) -> None:
        """Add to decimal attributes."""
        if self.context is None:
            return
        with _adding:
            for key, amount in amounts.items():
                self._amounts[key] = total = EXACT.add(self._amounts.get(key, Decimal(0)), amount)
                self.span.set_attribute(key, f"{total:f}")

    def end(
        self,
        outcome: Outcome = Outcome.OK,
        error: BaseException | None = None,
        *,
        attributes: Mapping[str, Attribute] | None = None,
        end_ns: int | None = None,
    ) -> None:
        """End the span; a second call does nothing."""
        if _open.pop(id(self), None) is None:
            return
        self.on_exit = None
        span = self.span
        try:
            if attributes:
                span.set_attributes(attributes)
            span.set_attribute(OUTCOME, outcome.value)
            if outcome is Outcome.ERROR and error is not None:
                span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}"[:_LONGEST_MESSAGE])
        except Exception as trouble:  # noqa: BLE001  (an error that cannot print itself)
            report(trouble, "describe a span")
        finally:
            span.end(now_ns() if end_ns is None else end_ns)


SILENT = Observation(INVALID_SPAN, None)
"""Stands for a span when costspan is not initialised."""


def start(
    name: str,
    kind: Kind,
    attributes: Mapping[str, Attribute] | None = None,
    *,
    within: Context | None = None,
    start_ns: int | None = None,
    role: SpanKind = SpanKind.INTERNAL,
) -> Observation:
    """Open a span in a context, the current one by default; ``SILENT`` when costspan is not initialised."""
    runtime = _runtime.current()
    if runtime is None:
        return SILENT
    try:
        context = CONTEXT.get() if within is None else within
        everything = {KIND: kind.value, **runtime.who, **who_attributes(context), **(attributes or {})}
        start_time = now_ns() if start_ns is None else start_ns
        span = runtime.tracer.start_span(name, as_current(context), role, everything, start_time=start_time)
        return Observation(span, context) if span.is_recording() else SILENT
    except Exception as error:  # noqa: BLE001  (the app goes on)
        report(error, "start a span")
        return SILENT


def current_observation() -> Observation | None:
    """The span of ours that the running code is in, if it is in one."""
    found = get_value(CURRENT)
    return found if isinstance(found, Observation) else None


def end_open() -> None:
    """End what is still open because the process exits: the innermost first, each as whoever measures it sees fit."""
    for observation in reversed(list(_open.values())):
        try:
            if observation.on_exit is None:
                observation.end(Outcome.CANCELLED)
            else:
                observation.on_exit()
        except Exception as error:  # noqa: BLE001, PERF203  (the others are to end as well)
            report(error, "end a span at exit")
        finally:
            observation.on_exit = _cut


def _cut() -> None:
    """Marks what a shutdown, or a fork, has ended under whoever goes on describing it."""


def _renew_in_child() -> None:
    """What a parent has open is the parent's to end. Another thread of it may hold the lock, and will never give it back."""
    global _adding  # noqa: PLW0603  (one a process)
    _adding = threading.RLock()
    for observation in _open.values():
        observation.on_exit = _cut
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_in_child)
