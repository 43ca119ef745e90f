"""What outlives the rows: a day that is over is closed, and compared with its rows for as long as they are there.

A rollup that adds up what is inserted counts twice what is inserted twice, and ClickHouse forgets whether it was when it is
killed at the wrong moment (see ``sinks.py``). So nothing is added up. A day's rollup is computed from the
day's rows, whole, and whichever version of a line stands for more rows is kept. Computing it again changes nothing; a row that
comes late makes the day count as open; a crash leaves it open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from types import MappingProxyType

from clickhouse_connect.driver.client import Client

from costspan_collector.store.tables import LOGS, METRICS, SPANS, TIME_COLUMN

ROLLUPS: Mapping[str, str] = MappingProxyType({"attempts": "requests", SPANS: "calls"})
"""What is made of the rows of a stream: ``closed_X`` from ``live_X``."""
STREAMS: Mapping[str, str] = MappingProxyType(
    {
        **{table: TIME_COLUMN[table] for table in ("attempts", "steps", "evictions", "gpu_samples")},
        SPANS: "start_ns",
        METRICS: "at_ns",
        LOGS: "at_ns",
    }
)
"""The streams whose days are counted, each with the column that says when a row happened."""
_LATE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A closed day of a stream beside its rows.

    Attributes:
        stream: The table that the rows are in.
        day: The day, in UTC.
        closed: How many rows it was closed with.
        rows: How many there are.
        equal: Whether its rollup is what the rows add up to, to the last figure of its sketches.
    """

    stream: str
    day: date
    closed: int
    rows: int
    equal: bool


def close_days(client: Client, now: datetime | None = None) -> list[tuple[str, date]]:
    """Close the days that are over and are open.

    Args:
        client: A connection to the store.
        now: The time; the clock's when left out.

    Returns:
        What was closed.
    """
    last = ((now or datetime.now(timezone.utc)) - _LATE).date() - timedelta(days=1)
    opened = [(stream, day) for stream in STREAMS for day in _open_days(client, stream) if day <= last]
    for stream, day in opened:
        _close(client, stream, day)
    return opened


def compare(client: Client) -> list[Comparison]:
    """Set every closed day beside its rows."""
    return [
        Comparison(stream, day, closed, rows, rows == closed and made.get(day) == fresh.get(day))
        for stream in STREAMS
        for made, fresh in [(_digests(client, "closed", stream), _digests(client, "live", stream))]
        for counted in [_live(client, stream)]
        for day, closed in sorted(_closed(client, stream).items())
        for rows in [counted.get(day, 0)]
    ]


def _open_days(client: Client, stream: str) -> list[date]:
    closed = _closed(client, stream)
    return sorted(day for day, rows in _live(client, stream).items() if rows > closed.get(day, 0))


def _live(client: Client, stream: str) -> dict[date, int]:
    """Rows by day, which the store reads from its parts' headers."""
    day = f"toDate(fromUnixTimestamp64Nano({STREAMS[stream]}, 'UTC'))"
    counted = client.query(f"SELECT {day} AS day, count() FROM {stream} GROUP BY day")  # noqa: S608  (our names)
    return {row[0]: row[1] for row in counted.result_rows}


def _closed(client: Client, stream: str) -> dict[date, int]:
    counted = client.query(
        "SELECT day, sum(rows) FROM closed_days FINAL WHERE stream = {stream:String} GROUP BY day",
        parameters={"stream": stream},
    )
    return {row[0]: row[1] for row in counted.result_rows}


def _close(client: Client, stream: str, day: date) -> None:
    """Count first, add up then, and write the count last: what arrives in between makes the day open again."""
    which = {"stream": stream, "day": day}
    counted = client.query(
        "SELECT stream, day, project, client, rows FROM live_days WHERE stream = {stream:String} AND day = {day:Date}",
        parameters=which,
    ).result_rows
    if stream in ROLLUPS:
        made = ROLLUPS[stream]
        client.command(
            f"INSERT INTO closed_{made} SELECT * FROM live_{made} WHERE day = {{day:Date}}",  # noqa: S608  (our names)
            parameters=which,
        )
    client.insert("closed_days", counted, column_names=["stream", "day", "project", "client", "rows"])


def _digests(client: Client, kind: str, stream: str) -> dict[date, tuple[int, int]]:
    """A digest of a stream's rollup by day; of a stream that has none, nothing."""
    if stream not in ROLLUPS:
        return {}
    final = "FINAL" if kind == "closed" else ""
    rows = client.query(
        "SELECT day, count(), sum(cityHash64(* EXCEPT (ttft, e2e), "  # noqa: S608  (our names)
        "toString(finalizeAggregation(ttft)), toString(finalizeAggregation(e2e)))) "
        f"FROM {kind}_{ROLLUPS[stream]} {final} GROUP BY day"
    ).result_rows
    return {day: (lines, digest) for day, lines, digest in rows}
