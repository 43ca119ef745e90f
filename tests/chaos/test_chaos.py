"""A few rounds of ``make chaos``, and stores that hang."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from costspan_collector import service
from costspan_collector.service import Collector
from costspan_collector.settings import Settings
from tests.chaos.proxy import Mode, Proxy
from tests.chaos.world import World, kill_collector, kill_store, network, pause_store_and_kill_collector
from tests.collector.harness import record, spans


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, apart=True)
    yield made
    made.end()


def test_whatever_happens_what_was_sent_is_what_is_stored(world: World) -> None:
    troubles = (kill_collector, kill_store, network(Mode.DEAF), pause_store_and_kill_collector)
    for number, trouble in enumerate(troubles):
        assert "spans" in world.run(number, seed=number, trouble=trouble)
    world.check_all()


def test_a_store_that_hangs_hangs_neither_health_nor_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_DRAIN_S", 0.5)
    proxy = Proxy(1)
    proxy.set(Mode.HANG)
    collector = Collector(Settings(data=tmp_path / "data", store=proxy.url))
    assert collector.append(record(1, spans(3).body, items=3))
    time.sleep(0.3)  # the writer is at it
    state = collector.health()
    assert (state["ready"], state["store"]["up"], state["pending_records"]) == (False, False, 1)
    assert not collector.close()
    proxy.close()
