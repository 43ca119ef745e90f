"""openai's clients, instrumented: against the bundled engine, and against a server that misbehaves."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest

import costspan
from costspan import semconv
from tests.engine_hooks.engine_fixtures import Live
from tests.model_server import ModelServer, Reply, sse
from tests.receiver import Receiver, Span, read_baggage

MESSAGES: Any = [{"role": "user", "content": "Say something."}]
CHUNK = {"id": "c-1", "object": "chat.completion.chunk", "created": 0, "model": "m-2", "usage": None}
WHOLE = {
    "id": "c-1",
    "object": "chat.completion",
    "created": 0,
    "model": "m-2",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
    "usage": {
        "prompt_tokens": 50,
        "completion_tokens": 20,
        "total_tokens": 70,
        "prompt_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 10},
        "completion_tokens_details": {"reasoning_tokens": 15},
    },
}
REFUSED = Reply({"error": {"message": "busy"}}, status=429, headers={"retry-after-ms": "1"})
BROKEN = Reply({"error": {"message": "broken"}}, status=500, headers={"retry-after-ms": "1"})
USAGE = (semconv.GEN_AI_INPUT_TOKENS, semconv.GEN_AI_OUTPUT_TOKENS)


def delta(text: str, finish_reason: str | None = None) -> dict[str, Any]:
    return {**CHUNK, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}]}


DELTAS = [delta("to "), delta("be "), delta("", "stop")]


@pytest.fixture
def client(engine: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def odd(model: ModelServer) -> Iterator[openai.OpenAI]:
    """A client of a server that answers as it is told."""
    with openai.OpenAI(base_url=f"{model.url}/v1", api_key="none", max_retries=2, timeout=5) as client:
        yield client


def only(receiver: Receiver) -> Span:
    (span,) = receiver.spans()
    return span


def delivered(span: Span) -> tuple[str, int]:
    return span.outcome, int(span.attributes[semconv.CALL_DELIVERED])


def chat(client: openai.OpenAI, tokens: int = 6) -> openai.Stream[Any]:
    return client.chat.completions.create(model="mini", messages=MESSAGES, max_tokens=tokens, stream=True)


def test_an_answer_in_one_piece(client: openai.OpenAI, instrumented: Receiver) -> None:
    with costspan.unit("ticket", "T-1", tenant="acme"):
        answer = client.chat.completions.create(model="mini", messages=MESSAGES, max_tokens=6)
    (span,) = [span for span in instrumented.spans() if span.name == "chat mini"]
    assert answer.usage is not None
    assert delivered(span) == ("ok", 6)
    assert span.attributes[semconv.TENANT] == "acme"
    assert span.attributes[semconv.GEN_AI_OPERATION] == "chat"
    assert span.attributes[semconv.GEN_AI_PROVIDER] == "costspan"
    assert span.attributes[semconv.GEN_AI_RESPONSE_ID] == answer.id
    assert span.attributes[semconv.GEN_AI_RESPONSE_MODEL] == "mini"
    assert span.attributes[semconv.GEN_AI_FINISH_REASONS] == "length"
    assert [span.attributes[key] for key in USAGE] == [answer.usage.prompt_tokens, 6]
    stamps = (semconv.CALL_START, semconv.CALL_SENT, semconv.CALL_HEADERS, semconv.CALL_LAST, semconv.CALL_END)
    order = [int(span.attributes[key]) for key in stamps]
    assert order == sorted(order)


def test_the_engine_is_told_whose_call_it_is(odd: openai.OpenAI, model: ModelServer, instrumented: Receiver) -> None:
    model.replies = [Reply(WHOLE)]
    with costspan.unit("ticket", "T-1", tenant="acme"):
        odd.chat.completions.create(model="m", messages=MESSAGES)
    (span,) = [span for span in instrumented.spans() if span.name == "chat m"]
    headers = model.asked[0].headers
    assert headers["traceparent"].split("-")[1:3] == [span.trace_id, span.span_id]
    assert read_baggage(headers["baggage"])[semconv.TENANT] == "acme"


def test_every_count_of_the_usage_block(odd: openai.OpenAI, model: ModelServer, instrumented: Receiver) -> None:
    model.replies = [Reply(WHOLE)]
    odd.chat.completions.create(model="m", messages=MESSAGES)
    counts = (*USAGE, semconv.GEN_AI_CACHE_READ_TOKENS, semconv.GEN_AI_CACHE_WRITE_TOKENS, semconv.GEN_AI_REASONING_TOKENS)
    assert [only(instrumented).attributes[key] for key in counts] == [50, 20, 30, 10, 15]


def test_a_stream_read_to_its_end(client: openai.OpenAI, instrumented: Receiver) -> None:
    stream = chat(client)
    assert isinstance(stream, openai.Stream)
    assert isinstance(stream.response, httpx2.Response)
    chunks = list(stream)
    span = only(instrumented)
    assert delivered(span) == ("ok", 6)
    assert span.attributes[semconv.GEN_AI_RESPONSE_ID] == chunks[0].id
    assert span.attributes[semconv.GEN_AI_FINISH_REASONS] == "length"
    assert semconv.CALL_ABORT not in span.attributes
    assert not set(USAGE) & span.attributes.keys()  # nobody asked the engine for it


def test_a_stream_that_says_what_it_used(client: openai.OpenAI, instrumented: Receiver) -> None:
    asked = client.chat.completions.create(
        model="mini", messages=MESSAGES, max_tokens=6, stream=True, stream_options={"include_usage": True}
    )
    last = list(asked)[-1]
    assert last.usage is not None  # the app asked for it, and gets it
    assert [only(instrumented).attributes[key] for key in USAGE] == [last.usage.prompt_tokens, 6]


def take(stream: Any, count: int) -> list[Any]:
    return [item for item, _ in zip(stream, range(count), strict=False)]


def leave_the_loop(client: openai.OpenAI) -> Any:
    stream = chat(client, 400)
    for _ in stream:
        break
    return stream


def close_it(client: openai.OpenAI) -> Any:
    stream = chat(client, 400)
    next(stream)
    stream.close()
    return stream


def leave_the_block(client: openai.OpenAI) -> Any:
    with chat(client, 400) as stream:
        next(stream)
    return stream


def leave_the_helper(client: openai.OpenAI) -> Any:
    with client.chat.completions.stream(model="mini", messages=MESSAGES, max_tokens=400) as stream:
        next(event for event in stream if event.type == "content.delta")


def leave_the_lines(client: openai.OpenAI) -> Any:
    create = client.chat.completions.with_streaming_response.create
    with create(model="mini", messages=MESSAGES, max_tokens=400, stream=True) as response:
        next(line for line in response.iter_lines() if line.startswith("data:"))


@pytest.mark.parametrize("leave", [leave_the_loop, close_it, leave_the_block, leave_the_helper, leave_the_lines])
def test_a_stream_that_is_left(leave: Callable[[openai.OpenAI], Any], client: openai.OpenAI, instrumented: Receiver) -> None:
    kept = leave(client)
    del kept  # where it is neither closed nor dropped, there may be another loop over it
    gc.collect()
    span = only(instrumented)
    outcome, tokens = delivered(span)
    assert outcome == "cancelled"
    assert 1 <= tokens < 400
    assert span.attributes[semconv.CALL_ABORT] == span.end_ns
    assert not set(USAGE) & span.attributes.keys()


def test_the_abort_is_when_the_loop_was_left(client: openai.OpenAI, instrumented: Receiver) -> None:
    stream = chat(client, 400)
    for _ in stream:
        break
    left_ns = costspan.clock.now_ns()
    stream.close()
    assert int(only(instrumented).attributes[semconv.CALL_ABORT]) <= left_ns


def test_a_loop_that_is_taken_up_again(client: openai.OpenAI, instrumented: Receiver) -> None:
    stream = chat(client)
    for _ in stream:
        break
    for _ in stream:
        pass
    assert delivered(only(instrumented)) == ("ok", 6)
    assert semconv.CALL_ABORT not in only(instrumented).attributes


def test_a_stream_closed_before_its_first_token(odd: openai.OpenAI, model: ModelServer, instrumented: Receiver) -> None:
    model.replies = [Reply(events=sse(DELTAS, done=True))]
    chat(odd).close()
    assert delivered(only(instrumented)) == ("abandoned", 0)


def test_a_stop_button_on_another_thread(odd: openai.OpenAI, model: ModelServer, instrumented: Receiver) -> None:
    model.replies = [Reply(events=sse(DELTAS[:2]), then="hang")]
    stream = chat(odd.with_options(timeout=0.5))
    threading.Timer(0.1, stream.close).start()
    with pytest.raises(Exception):  # noqa: B017, PT011  (httpx2 does not promise which)
        list(stream)
    assert delivered(only(instrumented)) == ("cancelled", 2)


def test_a_stream_that_the_server_cuts(odd: openai.OpenAI, model: ModelServer, instrumented: Receiver) -> None:
    model.replies = [Reply(events=sse(DELTAS[:2]), then="cut")]
    with pytest.raises(openai.APIConnectionError):
        list(chat(odd))
    span = only(instrumented)
    assert delivered(span) == ("error", 2)
    assert span.message.startswith("APIConnectionError")


def test_a_stream_that_stalls(odd: openai.OpenAI, model: ModelServer, instrumented: Receiver) -> None:
    model.replies = [Reply(events=sse(DELTAS[:2]), then="hang")]
    with pytest.raises(openai.APITimeoutError):
        list(chat(odd.with_options(timeout=0.2)))
    assert delivered(only(instrumented)) == ("timeout", 2)


def test_the_clients_own_retries_are_attempts(odd: openai.OpenAI, model: ModelServer, instrumented: Receiver) -> None:
    model.replies = [REFUSED, BROKEN, Reply(WHOLE)]
    odd.chat.completions.create(model="m", messages=MESSAGES)
    spans = instrumented.spans()
    assert [span.outcome for span in spans] == ["error", "error", "ok"]
    assert [span.attributes[semconv.ATTEMPT] for span in spans] == [1, 2, 3]
    assert [span.attributes[semconv.HTTP_STATUS] for span in spans] == [429, 500, 200]
    assert len({span.attributes[semconv.OPERATION] for span in spans}) == 1
    sent = [asked.headers["traceparent"].split("-")[2] for asked in model.asked]
    assert sent == [span.span_id for span in spans]
    assert [read_baggage(asked.headers["baggage"])[semconv.ATTEMPT] for asked in model.asked] == ["1", "2", "3"]


def test_a_call_that_fails_for_good(odd: openai.OpenAI, model: ModelServer, instrumented: Receiver) -> None:
    model.replies = [BROKEN]
    with pytest.raises(openai.InternalServerError):
        odd.with_options(max_retries=1).chat.completions.create(model="m", messages=MESSAGES)
    assert [span.outcome for span in instrumented.spans()] == ["error", "error"]


def test_helpers_and_raw_responses(client: openai.OpenAI, instrumented: Receiver) -> None:
    completions = client.chat.completions
    asked: Any = {"model": "mini", "messages": MESSAGES, "max_tokens": 6}
    with completions.stream(**asked) as stream:
        stream.until_done()
    assert completions.with_raw_response.create(**asked).parse().choices
    raw: Any = completions.with_raw_response.create(**asked, stream=True)
    assert len(list(raw.parse())) >= 6
    with completions.with_streaming_response.create(**asked) as response:
        response.json()
    with completions.with_streaming_response.create(**asked, stream=True) as response:
        assert len(list(response.iter_lines())) >= 6
    assert [delivered(span) for span in instrumented.spans()] == [("ok", 6)] * 5


def test_a_raw_response_that_is_dropped(odd: openai.OpenAI, model: ModelServer, instrumented: Receiver) -> None:
    model.replies = [Reply(events=sse(DELTAS), then="hang")]
    response: Any = odd.chat.completions.with_raw_response.create(model="m", messages=MESSAGES, stream=True)
    assert response.http_response.status_code == 200
    del response
    gc.collect()
    assert delivered(only(instrumented)) == ("abandoned", 0)


def test_azure(model: ModelServer, instrumented: Receiver) -> None:
    model.replies = [Reply(WHOLE)]
    with openai.AzureOpenAI(azure_endpoint=model.url, api_key="none", api_version="2026-01-01") as client:
        client.chat.completions.create(model="deployed", messages=MESSAGES)
    assert model.asked[0].path.startswith("/openai/deployments/deployed/chat/completions")
    assert (only(instrumented).name, delivered(only(instrumented))) == ("chat deployed", ("ok", 20))


def test_text_completions(client: openai.OpenAI, instrumented: Receiver) -> None:
    client.completions.create(model="mini", prompt="hi", max_tokens=6)
    list(client.completions.create(model="mini", prompt="hi", max_tokens=6, stream=True))
    spans = instrumented.spans()
    assert [delivered(span) for span in spans] == [("ok", 6)] * 2
    assert {span.attributes[semconv.GEN_AI_OPERATION] for span in spans} == {"text_completion"}


def test_embeddings(odd: openai.OpenAI, model: ModelServer, instrumented: Receiver) -> None:
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    vectors = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
    model.replies = [Reply({"object": "list", "model": "e-2", "data": vectors, "usage": usage})]
    odd.embeddings.create(model="e", input="hi", encoding_format="float")
    span = only(instrumented)
    assert (span.name, span.outcome) == ("embeddings e", "ok")
    assert span.attributes[semconv.GEN_AI_OPERATION] == "embeddings"
    assert [span.attributes[key] for key in USAGE] == [9, 0]


def test_responses(odd: openai.OpenAI, model: ModelServer, instrumented: Receiver) -> None:
    usage = {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 7,
    }
    response = {"id": "r-1", "object": "response", "model": "m-2", "created_at": 0, "output": [], "parallel_tool_calls": False}
    response |= {"tool_choice": "auto", "tools": []}
    begun, done = response | {"status": "in_progress"}, response | {"status": "completed", "usage": usage}
    where = {"item_id": "i", "output_index": 0, "content_index": 0, "logprobs": []}
    events = [
        {"type": "response.created", "sequence_number": 0, "response": begun},
        *({"type": "response.output_text.delta", "sequence_number": 1, "delta": word, **where} for word in ("to", "be")),
        {"type": "response.completed", "sequence_number": 2, "response": done},
    ]
    model.replies = [Reply(done), Reply(events=sse(events, named=True)), Reply(events=sse(events[:2], named=True), then="cut")]
    odd.responses.create(model="m", input="hi")
    list(odd.responses.create(model="m", input="hi", stream=True))
    with pytest.raises(openai.APIConnectionError):
        list(odd.responses.create(model="m", input="hi", stream=True))
    spans = instrumented.spans()
    assert [delivered(span) for span in spans] == [("ok", 2), ("ok", 2), ("error", 1)]
    assert {span.attributes[semconv.GEN_AI_RESPONSE_ID] for span in spans} == {"r-1"}
    assert [span.attributes.get(semconv.GEN_AI_FINISH_REASONS) for span in spans] == ["completed", "completed", None]
    assert [span.attributes.get(semconv.GEN_AI_INPUT_TOKENS) for span in spans] == [5, 5, None]


def test_async_streams(engine: Live, instrumented: Receiver) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0) as client:

            async def ask(tokens: int) -> openai.AsyncStream[Any]:
                return await client.chat.completions.create(model="mini", messages=MESSAGES, max_tokens=tokens, stream=True)

            whole = await ask(6)
            assert isinstance(whole, openai.AsyncStream)
            async for _ in whole:
                pass
            closed = await ask(400)
            async for _ in closed:
                break
            await closed.close()
            reading = asyncio.Event()

            async def read() -> None:
                async for _ in await ask(400):
                    reading.set()

            task = asyncio.create_task(read())
            await reading.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(read(), 0.1)
            async with client.chat.completions.stream(model="mini", messages=MESSAGES, max_tokens=400) as stream:
                async for event in stream:
                    if event.type == "content.delta":
                        break

    asyncio.run(main())
    gc.collect()
    ended = [delivered(span) for span in instrumented.spans()]
    assert ended[0] == ("ok", 6)
    assert [outcome for outcome, _ in ended[1:]] == ["cancelled"] * 4
    assert all(1 <= tokens < 400 for _, tokens in ended[1:])


def test_a_task_that_is_cancelled_while_nothing_has_come(instrumented: Receiver) -> None:
    async def main(port: int) -> None:
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
            asking = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asking, 0.2)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(main(silent.getsockname()[1]))
    assert delivered(only(instrumented)) == ("abandoned", 0)


def test_a_server_that_does_not_answer(instrumented: Receiver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        client = openai.OpenAI(base_url=url, api_key="none", timeout=0.1, max_retries=1)
        with client, pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="m", messages=MESSAGES)
    spans = instrumented.spans()
    assert [delivered(span) for span in spans] == [("timeout", 0)] * 2
    assert spans[1].start_ns == spans[0].end_ns  # what the client waited in between is the second's


def test_a_stream_read_after_its_call(client: openai.OpenAI, instrumented: Receiver) -> None:
    with costspan.generation(model="mini", provider="mine"):
        stream = chat(client)
    assert len(list(stream)) >= 6
    assert only(instrumented).outcome == "ok"  # as far as anybody said


def test_the_consumer_is_not_in_the_call(client: openai.OpenAI, model: ModelServer, instrumented: Receiver) -> None:
    model.replies = [Reply({})]
    with httpx2.Client() as http:
        for _ in chat(client):
            http.post(f"{model.url}/tool", json={})
    assert all("traceparent" not in asked.headers and "baggage" not in asked.headers for asked in model.asked)
    assert len(instrumented.spans()) == 1


def test_a_call_of_the_apps_own_is_used(client: openai.OpenAI, instrumented: Receiver) -> None:
    with costspan.generation(model="mini", provider="mine"):
        list(chat(client))
    with costspan.generation(model="mini", provider="mine") as call:
        list(call.meter(chat(client), tokens=lambda _chunk: 10))
    with costspan.generation(model="mini", provider="mine"):
        client.chat.completions.create(model="mini", messages=MESSAGES, max_tokens=6)
    spans = instrumented.spans()
    assert {span.attributes[semconv.GEN_AI_PROVIDER] for span in spans} == {"mine"}
    outcomes, tokens = zip(*map(delivered, spans), strict=True)
    assert outcomes == ("ok", "ok", "ok")
    assert (tokens[0], tokens[2]) == (6, 6)
    assert tokens[1] >= 60  # the app counts its own way
    assert all(semconv.GEN_AI_RESPONSE_ID in span.attributes for span in spans)


class Routed(httpx2.HTTPTransport):
    """The network, were a name of the internet's on loopback."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=self._port)
        return super().handle_request(request)


@pytest.fixture
def public(model: ModelServer) -> Iterator[openai.OpenAI]:
    """A client of OpenAI itself, as far as it knows."""
    with httpx2.Client(transport=Routed(model.port)) as http, openai.OpenAI(api_key="none", http_client=http) as client:
        yield client


def test_openai_is_asked_what_a_stream_used(public: openai.OpenAI, model: ModelServer, instrumented: Receiver) -> None:
    aside = {**CHUNK, "choices": [], "usage": WHOLE["usage"]}
    model.replies = [Reply(events=sse([*DELTAS, aside], done=True))]
    assert len(list(chat(public))) == 3  # not the one that costspan asked for
    assert model.asked[0].body["stream_options"] == {"include_usage": True}
    span = only(instrumented)
    assert delivered(span) == ("ok", 2)
    assert span.attributes[semconv.GEN_AI_PROVIDER] == "openai"
    assert [span.attributes[key] for key in USAGE] == [50, 20]


def test_an_app_that_decided_for_itself_is_obeyed(public: openai.OpenAI, model: ModelServer, instrumented: Receiver) -> None:
    model.replies = [Reply(events=sse(DELTAS, done=True))]
    options: Any = {"include_usage": False}
    list(public.chat.completions.create(model="m", messages=MESSAGES, stream=True, stream_options=options))
    with public.chat.completions.with_streaming_response.create(model="m", messages=MESSAGES, stream=True) as response:
        response.read()
    assert [asked.body.get("stream_options") for asked in model.asked] == [options, None]
    assert [span.outcome for span in instrumented.spans()] == ["ok", "ok"]


EVENTS = {"content-type": "text/event-stream"}


class Events(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body that says whether it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return (event.encode() for event in sse(DELTAS))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for event in self:
            yield event

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        self.closed += 1


def test_a_stream_that_the_garbage_collector_finds_is_closed(instrumented: Receiver) -> None:
    body = Events()
    http = httpx2.Client(transport=httpx2.MockTransport(lambda _request: httpx2.Response(200, stream=body)))
    with openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="none", http_client=http) as client:
        for _ in chat(client):
            break
        gc.collect()
        assert body.closed
    assert delivered(only(instrumented)) == ("cancelled", 1)


def test_a_raw_body_that_is_dropped_in_the_middle_is_closed(instrumented: Receiver) -> None:
    body = Events()
    http = httpx2.Client(transport=httpx2.MockTransport(lambda _request: httpx2.Response(200, headers=EVENTS, stream=body)))
    with openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="none", http_client=http) as client:
        asked = client.chat.completions.with_streaming_response.create(model="m", messages=MESSAGES, stream=True)
        for _ in asked.__enter__().iter_lines():
            break
        del asked
        gc.collect()
        assert body.closed
    assert delivered(only(instrumented)) == ("cancelled", 1)


def test_an_async_stream_that_the_garbage_collector_finds_is_closed(
    instrumented: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    body = Events()

    async def main() -> None:
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(lambda _request: httpx2.Response(200, stream=body)))
        async with openai.AsyncOpenAI(base_url="http://127.0.0.1/v1", api_key="none", http_client=http) as client:
            stream: Any = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
            async for _ in stream:
                break
            del stream
            for _ in range(5):
                await asyncio.sleep(0)
                gc.collect()
            assert body.closed

    asyncio.run(main())
    assert delivered(only(instrumented)) == ("cancelled", 1)
    assert caplog.records == []
