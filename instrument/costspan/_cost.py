"""Money and quantities that only the app knows of."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from costspan import _runtime
from costspan._observation import current_observation, start
from costspan._trouble import report
from costspan.semconv import COST_USD, KIND, QUANTITY_PREFIX, Kind

_SMALLEST, _LARGEST = -30, 26  # powers of ten: the store keeps 26 digits before the point


def cost(
    usd: float | str | Decimal | None = None, *, kind: Kind | str | None = None, **quantities: float | str | Decimal
) -> None:
    """Add to what the current observed operation cost.

    Outside any operation, and for a ``kind`` of its own, the amounts become a span of their own, so that no money is lost.

    Args:
        usd: Money that only the app knows, in dollars.
        kind: What it was spent on, such as ``retrieval``, where that is not the operation around it.
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
    current = current_observation()
    if not kind and current is not None and current.is_open:
        current.add(amounts)
        return
    with start("cost", Kind.OPERATION, {KIND: str(kind)} if kind else None) as alone:
        alone.add(amounts)


def amount(value: float | str | Decimal) -> Decimal:
    """A number as the decimal that it prints as.

    Raises:
        ValueError: It is no finite number, or none that the store can keep.
    """
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise ValueError(f"{value!r} is not an amount: give a finite number")
    if number and not _SMALLEST < number.adjusted() < _LARGEST:
        raise ValueError(f"{value!r} is not an amount: give 0, or a number between 1e{_SMALLEST + 1} and 1e{_LARGEST}")
    return number
