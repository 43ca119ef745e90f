"""All that OpenAI's own client can ask for, over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx
import openai
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from pydantic import BaseModel, Field
from tokenizers import AddedToken, decoders, models

from costspan.clock import now_ns
from costspan.semconv import LatencyClass, Outcome
from costspan_engine.engine import Engine, Output
from costspan_engine.models.presets import byte_tokenizer
from costspan_engine.null_observer import NullObserver
from costspan_engine.serving.answer import Form
from costspan_engine.serving.choice import Choice
from costspan_engine.serving.delivery import Generation, InFlight
from costspan_engine.serving.desk import Served
from costspan_engine.serving.post import PostOffice
from costspan_engine.serving.text import Reasoning
from costspan_engine.settings import EngineConfig
from costspan_engine.tokenizer import Tokenizer
from tests.engine_hooks.engine_fixtures import CountingExecutor, Live, request, serving, torch_executor, until

CONFIG = EngineConfig(max_num_seqs=8, max_batched_tokens=128, kv_blocks=512, block_size=4)
MESSAGES: Any = [{"role": "user", "content": "Say something."}]


class Step(BaseModel):
    number: int = Field(ge=0, le=99)
    kind: Literal["add", "drop"]


class Plan(BaseModel):
    steps: list[Step] = Field(max_length=2)
    done: bool


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving(torch_executor(CONFIG), CONFIG) as server:
        yield server


@pytest.fixture(scope="module")
def counting() -> Iterator[Live]:
    served = Served("mini", byte_tokenizer(), 260, (256,), adapters=("acme/tuned",))
    with serving(CountingExecutor(0.002), CONFIG, served=served) as server:
        yield server


@pytest.fixture
def ask(live: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def count(counting: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{counting.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_logprobs_of_a_chat(ask: OpenAI) -> None:
    answer = ask.chat.completions.create(
        model="mini", messages=MESSAGES, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert bytes(byte for each in logprobs.content for byte in each.bytes or ()).decode(errors="replace") == (
        answer.choices[0].message.content
    )
    for each in logprobs.content:
        assert len(each.top_logprobs) == 3
        assert [each.logprob, each.bytes] == [each.top_logprobs[0].logprob, each.top_logprobs[0].bytes], "greedy"
        assert each.logprob < 0
        assert each.token == bytes(each.bytes or ()).decode(errors="replace")
    stream = ask.chat.completions.create(
        model="mini", messages=MESSAGES, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3, stream=True
    )
    streamed = [token for chunk in stream for token in (chunk.choices[0].logprobs and chunk.choices[0].logprobs.content) or ()]
    assert [each.bytes for each in streamed] == [each.bytes for each in logprobs.content]
    assert [each.logprob for each in streamed] == pytest.approx([each.logprob for each in logprobs.content], abs=1e-4)


def test_logprobs_of_a_completion(ask: OpenAI) -> None:
    answer = ask.completions.create(model="mini", prompt="Once", max_tokens=6, temperature=0, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    tokens, offsets = logprobs.tokens or [], logprobs.text_offset or []
    assert "".join(tokens) == answer.choices[0].text
    assert offsets == [sum(map(len, tokens[:place])) for place in range(len(tokens))]
    for token, logprob, top in zip(tokens, logprobs.token_logprobs or [], logprobs.top_logprobs or [], strict=True):
        assert max(top.values()) == top[token] == logprob
    assert ask.completions.create(model="mini", prompt="Once", max_tokens=1).choices[0].logprobs is None


def test_sampling_is_the_seeds(ask: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "mini", "prompt": "Once", "max_tokens": 12, "extra_body": {"top_k": 50, "min_p": 0.01}}
    first, again, other = (ask.completions.create(**asked, seed=seed).choices[0].text for seed in (1, 1, 2))
    assert first == again != other
    greedy = ask.completions.create(model="mini", prompt="Once", max_tokens=12, temperature=0).choices[0].text
    assert ask.completions.create(**{**asked, "extra_body": {"top_k": 1}}, seed=3).choices[0].text == greedy


def test_choices_share_the_prompt_and_have_seeds_of_their_own(live: Live, ask: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "mini", "prompt": "A long enough prompt to be cached", "max_tokens": 8, "n": 3, "seed": 5}
    answer = ask.completions.create(**asked)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.text for choice in answer.choices}) == 3
    assert answer.choices[0].text == ask.completions.create(**{**asked, "n": 1}).choices[0].text
    usage = answer.usage
    assert usage is not None
    assert usage.prompt_tokens == 33
    assert usage.completion_tokens == sum(live.observer.removal(each).output_tokens for each in _ids(answer.id, 3))
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 0
    cached = {each.request_id: each.cached_tokens for each in live.observer.all("admitted")}
    assert [cached[each] for each in _ids(answer.id, 3)] == [0, 32, 32]
    texts = ["", "", ""]
    order = []
    for chunk in ask.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
        order.append(chunk.choices[0].index)
    assert texts == [choice.text for choice in answer.choices]
    assert order != sorted(order), "they come side by side"
    until(lambda: len(live.observer.all("closed")) == len(live.observer.all("enqueued")))
    closed = [each for each, _, _ in live.observer.all("closed")]
    assert len(closed) == len(set(closed))


def _ids(answer_id: str, count: int) -> list[str]:
    return [answer_id if index == 0 else f"{answer_id}-{index}" for index in range(count)]


def test_an_answer_of_a_pydantic_model(ask: OpenAI) -> None:
    for seed in range(3):
        parsed = ask.chat.completions.parse(
            model="mini", messages=MESSAGES, max_tokens=300, seed=seed, response_format=Plan
        ).choices[0]
        assert parsed.finish_reason == "stop"
        assert isinstance(parsed.message.parsed, Plan)


def test_json_schemas_of_choices_and_streams(ask: OpenAI) -> None:
    schema = {"type": "object", "properties": {"x": {"enum": ["aa", "b"]}}, "required": ["x"], "additionalProperties": False}
    answer = ask.chat.completions.create(
        model="mini",
        messages=MESSAGES,
        n=3,
        max_tokens=100,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )
    assert {json.loads(choice.message.content or "")["x"] for choice in answer.choices} <= {"aa", "b"}
    stream = ask.chat.completions.create(
        model="mini", messages=MESSAGES, max_tokens=40, stream=True, response_format={"type": "json_object"}
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream).lstrip().startswith("{")


def test_usage_in_every_chunk(count: OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}  # the second is vLLM's
    chunks = list(
        count.chat.completions.create(model="mini", messages=MESSAGES, max_tokens=3, stream=True, stream_options=options)
    )
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [1, 2, 3, 3]
    assert chunks[-1].choices == []


def test_tiers_and_priorities(counting: Live, count: OpenAI) -> None:
    answer = count.chat.completions.create(
        model="mini", messages=MESSAGES, max_tokens=1, service_tier="flex", extra_body={"priority": -3}
    )
    assert answer.service_tier == "flex"
    info = _info(counting, answer.id)
    assert (info.latency_class, info.priority) == (LatencyClass.BATCH, -3)
    answer = count.chat.completions.create(model="mini", messages=MESSAGES, max_tokens=1)
    assert answer.service_tier is None
    assert _info(counting, answer.id).latency_class is LatencyClass.INTERACTIVE


def _info(live: Live, request_id: str) -> Any:
    [info] = [info for info in live.observer.all("enqueued") if info.request_id == request_id]
    return info


def test_adapters_are_asked_for_by_name(counting: Live, count: OpenAI) -> None:
    listed = {model.id: (model.model_extra or {}).get("parent") for model in count.models.list()}
    assert listed == {"mini": None, "acme/tuned": "mini"}
    assert count.models.retrieve("acme/tuned").id == "acme/tuned"
    with pytest.raises(openai.NotFoundError):
        count.models.retrieve("other")
    answer = count.completions.create(model="acme/tuned", prompt="A", max_tokens=1)
    assert answer.model == "acme/tuned"
    info = _info(counting, answer.id)
    assert (info.model, info.adapter) == ("mini", "acme/tuned")


@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_answer_is_what_was_made_so_far(stream: bool) -> None:
    with serving(CountingExecutor(0.01), CONFIG) as live, ThreadPoolExecutor() as threads:
        body = {"model": "mini", "prompt": "A", "max_tokens": 400, "ignore_eos": True, "n": 2, "stream": stream}
        headers = {"x-request-id": "mine/1"}
        asked = threads.submit(httpx.post, f"{live.url}/v1/completions", json=body, headers=headers, timeout=30)
        until(lambda: live.engine.totals.output_tokens > 5)
        said = httpx.post(f"{live.url}/v1/requests/mine/1/cancel")
        assert (said.status_code, said.json()["cancelled"]) == (200, True)
        answer = asked.result()
        assert (answer.status_code, answer.headers["x-request-id"]) == (200, "mine/1")
        if stream:
            chunks = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
            ends = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["finish_reason"]]
            text = "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"][0]["index"] == 0)
            assert answer.text.endswith("data: [DONE]\n\n")
        else:
            ends = answer.json()["choices"]
            text = ends[0]["text"]
        assert [end["finish_reason"] for end in ends] == ["abort", "abort"]
        assert text.startswith("BCDEF")
        again = httpx.post(f"{live.url}/v1/requests/mine/1/cancel")
        assert (again.status_code, again.json()["error"]["code"]) == (404, "request_not_found")
    assert [removal.outcome for removal in live.observer.all("removed")] == [Outcome.CANCELLED] * 2
    made = {removal.request_id: removal.output_tokens for removal in live.observer.all("removed")}
    assert {request_id: delivered for request_id, _, delivered in live.observer.all("closed")} == made


def test_cancelled_before_its_first_token() -> None:
    executor = CountingExecutor()
    executor.gate.clear()
    with serving(executor, CONFIG) as live, ThreadPoolExecutor() as threads:
        body = {"model": "mini", "prompt": "A", "n": 2, "stream_options": None}
        asked = threads.submit(httpx.post, f"{live.url}/v1/completions", json=body, headers={"x-request-id": "x"}, timeout=30)
        until(lambda: live.observer.all("admitted"))
        assert httpx.post(f"{live.url}/v1/requests/x/cancel").status_code == 200
        executor.gate.set()
        assert [choice["finish_reason"] for choice in asked.result().json()["choices"]] == ["abort", "abort"]
    assert len(live.observer.all("enqueued")) == len(live.observer.all("closed")) == 1


def test_a_choice_that_is_cancelled_twice_ends_once() -> None:
    engine = Engine(CountingExecutor(), CONFIG, max_context=512, observer=NullObserver(), started_ns=now_ns())
    sent: list[dict[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(dict(message))

    async def receive() -> dict[str, Any]:
        return await asyncio.Future()

    async def answer() -> None:
        office, in_flight, loop = PostOffice(engine), InFlight(), asyncio.get_running_loop()
        choices = [Choice(index, request([65], name=f"c{index}"), byte_tokenizer(), ()) for index in range(3)]
        form = Form("text", "c0", "mini", 0)
        generation = Generation(choices, office, in_flight, NullObserver(), form=form, request_id="mine", stream=True)
        # Both before anything of it was delivered, as two requests that come in at a time may.
        assert in_flight.cancel("mine")
        assert in_flight.cancel("c0")

        def deliver(outputs: list[Output]) -> None:
            loop.call_soon_threadsafe(office.sort, outputs)

        engine.start(deliver)
        await generation({}, receive, send)
        assert in_flight.none.is_set()
        await asyncio.to_thread(engine.stop)

    asyncio.run(answer())
    events = b"".join(message.get("body", b"") for message in sent).decode().split("\n\n")
    ends = [json.loads(event[6:])["choices"][0]["index"] for event in events if event.startswith("data: {")]
    assert sorted(ends) == [0, 1, 2]


def test_closing_a_stream_cancels_every_choice() -> None:
    with serving(CountingExecutor(0.005), CONFIG) as live:
        with OpenAI(base_url=f"{live.url}/v1", api_key="none") as client:
            stream = client.completions.create(
                model="mini", prompt="A", max_tokens=400, n=3, stream=True, extra_body={"ignore_eos": True}
            )
            seen: set[int] = set()
            while len(seen) < 3:
                seen.add(next(stream).choices[0].index)
            stream.close()
        until(lambda: len(live.observer.all("closed")) == 3)
        until(lambda: len(live.observer.all("removed")) == 3)
        assert live.engine.scheduler.blocks.used == 0
    assert {removal.outcome for removal in live.observer.all("removed")} == {Outcome.CANCELLED}


def _thinking() -> Tokenizer:
    inner = tokenizers.Tokenizer(
        models.BPE(vocab={f"<0x{byte:02X}>": byte for byte in range(256)}, merges=[], byte_fallback=True)
    )
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens([AddedToken(text, special=True) for text in ("<end>", "<think>", "</think>")])
    return Tokenizer(inner, "{{ messages[0].content }}<think>")


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_counted_from_where_the_template_opens_it(stream: bool) -> None:
    # The executor counts on from the prompt's last token, which is <think>: 2, 3, ... 9; then nothing closes it.
    served = Served("mini", _thinking(), 259, (256,))
    with (
        serving(CountingExecutor(), CONFIG, served=served) as live,
        OpenAI(base_url=f"{live.url}/v1", api_key="none") as client,
    ):
        if stream:
            options: Any = {"include_usage": True}
            *_, last = client.chat.completions.create(
                model="mini", messages=MESSAGES, max_tokens=8, stream=True, stream_options=options
            )
            usage = last.usage
        else:
            usage = client.chat.completions.create(model="mini", messages=MESSAGES, max_tokens=8).usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 8


@given(st.lists(st.sampled_from([1, 2, 3, 9]), max_size=12), st.lists(st.sampled_from([1, 2, 3, 9]), max_size=12))
def test_reasoning_is_what_lies_between_the_marks(prompt: list[int], answer: list[int]) -> None:
    reasoning = Reasoning(1, 2, prompt)
    thinking = "1" in (marks := "".join(map(str, prompt)).replace("3", "").replace("9", "")) and marks[-1] == "1"
    expected = 0
    for token in answer:
        reasoning.push(token)
        thinking = thinking or token == 1
        expected += thinking
        thinking = thinking and token != 2
    assert reasoning.tokens == expected


def test_tokens_are_spelled_in_bytes() -> None:
    assert [byte_tokenizer().token_bytes(token) for token in (0x41, 0x20, 0xE2, 256)] == [b"A", b" ", b"\xe2", b"<|end|>"]
    assert _thinking().token_bytes(0xFF) == b"\xff"
    pieces = Tokenizer(tokenizers.Tokenizer(models.BPE(vocab={"\u2581caf\u00e9": 0}, merges=[])))
    assert pieces.token_bytes(0) == " caf\u00e9".encode()
