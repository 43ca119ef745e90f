"""A collector that asks for keys hears pages of the origins that it is told of, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from playwright.sync_api import Page

from costspan.semconv import PAGE_SHOWN
from costspan_collector.security import keys
from costspan_collector.security.rules import FILE
from tests.browser.app import App, running
from tests.browser.stored import Stored
from tests.collector.harness import Running


class Guarded(NamedTuple):
    """A collector that hears acme's pages, with the keys that open it."""

    collector: Running
    page_key: str
    read_key: str


@pytest.fixture(scope="module")
def guarded(app: App, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    data = tmp_path_factory.mktemp("guarded") / "data"
    data.mkdir()
    (data / FILE).write_text(f'[projects.acme]\npage_origins = ["{app.url}"]\n')
    with keys.changing(data / keys.FILE) as kept:
        made = [
            keys.make(name="page", project="acme", reads=False, writes=False, pages=True),
            keys.make(name="dashboard", project="acme", reads=True, writes=False),
        ]
        kept += [key for key, _ in made]
    started = Running(data)
    yield Guarded(started, *(token for _, token in made))
    assert started.stop() == 0


READ = """async (url) => {
    let kept;
    navigator.sendBeacon = (_, body) => { kept = body; return true; };
    await ask("/chat");
    return fetch(url + "/v1/page", {method: "POST", body: kept}).then((answer) => answer.status, (error) => error.name);
}"""


def test_a_page_of_a_named_origin_is_heard(page: Page, app: App, guarded: Guarded) -> None:
    page.goto(app.page(endpoint=guarded.collector.url, key=guarded.page_key))
    app.heard.clear()
    with page.expect_response("**/v1/page") as answer:
        page.evaluate("ask('/chat?tokens=3')")
    assert answer.value.status == 204
    row = Stored(guarded.collector, guarded.read_key).only(app.traceparent)
    assert (row.outcome, row.said[PAGE_SHOWN]) == ("ok", "3")
    assert page.evaluate(READ, guarded.collector.url) == 204


def test_a_page_of_another_origin_is_not(page: Page, guarded: Guarded) -> None:
    with running(App()) as elsewhere:
        page.goto(elsewhere.page(endpoint=guarded.collector.url, key=guarded.page_key))
        with page.expect_response("**/v1/page") as answer:
            page.evaluate("ask('/chat?tokens=3')")
        assert answer.value.status == 403
        Stored(guarded.collector, guarded.read_key).none(elsewhere.traceparent)
        assert page.evaluate(READ, guarded.collector.url) == "TypeError"
        page.goto("about:blank")
