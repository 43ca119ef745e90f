"""A unit of work: the outcome that everything inside is done for."""

from __future__ import annotations

from contextlib import suppress
from decimal import Decimal
from types import TracebackType
from typing import final
from uuid import UUID

from opentelemetry.context import Context, get_current

from costspan import _runtime
from costspan._cost import amount
from costspan._observation import EXACT, Attribute, Observation, current_observation, start
from costspan._propagation import carry, clean
from costspan._trouble import report
from costspan.clock import now_ns
from costspan.semconv import (
    CAPTURED_PREFIX,
    COST_USD,
    FEATURE,
    QUANTITY_PREFIX,
    SKU_REVIEW_MINUTES,
    TENANT,
    UNIT,
    UNIT_KIND,
    UNIT_REASON,
    UNIT_STATUS,
    UNIT_STATUS_AT,
    UNIT_VALUE_USD,
    Kind,
)

_PLACES = Decimal("1e-12")  # of the store's money


@final
class Unit:
    """An outcome that is worked for, such as a ticket or a document. Made by :func:`unit`.

    It may be worked for in many stretches, one after the other or at once, in traces, processes and days of their own: each
    ``with`` block is one. Outside of any, what is said of it is recorded as well.

    Attributes:
        kind: What it is: ``ticket``, ``document``.
        id: Which.
    """

    def __init__(self, kind: str, id: str, tenant: str, feature: str, value_usd: float | str | Decimal | None) -> None:  # noqa: A002
        self.kind = kind
        self.id = id
        self._tenant = tenant
        self._feature = feature
        self._value_usd = value_usd
        self._stretches: list[Observation] = []

    def __enter__(self) -> Unit:
        if _runtime.current() is not None and self._is_named():
            stretch = self._start({UNIT_STATUS: "open"})
            self._stretches.append(stretch)
            stretch.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        stretch = self._current() if self._stretches else None
        if stretch is not None:
            with suppress(ValueError):  # another thread was faster
                self._stretches.remove(stretch)
            stretch.__exit__(kind, error, trace)

    async def __aenter__(self) -> Unit:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def resolve(self) -> None:
        """The outcome was reached."""
        self._decide({UNIT_STATUS: "resolved"})

    def reject(self, reason: str) -> None:
        """The outcome was reached and turned down."""
        self._decide({UNIT_STATUS: "rejected", UNIT_REASON: clean(str(reason))})

    def review(self, *, minutes: float | str | Decimal, rate: float | str | Decimal | None = None) -> None:
        """A person spent time on it.

        Args:
            minutes: How long.
            rate: What an hour of it costs, in dollars; by default the price book says what a minute does.
        """
        if _runtime.current() is None:
            return
        try:
            spent = amount(minutes)
            said: dict[str, Attribute] = {CAPTURED_PREFIX + "minutes": f"{spent:f}"}
            amounts = {QUANTITY_PREFIX + SKU_REVIEW_MINUTES: spent}
            if rate is not None:
                hourly = amount(rate)
                said[CAPTURED_PREFIX + "rate"] = f"{hourly:f}"
                amounts = {COST_USD: EXACT.divide(EXACT.multiply(spent, hourly), Decimal(60)).quantize(_PLACES, context=EXACT)}
        except (ValueError, ArithmeticError) as error:
            report(error, "add a review")
            return
        stretch = self._current()
        review = start("review", Kind.REVIEW, said, within=self._context() if stretch is None else stretch.context)
        review.add(amounts)
        review.end()

    def _decide(self, said: dict[str, Attribute]) -> None:
        """Put on the stretch that the calling code is in; where there is none, on a span of its own."""
        if _runtime.current() is None or not self._is_named():
            return
        said[UNIT_STATUS_AT] = now_ns()
        stretch = self._current()
        if stretch is not None and stretch.is_open:
            stretch.set(said)
        if stretch is None or not stretch.is_open:  # it may have ended in between, in another thread
            self._start(said).end()

    def _current(self) -> Observation | None:
        """The stretch that the calling code is in; else, as in a thread that inherits nothing, the last begun."""
        stretches, current = tuple(self._stretches), current_observation()
        return current if current in stretches else stretches[-1] if stretches else None

    def _start(self, said: dict[str, Attribute]) -> Observation:
        attributes = dict(said)
        try:
            if self._value_usd is not None:
                attributes[UNIT_VALUE_USD] = f"{amount(self._value_usd):f}"
        except ValueError as error:
            report(error, "value a unit")
        return start(f"unit {clean(self.kind)}", Kind.UNIT, attributes, within=self._context())

    def _context(self) -> Context:
        who = {TENANT: self._tenant, FEATURE: self._feature}
        if self._is_named():
            who |= {UNIT: self.id, UNIT_KIND: self.kind}
        return carry(get_current(), who)

    def _is_named(self) -> bool:
        if self.kind.strip() and self.id.strip():
            return True
        report(ValueError("a unit of work needs a kind and an id: what is spent in it is not booked to it"), "name a unit")
        return False


def unit(
    kind: str,
    id: str | int | UUID,  # noqa: A002  (it is what people call it)
    *,
    tenant: str | None = None,
    feature: str | None = None,
    value_usd: float | str | Decimal | None = None,
) -> Unit:
    """Work for one outcome, in sync and async code alike: ``with costspan.unit("ticket", "T-17", tenant="acme") as ticket:``.

    Everything inside inherits the unit, the tenant and the feature, here and in the engines that it calls. Without a block,
    ``costspan.unit("ticket", "T-17", tenant="acme").resolve()`` says how the work of other days and processes ended.

    Args:
        kind: What the outcome is: ``ticket``, ``document``.
        id: Which one, among those of its kind and tenant.
        tenant: Whose work; the surrounding tenant by default.
        feature: Part of the app; the surrounding feature by default.
        value_usd: What the outcome is worth, in dollars; the last that is said counts.
    """
    return Unit(str(kind), str(id), str(tenant or ""), str(feature or ""), value_usd)
