from __future__ import annotations

import base64
import gzip
import json
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, NamedTuple

import httpx
import pyarrow as pa
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from costspan_collector.store.tables import TIME_COLUMN, arrow_schema
from tests.collector.harness import ARROW, PROTOBUF, Running, delivery, evictions, ipc, sentence, spans

ENGINE_COUNT = "SELECT count() FROM spans"


def count(collector: Running, sql: str) -> int:
    collector.drained()
    with collector.client() as client:
        return int(client.query(sql).result_rows[0][0])


def test_spans_become_rows(collector: Running) -> None:
    batch = spans(4, seed=1)
    answer = collector.post(
        "/v1/traces", gzip.compress(batch.body), headers={"content-encoding": "gzip"} | delivery(1, client="rows", items=4)
    )
    assert (answer.status_code, answer.headers["content-type"]) == (200, PROTOBUF)
    assert not ExportTraceServiceResponse.FromString(answer.content).HasField("partial_success")
    collector.drained()
    with collector.client() as client:
        row = client.query("SELECT * FROM spans WHERE span_id = {id:String}", parameters={"id": batch.ids[1]}).first_item
        sent = client.query("SELECT * FROM deliveries WHERE client = 'rows'").first_item
    assert row is not None
    assert sent is not None
    request = ExportTraceServiceRequest.FromString(batch.body)
    assert row["trace_id"] == request.resource_spans[0].scope_spans[0].spans[1].trace_id.hex()
    assert (row["project"], row["service"], row["client"], row["parent_span_id"]) == ("acme", "engine", "engine-1", "")
    assert (row["kind"], row["tenant"], row["feature"], row["attempt"]) == ("engine_phase", "tenant-1", "chat", 2)
    assert (row["start_ns"], row["duration_ns"], row["status"]) == (1_790_000_000_000_000_001, 5_000, "unset")
    assert row["attributes"] == {"costspan.attempt": "2"}  # of the others each has a column, as it came
    assert (sent["stream"], sent["sequence"], sent["items"], sent["total"]) == ("spans", 1, 4, 4)


def test_every_kind_of_attribute_becomes_text(collector: Running) -> None:
    request = ExportTraceServiceRequest()
    span = (
        request.resource_spans.add()
        .scope_spans.add()
        .spans.add(trace_id=b"t" * 16, span_id=b"a" * 8, parent_span_id=b"p" * 8, name="x")
    )
    span.status.code = Status.STATUS_CODE_ERROR
    plain: list[tuple[str, Any]] = [
        ("text", "a'b\n"),
        ("whole", -3),
        ("half", 0.5),
        ("yes", True),
        ("no", False),
        ("raw", b"\xff\x00"),
        ("zero", 0),
    ]
    for key, value in plain:
        any_value = span.attributes.add(key=key).value
        kind = {str: "string", int: "int", float: "double", bool: "bool", bytes: "bytes"}[type(value)]
        setattr(any_value, f"{kind}_value", value)
    values = span.attributes.add(key="list").value.array_value.values
    values.add().string_value = 'say "stop"'
    values.add().int_value = 7
    entry = span.attributes.add(key="map").value.kvlist_value.values.add(key="k")
    entry.value.double_value = 1.5
    span.attributes.add(key="empty")
    assert collector.post("/v1/traces", request.SerializeToString()).status_code == 200
    collector.drained()
    with collector.client() as client:
        row = client.query("SELECT * FROM spans WHERE span_id = {id:String}", parameters={"id": (b"a" * 8).hex()}).first_item
    assert row is not None
    assert (row["project"], row["parent_span_id"], row["status"], row["kind"]) == ("default", (b"p" * 8).hex(), "error", "")
    assert row["attributes"] == {
        "text": "a'b\n",
        "whole": "-3",
        "half": "0.5",
        "yes": "true",
        "no": "false",
        "raw": base64.b64encode(b"\xff\x00").decode(),
        "zero": "0",
        "list": '["say \\"stop\\"",7]',
        "map": '{"k":1.5}',
        "empty": "",
    }


def test_otlp_json_has_its_ids_in_hex(collector: Running) -> None:
    span = {
        "traceId": "0123456789abcdef" * 2,
        "spanId": "fedcba9876543210",
        "name": "j",
        "startTimeUnixNano": "5",
        "endTimeUnixNano": "9",
    }
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()
    answer = collector.post("/v1/traces", body, "application/json")
    assert (answer.status_code, answer.text) == (200, "{}")
    assert count(collector, "SELECT count() FROM spans WHERE span_id = 'fedcba9876543210' AND duration_ns = 4") == 1


def test_a_ledger_payload_becomes_rows(collector: Running) -> None:
    texts = {"victim": pa.dictionary(pa.int32(), pa.string()), "culprit": pa.large_string()}
    answer = collector.post(
        "/v1/ledger/evictions", ipc(evictions(range(5), texts)), ARROW, delivery(1, client="engine", items=5)
    )
    assert (answer.status_code, answer.json()) == (200, {"rows": 5})
    assert count(collector, "SELECT sum(step) FROM evictions") == 10
    assert count(collector, "SELECT items FROM deliveries WHERE stream = 'evictions'") == 5


def sample(kind: pa.DataType) -> Any:
    """A value of an Arrow type that a lossy way would change."""
    if pa.types.is_list(kind):
        return [sample(kind.value_type)] * 2
    samples: dict[pa.DataType, Any] = {
        pa.string(): "it's ü",
        pa.int64(): -(2**62) - 1,
        pa.uint16(): 2**16 - 1,
        pa.uint32(): 2**32 - 1,
        pa.uint64(): 2**64 - 1,
        pa.float32(): 0.5,
        pa.float64(): 1 / 3,
        pa.decimal128(38, 12): Decimal("4.123456789012"),
        pa.timestamp("ms", "UTC"): datetime(2026, 9, 21, 12, 0, 0, 123_000, tzinfo=timezone.utc),
    }
    return samples[kind]


@pytest.mark.parametrize("table", sorted(set(TIME_COLUMN) - {"evictions"}))
def test_every_table_takes_every_type_unchanged(collector: Running, table: str) -> None:
    with collector.client() as client:
        schema = arrow_schema(client, table)
    row = {field.name: None if field.nullable else sample(field.type) for field in schema} | {
        TIME_COLUMN[table]: sample(pa.int64())
    }
    if table == "prices":
        row["effective_from"] = sample(pa.timestamp("ms", "UTC"))
    payload = pa.Table.from_pylist([row], schema=schema)
    assert collector.post(f"/v1/ledger/{table}", ipc(payload), ARROW).status_code == 200
    collector.drained()
    with collector.client() as client:
        assert client.query_arrow("SELECT * FROM {table:Identifier}", parameters={"table": table}).cast(schema).to_pylist() == [
            row
        ]


def test_the_lists_of_a_nested_must_agree(collector: Running) -> None:
    with collector.client() as client:
        schema = arrow_schema(client, "attempts")
    row = {field.name: sample(field.type) for field in schema} | {"phases.name": ["one"]}
    answer = collector.post("/v1/ledger/attempts", ipc(pa.Table.from_pylist([row], schema=schema)), ARROW)
    assert answer.status_code == 422
    assert "equally long" in answer.json()["error"]


def test_a_payload_sent_again_is_stored_once(collector: Running) -> None:
    before = count(collector, ENGINE_COUNT)
    headers = delivery(1, client="again", items=10)
    for _ in range(3):
        assert collector.post("/v1/traces", spans(10, seed=7).body, headers=headers).status_code == 200
        collector.drained()
    assert count(collector, ENGINE_COUNT) == before + 10
    assert count(collector, "SELECT count() FROM deliveries WHERE client = 'again'") == 1


BOMB = gzip.compress(bytes(300 << 20))


class Wrong(NamedTuple):
    path: str
    kind: str
    body: bytes
    headers: dict[str, str]
    status: int
    says: str


GZIP = {"content-encoding": "gzip"}
EVICTIONS = "/v1/ledger/evictions"
WRONG = {
    "malformed protobuf": Wrong("/v1/traces", PROTOBUF, b"\xff\xff\xff", {}, 400, "not an OTLP"),
    "malformed JSON": Wrong("/v1/traces", "application/json", b"{", {}, 400, "not an OTLP"),
    "content type": Wrong("/v1/traces", "text/plain", b"", {}, 415, "application/x-protobuf"),
    "oversized": Wrong("/v1/traces", PROTOBUF, bytes((1 << 20) + 1), {}, 413, "larger than 1 MB"),
    "gzip bomb": Wrong("/v1/traces", PROTOBUF, BOMB, GZIP, 413, "larger than 1 MB"),
    "not gzip": Wrong("/v1/traces", PROTOBUF, b"no gzip", GZIP, 400, "not gzip"),
    "half gzip": Wrong("/v1/traces", PROTOBUF, gzip.compress(b"x" * 999)[:-9], GZIP, 400, "whole gzip"),
    "encoding": Wrong("/v1/traces", PROTOBUF, b"", {"content-encoding": "br"}, 415, "br"),
    "client without sequence": Wrong("/v1/traces", PROTOBUF, spans(1).body, {"costspan-client": "c"}, 400, "send both"),
    "negative": Wrong("/v1/traces", PROTOBUF, spans(1).body, {"costspan-items": "-1"}, 400, "whole number"),
    "unknown table": Wrong("/v1/ledger/nothing", ARROW, b"", {}, 404, "attempts"),
    "spans are no ledger": Wrong("/v1/ledger/spans", ARROW, b"", {}, 404, "no ledger table 'spans'"),
    "ledger content type": Wrong(EVICTIONS, PROTOBUF, b"", {}, 415, ARROW),
    "malformed Arrow": Wrong(EVICTIONS, ARROW, b"no arrow", {}, 400, "Arrow"),
    "half Arrow": Wrong(EVICTIONS, ARROW, ipc(evictions([1]))[:-99], {}, 400, "Arrow"),
    "column type": Wrong(
        EVICTIONS, ARROW, ipc(evictions([1], {"tokens": pa.int64()})), {}, 422, "'tokens' is int64: it must be uint32"
    ),
    "column missing": Wrong(EVICTIONS, ARROW, ipc(evictions([1]).drop_columns("step")), {}, 422, "'step' is missing"),
    "column unknown": Wrong(EVICTIONS, ARROW, ipc(evictions([1], {"more": pa.int8()})), {}, 422, "no column 'more'"),
    "nulls": Wrong(EVICTIONS, ARROW, ipc(evictions([None])), {}, 422, "'step' has nulls"),
    "path": Wrong("/nowhere", PROTOBUF, b"", {}, 404, "/v1/traces"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_gets_a_sentence_and_is_not_stored(collector: Running, wrong: Wrong) -> None:
    before = collector.health()["streams"]
    answer = collector.post(wrong.path, wrong.body, wrong.kind, wrong.headers)
    assert answer.status_code == wrong.status
    assert wrong.says in sentence(answer)
    assert collector.health()["streams"] == before


def test_a_span_without_ids_is_refused(collector: Running) -> None:
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"short", name="lost")
    answer = collector.post("/v1/traces", request.SerializeToString())
    assert answer.status_code == 400
    assert "span 'lost' has ids of 5 and 0 bytes" in sentence(answer)


def test_health_and_metrics(collector: Running) -> None:
    collector.drained()
    health = collector.health()
    assert health["ready"]
    assert health["store"] == {"up": True, "trouble": ""}
    ledger = {"engines", "attempts", "steps", "evictions", "gpu_samples", "prices", "invoices"}
    assert set(health["streams"]) == {"spans", "metrics", "logs", *ledger}
    assert httpx.get(collector.url + "/ready", trust_env=False).status_code == 200
    text = httpx.get(collector.url + "/metrics", trust_env=False).text
    assert "costspan_collector_store_up 1" in text
    before = health["streams"]["spans"]["wire_bytes"]
    packed = {"content-encoding": "gzip"}
    assert collector.post("/v1/traces", b"no gzip", headers=packed).status_code == 400
    body = gzip.compress(spans(4, seed=99).body)
    assert collector.post("/v1/traces", body, headers=packed).status_code == 200
    assert collector.health()["streams"]["spans"]["wire_bytes"] == before + len(body)
    assert (
        '# TYPE costspan_collector_accepted_items_total counter\ncostspan_collector_accepted_items_total{stream="spans"} '
        in text
    )
