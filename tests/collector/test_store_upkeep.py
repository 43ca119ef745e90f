from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client

from costspan_collector.store.cli import main
from costspan_collector.store.clickhouse import apply_schema, connect_embedded
from costspan_collector.store.rollups import close_days, compare
from tests.collector.conftest import Start
from tests.collector.harness import wait_until
from tests.collector.test_store_rollups import TODAY, add_attempts, totals

LOOP = """
import sys
from pathlib import Path
from tests.collector.test_store_rollups import TODAY, add_attempts
from costspan_collector.store.rollups import close_days
from costspan_collector.store.clickhouse import connect_embedded
client = connect_embedded(Path("store").absolute())
at = int(sys.argv[1])
print("ready", flush=True)
while True:
    add_attempts(client, at, 10)
    at += 10
    close_days(client, TODAY)
"""


def test_a_process_killed_at_any_moment_leaves_days_that_are_closed_right_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with connect_embedded(tmp_path / "store") as client:
        apply_schema(client)
    rng = random.Random(5)
    for at in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", LOOP, str(at * 100_000)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0.05, 0.6))
            process.send_signal(signal.SIGKILL)
    with connect_embedded(tmp_path / "store") as client:
        close_days(client, TODAY + timedelta(days=3650))
        compared = compare(client)
        assert compared
        assert all(each.equal for each in compared)
        assert totals(client, "requests_hourly") == totals(client, "live_requests")


def days_of(client: Client) -> Iterator[date]:
    yield from (row[0] for row in client.query("SELECT DISTINCT day FROM closed_days ORDER BY day").result_rows)


def test_a_collector_looks_after_its_store(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with connect_embedded(tmp_path / "data" / "store") as client:
        apply_schema(client)
        add_attempts(client, 0, 1000)
    running = start("--keep", "rows=30")
    with running.client() as client:
        wait_until(lambda: len(list(days_of(client))) == 3)
        made = "SELECT create_table_query FROM system.tables WHERE name = 'attempts' AND database = currentDatabase()"
        assert "toIntervalDay(31)" in client.query(made).result_rows[0][0]
        assert main(["check", "--store", running.store]) == 0
        assert capsys.readouterr().out == "attempts: 3 closed days, 0 without their rows, 0 differ from them\n"
        add_attempts(client, 0, 7)
        assert main(["check", "--store", running.store]) == 1
        assert "7 rows came after it was closed; a collector closes it again within the hour" in capsys.readouterr().out
    assert running.stop() == 0
