"""A real dashboard over a real store, in headless Chromium."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import pytest
from playwright.sync_api import Browser, Page

from tests.analytics.sample_store import Truth, fill, running
from tests.chromium import chromium

_START_S = 60.0


@dataclass(frozen=True)
class Sample:
    """Where the store is, and what is true of its projects ``sample`` (both laws hold) and ``broken`` (neither does)."""

    store: str
    truth: Truth


@contextmanager
def dashboard(log: Path, *arguments: str) -> Iterator[str]:
    """``costspan dashboard`` on a free port; yields its address."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COSTSPAN_")}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "costspan.cli", "dashboard", "--port", "0", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        yield _address(log, process)
    finally:
        process.terminate()
        process.wait(20)


def _address(log: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = monotonic() + _START_S
    while monotonic() < deadline and process.poll() is None:
        if found := re.search(r"dashboard: (http://127\.0\.0\.1:\d+)", log.read_text()):
            try:
                with urllib.request.urlopen(f"{found[1]}/_stcore/health", timeout=2):
                    return found[1]
            except (urllib.error.URLError, OSError):
                pass
        sleep(0.1)
    raise AssertionError(f"the dashboard did not start: {log.read_text()}")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sample]:
    with running(tmp_path_factory.mktemp("store") / "data") as urls:
        truth = fill(urls.collector)
        fill(urls.collector, project="broken", tickets=15, hole_ns=150_000_000, unledgered_ns=4_000_000_000)
        yield Sample(urls.store, truth)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def address(sample: Sample, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    assert browser.is_connected()  # without a browser nothing needs to be started
    with dashboard(tmp_path_factory.mktemp("dashboard") / "log", "--store", sample.store, "--project", "sample") as url:
        yield url


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page that never asks anyone but this machine."""
    opened = browser.new_page(viewport={"width": 1400, "height": 1000})
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    yield opened
    opened.close()
    foreign = [url for url in asked if not re.match(r"(http|ws)://127\.0\.0\.1[:/]|data:|blob:", url)]
    assert not foreign
