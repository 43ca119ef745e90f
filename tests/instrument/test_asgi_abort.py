"""A browser leaves, the app's task is cancelled, and the stream to the engine is closed with it, whichever client reads it."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import fastapi
import httpx
import httpx2
import openai
import pytest
from fastapi.responses import StreamingResponse

import costspan
from costspan import semconv
from costspan.integrations.asgi import CostspanMiddleware
from costspan.integrations.httpx import async_hooks, hooks
from costspan.semconv import Outcome
from tests.instrument.asgi_server import serving
from tests.instrument.test_asgi import endpoint, leave
from tests.receiver import Receiver, Span

PATIENCE_S = 10.0
CHOICE = {"index": 0, "text": "w ", "logprobs": None}
CHUNK = {"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": [CHOICE]}


class Upstream:
    """An engine that streams until its client is gone, and says when it was."""

    def __init__(self) -> None:
        self.gone = threading.Event()
        self.pad = ""

    async def __call__(self, _scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        streaming = asyncio.create_task(self._stream(send))
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone.set()
        streaming.cancel()

    async def _stream(self, send: Any) -> None:
        while True:
            event = f"data: {json.dumps(CHUNK | {'pad': self.pad})}\n\n"
            await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
            await asyncio.sleep(0.005)


@pytest.fixture
def upstream() -> Iterator[tuple[Upstream, str]]:
    engine = Upstream()
    with serving(engine) as url:
        yield engine, url


ASK: dict[str, Any] = {"model": "m", "prompt": "tell", "stream": True}


async def by_openai(url: str) -> AsyncIterator[str]:
    async with httpx2.AsyncClient(event_hooks=async_hooks()) as http:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http)
        with costspan.generation(model="m", provider="p") as call:
            async for chunk in call.meter(await client.completions.create(**ASK)):
                yield chunk.choices[0].text + str((chunk.model_extra or {}).get("pad", ""))


def by_openai_in_a_thread(url: str) -> Iterator[str]:
    with httpx2.Client(event_hooks=hooks()) as http:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http)
        with costspan.generation(model="m", provider="p") as call:
            for chunk in call.meter(client.completions.create(**ASK)):
                yield chunk.choices[0].text


async def by_httpx(url: str) -> AsyncIterator[str]:
    async with httpx.AsyncClient(event_hooks=async_hooks()) as http:
        with costspan.generation(model="m", provider="p") as call:
            async with http.stream("POST", f"{url}/v1/completions", json=ASK) as answer:
                async for line in call.meter(answer.aiter_lines(), tokens=lambda line: len(line) > 0):
                    yield f"w {line}"


_kept: list[openai.AsyncOpenAI] = []


async def by_a_client_of_the_whole_app(url: str) -> AsyncIterator[str]:
    """The common case: nobody closes the client, so that only the stream's own closing can stop the engine."""
    http = httpx2.AsyncClient(event_hooks=async_hooks())
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http)
    _kept.append(client)
    with costspan.generation(model="m", provider="p") as call:
        async for chunk in call.meter(await client.completions.create(**ASK)):
            yield chunk.choices[0].text + str((chunk.model_extra or {}).get("pad", ""))


def ended_call(traced: Receiver) -> Span:
    deadline = time.monotonic() + PATIENCE_S
    while not any(span.name == "chat m" for span in traced.spans()):
        assert time.monotonic() < deadline, "the call's span did not end"
        time.sleep(0.01)
    return traced.span("chat m")


def assistant(generate: Any, url: str) -> fastapi.FastAPI:
    @asynccontextmanager
    async def lifespan(_app: fastapi.FastAPI) -> AsyncIterator[None]:
        yield
        for client in _kept:
            await client.close()
        _kept.clear()

    app = fastapi.FastAPI(lifespan=lifespan)
    app.add_middleware(CostspanMiddleware)

    @app.get("/")
    async def chat() -> StreamingResponse:
        return StreamingResponse(generate(url), media_type="text/plain")

    return app


@pytest.mark.parametrize("generate", [by_openai, by_httpx, by_a_client_of_the_whole_app])
def test_the_engine_stops_when_the_browser_leaves(traced: Receiver, upstream: tuple[Upstream, str], generate: Any) -> None:
    engine, url = upstream
    with serving(assistant(generate, url), lifespan="on") as app:
        left_ns = leave(app, "/", after=b"w ")
        assert engine.gone.wait(PATIENCE_S), "the engine was left running"
        span = ended_call(traced)
    assert span.outcome == Outcome.CANCELLED
    assert left_ns <= int(span.attributes[semconv.CALL_ABORT]) <= span.end_ns
    assert int(span.attributes[semconv.CALL_DELIVERED]) >= 1


@pytest.mark.parametrize("generate", [by_openai, by_a_client_of_the_whole_app])
def test_a_browser_that_leaves_while_the_app_waits_to_send(
    traced: Receiver, upstream: tuple[Upstream, str], generate: Any
) -> None:
    """The socket is full, and the generator may stand at its ``yield``."""
    engine, url = upstream
    engine.pad = "x" * 1_000_000
    with serving(assistant(generate, url), lifespan="on") as app:
        leave(app, "/", after=b"w ")
        wait_gone(engine)
        span = ended_call(traced)
    assert span.outcome == Outcome.CANCELLED


def wait_gone(engine: Upstream) -> None:
    """Wait until nobody reads what the engine streams; what hangs in a cycle of garbage is collected."""
    deadline = time.monotonic() + PATIENCE_S
    while not engine.gone.is_set():
        assert time.monotonic() < deadline, "the engine was left running"
        gc.collect()
        time.sleep(0.02)


def test_a_generator_that_starlette_runs_in_a_thread_is_left_to_the_garbage_collector(
    traced: Receiver, upstream: tuple[Upstream, str]
) -> None:
    """anyio's task group keeps the traceback of what it cancelled in a cycle, and the generator hangs on it: not ours to break.

    The server's clock says when the client left, the call's when the generator was closed, and what lies between is the app's.
    """
    engine, url = upstream
    with serving(assistant(by_openai_in_a_thread, url)) as app:
        leave(app, "/", after=b"w ")
        disconnect_ns = int(endpoint(traced).attributes[semconv.ENDPOINT_DISCONNECT])
        wait_gone(engine)
        span = ended_call(traced)
    assert span.outcome == Outcome.CANCELLED
    assert disconnect_ns <= int(span.attributes[semconv.CALL_ABORT])
