"""Money and quantities that only the app knows of."""

from __future__ import annotations

from decimal import Decimal

from costspan import _runtime
from costspan._observation import amount, current_observation, start
from costspan._trouble import report
from costspan.semconv import COST_USD, KIND, QUANTITY_PREFIX, Kind


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
