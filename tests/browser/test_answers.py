"""What a page saw of an answer is stored as it was, however the answer ended."""

from __future__ import annotations

from contextlib import suppress

from playwright.sync_api import Browser, Error, Page

from costspan.semconv import HTTP_STATUS, PAGE_FIRST, PAGE_HEADERS, PAGE_LAST, PAGE_SHOWN, PAGE_START, PAGE_STOP
from tests.browser.app import App
from tests.browser.stored import Row, Stored
from tests.collector.harness import Running


def told(page: Page, app: App, collector: Running, **data: str) -> Page:
    """A page of the app that tells the collector what it saw."""
    page.goto(app.page(endpoint=collector.url, **data))
    app.heard.clear()
    return page


def seen(page: Page, texts: int) -> None:
    """Wait until the page has that many pieces of text."""
    page.wait_for_function("count => texts.join('').split('token').length - 1 >= count", arg=texts)


def in_order(row: Row) -> bool:
    stamps = [row.start_ns, *(row.stamp(name) for name in (PAGE_HEADERS, PAGE_FIRST, PAGE_LAST)), row.end_ns]
    came = [stamp for stamp in stamps if stamp]
    return came == sorted(came) and row.start_ns == row.stamp(PAGE_START)


def test_a_whole_answer(page: Page, app: App, collector: Running, stored: Stored) -> None:
    told(page, app, collector).evaluate("ask('/chat?tokens=3')")
    row = stored.only(app.traceparent)
    assert page.evaluate("ended") == "whole"
    assert (row.outcome, row.parent, row.said[PAGE_SHOWN], row.said[HTTP_STATUS]) == ("ok", "", "3", "200")
    assert row.stamp(PAGE_FIRST)
    assert PAGE_STOP not in row.said
    assert in_order(row)


def test_the_stop_button(page: Page, app: App, collector: Running, stored: Stored) -> None:
    told(page, app, collector).evaluate("void ask('/chat?tokens=3&then=hold')")
    seen(page, 3)
    page.click("#stop")
    row = stored.only(app.traceparent)
    assert page.evaluate("ended") == "AbortError"
    assert (row.outcome, row.said[PAGE_SHOWN]) == ("cancelled", "3")
    assert row.stamp(PAGE_LAST) <= row.stamp(PAGE_STOP) == row.end_ns
    assert in_order(row)


def test_a_stop_before_anything_was_shown(page: Page, app: App, collector: Running, stored: Stored) -> None:
    told(page, app, collector).evaluate("void ask('/chat?tokens=0&then=hold')")
    page.wait_for_function("texts.length > 0")  # the role, and no text yet
    page.click("#stop")
    row = stored.only(app.traceparent)
    assert (row.outcome, row.said[PAGE_SHOWN], row.stamp(PAGE_FIRST)) == ("abandoned", "0", 0)
    assert row.stamp(PAGE_STOP)


def test_a_stop_before_the_headers_of_what_was_asked_for_as_an_answer(
    page: Page, app: App, collector: Running, stored: Stored
) -> None:
    told(page, app, collector)
    for nth, init in enumerate(("{headers: {accept: 'text/event-stream'}}", "{}"), start=1):
        page.evaluate(f"void ask('/slow', {init})")
        app.hears(nth)
        page.click("#stop")
        page.wait_for_function("ended === 'AbortError'")
    asked, not_asked = (traceparent for _, path, traceparent in app.heard if path == "/slow")
    row = stored.only(asked)
    assert row.outcome == "abandoned"
    assert not {PAGE_HEADERS, PAGE_FIRST, HTTP_STATUS} & row.said.keys()
    stored.none(not_asked)


def test_a_page_that_stops_reading(page: Page, app: App, collector: Running, stored: Stored) -> None:
    told(page, app, collector).evaluate("void ask('/chat?tokens=2&then=hold')")
    seen(page, 2)
    page.evaluate("reader.cancel()")
    row = stored.only(app.traceparent)
    assert (row.outcome, row.said[PAGE_SHOWN]) == ("cancelled", "2")


def test_a_page_that_gives_up_by_itself(page: Page, app: App, collector: Running, stored: Stored) -> None:
    told(page, app, collector).evaluate("ask('/chat?tokens=2&then=hold', {signal: AbortSignal.timeout(300)})")
    row = stored.only(app.traceparent)
    assert (page.evaluate("ended"), row.outcome, row.said[PAGE_SHOWN]) == ("TimeoutError", "timeout", "2")
    assert row.stamp(PAGE_STOP)


def test_a_closed_tab(browser: Browser, app: App, collector: Running, stored: Stored) -> None:
    tab = told(browser.new_page(), app, collector)
    tab.evaluate("void ask('/chat?tokens=3&then=hold')")
    seen(tab, 3)
    tab.close(run_before_unload=True)
    row = stored.only(app.traceparent)
    assert (row.outcome, row.said[PAGE_SHOWN]) == ("cancelled", "3")
    assert row.stamp(PAGE_STOP)


def test_a_page_that_is_left_for_another_and_come_back_to(page: Page, app: App, collector: Running, stored: Stored) -> None:
    told(page, app, collector).evaluate("void ask('/chat?tokens=3&then=hold')")
    seen(page, 3)
    page.goto(f"{app.url}/json")
    assert stored.only(app.heard[-2][2]).outcome == "cancelled"
    page.go_back()
    assert stored.only(app.heard[-2][2]).outcome == "cancelled"  # not told again


def test_a_tab_that_dies_in_the_background(browser: Browser, app: App, collector: Running, stored: Stored) -> None:
    tab = told(browser.new_page(), app, collector)
    tab.evaluate("void ask('/chat?tokens=3&then=hold')")
    seen(tab, 3)
    tab.evaluate("""() => {
        Object.defineProperty(document, "visibilityState", {value: "hidden", configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));
    }""")
    crash(tab)
    row = stored.only(app.traceparent)
    assert (row.outcome, row.said[PAGE_SHOWN]) == ("cancelled", "3")


def crash(tab: Page) -> None:
    """End a tab's process, as a phone does that is short of memory."""
    with tab.expect_event("crash"), suppress(Error):
        tab.goto("chrome://crash")


def test_a_tab_that_was_in_the_background_tells_once(page: Page, app: App, collector: Running, stored: Stored) -> None:
    told(page, app, collector).evaluate("void ask('/chat?tokens=3&then=hold')")
    seen(page, 3)
    for state in ("hidden", "visible", "hidden"):
        page.evaluate(
            """(value) => {
                Object.defineProperty(document, "visibilityState", {value, configurable: true});
                document.dispatchEvent(new Event("visibilitychange"));
            }""",
            state,
        )
    page.click("#stop")
    assert stored.only(app.traceparent).outcome == "cancelled"
    page.goto("about:blank")
    assert stored.only(app.traceparent).outcome == "cancelled"


def test_an_answer_that_is_refused(page: Page, app: App, collector: Running, stored: Stored) -> None:
    told(page, app, collector, answers="/broken /nobody").evaluate("ask('/broken')")
    row = stored.only(app.traceparent)
    assert (row.outcome, row.said[HTTP_STATUS], row.said[PAGE_SHOWN]) == ("error", "500", "0")
    assert PAGE_STOP not in row.said


def test_a_connection_that_breaks(page: Page, app: App, collector: Running, stored: Stored) -> None:
    told(page, app, collector).evaluate("ask('/chat?tokens=2&then=cut')")
    row = stored.only(app.traceparent)
    assert (page.evaluate("ended"), row.outcome, row.said[PAGE_SHOWN]) == ("TypeError", "error", "2")


def test_leaving_a_loop_is_stopping(page: Page, app: App, collector: Running, stored: Stored) -> None:
    told(page, app, collector).evaluate("async (url) => { for await (const c of (await fetch(url)).body) break; }", "/text")
    row = stored.only(app.traceparent)
    assert (row.outcome, row.said[PAGE_SHOWN]) == ("cancelled", "1")


def test_what_is_read_as_a_stream_is_an_answer_and_what_is_read_whole_is_none(
    page: Page, app: App, collector: Running, stored: Stored
) -> None:
    told(page, app, collector).evaluate("fetch('/json').then((response) => response.json())")
    read_whole = app.traceparent
    page.evaluate("ask('/text')")
    row = stored.only(app.traceparent)
    assert (row.outcome, row.said[PAGE_SHOWN]) == ("ok", "3")
    stored.none(read_whole)


def test_the_page_may_count_itself(page: Page, app: App, collector: Running, stored: Stored) -> None:
    told(page, app, collector).evaluate(
        """async (url) => {
        const response = await fetch(url), reader = response.body.getReader();
        await reader.read();
        costspan.shown(5.2);
        costspan.shown(2, response);
        while (!(await reader.read()).done);
    }""",
        "/chat?tokens=4",
    )
    row = stored.only(app.traceparent)
    assert row.said[PAGE_SHOWN] == "7"
    assert in_order(row)


def test_events_to_their_end(page: Page, app: App, collector: Running, stored: Stored) -> None:
    told(page, app, collector).evaluate("listen('/chat?tokens=3')")
    page.wait_for_function("ended === 'whole'")
    row = stored.only(app.traceparent)
    assert app.heard[-1][:2] == ("GET", "/chat")
    assert (row.outcome, row.said[PAGE_SHOWN]) == ("ok", "3")
    assert row.stamp(PAGE_HEADERS)
    assert in_order(row)


def test_events_that_are_closed(page: Page, app: App, collector: Running, stored: Stored) -> None:
    told(page, app, collector).evaluate("listen('/chat?tokens=3&then=hold')")
    seen(page, 3)
    page.evaluate("source.close()")
    row = stored.only(app.traceparent)
    assert (row.outcome, row.said[PAGE_SHOWN]) == ("cancelled", "3")
    assert row.stamp(PAGE_STOP)


def test_events_that_break(page: Page, app: App, collector: Running, stored: Stored) -> None:
    told(page, app, collector).evaluate("listen('/chat?tokens=3&then=cut'), void (source.onerror = () => source.close())")
    row = stored.only(app.traceparent)
    assert (row.outcome, row.said[PAGE_SHOWN]) == ("error", "3")
    assert PAGE_STOP not in row.said


def test_events_that_there_are_none_of(page: Page, app: App, collector: Running, stored: Stored) -> None:
    told(page, app, collector).evaluate("listen('/json')")
    row = stored.only(app.traceparent)
    assert (row.outcome, row.said[PAGE_SHOWN]) == ("error", "0")
