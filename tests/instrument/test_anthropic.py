"""anthropic's clients, instrumented, against a server that speaks its protocol."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from costspan import semconv
from tests.model_server import ModelServer, Reply, sse
from tests.receiver import Receiver, Span

READ = {"input_tokens": 3, "cache_read_input_tokens": 10, "cache_creation_input_tokens": 20, "output_tokens": 1}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-2",
    "content": [{"type": "text", "text": "to be"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {**READ, "output_tokens": 7},
}
START: dict[str, Any] = {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None, "usage": READ}}
BLOCK: dict[str, Any] = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}


def delta(kind: str, **content: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": kind, **content}}


DELTAS = [delta("text_delta", text=word) for word in ("to ", "be", "!")]
USED = {"output_tokens": 7, "output_tokens_details": {"thinking_tokens": 2}}
END: list[dict[str, Any]] = [
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": USED},
    {"type": "message_stop"},
]
WHOLE = Reply(events=sse([START, BLOCK, *DELTAS, *END], named=True))
CUT = Reply(events=sse([START, BLOCK, *DELTAS[:2]], named=True), then="cut")
HANGING = Reply(events=sse([START, BLOCK, *DELTAS[:2]], named=True), then="hang")
BUSY = Reply(
    {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, status=529, headers={"retry-after-ms": "1"}
)
ASKED: Any = {"model": "claude", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}
COUNTS = (
    semconv.GEN_AI_INPUT_TOKENS,
    semconv.GEN_AI_CACHE_READ_TOKENS,
    semconv.GEN_AI_CACHE_WRITE_TOKENS,
    semconv.GEN_AI_OUTPUT_TOKENS,
    semconv.GEN_AI_REASONING_TOKENS,
)


@pytest.fixture
def client(model: ModelServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=model.url, api_key="none", timeout=5) as client:
        yield client


def ended(receiver: Receiver) -> list[tuple[str, int]]:
    return [(span.outcome, int(span.attributes[semconv.CALL_DELIVERED])) for span in receiver.spans()]


def counts(span: Span) -> list[int]:
    return [int(span.attributes[key]) for key in COUNTS]


def test_a_message_in_one_piece(client: anthropic.Anthropic, model: ModelServer, instrumented: Receiver) -> None:
    model.replies = [Reply(MESSAGE)]
    assert client.messages.create(**ASKED).content
    (span,) = instrumented.spans()
    assert ended(instrumented) == [("ok", 7)]
    assert counts(span) == [33, 10, 20, 7, 0]  # Anthropic's input leaves the cached out
    assert span.attributes[semconv.GEN_AI_RESPONSE_ID] == "msg_1"
    assert span.attributes[semconv.GEN_AI_RESPONSE_MODEL] == "claude-2"
    assert span.attributes[semconv.GEN_AI_REQUEST_MODEL] == "claude"
    assert span.attributes[semconv.GEN_AI_FINISH_REASONS] == "end_turn"
    assert model.asked[0].headers["traceparent"].split("-")[2] == span.span_id


def test_a_stream_read_to_its_end(client: anthropic.Anthropic, model: ModelServer, instrumented: Receiver) -> None:
    model.replies = [WHOLE]
    stream = client.messages.create(**ASKED, stream=True)
    assert isinstance(stream, anthropic.Stream)
    assert len(list(stream)) == 8
    with client.messages.stream(**ASKED) as helper:
        assert helper.get_final_message().usage.output_tokens == 7
    with client.messages.stream(**ASKED) as helper:
        assert "".join(helper.text_stream) == "to be!"
    with client.messages.with_streaming_response.create(**ASKED, stream=True) as response:
        response.read()
    with client.beta.messages.stream(**ASKED) as beta:
        beta.until_done()
    assert ended(instrumented) == [("ok", 3)] * 5
    assert [counts(span) for span in instrumented.spans()] == [[33, 10, 20, 7, 2]] * 5


def leave_the_loop(client: anthropic.Anthropic) -> None:
    next(event for event in client.messages.create(**ASKED, stream=True) if event.type == "content_block_delta")


def close_it(client: anthropic.Anthropic) -> None:
    stream = client.messages.create(**ASKED, stream=True)
    while next(stream).type != "content_block_delta":
        pass
    stream.close()


def leave_the_helper(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**ASKED) as stream:
        next(stream.text_stream)


@pytest.mark.parametrize("leave", [leave_the_loop, close_it, leave_the_helper])
def test_a_stream_that_is_left(
    leave: Callable[[anthropic.Anthropic], None], client: anthropic.Anthropic, model: ModelServer, instrumented: Receiver
) -> None:
    model.replies = [HANGING]
    leave(client)
    gc.collect()
    (span,) = instrumented.spans()
    assert ended(instrumented) == [("cancelled", 1)]
    assert span.attributes[semconv.CALL_ABORT] == span.end_ns
    assert counts(span)[:3] == [33, 10, 20]  # what it read was said at its start


def test_streams_that_fail(client: anthropic.Anthropic, model: ModelServer, instrumented: Receiver) -> None:
    model.replies = [CUT, HANGING, Reply(events=sse([START, BLOCK, DELTAS[0], BUSY.body], named=True))]
    with pytest.raises(Exception, match="peer closed"):
        list(client.messages.create(**ASKED, stream=True))
    with pytest.raises(Exception, match="timed out"):
        list(client.with_options(timeout=0.2).messages.create(**ASKED, stream=True))
    with pytest.raises(anthropic.APIStatusError):
        list(client.messages.create(**ASKED, stream=True))
    client.messages.create(**ASKED, stream=True).close()
    assert ended(instrumented) == [("error", 2), ("timeout", 2), ("error", 1), ("abandoned", 0)]


def test_the_clients_own_retries_are_attempts(client: anthropic.Anthropic, model: ModelServer, instrumented: Receiver) -> None:
    model.replies = [BUSY, WHOLE]
    list(client.messages.create(**ASKED, stream=True))
    assert ended(instrumented) == [("error", 0), ("ok", 3)]
    spans = instrumented.spans()
    assert [span.attributes[semconv.HTTP_STATUS] for span in spans] == [529, 200]
    assert [asked.headers["traceparent"].split("-")[2] for asked in model.asked] == [span.span_id for span in spans]


def test_async_streams(model: ModelServer, instrumented: Receiver) -> None:
    model.replies = [Reply(MESSAGE), WHOLE, HANGING]

    async def main() -> None:
        async with anthropic.AsyncAnthropic(base_url=model.url, api_key="none") as client:
            await client.messages.create(**ASKED)
            async for _ in await client.messages.create(**ASKED, stream=True):
                pass
            async with client.messages.stream(**ASKED) as stream:
                async for _ in stream.text_stream:
                    break
            reading = asyncio.Event()

            async def read() -> None:
                async with client.messages.stream(**ASKED) as stream:
                    async for _ in stream.text_stream:
                        reading.set()

            task = asyncio.create_task(read())
            await reading.wait()
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert ended(instrumented) == [("ok", 7), ("ok", 3), ("cancelled", 1), ("cancelled", 2)]


def test_the_clients_own_spans_stay_the_apps(model: ModelServer, instrumented: Receiver) -> None:
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    model.replies = [Reply(MESSAGE), WHOLE]
    traced: Any = {"open_telemetry": {"tracer_provider": provider}}
    in_a_request = provider.get_tracer("app").start_as_current_span("request")
    with in_a_request, anthropic.Anthropic(base_url=model.url, api_key="none", **traced) as client:
        client.messages.create(**ASKED)
        list(client.messages.create(**ASKED, stream=True))
    *theirs, request = kept.get_finished_spans()
    assert [(span.attributes or {})[semconv.GEN_AI_RESPONSE_ID] for span in theirs] == ["msg_1", "msg_1"]
    ours = instrumented.spans()
    assert [span.outcome for span in ours] == ["ok", "ok"]
    assert {span.trace_id for span in ours} == {f"{request.context.trace_id:032x}"}
    assert {span.parent_id for span in ours} == {f"{request.context.span_id:016x}"}
