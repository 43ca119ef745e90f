from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import TimeoutExpired

import pytest
from clickhouse_connect.driver.client import Client

from costspan_collector.store.clickhouse import apply_schema, connect_embedded
from tests.collector.bench import Bench
from tests.collector.harness import Running

Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts collectors on one data folder; ends those that still run."""
    started: list[Running] = []

    def run(*options: str) -> Running:
        started.append(Running(tmp_path / "data", *options))
        return started[-1]

    yield run
    for running in started:
        if running.process.poll() is None:
            with suppress(TimeoutExpired):
                running.kill()


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A collector that the tests of a module share."""
    running = Running(tmp_path_factory.mktemp("shared") / "data", "--max-body-mb", "1")
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def opened_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A store in this process, which may have no other open."""
    folder, before = tmp_path_factory.mktemp("store"), Path.cwd()
    os.chdir(folder)  # chDB keeps a cache where it is opened
    with connect_embedded(folder / "store") as client:
        apply_schema(client)
        yield client
    os.chdir(before)


@pytest.fixture
def store(opened_store: Client) -> Iterator[Client]:
    """A store without rows, whose tables do not age."""
    yield opened_store
    tables = opened_store.query(
        "SELECT name, total_rows > 0, position(create_table_query, ' TTL ') > 0 FROM system.tables "
        "WHERE database = currentDatabase() AND engine LIKE '%MergeTree' AND name != 'schema_files'"
    ).result_rows
    for name, filled, ages in tables:
        if filled:
            opened_store.command(f"TRUNCATE TABLE {name}")
        if ages:
            opened_store.command(f"ALTER TABLE {name} REMOVE TTL")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()
