"""litellm, instrumented, against the bundled engine and against a server that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest

import costspan
from costspan import semconv
from tests.engine_hooks.engine_fixtures import Live
from tests.instrument.test_anthropic import MESSAGE
from tests.instrument.test_openai import BROKEN, DELTAS, WHOLE
from tests.model_server import ModelServer, Reply, sse
from tests.receiver import Receiver

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its import asks the internet for prices otherwise

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince211")  # litellm's own
MESSAGES: Any = [{"role": "user", "content": "Say something."}]


@pytest.fixture(scope="module")
def litellm() -> Any:
    import litellm  # it takes seconds

    litellm.suppress_debug_info = True
    return litellm


@pytest.fixture(autouse=True)
def loop() -> Iterator[None]:
    """An event loop for litellm, which makes one of its own otherwise and leaves it open."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture
def asked(engine: Live) -> dict[str, Any]:
    return {"model": "openai/mini", "api_base": f"{engine.url}/v1", "api_key": "none", "messages": MESSAGES}


@pytest.fixture
def oddly(model: ModelServer) -> dict[str, Any]:
    return {"model": "openai/m", "api_base": f"{model.url}/v1", "api_key": "none", "messages": MESSAGES}


def without_messages(asked: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in asked.items() if key != "messages"}


def ended(receiver: Receiver) -> list[tuple[str, int]]:
    return [(span.outcome, int(span.attributes[semconv.CALL_DELIVERED])) for span in receiver.spans()]


def test_a_call_counts_once(litellm: Any, asked: dict[str, Any], instrumented: Receiver) -> None:
    answer = litellm.completion(**asked, max_tokens=6)
    assert len(list(litellm.completion(**asked, max_tokens=6, stream=True))) >= 6
    litellm.text_completion(**without_messages(asked), prompt="hi", max_tokens=6)
    assert ended(instrumented) == [("ok", 6)] * 3
    span = instrumented.spans()[0]
    assert span.attributes[semconv.GEN_AI_REQUEST_MODEL] == "mini"
    assert span.attributes[semconv.GEN_AI_PROVIDER] == "costspan"
    assert span.attributes[semconv.GEN_AI_RESPONSE_ID] == answer.id
    assert span.attributes[semconv.GEN_AI_OUTPUT_TOKENS] == 6
    assert int(span.attributes[semconv.CALL_SENT]) < int(span.attributes[semconv.CALL_HEADERS])


def test_streams_that_are_left(litellm: Any, asked: dict[str, Any], instrumented: Receiver) -> None:
    stream = litellm.completion(**asked, max_tokens=400, stream=True)
    assert isinstance(stream, litellm.CustomStreamWrapper)
    for _ in stream:
        break
    for _ in stream:  # it had only paused
        break
    del stream
    litellm.completion(**asked, max_tokens=1)  # litellm keeps what it made last
    gc.collect()
    span, _ = sorted(instrumented.spans(), key=lambda span: span.start_ns)
    assert span.outcome == "cancelled"
    assert span.attributes[semconv.CALL_ABORT] == span.end_ns


def test_errors(litellm: Any, oddly: dict[str, Any], model: ModelServer, instrumented: Receiver) -> None:
    model.replies = [
        BROKEN,
        BROKEN,
        Reply(WHOLE),
        Reply(events=sse(DELTAS[:2]), then="cut"),
        Reply(events=sse(DELTAS[:2]), then="hang"),
    ]
    with pytest.raises(litellm.InternalServerError):
        litellm.completion(**oddly, max_retries=0)
    litellm.completion(**oddly, max_retries=1)
    with pytest.raises(Exception, match=r"peer closed|Connection"):
        list(litellm.completion(**oddly, max_retries=0, stream=True))
    with pytest.raises(litellm.Timeout):
        list(litellm.completion(**oddly, max_retries=0, stream=True, timeout=0.3))
    assert ended(instrumented) == [("error", 0), ("error", 0), ("ok", 20), ("error", 2), ("timeout", 2)]
    assert [span.attributes[semconv.ATTEMPT] for span in instrumented.spans()] == [1, 1, 2, 1, 1]


def test_a_provider_that_it_calls_by_itself(litellm: Any, model: ModelServer, instrumented: Receiver) -> None:
    model.replies = [Reply(MESSAGE)]
    litellm.completion(model="anthropic/claude-3-haiku-20240307", api_base=model.url, api_key="none", messages=MESSAGES)
    (span,) = instrumented.spans()
    assert ended(instrumented) == [("ok", 7)]
    assert span.attributes[semconv.GEN_AI_INPUT_TOKENS] == 33
    assert span.attributes[semconv.GEN_AI_CACHE_READ_TOKENS] == 10
    assert span.attributes[semconv.GEN_AI_CACHE_WRITE_TOKENS] == 20
    assert model.asked[0].headers["traceparent"].split("-")[2] == span.span_id


@pytest.mark.parametrize(
    ("model", "served"),
    [
        ("gpt-4o", ("gpt-4o", "openai")),
        ("azure/mine", ("mine", "azure.ai.openai")),
        ("bedrock/anthropic.claude-v2", ("anthropic.claude-v2", "aws.bedrock")),
        ("vertex_ai/gemini-2.0-flash", ("gemini-2.0-flash", "gcp.vertex_ai")),
        ("nobody/knows", ("nobody/knows", "unknown")),
    ],
)
def test_who_serves_a_model(
    litellm: Any, model: str, served: tuple[str, str], instrumented: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(litellm.BadRequestError):
        litellm.completion(model=model, messages=MESSAGES, mock_response="to be")
    (span,) = instrumented.spans()
    assert (span.attributes[semconv.GEN_AI_REQUEST_MODEL], span.attributes[semconv.GEN_AI_PROVIDER]) == served
    assert capsys.readouterr().out == ""


def test_embeddings(litellm: Any, oddly: dict[str, Any], model: ModelServer, instrumented: Receiver) -> None:
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    vectors = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
    model.replies = [Reply({"object": "list", "model": "e-2", "data": vectors, "usage": usage})]
    litellm.embedding(**without_messages(oddly) | {"model": "openai/e"}, input=["hi"])
    (span,) = instrumented.spans()
    assert (span.name, span.outcome, span.attributes[semconv.GEN_AI_INPUT_TOKENS]) == ("embeddings e", "ok", 9)


def test_what_a_provider_says_of_a_stream(
    litellm: Any, oddly: dict[str, Any], model: ModelServer, instrumented: Receiver
) -> None:
    aside = {**DELTAS[0], "choices": [], "usage": WHOLE["usage"]}
    model.replies = [Reply(events=sse([*DELTAS, aside], done=True))]
    list(litellm.completion(**oddly, stream=True, stream_options={"include_usage": True}))
    (span,) = instrumented.spans()
    assert ended(instrumented) == [("ok", 2)]
    assert span.attributes[semconv.GEN_AI_OUTPUT_TOKENS] == 20


def test_async_calls(litellm: Any, asked: dict[str, Any], instrumented: Receiver) -> None:
    async def main() -> None:
        await litellm.acompletion(**asked, max_tokens=6)
        async for _ in await litellm.acompletion(**asked, max_tokens=6, stream=True):
            pass
        closed = await litellm.acompletion(**asked, max_tokens=400, stream=True)
        async for _ in closed:
            break
        await closed.aclose()
        reading = asyncio.Event()

        async def read() -> None:
            async for _ in await litellm.acompletion(**asked, max_tokens=400, stream=True):
                reading.set()

        task = asyncio.create_task(read())
        await reading.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert ended(instrumented)[:2] == [("ok", 6)] * 2
    assert [outcome for outcome, _ in ended(instrumented)[2:]] == ["cancelled"] * 2


def test_a_call_of_the_apps_own_is_used(litellm: Any, asked: dict[str, Any], instrumented: Receiver) -> None:
    with costspan.generation(model="mini", provider="mine"):
        list(litellm.completion(**asked, max_tokens=6, stream=True))
    assert ended(instrumented) == [("ok", 6)]
