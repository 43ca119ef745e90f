"""A real collector with its store, filled once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.analytics.sample_store import Truth, fill, running


@dataclass(frozen=True)
class Sample:
    """Where the store is, and what is true of the project ``sample`` in it."""

    collector: str
    store: str
    truth: Truth


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sample]:
    with running(tmp_path_factory.mktemp("store") / "data") as urls:
        yield Sample(urls.collector, urls.store, fill(urls.collector))
