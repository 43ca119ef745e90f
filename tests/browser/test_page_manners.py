"""The page does not notice: it gets what it would get, at its own pace, and what goes wrong inside stays inside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.browser.app import App, delta, running

KEPT = """
window.told = [];
navigator.sendBeacon = (url, body) => { told.push(JSON.parse(body)); return true; };
"""
MADE = """
window.pulls = 0;
window.made = (chunks, type) => {
  const left = [...chunks];
  const pull = (controller) => {
    pulls += 1;
    left.length ? controller.enqueue(left.shift()) : controller.close();
  };
  return new Response(new ReadableStream({ pull }, { highWaterMark: 0 }), { headers: { "content-type": type } });
};
window.bytes = (text, size) => {
  const all = new TextEncoder().encode(text);
  return Array.from({ length: Math.ceil(all.length / size) }, (_, at) => all.slice(at * size, (at + 1) * size));
};
"""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[App]:
    """An app of another origin."""
    with running(App()) as started:
        yield started


@pytest.fixture
def kept(page: Page, app: App) -> Page:
    """A page whose beacons stay with it, in ``told``."""
    page.goto(app.page())
    page.evaluate(KEPT + MADE)
    page.evaluate("costspan.init({endpoint: '/', project: 'p', key: 'k'})")
    app.heard.clear()
    return page


def told(page: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = page.evaluate("told")
    return found


def test_the_response_is_the_one_that_it_would_be(kept: Page) -> None:
    same = kept.evaluate("""async () => {
        const ours = await fetch("/chat?tokens=1"), facts = (r) => [r instanceof Response, r.constructor === Response, r.ok,
            r.url, r.type, r.status, r.redirected, [...r.headers].filter(([k]) => k !== "date"), Object.keys(r), r.bodyUsed,
            r.body instanceof ReadableStream, r.body === r.body, Object.keys(r.body), r.body.locked, r.clone().body.locked];
        costspan.off();
        const native = await fetch("/chat?tokens=1");
        return JSON.stringify(facts(ours)) === JSON.stringify(facts(native)) && await ours.text() === await native.text()
            && ours.bodyUsed && native.bodyUsed;
    }""")
    assert same


def test_nothing_is_read_before_the_page_reads_it(kept: Page) -> None:
    kept.evaluate("""() => {
        costspan.off();
        window.fetch = async () => made(bytes("data: x\\n\\n".repeat(100), 9), "text/event-stream");
        costspan.init({endpoint: "/"});
    }""")
    read = """async () => {
        const found = [], wait = () => new Promise((go) => setTimeout(go, 20));
        const by = async (go) => { pulls = 0; await go(await fetch("/")); await wait(); found.push(pulls); };
        await by(() => {});
        await by(async (r) => { const reader = r.body.getReader(); for (let at = 0; at < 5; at++) await reader.read(); });
        await by(async (r) => { let at = 0; for await (const _ of r.body) if (++at === 5) break; });
        await by((r) => { r.body.pipeTo(new WritableStream({ write: () => new Promise(() => {}) })); });
        await by((r) => { r.body.pipeThrough(new TextDecoderStream()); });
        return found;
    }"""
    watched = kept.evaluate(read)
    native = kept.evaluate(f"""async () => {{ costspan.off(); return await ({read})(); }}""")
    assert watched == native
    assert watched[:3] == [0, 5, 5]


def test_a_stream_can_be_read_on_after_its_lock_was_given_back(kept: Page) -> None:
    kept.evaluate("""async () => {
        const { body } = await fetch("/text"), first = body.getReader();
        await first.read();
        first.releaseLock();
        for await (const chunk of body);
    }""")
    assert [(each["outcome"], each["shown"]) for each in told(kept)] == [("ok", 3)]


def test_an_answer_is_told_once_however_it_is_read(kept: Page) -> None:
    ways = (
        "await (await fetch(url)).text()",
        "for await (const chunk of (await fetch(url)).body);",
        "await (await fetch(url)).body.pipeTo(new WritableStream())",
        "const r = (await fetch(url)).body.pipeThrough(new TextDecoderStream()).getReader(); while (!(await r.read()).done);",
        "const [a, b] = (await fetch(url)).body.tee(); await Promise.all([new Response(a).text(), new Response(b).text()])",
        "const r = (await fetch(url)).body.getReader({mode: 'byob'}); while (!(await r.read(new Uint8Array(9))).done);",
        "const r = await fetch(url), c = r.clone(); await Promise.all([r.text(), c.text()])",
        "await (await fetch(new Request(url))).clone().arrayBuffer()",
    )
    for number, way in enumerate(ways, 1):
        kept.evaluate(f"async (url) => {{ {way} }}", "/chat?tokens=4")
        assert [(each["outcome"], each["shown"]) for each in told(kept)] == [("ok", 4)] * number, way


def test_other_origins_hear_nothing_of_it_unless_they_are_named(kept: Page, elsewhere: App) -> None:
    elsewhere.heard.clear()
    kept.evaluate("(url) => ask(url)", f"{elsewhere.url}/chat?tokens=1")
    assert elsewhere.heard == [("GET", "/chat", "")]
    assert kept.evaluate("ended") == "whole"
    assert not told(kept)
    kept.evaluate("(url) => costspan.init({endpoint: '/', answers: url})", f"{elsewhere.url}/chat")
    elsewhere.heard.clear()
    kept.evaluate("(url) => { listen(url) }", f"{elsewhere.url}/chat?tokens=1")
    kept.wait_for_function("told.length === 1")
    assert told(kept)[0]["trace"] == elsewhere.traceparent.split("-")[1]
    kept.evaluate("(url) => ask(url)", f"{elsewhere.url}/text")  # the same origin, and not what was named
    assert elsewhere.traceparent == ""


def test_a_trace_that_the_page_has_is_joined(kept: Page, app: App) -> None:
    given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    kept.evaluate("(traceparent) => ask('/chat', {headers: {traceparent}})", given)
    kept.evaluate("(given) => { listen('/chat?x=a+b&traceparent=' + given) }", given)
    kept.wait_for_function("told.length === 2")
    assert [traceparent for *_, traceparent in app.heard] == [given, given]
    for each in told(kept):
        assert (each["trace"], each["parent"]) == tuple(given.split("-")[1:3])
        assert each["span"] != each["parent"]


def test_what_the_page_asks_with_stays_as_it_was(kept: Page, app: App) -> None:
    kept.evaluate("""async () => {
        const request = new Request("/json", {method: "POST", body: "hello", headers: {"x-own": "1"}, referrer: "/from"});
        const init = Object.freeze({method: "POST", headers: Object.freeze({"x-own": "2"}), body: "again"});
        await fetch(request);
        await fetch("/json", init);
        await fetch(new URL("/json", location));
        window.left = [[...request.headers.keys()].sort(), init.headers, request.referrer.endsWith("/from"), request.bodyUsed];
    }""")
    assert kept.evaluate("left") == [["content-type", "x-own"], {"x-own": "2"}, True, True]
    assert [method for method, *_ in app.heard] == ["POST", "POST", "GET"]
    assert len({traceparent for *_, traceparent in app.heard if traceparent}) == 3


def test_who_wrapped_fetch_before_gets_what_the_page_wrote(kept: Page, app: App) -> None:
    found = kept.evaluate("""async () => {
        costspan.off();
        const native = window.fetch, got = [];
        window.fetch = (url, init) => { const copy = {...init}; got.push(copy); return native(url, copy); };
        costspan.init({endpoint: "/"});
        await fetch("/json", {method: "POST", body: "hello", headers: {"x-own": "1"}});
        await fetch("/json", {headers: new Headers({"x-own": "1"})});
        return [got[0].method, got[0].body, Object.keys(got[0].headers), [...got[1].headers.keys()]];
    }""")
    assert found == ["POST", "hello", ["x-own", "traceparent"], ["traceparent", "x-own"]]
    assert [method for method, *_ in app.heard] == ["POST", "GET"]


def test_rejections_are_as_unhandled_as_they_were(kept: Page) -> None:
    kept.evaluate("""() => {
        window.unhandled = [];
        addEventListener("unhandledrejection", (event) => { event.preventDefault(); unhandled.push(event.reason.name); });
        fetch("http://127.0.0.1:1/");
        fetch("/json", {signal: AbortSignal.abort()});
    }""")
    kept.wait_for_function("unhandled.length === 2")
    assert sorted(kept.evaluate("unhandled")) == ["AbortError", "TypeError"]


def test_off_puts_back_what_was_there(kept: Page) -> None:
    found = kept.evaluate("""() => {
        const names = ["fetch", "EventSource"], described = () => names.map((name) => {
            const { value, ...rest } = Object.getOwnPropertyDescriptor(window, name);
            return [name, rest.configurable, rest.enumerable, rest.writable, value.name, value.length];
        });
        const ours = window.fetch, before = described();
        costspan.off();
        const native = names.map((name) => window[name]), after = described();
        costspan.init({endpoint: "/"});
        const other = window.fetch = (...given) => ours(...given);
        costspan.off();
        costspan.off();
        return [before, after, native.map((each) => /native code/.test(each)),
            window.fetch === other, window.EventSource === native[1]];
    }""")
    assert found[0] == found[1]
    assert found[2:] == [[True, True], True, True]
    kept.evaluate("ask('/chat')")
    assert kept.evaluate("ended") == "whole"


def test_answers_under_way_when_it_is_turned_off_go_on(kept: Page) -> None:
    kept.evaluate("void ask('/chat?tokens=2&then=hold')")
    kept.wait_for_function("texts.join('').includes('token 1')")
    kept.evaluate("costspan.off(), controller.abort()")
    kept.wait_for_function("ended === 'AbortError'")
    kept.evaluate("ask('/chat')")
    assert kept.evaluate("ended") == "whole"
    assert not told(kept)


def test_to_include_it_twice_is_to_include_it_once(kept: Page) -> None:
    kept.evaluate("window.before = [fetch, costspan]")
    kept.add_script_tag(url="/costspan/costspan.min.js")
    kept.evaluate("costspan.init({endpoint: '/'}), ask('/chat')")
    assert kept.evaluate("before[0] === fetch && before[1] === costspan")
    kept.wait_for_function("told.length")
    assert len(told(kept)) == 1


def test_without_a_page_it_does_nothing(kept: Page) -> None:
    assert kept.evaluate("""() => new Promise((done) => {
        const code = `importScripts("${location.origin}/costspan/costspan.min.js");
            const before = fetch; costspan.init({endpoint: "/"}); costspan.shown(1); costspan.off();
            postMessage([typeof costspan, fetch === before])`;
        new Worker(URL.createObjectURL(new Blob([code]))).onmessage = (event) => done(event.data);
    })""") == ["object", True]


def test_without_a_collector_it_says_so(page: Page, app: App) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(app.page())
    for given in ("{}", "", "{endpoint: 'http://['}", "{endpoint: '/', answers: 'http://['}"):
        assert page.evaluate(f"(() => {{ const before = fetch; costspan.init({given}); return fetch === before }})()")
    assert said == ["costspan: init needs the endpoint of a collector"] * 4


@pytest.mark.parametrize(
    "trouble",
    [
        "crypto.getRandomValues = () => { throw new Error('trouble') }",
        "navigator.sendBeacon = () => { throw new Error('trouble') }",
        "JSON.stringify = () => { throw new Error('trouble') }",
        "performance.now = () => { throw new Error('trouble') }",
        "TextDecoder.prototype.decode = function () { throw new Error('trouble') }",
        "Headers.prototype.has = () => { throw new Error('trouble') }",
    ],
)
def test_trouble_inside_stays_inside(kept: Page, trouble: str) -> None:
    kept.evaluate(f"{trouble}; 0")
    text = "async () => { const r = await fetch('/chat?tokens=2'); return (await r.text()).includes('[DONE]') }"
    assert kept.evaluate(text)
    kept.evaluate("listen('/chat?tokens=2')")
    kept.wait_for_function("ended === 'whole'")
    kept.evaluate("costspan.shown({}), costspan.shown(1, 'x'), costspan.shown()")


def test_a_beacon_that_finds_no_room_is_fetched(kept: Page) -> None:
    with kept.expect_request("**/v1/page") as sent:
        kept.evaluate("navigator.sendBeacon = () => false, ask('/chat?tokens=2')")
    assert json.loads(sent.value.post_data or "")["shown"] == 2
    assert sent.value.headers["content-type"] == "text/plain;charset=UTF-8"


def test_two_answers_at_once_are_told_apart(kept: Page) -> None:
    kept.evaluate(
        "Promise.all(['/chat?tokens=2', '/chat?tokens=5', '/chat?tokens=3'].map(async (url) => (await fetch(url)).text()))"
    )
    assert sorted(each["shown"] for each in told(kept)) == [2, 3, 5]
    assert len({each["trace"] for each in told(kept)}) == 3


def events(*data: Any) -> str:
    return "".join(f"data: {each if isinstance(each, str) else json.dumps(each)}\n\n" for each in data)


STREAMS = {
    "chat": (
        events({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        + delta("a")
        + delta("ü€")
        + events({"choices": []}, "[DONE]"),
        2,
    ),
    "completions": (events({"choices": [{"text": "a"}]}, {"choices": [{"text": ""}], "usage": {}}, "[DONE]"), 1),
    "responses": (
        events(
            {"type": "response.created", "response": {"id": "r", "text": {"format": {"type": "text"}}}},
            {"type": "response.output_text.delta", "delta": "a"},
            {"type": "response.output_text.done", "text": "a"},
            {"type": "response.completed", "response": {"output": [{"content": [{"text": "a"}]}]}},
        ),
        1,
    ),
    "anthropic": (
        events(
            {"type": "message_start", "message": {"content": []}},
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
            {"type": "message_stop"},
        ),
        1,
    ),
    "plain": ("data: a\n\ndata: 42\n\n: a comment\n\nid: 3\ndata:b\ndata:c\n\nevent: done\ndata: bye\n\ndata\n\n", 3),
    "JSON strings": (events('"a"', '""', '"b"'), 2),
    "CRLF": ("data: a\r\n\r\ndata: b\r\n\r\n", 2),
    "CR": ("data: a\r\rdata: b\r\rdata: c\r\r:\n", 3),
    "a long event": (events("x" * 200_000, "b"), 2),
}


def test_tokens_are_events_that_carry_text(kept: Page) -> None:
    for name, (text, tokens) in STREAMS.items():
        for size in (1, 7, 1 << 20):
            said = stubbed(kept, text, "text/event-stream; charset=utf-8", max(size, len(text) // 1000))
            assert (name, said["outcome"], said["shown"]) == (name, "ok", tokens)


def test_tokens_are_lines_that_carry_text(kept: Page) -> None:
    lines = ({"message": {"content": "a"}, "done": False}, {"response": "b"}, {"message": {"content": ""}, "done": True})
    for size in (1, 1 << 20):
        said = stubbed(kept, "".join(json.dumps(line) + "\n" for line in lines) + "\n", "application/x-ndjson", size)
        assert (said["outcome"], said["shown"]) == ("ok", 2)


def test_an_error_in_the_stream_is_an_error(kept: Page) -> None:
    said = stubbed(kept, events("a", {"error": {"message": "out of memory"}}), "text/event-stream", 100)
    assert (said["outcome"], said["shown"]) == ("error", 1)


def test_who_has_read_the_end_does_not_stop(kept: Page) -> None:
    kept.evaluate("""async () => {
        const reader = (await fetch("/chat?tokens=2")).body.getReader(), decoder = new TextDecoder();
        for (let all = ""; !all.includes("[DONE]"); ) all += decoder.decode((await reader.read()).value);
        await reader.cancel();
    }""")
    (said,) = told(kept)
    assert (said["outcome"], said["shown"]) == ("ok", 2)


def stubbed(page: Page, text: str, kind: str, size: int) -> dict[str, Any]:
    """What is told of an answer with a body of such pieces."""
    page.evaluate(
        """async ([text, kind, size]) => {
            told.length = 0;
            costspan.off();
            window.fetch = async () => made(bytes(text, size), kind);
            costspan.init({endpoint: "/"});
            await ask("/");
        }""",
        [text, kind, size],
    )
    (said,) = told(page)
    return said
