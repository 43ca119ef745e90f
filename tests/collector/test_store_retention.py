from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from costspan_collector.errors import StartError
from costspan_collector.store.retention import KEPT, TABLES, Keep, apply_retention, first_days
from tests.collector.harness import wait_until

NOW = datetime.now(timezone.utc)
TIME = {"spans": "start_ns", "attempts": "enqueued_ns", "steps": "start_ns", "evictions": "at_ns", "gpu_samples": "start_ns"}


class Watched:
    """A connection that notes what it is told to change."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.commands: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def command(self, statement: str) -> Any:
        self.commands.append(statement)
        return self._client.command(statement)


def ages(client: Client, table: str) -> list[int]:
    """For how many days each row of a table is old."""
    column = "received" if table == "deliveries" else f"fromUnixTimestamp64Nano({TIME[table]}, 'UTC')"
    rows = client.query(f"SELECT dateDiff('day', toDate({column}), toDate(now('UTC'))) FROM {table} ORDER BY 1").result_rows  # noqa: S608
    return [row[0] for row in rows]


def add_rows(client: Client, days: list[int]) -> None:
    """A row in each table that ages by the day, that many days ago."""
    times = [NOW - timedelta(days=day) for day in days]
    for table, column in TIME.items():
        client.insert(table, [["p", int(at.timestamp()) * 10**9] for at in times], column_names=["project", column])
    client.insert("deliveries", [["p", at] for at in times], column_names=["project", "received"])


def test_every_table_of_the_store_ages_with_others_or_is_kept_for_ever(store: Client) -> None:
    tables = [
        row[0]
        for row in store.query(
            "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"
        ).result_rows
    ]
    known = [*KEPT, *(table for group in TABLES.values() for table in group)]
    assert sorted(known) == sorted(tables)


def test_what_a_law_reads_goes_on_the_same_day(store: Client) -> None:
    add_rows(store, [0, 9, 10, 11, 40])
    apply_retention(store, Keep(rows=10))
    for table in TABLES["rows"]:
        wait_until(lambda table=table: ages(store, table) == [0, 9, 10])  # type: ignore[misc]  # bound now


def test_the_time_of_a_clock_that_nobody_set_is_no_age(store: Client) -> None:
    store.insert("evictions", [["p", 1_000]], column_names=["project", "at_ns"])
    add_rows(store, [40])
    apply_retention(store, Keep(rows=10))
    wait_until(lambda: store.query("SELECT at_ns FROM evictions").result_rows == [(1_000,)])
    store.command("OPTIMIZE TABLE evictions FINAL")
    assert store.query("SELECT at_ns FROM evictions").result_rows == [(1_000,)]


def test_a_table_is_altered_only_where_it_ages_otherwise(store: Client) -> None:
    watched = Watched(store)
    apply_retention(watched, Keep())  # type: ignore[arg-type]  # it is one
    assert len(watched.commands) == 2 * sum(map(len, TABLES.values()))
    watched.commands.clear()
    apply_retention(watched, Keep())  # type: ignore[arg-type]
    assert watched.commands == []
    apply_retention(watched, Keep(payloads=None))  # type: ignore[arg-type]
    assert watched.commands == ["ALTER TABLE payloads REMOVE TTL"]
    apply_retention(watched, Keep(payloads=7))  # type: ignore[arg-type]
    assert len(watched.commands) == 3
    assert store.query("SELECT value FROM system.merge_tree_settings WHERE name = 'ttl_only_drop_parts'").result_rows == [
        ("0",)
    ]
    made = "SELECT create_table_query FROM system.tables WHERE name = 'payloads' AND database = currentDatabase()"
    assert "ttl_only_drop_parts = 1" in store.query(made).result_rows[0][0]


def test_the_first_day_that_must_be_there(store: Client) -> None:
    apply_retention(store, Keep(rows=30, payloads=None))
    first = first_days(store, date(2026, 11, 21))
    assert first["spans"] == first["deliveries"] == date(2026, 10, 22)
    assert first["payloads"] == first["invoices"] == date(1970, 1, 1)


def test_what_a_person_types() -> None:
    assert Keep.parse([]) == Keep(90, 30, 14, 760)
    assert Keep.parse(["rows=30", "payloads=forever"]) == Keep(30, 30, None, 760)
    assert Keep.parse(["rows=forever", "rollups=forever"]) == Keep(None, 30, 14, None)


@pytest.mark.parametrize(
    "text", ["", "rows", "rows=", "rows=0", "rows=-1", "rows=1.5", "spans=3", "rows=\N{ARABIC-INDIC DIGIT ONE}", "rows=99999"]
)
def test_what_is_no_such_thing(text: str) -> None:
    with pytest.raises(
        StartError, match="does not say how long to keep what: write rows, signals, payloads or rollups, then = and days"
    ):
        Keep.parse([text])


@pytest.mark.parametrize("terms", [["rows=forever"], ["rollups=100"], ["rows=740"]])
def test_rollups_outlive_rows(terms: list[str]) -> None:
    with pytest.raises(StartError, match="at least 31 days more than rows"):
        Keep.parse(terms)
