"""An engine, its sidecar and a real collector: killed and started again, they store each row once, and bill each GPU once."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pynvml
import pytest

from costspan.clock import now_ns
from costspan_analytics.book import device_hours
from costspan_analytics.store import Store
from costspan_hooks.recorder import Recorder
from tests.collector.harness import Running
from tests.engine_hooks.fake_nvml import FakeDriver, FakeGpu
from tests.engine_hooks.sidecar_process import WITH_A_GPU, Sidecar, wait_until
from tests.engine_hooks.test_recorder import live

TABLES = ("attempts", "engines", "evictions", "gpu_samples", "spans", "steps")


@pytest.fixture
def same_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In this process the driver library, written in Python, knows the GPU that the sidecar's knows."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    FakeDriver(FakeGpu("GPU-aaaa1111")).install()
    yield
    pynvml._nvmlGetFunctionPointer_cache.clear()


def forwards(sidecar: Sidecar) -> bool:
    return int(sidecar.health()["spool"]["settled"]) > 2


def misses_its_collector(sidecar: Sidecar) -> bool:
    return not sidecar.health()["collector"]["up"]


@pytest.mark.usefixtures("same_gpu")
def test_whoever_is_killed_each_row_is_stored_once_and_a_gpu_that_both_sample_is_billed_once(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = ("--port", str(probe.getsockname()[1]))
    collector = Running(tmp_path / "data", *port)
    sidecar = Sidecar(tmp_path, collector.url, "--project", "p", "--device-kind", "h200", code=WITH_A_GPU)
    wait_until(lambda: sidecar.health()["spool"]["accepted"] > 0)
    recorder = Recorder(collector=sidecar.url, project="p", device_kind="h200")
    for number in range(300):
        recorder.evicted(now_ns(), "acme", "birch", number)
        if number == 100:
            wait_until(partial(forwards, sidecar))
            collector.kill()
            wait_until(partial(misses_its_collector, sidecar))
        if number == 200:
            sidecar.kill()
            sidecar = Sidecar(tmp_path, collector.url, "--project", "p", "--device-kind", "h200", code=WITH_A_GPU)
    live(recorder, closed_first=False)
    collector = Running(tmp_path / "data", *port)
    wait_until(lambda: sidecar.held() == 0)
    assert sidecar.stop() == 0
    collector.drained()
    client = collector.client()
    stored = {table: client.query(f"SELECT * FROM {table}").result_rows for table in TABLES}  # noqa: S608  (ours)
    tokens = client.query("SELECT tokens FROM evictions ORDER BY at_ns, tokens").result_columns[0]
    samples = client.query("SELECT client, start_ns, end_ns FROM gpu_samples WHERE device = 'GPU-aaaa1111'").result_rows
    hours = sum(hours for _, _, hours in device_hours(Store(collector.store, "p").frame("heartbeats")))
    assert collector.stop() == 0

    assert [max(Counter(map(repr, rows)).values()) for rows in stored.values()] == [1] * len(TABLES)
    assert sorted(tokens) == sorted([*range(300), 16])
    assert len({sender for sender, *_ in samples}) == 3  # the engine, and the sidecar's two lives
    spent = max(end for *_, end in samples) - min(start for _, start, _ in samples)
    assert sum(end - start for _, start, end in samples) > spent
    assert round(hours * 3_600_000_000_000) == spent
