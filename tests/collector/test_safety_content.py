"""No prompt text is stored unless a project asks for it, and then only redacted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from costspan import semconv
from costspan_collector.security.content import is_content, may_hold_content, part_logs, part_spans
from costspan_collector.security.rules import FILE
from costspan_collector.store.sinks import SignalSink
from costspan_collector.wal.record import encode
from tests.collector.conftest import Start
from tests.collector.harness import record, spans

WRITTEN = "my card is 4111 1111 1111 1111"


def text(value: str) -> AnyValue:
    return AnyValue(string_value=value)


def one_span(*attributes: str) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"s" * 8, name="chat")
    span.start_time_unix_nano = 1_790_000_000_000_000_000
    span.end_time_unix_nano = 1_790_000_000_000_000_001
    for name in attributes:
        span.attributes.add(key=name).value.string_value = WRITTEN if is_content(name) else "GET"
    return request


def contents(body: bytes, kind: type[ExportTraceServiceRequest | ExportLogsServiceRequest]) -> dict[str, str]:
    fields: Any = UnknownFieldSet(kind.FromString(body))  # typed without its iterator
    beside = [Span.FromString(field.data) for field in fields if field.field_number == 1000]
    return {each.key: each.value.string_value for span in beside for each in span.attributes}


def example(name: str) -> str:
    return f"{name}0.text" if name.endswith(".") else name


@pytest.mark.parametrize("name", semconv.CONTENT)
def test_every_name_of_content_is_found_and_dropped(name: str) -> None:
    body = one_span("http.method", example(name)).SerializeToString()
    left = part_spans(body, None)
    assert left == one_span("http.method").SerializeToString()
    assert WRITTEN.encode() not in left
    if name.endswith("."):  # without what comes after it in the example
        assert may_hold_content(name.encode())


@pytest.mark.parametrize("name", semconv.CONTENT_EVENTS)
def test_every_event_of_content_loses_what_it_says(name: str) -> None:
    request = one_span()
    request.resource_spans[0].scope_spans[0].spans[0].events.add(name=name).attributes.add(
        key="any"
    ).value.string_value = WRITTEN
    left = part_spans(request.SerializeToString(), None)
    assert WRITTEN.encode() not in left
    assert [
        event.name for event in ExportTraceServiceRequest.FromString(left).resource_spans[0].scope_spans[0].spans[0].events
    ] == [name]


@pytest.mark.parametrize("field", ["event_name", "attribute"])
@pytest.mark.parametrize("name", semconv.CONTENT_EVENTS)
def test_logs_of_such_events_lose_their_bodies(name: str, field: str) -> None:
    request = ExportLogsServiceRequest()
    entry = request.resource_logs.add().scope_logs.add().log_records.add(body=text(WRITTEN), trace_id=b"t" * 16)
    entry.attributes.add(key="gen_ai.input.messages").value.string_value = WRITTEN
    if field == "event_name":
        entry.event_name = name
    else:
        entry.attributes.add(key=semconv.EVENT_NAME).value.string_value = name
    body = request.SerializeToString()
    assert WRITTEN.encode() not in part_logs(body, None)
    assert contents(part_logs(body, str.upper), ExportLogsServiceRequest) == {
        f"{name}.gen_ai.input.messages": WRITTEN.upper(),
        f"{name}.body": WRITTEN.upper(),
    }


def test_what_any_other_log_says_is_kept_in_its_place_or_not_at_all() -> None:
    request = ExportLogsServiceRequest()
    request.resource_logs.add().scope_logs.add().log_records.add(body=text("said"), severity_text="INFO")
    body = request.SerializeToString()
    assert b"INFO" in part_logs(body, None)
    assert b"said" not in part_logs(body, None)
    assert part_logs(body, str.upper) == body.replace(b"said", b"SAID")


def test_our_own_spans_are_not_even_looked_at() -> None:
    assert not may_hold_content(spans(100).body)
    own = [name for name in vars(semconv).values() if isinstance(name, str) and name.startswith(("costspan.", "gen_ai."))]
    assert len(own) > 30
    assert not [name for name in own if is_content(name)]
    assert not [name for name in own if may_hold_content(one_span(name).SerializeToString())]


@pytest.mark.parametrize(
    "name",
    ["gen_ai.usage.input_tokens", "gen_ai.request.model", "input.mime_type", "llm.token_count.prompt", "traceloop.entity.name"],
)
def test_usage_and_identity_stay(name: str) -> None:
    assert not is_content(name)


def test_kept_text_goes_beside_the_spans_and_is_redacted() -> None:
    request = one_span("gen_ai.input.messages", "kept")
    span = request.resource_spans[0].scope_spans[0].spans[0]
    nested = span.attributes.add(key="gen_ai.tool.call.arguments").value.kvlist_value
    nested.values.add(key="city").value.array_value.values.add(string_value="Köln")
    nested.values.add(key="days").value.int_value = 3
    span.events.add(name="gen_ai.choice").attributes.add(key="message").value.string_value = "yes"
    left = part_spans(request.SerializeToString(), lambda said: said.replace("4111", "****"))
    assert contents(left, ExportTraceServiceRequest) == {
        "gen_ai.input.messages": "my card is **** 1111 1111 1111",
        "gen_ai.tool.call.arguments": '{"city": ["Köln"], "days": 3}',
        "gen_ai.choice.message": "yes",
    }
    assert [
        each.key for each in ExportTraceServiceRequest.FromString(left).resource_spans[0].scope_spans[0].spans[0].attributes
    ] == ["kept"]


names = st.sampled_from(
    [*map(example, semconv.CONTENT), "http.method", "costspan.tenant", "gen_ai.request.model", "prompts", "x"]
)


@given(st.lists(st.lists(names, max_size=6), max_size=4))
def test_what_is_no_content_stays_as_it_was_and_in_order(attributes: list[list[str]]) -> None:
    request, wanted = ExportTraceServiceRequest(), ExportTraceServiceRequest()
    for each in attributes:
        request.resource_spans.extend(one_span(*each).resource_spans)
        wanted.resource_spans.extend(one_span(*(name for name in each if not is_content(name))).resource_spans)
    body = request.SerializeToString()
    left = part_spans(body, None)
    assert left == wanted.SerializeToString()
    assert part_spans(left, None) == left


def test_the_collector_writes_no_prompt_anywhere_but_keeps_it_redacted_where_asked(start: Start, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / FILE).write_text('[projects.keeps]\ncontent = "keep"')
    running = start("--keep", "payloads=forever")
    request = one_span("gen_ai.input.messages", "http.method")
    request.resource_spans[0].scope_spans[0].spans[0].attributes.append(
        KeyValue(key="gen_ai.output.messages", value=text("mail ann@example.com"))
    )
    as_json = {
        "resourceSpans": [
            {
                "scopeSpans": [
                    {
                        "spans": [
                            {
                                "traceId": "ab" * 16,
                                "spanId": "cd" * 8,
                                "name": "j",
                                "startTimeUnixNano": "1790000000000000000",
                                "attributes": [{"key": "input.value", "value": {"stringValue": f"json {WRITTEN}"}}],
                            }
                        ]
                    }
                ]
            }
        ]
    }
    for project in ("keeps", "drops"):
        header = {"costspan-project": project}
        assert running.post("/v1/traces", request.SerializeToString(), headers=header).status_code == 200
        assert running.post("/v1/traces", json.dumps(as_json).encode(), "application/json", header).status_code == 200
    running.drained()
    logged = b"".join(path.read_bytes() for path in (data / "log").rglob("*.log"))
    assert b"keeps" in logged
    assert b"1111 1111" not in logged
    assert b"ann@example" not in logged
    client = running.client()
    assert client.query("SELECT project, name, text FROM payloads ORDER BY name").result_rows == [
        ("keeps", "gen_ai.input.messages", "my card is [card]"),
        ("keeps", "gen_ai.output.messages", "mail [email]"),
        ("keeps", "input.value", "json my card is [card]"),
    ]
    assert client.query("SELECT DISTINCT mapKeys(attributes) FROM spans ORDER BY ALL").result_rows == [
        ([],),
        (["http.method"],),
    ]
    assert client.query("SELECT count() FROM spans WHERE position(toString(attributes), '1111') > 0").result_rows == [(0,)]


def test_after_a_crash_kept_text_is_there_once(store: Client) -> None:
    request = one_span("gen_ai.input.messages", "gen_ai.output.messages", "x")
    data = encode(record(1, part_spans(request.SerializeToString(), str.upper), client=""))
    sink = SignalSink("spans")

    def counts() -> tuple[Any, ...]:
        return tuple(store.query("SELECT (SELECT count() FROM spans), (SELECT count() FROM payloads)").result_rows[0])

    sink.insert(store, data, "a")
    assert counts() == (1, 2)
    assert sink.missing(store, data) is None
    for table in ("payloads", "spans"):
        store.command(f"TRUNCATE TABLE {table}")
        rest = sink.missing(store, data)
        assert rest
        rest(f"without {table}")
        assert counts() == (1, 2)
