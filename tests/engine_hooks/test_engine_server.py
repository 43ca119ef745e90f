"""The server over a real socket, with httpx and OpenAI's own client."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from costspan import semconv
from costspan.semconv import Outcome
from costspan_engine.settings import EngineConfig
from tests.engine_hooks.engine_fixtures import CountingExecutor, Live, serving, until

CONFIG = EngineConfig(max_num_seqs=2, max_batched_tokens=64, kv_blocks=64, block_size=4)
CHAT: dict[str, Any] = {"model": "mini", "messages": [{"role": "user", "content": "A"}]}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving(CountingExecutor(0.001), CONFIG, max_context=200) as server:
        yield server


@pytest.fixture
def ask(live: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat(ask: OpenAI) -> None:
    answer = ask.chat.completions.create(
        model="mini", messages=[{"role": "user", "content": [{"type": "text", "text": "AB"}]}], max_completion_tokens=3
    )
    # The last token of the prompt is 259, and the executor counts on from it: 4, 5, 6.
    assert answer.choices[0].message.content == "\x04\x05\x06"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 3, 8)


def test_chat_stream(ask: OpenAI) -> None:
    stream = ask.chat.completions.create(
        model="mini",
        messages=[{"role": "user", "content": "A"}],
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert [chunk.choices[0].delta.content for chunk in chunks[:-1]] == ["\x04", "\x05", "\x06", "\x07"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None, None, None, "length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4


def test_completion_of_text_of_tokens_and_from_the_cache(ask: OpenAI) -> None:
    by_text = ask.completions.create(model="mini", prompt="hello, abcdefghA", max_tokens=3)
    assert by_text.choices[0].text == "BCD"
    by_tokens = ask.completions.create(model="mini", prompt=[*b"hello, abcdefghA"], max_tokens=3)
    assert by_tokens.choices[0].text == "BCD"
    assert by_tokens.usage is not None
    assert by_tokens.usage.prompt_tokens_details is not None
    assert by_tokens.usage.prompt_tokens_details.cached_tokens == 12


def test_stream_ends_with_done(live: Live) -> None:
    body = {"model": "mini", "prompt": "A", "max_tokens": 2, "stream": True}
    with httpx.stream("POST", f"{live.url}/v1/completions", json=body) as response:
        assert response.headers["content-type"] == "text/event-stream"
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert [json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1]] == ["B", "C"]


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_the_work_not_only_the_text(live: Live, ask: OpenAI, stream: bool) -> None:
    before = live.engine.totals.output_tokens
    asked: dict[str, Any] = {"model": "mini", "prompt": "A", "max_tokens": 50, "stop": ["ZZ", "EFG"]}
    if stream:
        chunks = list(ask.completions.create(**asked, stream=True))
        text, reason = "".join(chunk.choices[0].text for chunk in chunks), chunks[-1].choices[0].finish_reason
    else:
        answer = ask.completions.create(**asked)
        text, reason = answer.choices[0].text, answer.choices[0].finish_reason
    assert (text, reason) == ("BCD", "stop")
    assert live.engine.totals.output_tokens - before == 6


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "says"),
    [
        ("completions", {"model": "gpt", "prompt": "A"}, 404, "model_not_found", "ask for 'mini'"),
        ("completions", {"prompt": "A"}, 400, "invalid_value", "model: Field required"),
        ("completions", {"model": "mini"}, 400, "invalid_value", "prompt: Field required"),
        ("completions", {"model": "mini", "prompt": ""}, 400, "invalid_value", "prompt is empty"),
        ("completions", {"model": "mini", "prompt": "A" * 300}, 400, "context_length_exceeded", "200 tokens"),
        ("completions", {"model": "mini", "prompt": "A", "max_tokens": 200}, 400, "context_length_exceeded", "200 tokens"),
        ("completions", {"model": "mini", "prompt": [260]}, 400, "invalid_value", "0..259"),
        ("completions", {"model": "mini", "prompt": [-1]}, 400, "invalid_value", "0..259"),
        ("completions", {"model": "mini", "prompt": ["A", "B"]}, 400, "invalid_value", "prompt"),
        ("completions", {"model": "mini", "prompt": "A", "temperature": 9}, 400, "invalid_value", "temperature"),
        ("completions", {"model": "mini", "prompt": "A", "temperature": -1}, 400, "invalid_value", "temperature"),
        ("completions", {"model": "mini", "prompt": "A", "top_p": 0}, 400, "invalid_value", "top_p"),
        ("completions", {"model": "mini", "prompt": "A", "max_tokens": 0}, 400, "invalid_value", "max_tokens"),
        ("completions", {"model": "mini", "prompt": "A", "max_tokens": "9"}, 400, "invalid_value", "max_tokens"),
        ("completions", {"model": "mini", "prompt": "A", "stop": [""]}, 400, "invalid_value", "stop"),
        ("completions", {"model": "mini", "prompt": "A", "stop": 0}, 400, "invalid_value", "stop"),
        ("completions", {"model": "mini", "prompt": "A", "stop": {}}, 400, "invalid_value", "stop"),
        ("completions", {"model": "mini", "prompt": "A", "n": 17}, 400, "invalid_value", "n: "),
        ("completions", {"model": "mini", "prompt": "A", "n": 0}, 400, "invalid_value", "n: "),
        ("completions", {"model": "mini", "prompt": "A", "best_of": 2}, 400, "unsupported_value", "does not serve best_of"),
        ("completions", {"model": "mini", "prompt": "A", "top_k": -2}, 400, "invalid_value", "top_k"),
        ("completions", {"model": "mini", "prompt": "A", "min_p": 1.5}, 400, "invalid_value", "min_p"),
        ("completions", {"model": "mini", "prompt": "A", "seed": 2**64}, 400, "invalid_value", "seed"),
        ("completions", {"model": "mini", "prompt": "A", "logprobs": 21}, 400, "invalid_value", "logprobs"),
        ("completions", {"model": "mini", "prompt": "A", "priority": "high"}, 400, "invalid_value", "priority"),
        ("completions", {"model": "mini", "prompt": "A", "service_tier": "gold"}, 400, "invalid_value", "service_tier"),
        ("completions", {"model": "mini", "prompt": "A", "timeout": 0}, 400, "invalid_value", "timeout"),
        ("completions", {"model": "mini", "prompt": "A", "stream_options": {}}, 400, "invalid_value", "stream_options"),
        (
            "completions",
            {"model": "mini", "prompt": "A", "response_format": {"type": "xml"}},
            400,
            "invalid_value",
            "json_object",
        ),
        ("chat/completions", {**CHAT, "top_logprobs": 2}, 400, "invalid_value", "logprobs to true"),
        ("chat/completions", {**CHAT, "logprobs": 2}, 400, "invalid_value", "logprobs"),
        ("chat/completions", {**CHAT, "tools": [{"type": "function"}]}, 400, "unsupported_value", "does not serve tools"),
        ("chat/completions", {**CHAT, "tool_choice": "required"}, 400, "unsupported_value", "does not serve tool_choice"),
        (
            "chat/completions",
            {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            400,
            "invalid_value",
            "schema",
        ),
        (
            "chat/completions",
            {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "banana"}}}},
            400,
            "invalid_json_schema",
            "cannot be used",
        ),
        (
            "chat/completions",
            {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": []}}}},
            400,
            "invalid_json_schema",
            "cannot be used",
        ),
        ("chat/completions", {"model": "mini", "messages": []}, 400, "invalid_value", "messages"),
        ("chat/completions", {"model": "mini", "messages": [{"role": "cat", "content": "A"}]}, 400, "invalid_value", "role"),
        ("chat/completions", "{broken", 400, "invalid_json", "not valid JSON"),
        ("chat/completions", "[]", 400, "invalid_json", "JSON object"),
        ("completions", '{"model": "mini", "prompt": "A", "temperature": NaN}', 400, "invalid_value", "temperature"),
        ("nothing", {}, 404, "unknown_url", "/v1/nothing"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(live: Live, path: str, body: Any, *, status: int, code: str, says: str) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    response = httpx.post(f"{live.url}/v1/{path}", content=content)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"


def test_the_official_client_understands_the_errors(ask: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist here"):
        ask.completions.create(model="gpt", prompt="A")
    with pytest.raises(openai.BadRequestError) as refusal:
        ask.completions.create(model="mini", prompt="A", temperature=2.5)
    assert (refusal.value.code, refusal.value.param) == ("invalid_value", "temperature")


def test_models_health_and_metrics(live: Live, ask: OpenAI) -> None:
    assert [model.id for model in ask.models.list()] == ["mini"]
    assert httpx.get(f"{live.url}/health").json() == {"status": "ok"}
    text = httpx.get(f"{live.url}/metrics").text
    assert re.search(r"^costspan_engine_kv_blocks_available 64$", text, re.MULTILINE)
    assert re.search(r'^costspan_engine_requests_total\{outcome="ok"\} [1-9]', text, re.MULTILINE)
    assert re.search(r'^costspan_engine_requests_waiting\{latency_class="batch"\} 0$', text, re.MULTILINE)
    assert all(re.fullmatch(r"# (HELP|TYPE) .+|\w+(\{\w+=\"\w+\"\})? [0-9.e+-]+", line) for line in text.splitlines())


def test_who_asks_reaches_the_observer_and_delivery_is_told(live: Live) -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {
        "traceparent": f"00-{trace_id}-{span_id}-01",
        "baggage": f"{semconv.TENANT}=acme,{semconv.FEATURE}=chat,{semconv.UNIT}=t1,{semconv.ATTEMPT}=2",
    }
    answer = httpx.post(f"{live.url}/v1/completions", json={"model": "mini", "prompt": "AB", "max_tokens": 3}, headers=headers)
    request_id = answer.json()["id"]
    [info] = [info for info in live.observer.all("enqueued") if info.request_id == request_id]
    assert (info.tenant, info.feature, info.unit, info.attempt) == ("acme", "chat", "t1", 2)
    assert (info.trace_id, info.parent_span_id, info.model, info.prompt_tokens) == (trace_id, span_id, "mini", 2)
    assert info.has_server
    assert info.received_ns < info.enqueued_ns
    until(lambda: _closed(live, request_id))
    sent_ns, delivered = _closed(live, request_id)[0]
    assert delivered == 3
    assert sent_ns > live.observer.removal(request_id).at_ns


def _closed(live: Live, request_id: str) -> list[tuple[int, int]]:
    return [(sent_ns, delivered) for each, sent_ns, delivered in live.observer.all("closed") if each == request_id]


def test_a_disconnect_in_the_middle_of_a_stream() -> None:
    with serving(CountingExecutor(0.005), CONFIG) as live:
        body = {"model": "mini", "prompt": "A", "max_tokens": 200, "stream": True}
        with httpx.stream("POST", f"{live.url}/v1/completions", json=body) as response:
            lines = response.iter_lines()
            read = [next(lines) for _ in range(7)]
        until(lambda: live.observer.all("removed"))
        [removal] = live.observer.all("removed")
        assert removal.outcome is Outcome.CANCELLED
        assert removal.output_tokens < 100
        assert removal.disconnect_step >= live.observer.steps()[-1].index
        assert removal.at_ns - removal.disconnect_ns < 500e6
        until(lambda: live.observer.all("closed"))
        [(sent_ns, delivered)] = _closed(live, removal.request_id)
        assert sent_ns == removal.disconnect_ns
        assert sum(line.startswith("data") for line in read) <= delivered <= removal.output_tokens
        assert live.engine.scheduler.blocks.used == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_while_queued_or_waiting_for_a_whole_answer(stream: bool) -> None:
    config = EngineConfig(max_num_seqs=1, max_batched_tokens=64, kv_blocks=64, block_size=4)
    with serving(CountingExecutor(0.01), config) as live:
        body = {"model": "mini", "prompt": "A", "max_tokens": 200, "stream": stream}
        with _asking(live, body):
            until(live.observer.steps)
            with _asking(live, body):
                until(lambda: len(live.observer.all("enqueued")) == 2)
            until(lambda: live.observer.all("removed"))
            assert len(live.observer.all("admitted")) == 1, "the second was meant to wait in the queue"
            assert live.engine.scheduler.blocks.used > 0
        until(lambda: len(live.observer.all("closed")) == 2)
        until(lambda: len(live.observer.all("removed")) == 2)
        assert live.engine.scheduler.blocks.used == 0
    queued, running = live.observer.all("removed")
    assert queued.outcome is running.outcome is Outcome.CANCELLED
    assert queued.output_tokens == 0 < running.output_tokens < 100
    assert _closed(live, queued.request_id) == [(queued.disconnect_ns, 0)]
    [(sent_ns, delivered)] = _closed(live, running.request_id)
    assert sent_ns == running.disconnect_ns
    assert (0 < delivered <= running.output_tokens) if stream else delivered == 0


def _asking(live: Live, body: dict[str, Any]) -> socket.socket:
    """A connection over which a request was sent; closing it is leaving."""
    content = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", int(live.url.rsplit(":", 1)[1])))
    head = f"POST /v1/completions HTTP/1.1\r\nhost: here\r\ncontent-length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def test_a_failed_step_is_a_500_or_an_error_event() -> None:
    executor = CountingExecutor()
    with serving(executor, CONFIG) as live:
        executor.fail_next = True
        body: dict[str, Any] = {"model": "mini", "prompt": "A", "max_tokens": 3}
        answer = httpx.post(f"{live.url}/v1/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        executor.fail_next = True
        lines = httpx.post(f"{live.url}/v1/completions", json=body | {"stream": True}).text.split("\n\n")
        assert json.loads(lines[0][6:])["error"]["code"] == "engine_error"
        assert lines[1] == "data: [DONE]"
        assert httpx.post(f"{live.url}/v1/completions", json=body).json()["choices"][0]["text"] == "BCD"


def test_stopping_the_server_lets_finish_what_is_in_flight() -> None:
    with httpx.Client() as client:
        with serving(CountingExecutor(0.01), CONFIG) as live:
            body = {"model": "mini", "prompt": "A", "max_tokens": 20, "stream": True}
            request = client.build_request("POST", f"{live.url}/v1/completions", json=body)
            response = client.send(request, stream=True)
            until(live.observer.steps)
            stopping = len(live.observer.steps())
        assert response.read().count(b"data: ") == 21
    assert live.observer.all("removed")[0].outcome is Outcome.OK
    assert stopping < len(live.observer.steps()) == 20
    assert live.observer.events[-1][0] == "stopped"


def test_a_client_that_leaves_while_it_sends_its_request(caplog: pytest.LogCaptureFixture) -> None:
    with serving(CountingExecutor(), CONFIG) as live:
        with socket.create_connection(("127.0.0.1", int(live.url.rsplit(":", 1)[1]))) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: here\r\ncontent-length: 100\r\n\r\n{")
            assert httpx.get(f"{live.url}/health").status_code == 200
        assert httpx.get(f"{live.url}/health").status_code == 200
    assert not caplog.records


def test_errors_and_answers_carry_the_callers_id(live: Live) -> None:
    headers = {"x-request-id": "mine"}
    for body in ({"model": "mini", "prompt": "A", "max_tokens": 1}, {"model": "gpt", "prompt": "A"}):
        assert httpx.post(f"{live.url}/v1/completions", json=body, headers=headers).headers["x-request-id"] == "mine"
    answer = httpx.post(f"{live.url}/v1/completions", json={"model": "mini", "prompt": "A", "max_tokens": 1})
    assert answer.headers["x-request-id"] == answer.json()["id"]


def test_a_wrong_method_is_told_the_right_one(live: Live) -> None:
    refused = httpx.get(f"{live.url}/v1/completions")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert refused.json()["error"]["code"] == "unknown_url"
