"""The OpenAI-compatible HTTP server."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from costspan.clock import now_ns
from costspan_engine import metrics
from costspan_engine.answer import Form
from costspan_engine.caller import Caller
from costspan_engine.delivery import Generation, PostOffice
from costspan_engine.engine import Engine, Output
from costspan_engine.errors import RequestError
from costspan_engine.protocol import ChatRequest, CompletionRequest, GenerationRequest, error_body, parse
from costspan_engine.sequence import Request as EngineRequest
from costspan_engine.sequence import Sampling
from costspan_engine.text import TextStream
from costspan_engine.tokenizer import Tokenizer
from costspan_hooks.observer import EngineObserver, RequestInfo

_RECEIVED = "costspan.received_ns"
_MAX_BODY = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Served:
    """The model as callers know it.

    Attributes:
        name: What they ask for.
        tokenizer: Its tokenizer.
        vocab_size: Bound of token ids.
        eos_ids: Tokens that end an answer.
    """

    name: str
    tokenizer: Tokenizer
    vocab_size: int
    eos_ids: tuple[int, ...]


def create_app(engine: Engine, served: Served, observer: EngineObserver) -> ASGIApp:
    """The ASGI application; it starts the engine when the server starts, and stops it when the server has stopped."""
    office = PostOffice(engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()

        def deliver(outputs: list[Output]) -> None:
            loop.call_soon_threadsafe(office.sort, outputs)

        engine.start(deliver)
        yield
        await asyncio.to_thread(engine.stop)

    app = FastAPI(title="costspan engine", lifespan=lifespan, openapi_url=None)
    _add_errors(app)
    _add_generation(app, _Desk(engine, office, served, observer))
    _add_state(app, engine, served)
    return _Stamp(app)


class _Stamp:
    """Notes when a request came in, before anything else is done with it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[_RECEIVED] = now_ns()
        await self._app(scope, receive, send)


class _Desk:
    """Turns what callers send into what the engine computes."""

    def __init__(self, engine: Engine, office: PostOffice, served: Served, observer: EngineObserver) -> None:
        self._engine = engine
        self._office = office
        self._served = served
        self._observer = observer

    def chat(self, http: Request, body: bytes) -> Generation:
        """Answer a conversation."""
        asked = parse(ChatRequest, body)
        self._check_model(asked)
        prompt = self._served.tokenizer.encode_chat([message.plain() for message in asked.messages])
        return self._accept(http, asked, prompt, Form("chat", f"chatcmpl-{uuid.uuid4().hex}", *self._stamp(asked)))

    def completion(self, http: Request, body: bytes) -> Generation:
        """Continue a text, or a list of token ids."""
        asked = parse(CompletionRequest, body)
        self._check_model(asked)
        prompt = self._served.tokenizer.encode(asked.prompt) if isinstance(asked.prompt, str) else asked.prompt
        if any(not 0 <= token < self._served.vocab_size for token in prompt):
            raise RequestError(f"A token id of the prompt is not in 0..{self._served.vocab_size - 1}.", param="prompt")
        return self._accept(http, asked, prompt, Form("text", f"cmpl-{uuid.uuid4().hex}", *self._stamp(asked)))

    def _check_model(self, asked: GenerationRequest) -> None:
        if asked.model != self._served.name:
            message = f"The model {asked.model!r} does not exist here; ask for {self._served.name!r}."
            raise RequestError(message, status=404, code="model_not_found", param="model")

    def _stamp(self, asked: GenerationRequest) -> tuple[str, int, bool]:
        counted = asked.stream_options is not None and asked.stream_options.include_usage
        return self._served.name, int(time.time()), counted

    def _accept(self, http: Request, asked: GenerationRequest, prompt: list[int], form: Form) -> Generation:
        stops, tokenizer = tuple(asked.stop), self._served.tokenizer
        request = EngineRequest(
            self._info(http, form, len(prompt)),
            prompt,
            self._sampling(asked, len(prompt)),
            TextStream(tokenizer, stops).ends if stops else None,
        )
        box = self._office.submit(request)
        text = TextStream(tokenizer, stops)
        return Generation(request, self._office, box, self._observer, form=form, text=text, stream=asked.stream)

    def _sampling(self, asked: GenerationRequest, prompt_tokens: int) -> Sampling:
        room = max(1, self._engine.max_context - prompt_tokens)
        return Sampling(
            max_tokens=asked.answer_limit or room,
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=asked.top_p or 1.0,
            seed=secrets.randbits(63) if asked.seed is None else asked.seed,
            stop_ids=frozenset() if asked.ignore_eos else frozenset(self._served.eos_ids),
        )

    def _info(self, http: Request, form: Form, prompt_tokens: int) -> RequestInfo:
        caller = Caller.from_headers(http.headers)
        return RequestInfo(
            request_id=form.answer_id,
            tenant=caller.tenant,
            feature=caller.feature,
            unit=caller.unit,
            attempt=caller.attempt,
            trace_id=caller.trace_id,
            parent_span_id=caller.parent_span_id,
            model=self._served.name,
            prompt_tokens=prompt_tokens,
            received_ns=http.scope[_RECEIVED],
            enqueued_ns=now_ns(),
            has_server=True,
        )


def _add_generation(app: FastAPI, desk: _Desk) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def chat(http: Request) -> Generation:
        return desk.chat(http, await _body(http))

    @app.post("/v1/completions", response_model=None)
    async def completion(http: Request) -> Generation:
        return desk.completion(http, await _body(http))


def _add_state(app: FastAPI, engine: Engine, served: Served) -> None:
    started = int(time.time())

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        model = {"id": served.name, "object": "model", "created": started, "owned_by": "costspan"}
        return {"object": "list", "data": [{**model, "max_model_len": engine.max_context}]}

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"}) if engine.alive else JSONResponse({"status": "engine stopped"}, 503)

    @app.get("/metrics")
    async def metrics_text() -> PlainTextResponse:
        return PlainTextResponse(metrics.render(engine), media_type=metrics.CONTENT_TYPE)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error_body(error), error.status)

    @app.exception_handler(HTTPException)
    async def unknown(http: Request, error: HTTPException) -> JSONResponse:
        problem = RequestError(f"{http.method} {http.url.path}: {error.detail}.", status=error.status_code, code="unknown_url")
        return JSONResponse(error_body(problem), error.status_code)


async def _body(http: Request) -> bytes:
    body = bytearray()
    async for piece in http.stream():
        body += piece
        if len(body) > _MAX_BODY:
            raise RequestError(f"The body is over {_MAX_BODY >> 20} MiB; send less.", status=413, code="body_too_large")
    return bytes(body)
