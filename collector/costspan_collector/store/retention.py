"""How long the store keeps what. Rows age by the day, and the tables that a law reads age together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import date, timedelta
from types import MappingProxyType

from clickhouse_connect.driver.client import Client

from costspan_collector.errors import StartError

TABLES = MappingProxyType(
    {
        "rows": ("spans", "attempts", "steps", "evictions", "gpu_samples", "deliveries"),
        "signals": ("metrics", "logs"),
        "payloads": ("payloads",),
        "rollups": ("closed_days", "closed_requests", "closed_calls"),
    }
)
"""The tables that age, by what of :class:`Keep` says how."""
KEPT = ("engines", "prices", "invoices", "postings", "schema_files")
"""Those that never do: money, and what an engine is, which may still run when its first rows are gone."""

FOREVER = "forever"
_EPOCH = date(1970, 1, 1)
_MONTH = 31  # rollups are dropped a month at a time
# Parts are deleted, never rewritten, and of all tables within the same hour.
_BY_PARTS = "ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1, merge_with_ttl_timeout = 3600"
_INTERVAL = re.compile(r"toIntervalDay\((\d+)\)")


@dataclass(frozen=True, slots=True)
class Keep:
    """For how many days the store keeps things, at least; None for ever.

    Attributes:
        rows: Spans, the engines' ledgers and what their senders say they sent.
        signals: Metrics and logs, which no law reads.
        payloads: Text that people wrote.
        rollups: What days added up to.
    """

    rows: int | None = 90
    signals: int | None = 30
    payloads: int | None = 14
    rollups: int | None = 760

    @classmethod
    def parse(cls, terms: Iterable[str]) -> Keep:
        """What a person types: ``rows=30``, ``payloads=forever``; what is not named keeps its default.

        Raises:
            StartError: A term is no such thing, or rollups would not outlive the rows they are made of.
        """
        keep = cls(**dict(_term(text) for text in terms))
        if keep.rollups is not None and (keep.rows is None or keep.rollups < keep.rows + _MONTH):
            raise StartError(
                f"rollups=… must be {FOREVER}, or at least {_MONTH} days more than rows=…: they are what is left of rows"
            )
        return keep


def _term(text: str) -> tuple[str, int | None]:
    name, _, days = text.partition("=")
    if name not in TABLES or not (days == FOREVER or (days.isascii() and days.isdecimal() and 1 <= int(days) <= 10_000)):
        *others, last = (field.name for field in fields(Keep))
        known = f"{', '.join(others)} or {last}"
        raise StartError(
            f"{text!r} does not say how long to keep what: write {known}, then = and days (1 to 10000) or {FOREVER}"
        )
    return name, None if days == FOREVER else int(days)


def expire(table: str, partition: str, days: int | None, on_cluster: str = "") -> list[str]:
    """The statements that make a table drop whole parts when the youngest day in them is old enough.

    A row from before 2020 was dated by a clock that nobody had set. Its age is not known, so it stays.

    Args:
        table: Its name.
        partition: The table's partition key, which is a date.
        days: How long its rows stay at least; None for ever.
        on_cluster: What names the cluster, in SQL, with a space before it.
    """
    if days is None:
        return [f"ALTER TABLE {table}{on_cluster} REMOVE TTL"]
    age = f"if({partition} < toDate('2020-01-01'), toDate('2100-01-01'), {partition} + toIntervalDay({days + 1}))"
    return [
        f"ALTER TABLE {table}{on_cluster} MODIFY SETTING {_BY_PARTS}",
        f"ALTER TABLE {table}{on_cluster} MODIFY TTL {age}",
    ]


_AGES = (
    "SELECT name, partition_key, extract(create_table_query, ' TTL (.*) SETTINGS '), engine "
    "FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"
)


def apply_retention(client: Client, keep: Keep) -> None:
    """Make the tables of a store on one node drop what is older than is to be kept. A cluster's plan says that for itself.

    Args:
        client: A connection to the store.
        keep: How long to keep what.
    """
    days = {table: getattr(keep, group) for group, tables in TABLES.items() for table in tables}
    for table, partition, age, engine in client.query(_AGES).result_rows:
        if table in days and _days(age) != days[table] and not engine.startswith("Replicated"):
            for statement in expire(table, partition, days[table]):
                client.command(statement)


def first_days(client: Client, today: date) -> dict[str, date]:
    """The first day of each table whose rows must all be there; of a table that does not age, the first day there is."""
    kept = {name.removesuffix("_local"): _days(age) for name, _, age, _ in client.query(_AGES).result_rows}
    return {table: _EPOCH if days is None else today - timedelta(days=days) for table, days in kept.items()}


def _days(age: str) -> int | None:
    interval = _INTERVAL.search(age)
    return int(interval[1]) - 1 if interval else None
