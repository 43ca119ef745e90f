"""Pages in a real browser, an app that answers them, and a collector that hears what they saw."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Error, Page

from tests.browser.app import App, running
from tests.browser.stored import Stored
from tests.chromium import chromium
from tests.collector.harness import Running


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    started = Running(tmp_path_factory.mktemp("browser") / "data")
    yield started
    assert started.stop() == 0


@pytest.fixture(scope="module")
def stored(collector: Running) -> Stored:
    return Stored(collector)


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    with running(App()) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page()
    failures: list[Error] = []
    opened.on("pageerror", lambda error: failures.append(error))  # noqa: PLW0108  (Playwright marks what it is given)
    yield opened
    opened.close()
    assert not failures
