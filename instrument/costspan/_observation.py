"""One span of ours while it is open, and money added to it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from contextvars import Token
from decimal import Decimal, InvalidOperation
from types import TracebackType
from typing import final

from opentelemetry.context import Context, attach, create_key, get_current, get_value, set_value
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode, set_span_in_context

from costspan import _runtime
from costspan._outcome import outcome_of
from costspan._propagation import who_attributes
from costspan._trouble import report
from costspan.clock import now_ns
from costspan.semconv import COST_USD, KIND, OUTCOME, QUANTITY_PREFIX, Kind, Outcome

Attribute = str | int
_CURRENT = create_key("costspan-observation")
_adding = threading.RLock()  # re-entrant: the garbage collector may run an app's cost() inside another


def detach(token: Token[Context]) -> None:
    """Undo an ``attach``. Where a block is closed by another task than opened it, its context dies with that task."""
    with contextlib.suppress(ValueError):
        token.var.reset(token)


@final
class Observation:
    """An open span, and the context that its inside runs in. As a ``with`` block it ends with what the block raises.

    Args:
        span: The span; ``INVALID_SPAN`` makes every method do nothing.
        context: What is current inside; ``None`` leaves the context as it is.
    """

    __slots__ = ("_amounts", "_token", "context", "span")

    def __init__(self, span: Span, context: Context | None) -> None:
        self.span = span
        self.context = None if context is None else set_value(_CURRENT, self, context)
        self._amounts: dict[str, Decimal] = {}
        self._token: Token[Context] | None = None

    def __enter__(self) -> Observation:
        if self.context is not None:
            self._token = attach(self.context)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.leave()
        self.end(outcome_of(error), error)

    def leave(self) -> None:
        """Give the context back; the span stays open."""
        if self._token is not None:
            detach(self._token)

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        """Set attributes of a span that is still open."""
        if self.span.is_recording():
            self.span.set_attributes(attributes)
        elif self.context is not None:
            report(RuntimeError(f"{', '.join(attributes)} came after the block had ended"), "describe a span")

    def add(self, amounts: Mapping[str, Decimal]) -> None:
        """Add to decimal attributes."""
        if self.context is None:
            return
        with _adding:
            for key, amount in amounts.items():
                self._amounts[key] = total = self._amounts.get(key, Decimal(0)) + amount
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
        span = self.span
        if not span.is_recording():
            return
        try:
            span.set_attributes({**(attributes or {}), OUTCOME: outcome.value})
            if outcome is Outcome.ERROR and error is not None:
                span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}")
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
        context = get_current() if within is None else within
        everything = {KIND: kind.value, **runtime.who, **who_attributes(context), **(attributes or {})}
        start_time = now_ns() if start_ns is None else start_ns
        span = runtime.tracer.start_span(name, context, role, everything, start_time=start_time)
        return Observation(span, set_span_in_context(span, context)) if span.is_recording() else SILENT
    except Exception as error:  # noqa: BLE001  (the app goes on)
        report(error, "start a span")
        return SILENT


def amount(value: float | str | Decimal) -> Decimal:
    """A number as the decimal that it prints as.

    Raises:
        ValueError: It is no finite number.
    """
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise ValueError(f"{value!r} is not an amount: give a finite number")
    return number


def cost(usd: float | str | Decimal | None = None, **quantities: float | str | Decimal) -> None:
    """Add to what the current observed operation cost.

    Outside any operation, the amounts become a span of their own, so that no money is lost.

    Args:
        usd: Money that only the app knows, in dollars.
        **quantities: Amounts by SKU of the price book, which turns them into money later: ``cost(vector_queries=3)``.
    """
    if _runtime.current() is None:
        return
    try:
        amounts = {QUANTITY_PREFIX + sku: amount(value) for sku, value in quantities.items()}
        if usd is not None:
            amounts[COST_USD] = amount(usd)
    except ValueError as error:
        report(error, "add a cost")
        return
    current = get_value(_CURRENT)
    if isinstance(current, Observation) and current.span.is_recording():
        current.add(amounts)
    else:
        with start("cost", Kind.OPERATION) as alone:
            alone.add(amounts)
