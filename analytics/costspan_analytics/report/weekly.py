"""What a weekly report says, gathered once for all its forms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import polars as pl

from costspan_analytics.audit import Audit
from costspan_analytics.book import Book
from costspan_analytics.errors import NotFoundError, WindowError
from costspan_analytics.report.closing import Closing
from costspan_analytics.store import Store, Window
from costspan_analytics.summary import cost_frame, money_law, tail_summary, waste_frame
from costspan_analytics.tail import Tail
from costspan_analytics.timeline import Timeline
from costspan_analytics.units import unit_costs, unit_summary

WEEK_NS = 7 * 24 * 3600 * 1_000_000_000
TAIL_LEVEL = 0.95


def weekly_window(since: str | None, until: str | None) -> Window:
    """The window of a weekly report: the seven days up to ``until``, which is now, unless ``since`` says otherwise.

    Raises:
        WindowError: A time that cannot be read, or an empty window.
    """
    window = Window.parse(since, until)
    if since is None:
        window = replace(window, since=window.until - WEEK_NS)
    if window.since >= window.until:
        raise WindowError(f"--since {since} is in the future, and the report ends now: give an earlier time.")
    return window


@dataclass(frozen=True)
class Weekly:
    """A project's week. Money is Decimal and exact.

    Attributes:
        project: Whose.
        window: Which time.
        created: When the report was made.
        audit: Both laws.
        tail: The dictionary of ``costspan tail --json``.
        book: Bill and postings.
        closing: The postings as this report says them.
        tenants: Rows of :func:`~costspan_analytics.summary.cost_frame` by tenant.
        waste: Rows of :func:`~costspan_analytics.summary.waste_frame`.
        units: Rows of :func:`~costspan_analytics.units.unit_summary`.
        prices: The price book, rows of ``queries/prices.sql``.
    """

    project: str
    window: Window
    created: datetime
    audit: Audit
    tail: dict[str, Any]
    book: Book
    closing: Closing
    tenants: pl.DataFrame
    waste: pl.DataFrame
    units: list[dict[str, Any]]
    prices: pl.DataFrame

    @classmethod
    def load(cls, store: Store) -> Weekly:
        """Everything in the store's window.

        Raises:
            NotFoundError: There is nothing in it.
        """
        timeline = Timeline.load(store)
        book = Book.load(store, timeline)
        if timeline.requests.is_empty() and not book.lines:
            raise NotFoundError(
                f"Nothing of project {store.project!r} is in this window: give an earlier --since, or another --project."
            )
        created = datetime.now(UTC)
        return cls(
            project=store.project,
            window=store.window,
            created=created,
            audit=Audit.load(store, timeline, book),
            tail=tail_summary(Tail.load(store, timeline, TAIL_LEVEL)),
            book=book,
            closing=Closing.of(book, store.project, store.window, created),
            tenants=cost_frame(book, "tenant"),
            waste=waste_frame(book),
            units=unit_summary(unit_costs(store, book)),
            prices=store.frame("prices"),
        )

    @property
    def law(self) -> list[tuple[str, Decimal]]:
        """The second law, line by line; see :func:`~costspan_analytics.summary.money_law`."""
        return money_law(self.book)
