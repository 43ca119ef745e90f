"""A stop in a real browser, by the clocks of the page, the server, the SDK and the engine; and two proxies that hide it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx2
import openai
import pytest
from playwright.sync_api import Browser
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import costspan as sdk
from costspan.integrations.asgi import CostspanMiddleware
from costspan.integrations.httpx import async_hooks
from costspan.semconv import Outcome, Waste
from costspan_analytics.audit import Audit
from costspan_analytics.book import Book
from costspan_analytics.entries import prices
from costspan_analytics.explain import Explanation
from costspan_analytics.journey import BATCH, BROWSER, CALL, ENGINE, SERVER
from costspan_analytics.render import explain_tables, show
from costspan_analytics.store import Store
from costspan_analytics.timeline import Timeline
from costspan_demo.processes import Child, Children, free_ports
from tests.analytics.sample_store import wait_stored
from tests.chromium import chromium
from tests.e2e.deaf_proxy import deaf_proxy
from tests.instrument.asgi_server import serving

PAGE = """<!doctype html><meta charset="utf-8">
<script src="/costspan/costspan.min.js" data-endpoint="{collector}" data-project="shop" data-answers="/chat/"></script>
<button>stop</button><output></output>
<script>
  const control = new AbortController(), out = document.querySelector("output");
  document.querySelector("button").onclick = () => control.abort();
  (async () => {{
    const answer = await fetch("/chat/{who}", {{method: "POST", signal: control.signal}});
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {{
      const {{done, value}} = await reader.read();
      if (done) break;
      out.dataset.pieces = Number(out.dataset.pieces || 0) + value.split("data: ").length - 1;
    }}
  }})();
</script>"""
STRAIGHT, DEAF_OUTSIDE, DEAF_INSIDE = "straight", "deaf-outside", "deaf-inside"
ASKED_TOKENS = 300
STOP_AFTER = 12


def assistant(collector: str, engine: str, engine_behind_proxy: str) -> Starlette:
    """What somebody's own app looks like: a page, and an answer that streams."""
    http = httpx2.AsyncClient(event_hooks=async_hooks(), timeout=60)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with http:
            yield

    engines = {STRAIGHT: engine, DEAF_OUTSIDE: engine, DEAF_INSIDE: engine_behind_proxy}
    clients = {
        who: openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http)
        for who, url in engines.items()
    }

    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE.format(collector=collector, who=request.path_params["who"]))

    async def chat(request: Request) -> Response:
        who = request.path_params["who"]
        return StreamingResponse(tell(who, clients[who]), media_type="text/event-stream")

    return Starlette(
        routes=[
            Route("/page/{who}", page),
            Route("/chat/{who}", chat, methods=["POST"]),
            Mount("/costspan", StaticFiles(packages=[("costspan", "browser")])),
        ],
        middleware=[Middleware(CostspanMiddleware)],
        lifespan=lifespan,
    )


async def tell(who: str, client: openai.AsyncOpenAI) -> AsyncIterator[str]:
    with sdk.unit("chat", who, tenant=who), sdk.generation(model="tiny", provider="costspan") as call:
        stream = await client.completions.create(
            model="tiny",
            prompt="tell me everything",
            max_tokens=ASKED_TOKENS,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        async for chunk in call.meter(stream, tokens=lambda chunk: len(chunk.choices)):
            yield f"data: {chunk.model_dump_json()}\n\n"


def press_stop(browser: Browser, app: str, who: str) -> None:
    """Open the page, read a little of the answer, press stop, and wait until the page has said so."""
    page = browser.new_page()
    page.goto(f"{app}/page/{who}")
    page.wait_for_function(f"document.querySelector('output').dataset.pieces >= {STOP_AFTER}")
    with page.expect_response("**/v1/page*") as beacon:
        page.click("button")
    assert beacon.value.status == 204
    page.close()


def port(url: str) -> str:
    return url.rpartition(":")[2]


@dataclass(frozen=True)
class Told:
    """What costspan says of the three stops, once all of it is stored."""

    store: Store
    timeline: Timeline
    book: Book

    def explained(self, who: str) -> dict[str, Any]:
        [span_id] = self.timeline.calls.filter(tenant=who)["span_id"]
        return Explanation.load(self.store, self.timeline, self.book, span_id).as_dict()

    def after_abort(self, who: str) -> tuple[int, float]:
        """Tokens and dollars that are posted as made after the client left."""
        posted = self.book.frame.filter(tenant=who, category=Waste.AFTER_ABORT.value)
        return int(posted["tokens"].sum()), float(posted["amount"].sum())


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    folder = tmp_path_factory.mktemp("clocks")
    collector, store, engine = (f"http://127.0.0.1:{port}" for port in free_ports(3))
    with Children() as children:
        with chromium() as browser:
            intake = ["collector", "--data", str(folder / "data"), "--port", port(collector), "--store-port", port(store)]
            serve = ["engine", "serve", "--preset", "tiny", "--project", "shop", "--device-kind", "cpu", "--threads", "1"]
            serve += ["--port", port(engine), "--collector", collector]
            collecting = children.start(Child("collector", intake, f"{collector}/ready", folder))
            computing = children.start(Child("engine", serve, f"{engine}/health", folder))
            for child in (collecting, computing):
                child.wait_ready(60)
            stop_three_times(browser, collector, engine, computing)
        prices(["gpu_hour.cpu", "0.40", "--unit", "hour", "--store", store, "--project", "shop"])
        wait_stored(collector)
        rows = Store(store, "shop")
        timeline = Timeline.load(rows)
        yield Told(rows, timeline, Book.load(rows, timeline))


def stop_three_times(browser: Browser, collector: str, engine: str, computing: Child) -> None:
    sdk.init(project="shop", endpoint=collector, service="assistant")
    with (
        deaf_proxy(int(port(engine))) as engine_behind_proxy,
        serving(assistant(collector, engine, engine_behind_proxy), lifespan="on") as app,
        deaf_proxy(int(port(app))) as app_behind_proxy,
    ):
        press_stop(browser, app, STRAIGHT)
        press_stop(browser, app_behind_proxy, DEAF_OUTSIDE)
        press_stop(browser, app, DEAF_INSIDE)
        assert computing.stop(60), "it drains: what nobody stopped runs to its end"
    sdk.shutdown(10)


def check_counts(explained: dict[str, Any], lost: tuple[int, float]) -> None:
    """Nobody shows what was not delivered, and the stretches are what is posted as made for nobody."""
    counts = explained["stop"]["tokens"]
    shown, delivered, generated = (counts[name] for name in ("shown", "delivered", "generated"))
    assert STOP_AFTER <= shown["tokens"] <= delivered["tokens"] <= generated["tokens"] <= ASKED_TOKENS
    assert 0 < shown["usd"] <= delivered["usd"] <= generated["usd"]
    assert generated["usd"] == pytest.approx(sum(row["amount"] for row in explained["cost"]), abs=1e-9)
    ways = explained["stop"]["boundaries"]
    assert sum(way["tokens"] for way in ways) == lost[0] <= generated["tokens"] - shown["tokens"]
    assert sum(way["usd"] for way in ways) == pytest.approx(lost[1], abs=1e-9)


def test_the_clocks_stand_side_by_side_and_in_order(told: Told) -> None:
    explained = told.explained(STRAIGHT)
    stop = explained["stop"]
    assert [clock["where"] for clock in stop["clocks"]] == [BROWSER, SERVER, CALL, ENGINE, BATCH, BATCH]
    browser, server, call, engine, step, removed = (clock["ms"] for clock in stop["clocks"])
    assert browser < server < call
    assert server < engine <= removed  # it may see a stream closed, and be done with it, before whoever closes it says so
    assert step <= removed
    assert [(way["from"], way["to"]) for way in stop["boundaries"]] == list(pairwise([BROWSER, SERVER, CALL, ENGINE, BATCH]))
    assert all(way["passed_on"] for way in stop["boundaries"])
    assert explained["outcome"] == Outcome.CANCELLED
    check_counts(explained, told.after_abort(STRAIGHT))
    assert stop["tokens"]["generated"]["tokens"] < ASKED_TOKENS, "the engine stopped"


def test_a_proxy_that_hides_the_stop_from_the_app_is_named_and_the_waste_is_its(told: Told) -> None:
    explained = told.explained(DEAF_OUTSIDE)
    stop = explained["stop"]
    assert explained["outcome"] == Outcome.OK, "the SDK never learned of the stop"
    assert [clock["ms"] is None for clock in stop["clocks"]] == [False, True, True, True, False, False]
    [way] = stop["boundaries"]
    assert (way["from"], way["to"], way["passed_on"]) == (BROWSER, SERVER, False)
    assert stop["worst"] == {"from": BROWSER, "to": SERVER}
    assert "was never passed on" in stop["verdict"]
    check_counts(explained, told.after_abort(DEAF_OUTSIDE))
    assert way["tokens"] > ASKED_TOKENS // 2


def test_a_proxy_that_hides_the_stop_from_the_engine_is_named(told: Told) -> None:
    explained = told.explained(DEAF_INSIDE)
    assert explained["outcome"] == Outcome.CANCELLED
    way = explained["stop"]["boundaries"][-1]
    assert (way["from"], way["to"], way["passed_on"]) == (CALL, ENGINE, False)
    assert explained["stop"]["worst"] == {"from": CALL, "to": ENGINE}
    check_counts(explained, told.after_abort(DEAF_INSIDE))
    assert way["tokens"] > ASKED_TOKENS // 2


def test_both_laws_hold_and_the_command_says_the_same(told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    assert Audit.load(told.store, told.timeline, told.book).holds
    explained = told.explained(DEAF_OUTSIDE)
    show(explain_tables(Explanation.load(told.store, told.timeline, told.book, explained["span_id"])))
    shown = " ".join(capsys.readouterr().out.split())
    assert "The abort's clocks" in shown
    assert "Most was lost between the browser and the app server: the stop was never passed on" in shown
