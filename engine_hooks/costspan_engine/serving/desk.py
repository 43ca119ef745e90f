"""What callers send, turned into what the engine computes."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
import uuid
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from fastapi import Request

from costspan.clock import now_ns
from costspan_engine.engine import Engine
from costspan_engine.errors import RequestError
from costspan_engine.guide import Guides
from costspan_engine.sequence import Guide, Sampling
from costspan_engine.sequence import Request as EngineRequest
from costspan_engine.serving.answer import Form
from costspan_engine.serving.caller import Caller
from costspan_engine.serving.choice import Choice
from costspan_engine.serving.delivery import Generation, InFlight
from costspan_engine.serving.limits import Gate
from costspan_engine.serving.post import PostOffice
from costspan_engine.serving.protocol import ChatRequest, CompletionRequest, JsonObject, JsonOfSchema, parse
from costspan_engine.serving.text import TextStream
from costspan_engine.tokenizer import Tokenizer
from costspan_hooks.observer import EngineObserver, RequestInfo

RECEIVED = "costspan.received_ns"
"""Where a request's scope says when it came in."""


@dataclass(frozen=True, slots=True)
class Served:
    """The model as callers know it.

    Attributes:
        name: What they ask for.
        tokenizer: Its tokenizer.
        vocab_size: Bound of token ids.
        eos_ids: Tokens that end an answer.
        adapters: LoRA adapters; each is asked for by its own name, as if it were a model.
    """

    name: str
    tokenizer: Tokenizer
    vocab_size: int
    eos_ids: tuple[int, ...]
    adapters: tuple[str, ...] = ()


class Desk:
    """Accepts requests.

    Args:
        engine: Computes.
        office: Where its work is handed in.
        served: What callers may ask for.
        observer: Told of deliveries.
        gate: Whether anybody may come in.
    """

    def __init__(self, engine: Engine, office: PostOffice, served: Served, observer: EngineObserver, gate: Gate) -> None:
        self.in_flight = InFlight()
        self._engine = engine
        self._office = office
        self._served = served
        self._observer = observer
        self._gate = gate

    async def chat(self, http: Request, body: bytes) -> Generation:
        """Answer a conversation."""
        caller = self._admit(http)
        asked = parse(ChatRequest, body)
        self._check_model(asked.model)
        prompt = self._served.tokenizer.encode_chat([message.plain() for message in asked.messages])
        return await self._accept(http, caller, asked, prompt)

    async def completion(self, http: Request, body: bytes) -> Generation:
        """Continue a text, or a list of token ids."""
        caller = self._admit(http)
        asked = parse(CompletionRequest, body)
        self._check_model(asked.model)
        prompt = self._served.tokenizer.encode(asked.prompt) if isinstance(asked.prompt, str) else asked.prompt
        if any(not 0 <= token < self._served.vocab_size for token in prompt):
            raise RequestError(f"A token id of the prompt is not in 0..{self._served.vocab_size - 1}.", param="prompt")
        return await self._accept(http, caller, asked, prompt)

    def _admit(self, http: Request) -> Caller:
        caller = Caller.from_headers(http.headers)
        self._gate.enter(caller.tenant)
        return caller

    def _check_model(self, model: str) -> None:
        names = (self._served.name, *self._served.adapters)
        if model not in names:
            message = f"The model {model!r} does not exist here; ask for {' or '.join(map(repr, names))}."
            raise RequestError(message, status=404, code="model_not_found", param="model")

    async def _accept(
        self, http: Request, caller: Caller, asked: ChatRequest | CompletionRequest, prompt: list[int]
    ) -> Generation:
        form, stops = _form(asked), tuple(asked.stop)
        first = EngineRequest(
            self._info(http, caller, asked, form.answer_id, len(prompt)),
            prompt,
            self._sampling(asked, len(prompt)),
            deadline_ns=self._deadline_ns(http, asked),
        )
        # Compiling a schema may take a second, which the others' answers shall not wait for.
        guides = await asyncio.to_thread(self._make_guides, asked)
        choices = []
        for index, guide in enumerate(guides):
            # Whatever keeps state is a choice's own.
            stop = TextStream(self._served.tokenizer, stops).ends if stops else None
            request = replace(_numbered(first, index), stops=stop, guide=guide)
            choices.append(Choice(index, request, self._served.tokenizer, stops))
        return Generation(
            choices,
            self._office,
            self.in_flight,
            self._observer,
            form=form,
            request_id=http.headers.get("x-request-id", ""),
            stream=bool(asked.stream),
        )

    def _make_guides(self, asked: ChatRequest | CompletionRequest) -> list[Guide | None]:
        """A guide to the format that was asked for, or none, for each choice."""
        choices = range(asked.n or 1)
        match asked.response_format:
            case JsonObject():
                return [self._guides.json_object() for _ in choices]
            case JsonOfSchema(json_schema=wanted):
                return [self._guides.json_schema(wanted.content) for _ in choices]
            case _:
                return [None for _ in choices]

    @cached_property
    def _guides(self) -> Guides:
        return Guides(self._served.tokenizer, self._served.vocab_size, self._served.eos_ids)

    def _sampling(self, asked: ChatRequest | CompletionRequest, prompt_tokens: int) -> Sampling:
        room = max(1, self._engine.max_context - prompt_tokens)
        return Sampling(
            max_tokens=asked.answer_limit or room,
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_k=max(0, asked.top_k or 0),  # vLLM writes -1 for all
            top_p=asked.top_p or 1.0,
            min_p=asked.min_p or 0.0,
            seed=secrets.randbits(63) if asked.seed is None else asked.seed,
            stop_ids=frozenset() if asked.ignore_eos else frozenset(self._served.eos_ids),
            logprobs=asked.likeliest,
        )

    def _deadline_ns(self, http: Request, asked: ChatRequest | CompletionRequest) -> int:
        limits = [seconds for seconds in (asked.timeout, self._gate.limits.timeout_s) if seconds]
        received_ns: int = http.scope[RECEIVED]
        return received_ns + round(min(limits) * 1e9) if limits else 0

    def _info(
        self, http: Request, caller: Caller, asked: ChatRequest | CompletionRequest, answer_id: str, prompt_tokens: int
    ) -> RequestInfo:
        return RequestInfo(
            request_id=answer_id,
            tenant=caller.tenant,
            feature=caller.feature,
            unit=caller.unit,
            attempt=caller.attempt,
            trace_id=caller.trace_id,
            parent_span_id=caller.parent_span_id,
            model=self._served.name,
            prompt_tokens=prompt_tokens,
            received_ns=http.scope[RECEIVED],
            enqueued_ns=now_ns(),
            has_server=True,
            adapter="" if asked.model == self._served.name else asked.model,
            latency_class=asked.latency_class,
            priority=asked.priority,
        )


def _form(asked: ChatRequest | CompletionRequest) -> Form:
    kind: Literal["chat", "text"] = "chat" if isinstance(asked, ChatRequest) else "text"
    options = asked.stream_options
    return Form(
        kind,
        f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}",
        asked.model,
        int(time.time()),
        service_tier=asked.service_tier,
        counted=options is not None and options.include_usage,
        continuous=options is not None and options.include_usage and options.continuous_usage_stats,
    )


def _numbered(request: EngineRequest, index: int) -> EngineRequest:
    """The request of choice ``index``: an id of its own, and a seed of its own that follows from the caller's."""
    if not index:
        return request
    digest = hashlib.blake2b(f"{request.sampling.seed}:{index}".encode(), digest_size=8).digest()
    return replace(
        request,
        info=replace(request.info, request_id=f"{request.info.request_id}-{index}"),
        sampling=replace(request.sampling, seed=int.from_bytes(digest, "big") >> 1),
    )
