"""An app whose pages ask for answers, on a thread of this process. What it streams waits for the test where it is told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tests.collector.harness import wait_until
from tests.instrument.asgi_server import serving

PAGE = """<!doctype html><title>answers</title>
<script src="/costspan/costspan.min.js" {data}></script>
<button id="stop" onclick="controller.abort()">stop</button>
<script>
let controller, reader, source, ended = "", texts = [];
function begin(url, init = {{}}) {{
  controller = new AbortController();
  return fetch(url, {{ signal: controller.signal, ...init }});
}}
async function ask(url, init) {{
  ended = ""; texts = [];
  try {{
    const response = await begin(url, init);
    reader = response.body.getReader();
    for (const decoder = new TextDecoder(); ;) {{
      const {{ done, value }} = await reader.read();
      if (done) break;
      texts.push(decoder.decode(value));
    }}
    ended = "whole";
  }} catch (error) {{ ended = error.name; }}
}}
function listen(url) {{
  ended = ""; texts = [];
  source = new EventSource(url);
  source.onmessage = (event) => {{
    if (event.data === "[DONE]") {{ source.close(); ended = "whole"; }}
    else texts.push(event.data);
  }};
  source.onerror = () => {{ ended = "error"; }};
}}
</script>"""


def delta(text: str) -> str:
    """A chunk as OpenAI's API streams it."""
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': text}}]})}\n\n"


class App:
    """The app, and what it was asked.

    Attributes:
        url: Where it is.
        heard: Of each request for an answer: its method, its path, and its ``traceparent``, "" for none.
    """

    def __init__(self) -> None:
        self.url = ""
        self.heard: list[tuple[str, str, str]] = []
        self.starlette = Starlette(
            routes=[
                Route("/", self._page),
                Route("/chat", self._chat, methods=["GET", "POST", "OPTIONS"]),
                Route("/text", self._text),
                Route("/json", self._json, methods=["GET", "POST"]),
                Route("/broken", self._broken),
                Route("/slow", self._slow),
                Mount("/costspan", StaticFiles(packages=[("costspan", "browser")])),
            ]
        )

    def page(self, **data: str) -> str:
        """The address of a page whose script tag has these ``data-`` attributes."""
        return f"{self.url}/?{urlencode(data)}"

    @property
    def traceparent(self) -> str:
        """Of the last request for an answer, once there is one."""
        self.hears(1)
        return self.heard[-1][2]

    def hears(self, requests: int) -> None:
        """Wait until that many arrived: a page that stops sooner may not have sent any."""
        wait_until(lambda: len(self.heard) >= requests)

    def _hear(self, request: Request) -> None:
        given = request.headers.get("traceparent") or request.query_params.get("traceparent", "")
        self.heard.append((request.method, request.url.path, given))

    def _page(self, request: Request) -> Response:
        return HTMLResponse(PAGE.format(data=" ".join(f'data-{key}="{value}"' for key, value in request.query_params.items())))

    def _chat(self, request: Request) -> Response:
        """Tokens as server-sent events: ``tokens`` of them, then its end, or with ``then``: hold, cut."""
        self._hear(request)
        tokens, then = int(request.query_params.get("tokens", "3")), request.query_params.get("then", "")

        async def stream() -> AsyncIterator[str]:
            yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'role': 'assistant', 'content': ''}}]})}\n\n"
            for number in range(tokens):
                yield delta(f"token {number} ")
            if then == "hold":
                await asyncio.sleep(60)
            if then == "cut":
                await asyncio.sleep(0.3)  # what was sent is read by then
                raise ConnectionAbortedError("the app's process is gone")
            yield f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': tokens}})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream", headers={"Access-Control-Allow-Origin": "*"})

    def _text(self, request: Request) -> Response:
        """Text in three pieces, each sent on its own."""
        self._hear(request)

        async def stream() -> AsyncIterator[str]:
            for piece in ("one ", "two ", "three"):
                yield piece
                await asyncio.sleep(0.05)

        return StreamingResponse(stream(), media_type="text/plain")

    def _json(self, request: Request) -> Response:
        self._hear(request)
        return JSONResponse({"answer": 42})

    def _broken(self, request: Request) -> Response:
        self._hear(request)
        return JSONResponse({"error": "no"}, 500)

    async def _slow(self, request: Request) -> Response:
        self._hear(request)
        await asyncio.sleep(60)
        return JSONResponse({})


@contextmanager
def running(app: App) -> Iterator[App]:
    """The app on a free port."""
    with serving(app.starlette) as app.url:
        yield app
