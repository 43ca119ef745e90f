"""httpx and httpx2, with event hooks and instrumented, and clients built on them, against real servers."""

from __future__ import annotations

import asyncio
import gzip
import http.server
import json
import threading
from typing import Any

import httpx
import httpx2
import openai
import pytest

import costspan
from costspan import semconv
from costspan.integrations.httpx import async_hooks, hooks
from tests.instrument.test_anthropic import MESSAGE
from tests.instrument.test_openai import BROKEN, DELTAS, WHOLE
from tests.model_server import ModelServer, Reply, sse
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


CALL = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_what_is_posted_to_a_model_api_is_a_call(instrumented: Receiver, model: ModelServer, library: Any) -> None:
    events = sse(DELTAS, done=True)
    model.replies = [Reply(WHOLE), Reply(events=events), Reply(events=events), Reply(events=events, then="hang"), BROKEN]
    url = f"{model.url}/v1/chat/completions"
    with costspan.unit("ticket", "T-1", tenant="acme"), library.Client() as http:
        assert http.post(url, json=CALL).json()["id"] == "c-1"
        with http.stream("POST", url, json=CALL) as response:
            assert len(list(response.iter_lines())) > 3
        with http.stream("POST", url, json=CALL) as response:
            assert len(b"".join(response.iter_raw())) > 100
        with http.stream("POST", url, json=CALL) as response:
            next(response.iter_lines())
        assert http.post(url, json=CALL).status_code == 500
    spans = [span for span in instrumented.spans() if span.name == "chat m"]
    assert [span.outcome for span in spans] == ["ok", "ok", "ok", "cancelled", "error"]
    assert [span.attributes[semconv.CALL_DELIVERED] for span in spans[:3]] == [20, 2, 2]
    assert [span.attributes[semconv.TENANT] for span in spans] == ["acme"] * 5
    assert [span.attributes.get(semconv.GEN_AI_RESPONSE_ID) for span in spans] == ["c-1"] * 4 + [None]
    assert [asked.headers["traceparent"].split("-")[2] for asked in model.asked] == [span.span_id for span in spans]


def test_async_posts(instrumented: Receiver, model: ModelServer) -> None:
    model.replies = [Reply(MESSAGE), Reply(events=sse(DELTAS, done=True)), Reply(events=sse(DELTAS[:2]), then="hang")]

    async def main() -> None:
        async with httpx.AsyncClient(timeout=5) as http:
            await http.post(f"{model.url}/v1/messages", json=CALL)
            async with http.stream("POST", f"{model.url}/v1/chat/completions", json=CALL) as response:
                await response.aread()
            async with http.stream("POST", f"{model.url}/v1/chat/completions", json=CALL, timeout=0.2) as response:
                with pytest.raises(httpx.ReadTimeout):
                    await response.aread()

    asyncio.run(main())
    spans = instrumented.spans()
    assert [(span.outcome, span.attributes[semconv.CALL_DELIVERED]) for span in spans] == [("ok", 7), ("ok", 2), ("timeout", 2)]
    assert spans[0].attributes[semconv.GEN_AI_INPUT_TOKENS] == 33


def test_a_compressed_answer(instrumented: Receiver) -> None:
    body = gzip.compress(json.dumps(ANSWER).encode())

    class Compressed(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002  (the base class names it so)

    with http.server.HTTPServer(("127.0.0.1", 0), Compressed) as server:
        threading.Thread(target=server.handle_request).start()
        with httpx.stream("POST", f"http://127.0.0.1:{server.server_port}/v1/chat/completions", json=CALL) as response:
            assert json.loads(response.read()) == ANSWER
    (span,) = instrumented.spans()
    assert (span.outcome, span.attributes[semconv.GEN_AI_OUTPUT_TOKENS]) == ("ok", 2)


def test_other_requests_are_left_alone(instrumented: Receiver, model: ModelServer) -> None:
    model.replies = [Reply({})]
    with costspan.unit("ticket", "T-1", tenant="acme"), httpx.Client() as http:
        http.post(f"{model.url}/v1/chat/completions/c-1", json=CALL)
        http.post(f"{model.url}/v1/chat/completions", json={"no": "model"})
        http.post(f"{model.url}/v1/chat/completions", content=iter([b"{", b"}"]), headers={"Content-Length": "2"})
    assert [span.name for span in instrumented.spans()] == ["unit ticket"]
    assert all(not {"traceparent", "baggage"} & asked.headers.keys() for asked in model.asked)


def test_hooks_beside_the_instrumentation(instrumented: Receiver, model: ModelServer) -> None:
    model.replies = [Reply(WHOLE)]
    with costspan.generation(model="m", provider="p"), httpx.Client(event_hooks=hooks()) as http:
        http.post(f"{model.url}/v1/chat/completions", json=CALL)
    assert [(span.outcome, span.attributes[semconv.ATTEMPT]) for span in instrumented.spans()] == [("ok", 1)]


def test_retries_are_told_apart_by_the_hooks(traced: Receiver, model: ModelServer) -> None:
    model.replies = [BROKEN, Reply(WHOLE)]
    with httpx2.Client(event_hooks=hooks()) as http:
        client = openai.OpenAI(api_key="none", base_url=model.url, http_client=http, max_retries=1)
        with costspan.generation(model="m", provider="p") as call:
            answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
            assert answer.usage is not None
            call.usage(output_tokens=answer.usage.completion_tokens)
    assert [span.outcome for span in traced.spans()] == ["error", "ok"]
    assert [asked.headers["traceparent"].split("-")[2] for asked in model.asked] == [span.span_id for span in traced.spans()]
