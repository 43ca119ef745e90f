from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.collector.harness import Running


@pytest.fixture(scope="session")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A collector for the whole folder; each test sends to a project of its own."""
    running = Running(tmp_path_factory.mktemp("foreign") / "data")
    yield running
    assert running.stop() == 0
