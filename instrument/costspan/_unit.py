"""A unit of work: the outcome that everything inside is done for."""

from __future__ import annotations

from decimal import Decimal
from types import TracebackType
from typing import final

from opentelemetry.context import get_current

from costspan._observation import SILENT, amount, start
from costspan._propagation import carry
from costspan._trouble import report
from costspan.semconv import (
    FEATURE,
    QUANTITY_PREFIX,
    SKU_REVIEW_MINUTES,
    TENANT,
    UNIT,
    UNIT_KIND,
    UNIT_REASON,
    UNIT_STATUS,
    UNIT_VALUE_USD,
    Kind,
)


@final
class Unit:
    """A stretch of work for one outcome, such as a ticket or a document. Made by :func:`unit`.

    The same unit may be worked for in many stretches, traces and processes; the last decides how it stands.

    Attributes:
        kind: What it is: ``ticket``, ``document``.
        id: Which.
    """

    def __init__(self, kind: str, id: str, tenant: str, feature: str, value_usd: float | str | Decimal | None) -> None:  # noqa: A002
        self.kind = kind
        self.id = id
        self._who = {TENANT: tenant, FEATURE: feature, UNIT: id}
        self._value_usd = value_usd
        self._observation = SILENT

    def __enter__(self) -> Unit:
        attributes = {UNIT_KIND: self.kind, UNIT_STATUS: "open"}
        try:
            if self._value_usd is not None:
                attributes[UNIT_VALUE_USD] = f"{amount(self._value_usd):f}"
        except ValueError as error:
            report(error, "value a unit")
        within = carry(get_current(), self._who)
        self._observation = start(f"unit {self.kind}", Kind.UNIT, attributes, within=within)
        self._observation.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._observation.__exit__(kind, error, trace)

    def resolve(self) -> None:
        """The outcome was reached."""
        self._observation.set({UNIT_STATUS: "resolved"})

    def reject(self, reason: str) -> None:
        """The outcome was reached and turned down."""
        self._observation.set({UNIT_STATUS: "rejected", UNIT_REASON: reason})

    def review(self, *, minutes: float | str | Decimal) -> None:
        """A person spent time on it.

        Args:
            minutes: How long; the price book says what one costs.
        """
        try:
            amounts = {QUANTITY_PREFIX + SKU_REVIEW_MINUTES: amount(minutes)}
        except ValueError as error:
            report(error, "add a review")
            return
        review = start("review", Kind.REVIEW, within=self._observation.context)
        review.add(amounts)
        review.end()


def unit(
    kind: str,
    id: str,  # noqa: A002  (it is what people call it)
    *,
    tenant: str | None = None,
    feature: str | None = None,
    value_usd: float | str | Decimal | None = None,
) -> Unit:
    """Work for one outcome, in sync and async code alike: ``with costspan.unit("ticket", "T-17", tenant="acme") as unit:``.

    Everything inside inherits the unit, the tenant and the feature, here and in the engines that it calls.

    Args:
        kind: What the outcome is: ``ticket``, ``document``.
        id: Which one.
        tenant: Whose work; the surrounding tenant by default.
        feature: Part of the app; the surrounding feature by default.
        value_usd: What the outcome is worth, in dollars.
    """
    return Unit(kind, id, tenant or "", feature or "", value_usd)
