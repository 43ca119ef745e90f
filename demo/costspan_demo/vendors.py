"""What outside services count for themselves: the basis of their invoices, and none of costspan's business."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from costspan.clock import now_ns


@dataclass(slots=True)
class Meter:
    """A vendor's own counter.

    Attributes:
        vendor: Who sends the invoice.
        sku: What is counted.
        quantity: How much of it was used.
        first_ns: Start of the first use, in nanoseconds since the Unix epoch; 0 before it.
        last_ns: The latest use.
    """

    vendor: str
    sku: str
    quantity: Decimal = Decimal(0)
    first_ns: int = 0
    last_ns: int = 0

    def count(self, quantity: Decimal = Decimal(1)) -> None:
        """Add to the counter."""
        self.last_ns = now_ns()
        self.first_ns = self.first_ns or self.last_ns
        self.quantity += quantity
