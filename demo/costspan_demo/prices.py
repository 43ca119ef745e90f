"""The price book of the demo: what everything costs, with a date and a source."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from costspan.semconv import SKU_GPU_HOUR, SKU_REVIEW_MINUTES

DEVICE_KIND = "cpu-demo"
GPU_HOURS = f"{SKU_GPU_HOUR}.{DEVICE_KIND}"
RETRIEVAL_QUERIES = "retrieval_queries"
RERANK_CALLS = "rerank_calls"
REVIEW_MINUTES = SKU_REVIEW_MINUTES

CURRENCY = "USD"


@dataclass(frozen=True, slots=True)
class Price:
    """What one of something costs.

    Attributes:
        sku: Of what.
        unit: What one is.
        rate: Dollars for one.
        source: Who says so.
    """

    sku: str
    unit: str
    rate: Decimal
    source: str


PRICE_BOOK = (
    Price(GPU_HOURS, "hour", Decimal("32.00"), "demo: the tiny CPU engine stands in for a node of eight GPUs at $4 each"),
    Price(RETRIEVAL_QUERIES, "query", Decimal("0.0005"), "demo: Fathom Search price list"),
    Price(RERANK_CALLS, "call", Decimal("0.001"), "demo: Plumb Rerank price list"),
    Price(REVIEW_MINUTES, "minute", Decimal("0.60"), "demo: reviewers' agency"),
)


def rate_of(sku: str) -> Decimal:
    """Dollars for one of ``sku``."""
    return next(price.rate for price in PRICE_BOOK if price.sku == sku)
