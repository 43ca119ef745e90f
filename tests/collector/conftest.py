from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import TimeoutExpired

import pytest

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
