"""A running collector under all kinds of requests: it answers each, breaks on none, and what it says it has is what it has."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from benchmarks.spans import Traffic
from costspan.clock import now_ns
from costspan.semconv import HEADER_CLIENT, HEADER_ITEMS, HEADER_PROJECT, HEADER_SEQUENCE, HEADER_TOTAL
from costspan_collector.store.tables import TIME_COLUMN
from tests.collector.harness import ARROW, PROTOBUF, Running, evictions, ipc
from tests.fuzz.inputs import SLOW_INPUTS, damaged, fuzzed, json_values

BODY = Traffic(6, requests=3, pages=1).payload(now_ns()).body
ANSWERS = {200, 400, 401, 403, 404, 405, 411, 413, 415, 422, 429, 503}
HEADERS = (HEADER_PROJECT, HEADER_CLIENT, HEADER_SEQUENCE, HEADER_ITEMS, HEADER_TOTAL, "content-encoding", "authorization")


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("fuzz") / "data", "--max-body-mb", "1")
    yield running
    assert running.stop() == 0


def described() -> dict[str, Any]:
    """The intake, in OpenAPI."""
    parameters = [{"in": "header", "name": name, "schema": {"type": "string"}} for name in HEADERS]
    answers = {str(code): {"description": "known"} for code in ANSWERS}
    anything = {"type": "string", "format": "binary"}

    def takes(*kinds: str) -> dict[str, Any]:
        content = {kind: {"schema": {"type": "object"} if kind == "application/json" else anything} for kind in kinds}
        return {"post": {"parameters": parameters, "requestBody": {"content": content}, "responses": answers}}

    tables = {
        "in": "path",
        "name": "table",
        "required": True,
        "schema": {"anyOf": [{"enum": sorted(TIME_COLUMN)}, {"type": "string", "minLength": 1}]},
    }
    paths: dict[str, Any] = {f"/v1/{signal}": takes(PROTOBUF, "application/json") for signal in ("traces", "metrics", "logs")}
    paths["/v1/ledger/{table}"] = {**takes(ARROW), "parameters": [tables]}
    paths |= {path: {"get": {"responses": answers}} for path in ("/health", "/ready", "/metrics")}
    return {"openapi": "3.1.0", "info": {"title": "costspan collector", "version": "1"}, "paths": paths}


for kind in (PROTOBUF, ARROW):
    schemathesis.serializer.alias(kind, "application/octet-stream")
INTAKE = schemathesis.openapi.from_dict(described())


@INTAKE.parametrize()
@fuzzed(SLOW_INPUTS)
def test_no_request_breaks_the_intake(case: schemathesis.Case[Any], collector: Running) -> None:
    answer = case.call(base_url=collector.url, timeout=30)
    assert answer.status_code in ANSWERS, answer.text
    assert httpx.get(collector.url + "/ready", trust_env=False).status_code == 200


@fuzzed(SLOW_INPUTS)
@given(
    st.text(max_size=60),
    st.dictionaries(
        st.sampled_from(("query", "param_a", "user", "password", "default_format", "database")), st.text(max_size=20)
    ),
    st.binary(max_size=60),
)
def test_no_request_breaks_the_door(collector: Running, sql: str, parameters: dict[str, str], body: bytes) -> None:
    asked = {"query": f"SELECT {sql}", **parameters}
    answer = httpx.post(collector.store, params=asked, content=body, timeout=30, trust_env=False)
    assert_answered(collector, answer)


KINDS = st.sampled_from(
    (
        "multipart/form-data; boundary=b",
        "multipart/form-data",
        "application/x-www-form-urlencoded",
        "text/plain",
        "",
        "x/y; charset=\x7f",
    )
)
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="query"\r\n\r\nSELECT {a:String}\r\n'
    b'--b\r\nContent-Disposition: form-data; name="param_a"\r\n\r\nx\r\n--b--\r\n'
)
INSERT = b'INSERT INTO deliveries (project, client) FORMAT JSONEachRow\n{"project": "door", "client": "c"}\n'


@fuzzed(SLOW_INPUTS)
@given(st.one_of(damaged(FORM), damaged(INSERT), st.binary(max_size=80)), KINDS)
def test_no_body_breaks_the_door(collector: Running, body: bytes, kind: str) -> None:
    answer = httpx.post(collector.store, content=body, headers={"content-type": kind}, timeout=30, trust_env=False)
    assert_answered(collector, answer)


def assert_answered(collector: Running, answer: httpx.Response) -> None:
    """Check that the door said something of its own, as ClickHouse does with any status, and still answers others."""
    assert answer.status_code < 500 or answer.text.startswith("Code: "), answer.text
    assert httpx.post(collector.store, content="SELECT 1", timeout=30, trust_env=False).text == "1\n"


def counted(body: bytes) -> int:
    """Spans of a body whose ids are ids."""
    request = ExportTraceServiceRequest.FromString(body)
    found = (span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans)
    return sum(
        len(span.trace_id) == 16 and len(span.span_id) == 8 and any(span.trace_id) and any(span.span_id) for span in found
    )


def test_what_is_acknowledged_is_stored_whole_and_what_is_refused_is_not_stored(collector: Running) -> None:
    wanted: dict[str, int] = {}

    @fuzzed(4 * SLOW_INPUTS)
    @given(damaged(BODY))
    def send(body: bytes) -> None:
        project = f"whole-{len(wanted)}"
        answer = collector.post("/v1/traces", body, headers={HEADER_PROJECT: project})
        assert answer.status_code in {200, 400}
        wanted[project] = counted(body) if answer.status_code == 200 else 0

    send()
    assert_stored(collector, wanted)


def assert_stored(collector: Running, wanted: dict[str, int]) -> None:
    collector.drained()
    with collector.client() as client:
        found = {
            str(name): int(count)
            for name, count in client.query("SELECT project, count() FROM spans GROUP BY project").result_rows
        }
    assert {name: found.get(name, 0) for name in wanted} == wanted
    assert collector.health()["streams"]["spans"]["quarantined_records"] == 0


@fuzzed(SLOW_INPUTS)
@given(damaged(ipc(evictions(range(4)))))
def test_rows_are_taken_whole_or_not_at_all(collector: Running, body: bytes) -> None:
    before = collector.health()["streams"]["evictions"]["accepted_items"]
    answer = collector.post("/v1/ledger/evictions", body, ARROW)
    assert answer.status_code in {200, 400, 413, 422}
    rows = answer.json()["rows"] if answer.status_code == 200 else 0
    assert collector.health()["streams"]["evictions"]["accepted_items"] - before == rows


def values() -> st.SearchStrategy[AnyValue]:
    """Any value of an attribute."""
    leaves = st.one_of(
        st.text(max_size=12).map(lambda text: AnyValue(string_value=text)),
        st.integers(-(2**63), 2**63 - 1).map(lambda number: AnyValue(int_value=number)),
        st.floats().map(lambda number: AnyValue(double_value=number)),
        st.booleans().map(lambda yes: AnyValue(bool_value=yes)),
        st.binary(max_size=12).map(lambda raw: AnyValue(bytes_value=raw)),
        st.just(AnyValue()),
    )
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3).map(listed) | st.dictionaries(st.text(max_size=5), inner, max_size=3).map(mapped)
        ),
    )


def listed(inner: list[AnyValue]) -> AnyValue:
    made = AnyValue()
    made.array_value.values.extend(inner)
    made.array_value.SetInParent()
    return made


def mapped(inner: dict[str, AnyValue]) -> AnyValue:
    made = AnyValue()
    made.kvlist_value.SetInParent()
    for key, value in inner.items():
        made.kvlist_value.values.add(key=key).value.CopyFrom(value)
    return made


def text_of(value: AnyValue) -> str | None:
    """What the store makes of a plain value, None where this test does not say."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value
    if kind == "int_value":
        return str(value.int_value)
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    if kind == "double_value" and math.isnan(value.double_value):
        return "nan"
    return None


def test_any_attribute_becomes_text_and_stays_data(collector: Running) -> None:
    sent: list[tuple[str, dict[str, AnyValue]]] = []

    @fuzzed(4 * SLOW_INPUTS)
    @given(st.dictionaries(st.text(max_size=10).map(lambda name: f"x.{name}"), values(), max_size=4), st.text(max_size=10))
    def send(attributes: dict[str, AnyValue], name: str) -> None:
        request = ExportTraceServiceRequest()
        span = request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"t" * 16, name=name)
        span.span_id = (len(sent) + 1).to_bytes(8, "big")
        for key, value in attributes.items():
            span.attributes.add(key=key).value.CopyFrom(value)
        assert collector.post("/v1/traces", request.SerializeToString(), headers={HEADER_PROJECT: "any"}).status_code == 200
        sent.append((name, attributes))

    send()
    collector.drained()
    with collector.client() as client:
        rows = client.query("SELECT name, attributes FROM spans WHERE project = 'any' ORDER BY span_id").result_rows
    assert len(rows) == len(sent)
    for (name, kept), (said, attributes) in zip(rows, sent, strict=True):
        assert name == said
        assert kept.keys() == attributes.keys()
        assert all(text_of(value) in {None, kept[key]} for key, value in attributes.items())


def test_deep_and_long_values_are_taken(collector: Running) -> None:
    value = AnyValue(string_value="leaf")
    for _ in range(25):
        value = listed([value])
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"deep----", name="\0")
    span.attributes.add(key="x.deep").value.CopyFrom(value)
    span.attributes.add(key="x.long").value.string_value = "\0" * 500_000
    assert collector.post("/v1/traces", request.SerializeToString(), headers={HEADER_PROJECT: "deep"}).status_code == 200
    assert_stored(collector, {"deep": 1})


@fuzzed(SLOW_INPUTS)
@given(json_values())
def test_json_of_any_shape_is_answered(collector: Running, value: object) -> None:
    for path in ("/v1/traces", "/v1/metrics", "/v1/logs"):
        answer = collector.post(path, json.dumps(value).encode(), "application/json")
        assert answer.status_code in {200, 400}, answer.text
