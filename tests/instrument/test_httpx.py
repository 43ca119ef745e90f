"""The event hooks, on real httpx and openai clients against a real server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import httpx2
import openai
import pytest

import costspan
from costspan import semconv
from costspan.integrations.httpx import async_hooks, hooks
from tests.receiver import Answer, Delivered, Receiver, Span, read_baggage

ANSWER = {
    "id": "1",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}


def request_of(receiver: Receiver, path: str) -> Delivered:
    (request,) = [request for request in receiver.requests if request.path == path]
    return request


def assert_joined(request: Delivered, span: Span) -> None:
    assert request.headers["traceparent"].split("-")[1:3] == [span.trace_id, span.span_id]
    baggage = read_baggage(request.headers["baggage"])
    assert (baggage[semconv.TENANT], baggage[semconv.ATTEMPT]) == ("acme", "1")
    stamps = (semconv.CALL_START, semconv.CALL_SENT, semconv.CALL_HEADERS, semconv.CALL_END)
    order = [int(span.attributes[key]) for key in stamps]
    assert order == sorted(order)


@pytest.mark.parametrize("library", [httpx, httpx2])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_hooks(traced: Receiver, asynchronous: bool, library: Any) -> None:
    async def post() -> None:
        async with library.AsyncClient(event_hooks=async_hooks()) as http:
            await http.post(f"{traced.endpoint}/chat", content=b"hi")

    with costspan.unit("ticket", "T-1", tenant="acme"), costspan.generation(model="m", provider="p"):
        if asynchronous:
            asyncio.run(post())
        else:
            with library.Client(event_hooks=hooks()) as http:
                http.post(f"{traced.endpoint}/chat", content=b"hi")
    assert_joined(request_of(traced, "/chat"), traced.span("chat m"))


def test_openai_client(traced: Receiver) -> None:
    traced.script = [Answer(body=json.dumps(ANSWER), headers={"Content-Type": "application/json"})]
    with httpx2.Client(event_hooks=hooks()) as http:
        client = openai.OpenAI(api_key="none", base_url=traced.endpoint, http_client=http, max_retries=0)
        with costspan.unit("ticket", "T-1", tenant="acme"), costspan.generation(model="m", provider="openai") as call:
            answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
            assert answer.usage is not None
            call.usage(input_tokens=answer.usage.prompt_tokens, output_tokens=answer.usage.completion_tokens)
    assert_joined(request_of(traced, "/chat/completions"), traced.span("chat m"))


def test_openais_timeout_is_a_timeout(traced: Receiver) -> None:
    def hang(_request: httpx2.Request) -> None:
        raise httpx2.ReadTimeout("slow")

    with httpx2.Client(event_hooks={"request": [hang]}) as http:
        client = openai.OpenAI(api_key="none", base_url=traced.endpoint, http_client=http, max_retries=0)
        with pytest.raises(openai.APITimeoutError), costspan.generation(model="m", provider="openai"):
            client.models.list()
    span = traced.span("chat m")
    assert (span.outcome, span.attributes[semconv.CALL_ABORT]) == ("timeout", span.end_ns)


def test_requests_outside_a_call_are_left_alone(traced: Receiver) -> None:
    with httpx.Client(event_hooks=hooks()) as http:
        http.post(f"{traced.endpoint}/other", content=b"hi")
    assert "traceparent" not in request_of(traced, "/other").headers
    assert traced.spans() == []
