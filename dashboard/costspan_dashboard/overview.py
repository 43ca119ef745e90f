"""What the overview page shows, read from the store once for every project and window."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from costspan.semconv import Phase
from costspan_analytics.audit import Audit
from costspan_analytics.book import Book
from costspan_analytics.explain import Explanation
from costspan_analytics.matrix import Matrix
from costspan_analytics.store import Store, Window
from costspan_analytics.summary import cost_summary, money_law, tail_summary, units_summary, waste_summary
from costspan_analytics.tail import Tail
from costspan_analytics.timeline import Timeline

TAIL_LEVEL = 0.95
WINDOWS = {
    "Last 15 minutes": "15m",
    "Last hour": "1h",
    "Last 24 hours": "24h",
    "Last 7 days": "7d",
    "Last 30 days": "30d",
    "Everything": None,
}
FIRST_WINDOW = "Last 7 days"

_GROUPS = {
    "working": (Phase.CACHE_HIT, Phase.PREFILL, Phase.DECODE),
    "waiting": (Phase.ADMISSION, Phase.QUEUE, Phase.PREEMPTED),
    "on the way": (Phase.CLIENT_OVERHEAD, Phase.NETWORK, Phase.STREAM),
    "unaccounted": (Phase.UNACCOUNTED,),
}


@dataclass(frozen=True)
class Overview:
    """One project in one window.

    Attributes:
        read: When.
        store: Where from.
        timeline: Its calls.
        book: Bill and postings.
        audit: The dictionary of ``costspan audit --json``; so are the others of their commands.
        tail: Where slow requests spend their time.
        matrix: Who delayed whom, as ``costspan blame`` says it.
        cost: By tenant.
        waste: By category.
        units: By kind and tenant.
    """

    read: datetime
    store: Store
    timeline: Timeline
    book: Book
    audit: dict[str, Any]
    tail: dict[str, Any]
    matrix: dict[str, Any]
    cost: dict[str, Any]
    waste: dict[str, Any]
    units: dict[str, Any]

    @classmethod
    def load(cls, url: str, project: str, window: str) -> Overview:
        """Read a project; ``window`` is one of :data:`WINDOWS`.

        Raises:
            AnalyticsError: The store does not answer, or answers with something that cannot be added up.
        """
        store = Store(url, project, Window.parse(WINDOWS[window], None))
        timeline = Timeline.load(store)
        book = Book.load(store, timeline)
        return cls(
            read=datetime.now(UTC),
            store=store,
            timeline=timeline,
            book=book,
            audit=Audit.load(store, timeline, book).as_dict(),
            tail=tail_summary(Tail.load(store, timeline, TAIL_LEVEL)),
            matrix=Matrix.load(store).as_dict(),
            cost=cost_summary(book),
            waste=waste_summary(book),
            units=units_summary(store, book),
        )

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not self.tail["requests"] and not self.book.lines

    @property
    def money(self) -> list[tuple[str, Decimal]]:
        """The second law, line by line; the bill comes last."""
        return money_law(self.book)

    @property
    def time(self) -> list[tuple[str, float]]:
        """The first law for the mean request, in milliseconds; the wall time comes last."""
        mean = {row["phase"]: row["mean_ms"] for row in self.tail["phases"]}
        groups = [(name, sum(mean.get(phase.value, 0.0) for phase in phases)) for name, phases in _GROUPS.items()]
        return [*groups, ("wall", sum(mean.values()))]

    def explain(self, span_id: str) -> Explanation:
        """One call."""
        return Explanation.load(self.store, self.timeline, self.book, span_id)


def projects(url: str) -> list[str]:
    """Who has anything in the store.

    Raises:
        StoreError: The store does not answer, or has no costspan schema.
    """
    return [str(name) for name in Store(url, "").frame("projects")["project"]]
