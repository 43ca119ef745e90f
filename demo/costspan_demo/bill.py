"""Posts the price book and the vendors' invoices to the collector, in Decimal all the way."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa

from costspan.delivery import Delivery
from costspan_demo.errors import DemoError
from costspan_demo.prices import CURRENCY, PRICE_BOOK, rate_of
from costspan_demo.vendors import Meter

_TEXT, _MONEY = pa.string(), pa.decimal128(38, 12)
_PRICES: dict[str, pa.DataType] = {
    "project": _TEXT,
    "sku": _TEXT,
    "unit": _TEXT,
    "rate": _MONEY,
    "currency": _TEXT,
    "effective_from": pa.timestamp("ms", tz="UTC"),
    "source": _TEXT,
    "version": _TEXT,
}
_INVOICES: dict[str, pa.DataType] = {
    "project": _TEXT,
    "invoice_id": _TEXT,
    "vendor": _TEXT,
    "sku": _TEXT,
    "start_ns": pa.int64(),
    "end_ns": pa.int64(),
    "quantity": _MONEY,
    "amount": _MONEY,
    "currency": _TEXT,
    "source": _TEXT,
}
_EFFECTIVE_FROM = datetime(2024, 1, 1, tzinfo=UTC)
_VERSION = "demo-1"
_PATIENCE_S = 30.0


class Books:
    """Sends rows of money for one project.

    Args:
        collector: Base URL of the collector.
        project: Boundary of keys and rows.
    """

    def __init__(self, collector: str, project: str) -> None:
        self._collector = collector
        self._project = project
        self._client = uuid.uuid4().hex

    def post_prices(self) -> None:
        """Send the price book.

        Raises:
            DemoError: When the collector does not take it.
        """
        self._post("prices", pa.schema(_PRICES), price_rows(self._project))

    def post_invoices(self, meters: Iterable[Meter]) -> None:
        """Send each vendor's invoice for what it counted.

        Raises:
            DemoError: When the collector does not take them.
        """
        self._post("invoices", pa.schema(_INVOICES), invoice_rows(self._project, meters))

    def _post(self, table: str, schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> None:
        if not rows:
            return
        delivery = Delivery(self._collector, project=self._project, client=self._client, stream=table, patience_s=_PATIENCE_S)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema))
        body = sink.getvalue().to_pybytes()
        if not delivery.send(f"/v1/ledger/{table}", body, "application/vnd.apache.arrow.stream", len(rows)):
            raise DemoError(f"the collector at {self._collector} did not take the {table}; its log says why")


def price_rows(project: str) -> list[dict[str, Any]]:
    """Rows of table ``prices``."""
    return [
        {
            "project": project,
            "sku": price.sku,
            "unit": price.unit,
            "rate": price.rate,
            "currency": CURRENCY,
            "effective_from": _EFFECTIVE_FROM,
            "source": price.source,
            "version": _VERSION,
        }
        for price in PRICE_BOOK
    ]


def invoice_rows(project: str, meters: Iterable[Meter]) -> list[dict[str, Any]]:
    """Rows of table ``invoices``: one for each vendor that was used."""
    return [
        {
            "project": project,
            "invoice_id": f"{meter.sku}-{meter.first_ns}",
            "vendor": meter.vendor,
            "sku": meter.sku,
            "start_ns": meter.first_ns,
            "end_ns": meter.last_ns + 1,  # the window is half open, and the last use is inside
            "quantity": meter.quantity,
            "amount": amount_due(meter),
            "currency": CURRENCY,
            "source": "the vendor's own meter",
        }
        for meter in meters
        if meter.quantity
    ]


def amount_due(meter: Meter) -> Decimal:
    """Quantity times rate, in dollars."""
    return meter.quantity * rate_of(meter.sku)
