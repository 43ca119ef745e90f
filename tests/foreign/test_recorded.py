"""What foreign clients really sent (see ``record.py``), replayed through a collector: every source says the same in the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.collector.harness import Running
from tests.foreign.normalised import Normal, attributes, send, spans

RECORDED = Path(__file__).parent / "recorded"
CALL = Normal(input_tokens=16, output_tokens=8)
HTTP = Normal("", "", "", outcome="")
CALLS = {
    "otel-python-http": {"chat tiny": [CALL, CALL], "answer": [HTTP]},
    "otel-js-protobuf": {"chat tiny": [CALL, CALL], "POST": [HTTP, HTTP]},
    "openlit": {"chat tiny": [CALL, CALL], "POST": [HTTP, HTTP]},
    "traceloop": {
        "openai.chat": [CALL._replace(tenant="acme", feature="answer")] * 2,
        "answer.workflow": [Normal("operation", "", "", tenant="acme", feature="answer")],
    },
    "openinference": {"ChatCompletion": [CALL, CALL], "POST": [HTTP, HTTP]},
    "langfuse": {
        "OpenAI-generation": [CALL._replace(provider="")] * 2,
        # Langfuse's own counts: the thousand tokens that were cached are not among the forty.
        "claude": [Normal(provider="", model="claude-sonnet", input_tokens=1040, cached_tokens=1000, output_tokens=7)],
    },
    "logfire": {
        "answer": [HTTP],
        # What a stream used is told by a log that is a span of its own.
        "Chat Completion with {request_data[model]!r}": [CALL, CALL._replace(input_tokens=0, output_tokens=0)],
        "streaming response from {request_data[model]!r} took {duration:.2f}s": [CALL],
    },
}


@pytest.fixture(scope="module")
def replayed(collector: Running) -> Running:
    """A collector to which every client's spans were sent, as a project of its name."""
    for client in CALLS:
        send(collector, client, json.loads((RECORDED / f"{client}.json").read_text(encoding="utf-8")))
    collector.drained()
    return collector


@pytest.mark.parametrize("client", CALLS)
def test_what_clients_send_has_one_meaning(replayed: Running, client: str) -> None:
    assert spans(replayed, client) == CALLS[client]


def test_the_original_attributes_stay(replayed: Running) -> None:
    kept = [each for each in attributes(replayed, "openinference") if "llm.token_count.prompt" in each]
    assert len(kept) == 2
    assert {each["openinference.span.kind"] for each in kept} == {"LLM"}
    assert {each["llm.system"] for each in kept} == {"openai"}


def test_every_recording_is_replayed() -> None:
    assert {path.stem for path in RECORDED.iterdir()} == set(CALLS)
