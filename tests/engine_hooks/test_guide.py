"""Answers held to a JSON schema: whatever the model would say, what comes out parses and matches, or was refused beforehand."""

from __future__ import annotations

import json
import string
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from costspan_engine.errors import RequestError
from costspan_engine.guide import Guides, JsonGuide
from costspan_engine.models.model import CausalModel
from costspan_engine.models.presets import byte_tokenizer
from costspan_engine.sequence import Request, Sampling
from costspan_engine.settings import EngineConfig
from costspan_hooks.observer import EngineObserver
from tests.engine_hooks.engine_fixtures import (
    MINI,
    Recording,
    generate,
    mini_model,
    request,
    running,
    scheduler,
    torch_executor,
)

END = 256
CONFIG = EngineConfig(max_num_seqs=8, max_batched_tokens=64, kv_blocks=600, block_size=8)
BYTES = byte_tokenizer()
GUIDES = Guides(BYTES, MINI.vocab_size, (END,))
NAMES = {"type": "string", "enum": ["ada", "grace"]}
SCHEMAS: dict[str, dict[str, Any]] = {
    "enum": NAMES,
    "integer": {"type": "integer", "minimum": 10, "maximum": 99},
    "pattern": {"type": "string", "pattern": "^[A-F]{4}-[0-9]{2}$"},
    "union": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    "object": {
        "type": "object",
        "properties": {"name": NAMES, "age": {"type": "integer", "minimum": 0, "maximum": 150}, "note": {"type": ["null"]}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "nested": {
        "type": "object",
        "properties": {"rows": {"type": "array", "items": {"$ref": "#/$defs/row"}, "minItems": 1, "maxItems": 2}},
        "required": ["rows"],
        "additionalProperties": False,
        "$defs": {
            "row": {
                "type": "object",
                "properties": {"text": {"type": "string", "maxLength": 6}, "ok": {"type": "boolean"}},
                "required": ["text", "ok"],
                "additionalProperties": False,
            }
        },
    },
}


def matches(name: str, value: Any) -> bool:
    """Whether a value is what a schema of :data:`SCHEMAS` asks for, in Python's words."""
    match name:
        case "enum":
            return value in NAMES["enum"]
        case "integer":
            return isinstance(value, int) and 10 <= value <= 99
        case "pattern":
            return len(value) == 7 and set(value[:4]) <= set("ABCDEF") and value[4] == "-" and value[5:].isdigit()
        case "union":
            return value is None or isinstance(value, bool)
        case "object":
            known = set(value) <= {"name", "age", "note"} and value.get("note") is None
            return known and value["name"] in NAMES["enum"] and 0 <= value["age"] <= 150
        case _:
            rows = value["rows"]
            return 1 <= len(rows) <= 2 and all(
                set(row) == {"text", "ok"} and len(row["text"]) <= 6 and isinstance(row["ok"], bool) for row in rows
            )


def asked(guide: JsonGuide, sampling: Sampling) -> Request:
    return replace(request([*b"say"]), sampling=sampling, guide=guide)


def serve(requests: list[Request], model: CausalModel, config: EngineConfig, observer: EngineObserver | None = None) -> Any:
    """Run requests through the engine's loop; returns its client."""
    with running(torch_executor(config, model), config, observer or Recording()) as client:
        for each in requests:
            client.engine.submit(each)
        client.wait(len(requests))
    return client


@pytest.mark.parametrize("name", list(SCHEMAS))
@pytest.mark.parametrize("stop_ids", [frozenset({END}), frozenset[int]()])
def test_random_weights_say_what_the_schema_asks_for(name: str, stop_ids: frozenset[int]) -> None:
    requests = [
        asked(GUIDES.json_schema(SCHEMAS[name]), Sampling(450, temperature=temperature, seed=seed, stop_ids=stop_ids))
        for seed, temperature in enumerate((0.0, 0.7, 1.0, 1.5))
    ]
    client = serve(requests, mini_model(), CONFIG)
    for each in requests:
        tokens = client.tokens[each.info.request_id]
        assert client.reasons[each.info.request_id] == "stop"
        assert END not in tokens[:-1]
        assert matches(name, json.loads(BYTES.decode(tokens)))


def test_the_answer_is_the_same_alone_chunked_preempted_and_beside_guesses() -> None:
    def requests() -> list[Request]:
        return [
            asked(GUIDES.json_schema(schema), Sampling(100, temperature=1.0, seed=seed, stop_ids=frozenset({END})))
            for seed, schema in enumerate([*SCHEMAS.values(), {"type": "object"}, {"type": "array"}])
        ]

    model = mini_model()
    alone = [generate(torch_executor(CONFIG, model), scheduler(CONFIG), [each])[0] for each in requests()]
    tight = EngineConfig(max_num_seqs=8, max_batched_tokens=8, kv_blocks=14, block_size=8, draft_tokens=3)
    books = scheduler(tight)
    assert generate(torch_executor(tight, model), books, requests()) == alone
    assert books.preemptions


def test_an_object_of_any_kind_cut_short_is_cut_for_its_length() -> None:
    free = asked(GUIDES.json_object(), Sampling(1, temperature=1.0, stop_ids=frozenset({END})))
    client = serve([free], mini_model(), CONFIG)
    assert client.reasons == {free.info.request_id: "length"}
    assert client.tokens == {free.info.request_id: [*b"{"]}


def test_a_wider_model_never_says_what_the_tokenizer_does_not_know() -> None:
    torch.manual_seed(5)
    wide = CausalModel(replace(MINI, vocab_size=333, eos_ids=(END, 258)))
    guides = Guides(BYTES, 333, (END, 258))
    requests = [
        asked(guides.json_schema(SCHEMAS["nested"]), Sampling(450, temperature=2.0, seed=n, stop_ids=frozenset({END, 258})))
        for n in range(4)
    ]
    client = serve(requests, wide, CONFIG)
    for each in requests:
        *said, last = client.tokens[each.info.request_id]
        assert max(said) < 256
        assert last in {*b"}", END, 258}


def allowed(guide: JsonGuide, width: int) -> set[int]:
    row = np.zeros(-(-width // 32), dtype=np.int32)
    guide.fill(row)
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def test_what_may_come_next() -> None:
    digits = {*string.digits.encode()}
    guides = Guides(BYTES, 300, (END, 258))
    guide, other = (guides.json_schema({"type": "integer", "minimum": 0, "maximum": 99}) for _ in range(2))
    assert allowed(guide, 300) == digits
    guide.accept(ord("4"))
    assert allowed(guide, 300) == digits | {END, 258}
    assert allowed(guide, 64) == digits
    guide.accept(END)
    assert guide.ended
    # One of the same schema has not moved.
    assert allowed(other, 300) == digits
    assert not other.ended


def test_blanks_come_to_an_end() -> None:
    guide = GUIDES.json_schema(SCHEMAS["object"])
    guide.accept(ord("{"))
    for _ in range(24):
        assert {*b' \n"'} <= allowed(guide, 260)
        guide.accept(ord(" "))
    assert allowed(guide, 260) == {*b'"'}


PATTERNS = {"allOf": [{"type": "string", "pattern": f".*{c}.{{20}}{c}"} for c in string.ascii_lowercase]}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "foo"}, "Invalid type: foo"),
        ({"type": "object", "properties": 3}, "properties must be an object"),
        ({"$ref": "#/nowhere"}, "does not exist"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "does not fetch"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"minimum": float("nan")}, "expected value"),
        ({"not": {"type": "string"}, "x-guidance": {"lenient": True}}, "Unimplemented"),
        ({"enum": []}, "Unsatisfiable"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum .5. is greater than maximum"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "'a' is unsatisfiable"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "nothing can match it"),
        (PATTERNS, "longer than 1 s to compile"),
    ],
)
def test_what_cannot_be_met_is_refused_with_its_reason(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as refusal:
        GUIDES.json_schema(schema)
    assert (refusal.value.status, refusal.value.code) == (400, "invalid_json_schema")
    assert refusal.value.param == "response_format"
    assert "\n" not in str(refusal.value)


def test_a_grammar_that_grows_too_large_fails_its_own_request_alone(caplog: pytest.LogCaptureFixture) -> None:
    growing = asked(GUIDES.json_schema({"type": "string", "pattern": "(.*[^a].{900}){50}"}), Sampling(400, temperature=1.0))
    other = asked(GUIDES.json_schema(SCHEMAS["nested"]), Sampling(450, temperature=1.0, stop_ids=frozenset({END})))
    client = serve([growing, other], mini_model(), CONFIG)
    assert client.reasons == {growing.info.request_id: "error", other.info.request_id: "stop"}
    assert "cannot be held to its schema" in caplog.text
