"""A closing: the postings as a report said them, kept under a name of their own, so that what was said stays as said."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from costspan_analytics.book import CURRENCY, SCALE, Book, Posting
from costspan_analytics.store import Store, Window

TABLE = "postings"
_MONEY = pl.Decimal(38, 12)
_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "project": pl.String,
    "closing": pl.String,
    "at_ns": pl.Int64,
    "sku": pl.String,
    "category": pl.String,
    "tenant": pl.String,
    "feature": pl.String,
    "unit": pl.String,
    "trace_id": pl.String,
    "source_id": pl.String,
    "quantity": _MONEY,
    "rate": _MONEY,
    "amount": _MONEY,
    "currency": pl.String,
    "price_source": pl.String,
    "price_version": pl.String,
}


@dataclass(frozen=True)
class Closing:
    """The postings of a window at a moment.

    Attributes:
        id: Project, window and moment; no two closings share one.
        frame: Rows of table ``postings``, in time order.
    """

    id: str
    frame: pl.DataFrame

    @classmethod
    def of(cls, book: Book, project: str, window: Window, created: datetime) -> Closing:
        """Close a book."""
        name = f"{project} {moment(window.since)}/{moment(window.until)} at {created.isoformat(timespec='microseconds')}"
        rows = [_row(posting, project, name) for posting in book.postings]
        return cls(name, pl.DataFrame(rows, schema=_SCHEMA, orient="row").sort("at_ns", "source_id", "sku", "category"))

    def keep(self, store: Store) -> None:
        """Write it into the store.

        Raises:
            StoreError: The store does not take it.
        """
        if not self.frame.is_empty():
            store.insert(TABLE, self.frame, token=self.id)


def _row(posting: Posting, project: str, closing: str) -> dict[str, object]:
    price = posting.price
    return {
        **{name: getattr(posting, name) for name in _SCHEMA if hasattr(posting, name)},
        "project": project,
        "closing": closing,
        "quantity": posting.quantity.quantize(SCALE),
        "rate": price.rate if price else 0,
        "currency": CURRENCY,
        "price_source": price.source if price else "",
        "price_version": price.version if price else "",
    }


def moment(at_ns: int) -> str:
    """A time as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(at_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
