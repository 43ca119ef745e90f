from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from clickhouse_connect.driver.client import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from costspan_collector.store.retention import Keep, apply_retention, first_days
from costspan_collector.store.rollups import close_days, compare
from tests.collector.harness import wait_until

DAY_NS = 86_400 * 10**9
TODAY = datetime.now(timezone.utc).replace(hour=12, minute=0, second=0, microsecond=0)
START_NS = int((TODAY - timedelta(days=3)).timestamp()) * 10**9 - DAY_NS // 2  # midnight, three days ago
TENANTS = ("acme", "batchco")


def add_attempts(client: Client, first: int, count: int, spread_ns: int = 4 * DAY_NS // 1000) -> None:
    """Engine requests ``first`` to ``first + count`` of a row of them, one each ``spread_ns``."""
    client.command(
        "INSERT INTO attempts (project, engine, request_id, tenant, feature, model, outcome, prompt_tokens, output_tokens, "
        "received_ns, enqueued_ns, first_token_ns, removed_ns, sent_ns, cost_ns) "
        "SELECT 'p', 'e' || toString(number % 2), toString(number), ['acme', 'batchco'][number % 2 + 1], 'chat', 'm', "
        "if(number % 7 = 0, 'cancelled', 'ok'), number, number % 50, {start:Int64} + number * {spread:Int64} AS at, at + 1000, "
        "if(number % 7 = 0, 0, at + 1000000 * (number % 97)), at + 2000000 * (number % 97), at + 3000000, number * 1000 "
        "FROM numbers({first:UInt64}, {count:UInt64})",
        parameters={"start": START_NS, "spread": spread_ns, "first": first, "count": count},
    )


def add_calls(client: Client, count: int) -> None:
    client.command(
        "INSERT INTO spans (project, trace_id, span_id, kind, tenant, model, outcome, start_ns, duration_ns, input_tokens, "
        "attributes) "
        "SELECT 'p', toString(number), toString(number), if(number % 2 = 0, 'generation', 'unit'), 'acme', 'm', 'ok', "
        "{start:Int64} + number * 100000000000 AS at, 5000000 + number, number, "
        "map('costspan.call.start_ns', toString(at), 'costspan.call.first_ns', toString(at + 1000 * number)) "
        "FROM numbers({count:UInt64})",
        parameters={"start": START_NS, "count": count},
    )


def totals(client: Client, view: str) -> list[Any]:
    """What a dashboard would show of everything."""
    sums = "sum(requests), sum(prompt_tokens), sum(output_tokens), sum(cost_ns)"
    rows = client.query(
        f"SELECT tenant, outcome, {sums}, quantilesDDMerge(0.01, 0.5, 0.9, 0.99)(ttft), quantilesDDMerge(0.01, 0.5, 0.99)(e2e) "  # noqa: S608
        f"FROM {view} GROUP BY tenant, outcome ORDER BY tenant, outcome"
    ).result_rows
    return [repr(row) for row in rows]  # a sketch of nothing is NaN, which equals nothing


def test_a_day_that_is_over_is_closed_and_is_what_its_rows_add_up_to(store: Client) -> None:
    add_attempts(store, 0, 1000)
    add_calls(store, 3000)
    closed = close_days(store, TODAY)
    days = [(TODAY - timedelta(days=ago)).date() for ago in (3, 2, 1)]
    assert closed == [(stream, day) for stream in ("attempts", "spans") for day in days]
    assert totals(store, "requests_hourly") == totals(store, "live_requests")
    compared = compare(store)
    assert [(each.stream, each.day) for each in compared] == closed
    assert all(each.equal and each.rows == each.closed == (250 if each.stream == "attempts" else 864) for each in compared)
    calls = "SELECT sum(calls), sum(input_tokens), quantilesDDMerge(0.01, 0.99)(ttft) FROM {}"
    assert store.query(calls.format("calls_hourly")).result_rows == store.query(calls.format("live_calls")).result_rows
    assert store.query(calls.format("calls_hourly")).result_rows[0][0] == 1500
    assert close_days(store, TODAY) == []


def test_the_sketch_is_right_to_one_percent(store: Client) -> None:
    add_attempts(store, 0, 1000)
    close_days(store, TODAY)
    exact = "SELECT quantileExact(0.99)(first_token_ns - received_ns) FROM attempts WHERE first_token_ns > 0"
    sketch = "SELECT quantileDDMerge(0.01, 0.99)(ttft) FROM requests_hourly"
    (true,), (close,) = store.query(exact).result_rows[0], store.query(sketch).result_rows[0]
    assert abs(close - true) <= 0.011 * true


def test_the_query_that_is_documented(store: Client) -> None:
    add_attempts(store, 0, 1000)
    close_days(store, TODAY)
    text = (Path(__file__).parents[2] / "docs" / "store.md").read_text()
    query = text.partition("```sql\n")[2].partition("```")[0].replace("'default'", "'p'")
    rows = store.query(query).result_rows
    assert [row[1:3] for row in rows] == [(tenant, 125) for _ in range(4) for tenant in TENANTS]


def test_a_day_is_open_until_an_hour_after_it_ended(store: Client) -> None:
    add_attempts(store, 0, 1)
    midnight = (TODAY - timedelta(days=2)).replace(hour=0)
    assert close_days(store, midnight + timedelta(minutes=59)) == []
    assert close_days(store, midnight + timedelta(minutes=61)) == [("attempts", midnight.date() - timedelta(days=1))]


def test_rows_that_come_late_open_their_day_again(store: Client) -> None:
    add_attempts(store, 0, 100)
    close_days(store, TODAY)
    add_attempts(store, 100, 20)
    late = [each for each in compare(store) if not each.equal]
    assert [(each.closed, each.rows) for each in late] == [(100, 120)]
    assert close_days(store, TODAY) == [("attempts", late[0].day)]
    assert all(each.equal for each in compare(store))
    assert totals(store, "requests_hourly") == totals(store, "live_requests")


def test_a_rollup_that_is_not_its_rows_is_found(store: Client) -> None:
    add_attempts(store, 0, 100)
    close_days(store, TODAY)
    store.command("ALTER TABLE closed_requests UPDATE cost_ns = cost_ns + 1 WHERE tenant = 'acme' SETTINGS mutations_sync = 2")
    assert [(each.closed, each.rows, each.equal) for each in compare(store)] == [(100, 100, False)]


class Crash(Exception):  # noqa: N818  (a crash is no error of the program)
    pass


class Mortal:
    """A connection of a process that dies at its n-th statement, before it or after."""

    def __init__(self, client: Client, left: int) -> None:
        self._client = client
        self._left = left

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                raise Crash
            done = getattr(self._client, name)(*args, **kwargs)
            if self._left == 1 and name in {"command", "insert"}:
                raise Crash
            return done

        return call


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 60)),
        st.tuples(st.just("crash"), st.integers(1, 40)),
        st.tuples(st.just("half"), st.sampled_from(TENANTS)),
        st.tuples(st.just("merge"), st.none()),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_nothing_counts_twice_or_is_missed_wherever_a_closing_is_cut_off(store: Client, steps: list[tuple[str, Any]]) -> None:
    for table in ("attempts", "closed_requests", "closed_days"):
        store.command(f"TRUNCATE TABLE {table}")
    added = 0
    for step, value in steps:
        if step == "add":
            add_attempts(store, added, value, spread_ns=3 * DAY_NS // 500)
            added += value
        elif step == "crash":
            with suppress(Crash):
                close_days(Mortal(store, value), TODAY)  # type: ignore[arg-type]  # it is one, for a while
        elif step == "half":  # an insert of which one block was written
            store.command(f"INSERT INTO closed_requests SELECT * FROM live_requests WHERE tenant = '{value}'")  # noqa: S608
        else:
            store.command("OPTIMIZE TABLE closed_requests FINAL")
    close_days(store, TODAY)
    assert all(each.equal for each in compare(store))
    assert totals(store, "requests_hourly") == totals(store, "live_requests")
    assert sum(row[0] for row in store.query("SELECT requests FROM requests_hourly").result_rows) == added


def test_rollups_outlive_their_rows(store: Client) -> None:
    add_attempts(store, 0, 1000)
    close_days(store, TODAY)
    before = totals(store, "requests_hourly")
    apply_retention(store, Keep(rows=1))
    wait_until(lambda: store.query("SELECT count() FROM attempts").result_rows == [(500,)])
    assert totals(store, "requests_hourly") == before
    assert close_days(store, TODAY) == []
    first = first_days(store, TODAY.date())["attempts"]
    counts = [("live_days", ">="), ("closed_days FINAL", "<")]
    still, before_that = (
        store.query(f"SELECT sum(rows) FROM {table} WHERE stream = 'attempts' AND day {sign} '{first}'").result_rows  # noqa: S608
        for table, sign in counts
    )
    assert (still, before_that) == ([(500,)], [(500,)])  # what was sent can still be counted
