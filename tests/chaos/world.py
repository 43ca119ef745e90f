"""A collector, a store in a process of its own, and everything that can happen to both."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from subprocess import TimeoutExpired

from clickhouse_connect.driver.client import Client

from costspan_collector.store.rollups import close_days, compare
from tests.chaos.proxy import Mode, Proxy
from tests.chaos.senders import Sender
from tests.collector.harness import Running

_PATIENCE_S = 120.0
_LOOK_S = 0.02
_LOAD = (("spans", True), ("spans", True), ("spans", False), ("evictions", True), ("metrics", True), ("logs", True))
_ROWS = {
    "spans": "SELECT span_id, count() FROM spans WHERE project = {project:String} GROUP BY 1",
    "evictions": "SELECT toString(step), count() FROM evictions WHERE project = {project:String} GROUP BY 1",
    "metrics": "SELECT toString(toInt64(value)), count() FROM metrics WHERE project = {project:String} GROUP BY 1",
    "logs": "SELECT event, count() FROM logs WHERE project = {project:String} GROUP BY 1",
}
_DELIVERIES = "SELECT client, sequence, items, count() FROM deliveries WHERE project = {project:String} GROUP BY 1, 2, 3"


class DiffersError(AssertionError):
    """What was sent is not what is stored."""


class World:
    """Processes that outlive a round.

    Args:
        folder: Where they keep everything.
        apart: Whether the store is a process of its own, behind a proxy.
        data: The collector's data folder, if not in ``folder``.
    """

    def __init__(self, folder: Path, *, apart: bool, data: Path | None = None) -> None:
        self._folder = folder
        self._data = data or folder / "collector"
        self.server = self._start_server() if apart else None
        self.proxy = Proxy(_port(self.server.store)) if self.server else None
        self.collector = self._start_collector()
        self.sent: dict[str, list[Sender]] = {}

    def run(self, number: int, seed: int, trouble: Callable[[World, random.Random], None]) -> str:
        """One round: load, trouble in the midst of it, and a look at what is stored.

        Returns:
            What was delivered.

        Raises:
            DiffersError: It is not what is stored.
        """
        rng = random.Random(seed)
        stop = threading.Event()
        project = f"round-{number}"
        senders = [
            Sender(stream, project, numbered, lambda: self.collector.url, stop, 1 + seed % 1_000_000 * 10 + at)
            for at, (stream, numbered) in enumerate(_LOAD)
        ]
        self.sent[project] = senders
        for sender in senders:
            sender.start()
        time.sleep(rng.uniform(0.1, 0.6))
        trouble(self, rng)
        time.sleep(rng.uniform(0.0, 0.3))
        stop.set()
        for sender in senders:
            sender.join(_PATIENCE_S)
            if sender.is_alive() or sender.refused:
                raise DiffersError(f"{sender.stream} is not taken: {sender.refused or self.collector.health()}")
        self._drain()
        self.check(project)
        health = self.collector.health()
        if health["quarantine"]["records"]:
            raise DiffersError(f"in quarantine: {health['quarantine']}")
        return ", ".join(f"{sum(len(each) for each in s.delivered)} {s.stream}" for s in senders)

    def check(self, project: str) -> None:
        """Compare what was delivered with what is stored.

        Raises:
            DiffersError: They differ.
        """
        senders, which = self.sent[project], {"project": project}
        with self.store() as client:
            for stream, sql in _ROWS.items():
                stored = Counter({str(row[0]): int(row[1]) for row in client.query(sql, parameters=which).result_rows})
                sent = Counter(one for sender in senders if sender.stream == stream for ids in sender.delivered for one in ids)
                missing, more = sorted(set(sent) - set(stored)), sorted((stored - sent).items())
                if missing or more:
                    few = f"missing {missing[:5]} ({len(missing)}), too many {more[:5]} ({len(more)})"
                    raise DiffersError(f"{project}: of {len(sent)} {stream}, {few}")
            told = sorted(tuple(row) for row in client.query(_DELIVERIES, parameters=which).result_rows)
        expected = sorted(
            (sender.client, at, len(each), 1)
            for sender in senders
            if sender.client
            for at, each in enumerate(sender.delivered, 1)
        )
        if told != expected:
            raise DiffersError(f"{project}: deliveries differ: {sorted(set(expected) ^ set(told))[:5]}")

    def _drain(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while (health := self.collector.health())["pending_bytes"]:
            if time.monotonic() > deadline:
                raise DiffersError(f"the log is not drained: {health}")
            time.sleep(_LOOK_S)

    def check_all(self) -> None:
        """Compare every round again, and every rollup with its rows.

        Raises:
            DiffersError: Something differs.
        """
        for project in self.sent:
            self.check(project)
        with self.store() as client:
            close_days(client, datetime.now(timezone.utc) + timedelta(days=3))
            wrong = [each for each in compare(client) if not each.equal]
        if wrong:
            raise DiffersError(f"rollups differ: {wrong}")

    def store(self) -> Client:
        """A connection to the store itself."""
        return (self.server or self.collector).client()

    def kill_collector(self) -> None:
        """SIGKILL, and another in its place."""
        self.collector.kill()
        self.collector = self._start_collector()

    def kill_store(self) -> None:
        """Likewise."""
        assert self.server
        assert self.proxy
        self.server.kill()
        self.server = self._start_server()
        self.proxy.target = _port(self.server.store)
        self.proxy.set(Mode.THROUGH)

    def pause_store(self, seconds: float) -> None:
        """The store stands still, with whatever it is at."""
        assert self.server
        self.server.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.server.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End all processes."""
        for running in (self.collector, self.server):
            if running and running.process.poll() is None:
                with suppress(TimeoutExpired):
                    running.kill()
        if self.proxy:
            self.proxy.close()

    def _start_server(self) -> Running:
        return Running(self._folder / "store")

    def _start_collector(self) -> Running:
        return Running(self._data, *(("--store", self.proxy.url) if self.proxy else ()))


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


# --- what can happen -----------------------------------------------------------------------------------------------------


def kill_collector(world: World, rng: random.Random) -> None:
    """Once, or twice in short order."""
    for _ in range(rng.randint(1, 2)):
        world.kill_collector()
        time.sleep(rng.uniform(0.0, 0.3))


def kill_store(world: World, _rng: random.Random) -> None:
    """It comes back empty-handed of whatever it had not put on disk."""
    world.kill_store()


def kill_both(world: World, rng: random.Random) -> None:
    """First the store, then the collector."""
    assert world.server
    world.server.process.kill()
    time.sleep(rng.uniform(0.0, 0.2))
    world.kill_collector()
    world.kill_store()


def pause_store(world: World, rng: random.Random) -> None:
    """The store stands still for a while."""
    world.pause_store(rng.uniform(0.1, 1.0))


def pause_store_and_kill_collector(world: World, rng: random.Random) -> None:
    """An insert is at work in the store while the collector that sent it is gone, and another comes with the same."""
    assert world.server
    world.server.process.send_signal(signal.SIGSTOP)
    time.sleep(rng.uniform(0.0, 0.3))
    world.collector.process.kill()
    world.server.process.send_signal(signal.SIGCONT)
    world.kill_collector()


def network(mode: Mode) -> Callable[[World, random.Random], None]:
    """The way to the store does this for a while; sometimes the collector is killed meanwhile."""

    def trouble(world: World, rng: random.Random) -> None:
        assert world.proxy
        world.proxy.set(mode)
        time.sleep(rng.uniform(0.2, 1.0))
        if rng.random() < 0.3:
            world.kill_collector()
        world.proxy.set(Mode.THROUGH)

    trouble.__name__ = mode.value
    return trouble


def fill_disk(world: World, rng: random.Random) -> None:
    """The store is away and the log's file system runs full, to the last byte; then there is room again."""
    assert world.proxy
    world.proxy.set(Mode.REFUSE)
    ballast = world._data / "ballast"
    disk = os.statvfs(world._data)
    with ballast.open("wb") as file, suppress(OSError):
        size = max(disk.f_bavail * disk.f_frsize - rng.randint(3, 6) * (1 << 20), 0)
        os.posix_fallocate(file.fileno(), 0, max(size, 1))
    time.sleep(rng.uniform(0.3, 1.0))
    with suppress(OSError), (world._data / "more").open("wb", buffering=0) as file:
        while file.write(bytes(1 << 12)):
            pass
    world.proxy.set(Mode.THROUGH)
    time.sleep(rng.uniform(0.2, 0.6))
    killed = rng.random() < 0.5
    if killed:
        world.collector.process.kill()
    (world._data / "more").unlink()
    ballast.unlink()
    if killed:
        world.kill_collector()


APART = (
    kill_collector, kill_collector, kill_store, kill_store, kill_both, pause_store, pause_store_and_kill_collector,
    *map(network, (Mode.REFUSE, Mode.HANG, Mode.SICK, Mode.DEAF, Mode.DEAF, Mode.CUT)),
)  # fmt: skip
"""What can happen to a collector and a store apart from it, some twice as often."""
EMBEDDED = (kill_collector,)
"""What can happen to both in one process."""
