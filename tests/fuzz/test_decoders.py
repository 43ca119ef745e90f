"""Whatever bytes come, every decoder gives what was meant or says in its own exception that it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import tempfile
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks.spans import Traffic
from costspan.clock import now_ns
from costspan.semconv import HEADER_CLIENT, HEADER_ITEMS, HEADER_PROJECT, HEADER_SEQUENCE, HEADER_TOTAL
from costspan_collector.errors import BusyError, RefusedError
from costspan_collector.intake.payload import check_ledger, read_body
from costspan_collector.intake.room import Room
from costspan_collector.intake.sender import read_sender
from costspan_collector.intake.signals import JSON, PROTOBUF, SIGNALS
from costspan_collector.security.access import ANYONE
from costspan_collector.security.gate import Admission
from costspan_collector.security.rules import Rule
from costspan_collector.settings import MIB
from costspan_collector.wal.budget import Budget
from costspan_collector.wal.log import Log
from costspan_collector.wal.record import Record, TornRecordError, decode, decode_all, encode, record_ends
from tests.collector.harness import evictions, ipc, record
from tests.fuzz.inputs import damaged, fuzzed, json_values

BODY = Traffic(5, requests=2, pages=1).payload(now_ns()).body
RECORD = record(3, BODY)
RAW = encode(RECORD)
TABLE = evictions(range(4))
ROWS = ipc(TABLE)
UINT64 = st.integers(0, 2**64 - 1)


@fuzzed()
@given(
    st.builds(
        Record,
        st.text(max_size=20),
        st.text(max_size=20),
        st.text(max_size=20),
        UINT64,
        UINT64,
        UINT64,
        UINT64,
        st.binary(max_size=200),
    )
)
def test_a_record_is_what_it_was(made: Record) -> None:
    assert decode(memoryview(encode(made))) == (made, len(encode(made)))


@fuzzed()
@given(damaged(RAW + RAW))
def test_a_damaged_record_is_never_taken_for_another(raw: bytes) -> None:
    record_ends(raw)
    with contextlib.suppress(TornRecordError):
        assert set(decode_all(raw)) <= {RECORD}


@fuzzed()
@given(
    st.one_of(
        st.binary(max_size=60),
        st.fixed_dictionaries({"done": json_values(), "intended": json_values()}).map(json.dumps).map(str.encode),
    ),
    st.one_of(st.binary(max_size=60), json_values().map(json.dumps).map(str.encode)),
)
def test_a_log_opens_whatever_became_of_its_files(cursor: bytes, seen: bytes) -> None:
    with tempfile.TemporaryDirectory() as data:
        folder = Path(data)
        (folder / "cursor").write_bytes(cursor)
        (folder / "seen").write_bytes(seen)
        log = Log(folder, Budget(MIB))
        assert log.append(RECORD)
        found = log.next_range(MIB)
        log.close()
    assert found is not None
    assert found.data == RAW


async def in_chunks(body: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(body), size):
        yield body[at : at + size]


def unpacked(body: bytes, encoding: str, chunk: int) -> bytes:
    with Room(MIB).claim() as claim:
        return asyncio.run(read_body(in_chunks(body, chunk), encoding, MIB // 2, claim))


@fuzzed()
@given(
    st.one_of(damaged(gzip.compress(BODY)), damaged(zlib.compress(BODY)), st.binary(max_size=50)),
    st.sampled_from(("", "identity", "gzip", "deflate", "br", "gzip, gzip")),
    st.integers(1, 5_000),
)
def test_a_body_unpacks_whole_or_is_refused(body: bytes, encoding: str, chunk: int) -> None:
    try:
        whole = unpacked(body, encoding, chunk)
    except RefusedError as error:
        says_why(error)
    else:
        assert whole == (body if encoding in {"", "identity"} else zlib.decompressobj(32 + zlib.MAX_WBITS).decompress(body))


@pytest.mark.parametrize("stream", SIGNALS)
@fuzzed()
@given(st.one_of(damaged(BODY), st.binary(max_size=80)))
def test_protobuf_is_taken_or_refused(stream: str, body: bytes) -> None:
    checked(stream, body, PROTOBUF)


@pytest.mark.parametrize("stream", SIGNALS)
@fuzzed()
@given(st.data())
def test_json_is_taken_or_refused(stream: str, data: st.DataObject) -> None:
    names = {"spans": ("resourceSpans", "scopeSpans", "spans"), "metrics": ("resourceMetrics", "scopeMetrics", "metrics")}
    outer, scope, items = names.get(stream, ("resourceLogs", "scopeLogs", "logRecords"))
    item = st.dictionaries(
        st.sampled_from(("traceId", "spanId", "name", "attributes", "startTimeUnixNano", "gauge", "body")), json_values()
    )
    body: Any = data.draw(st.one_of(json_values(), st.lists(item).map(lambda made: {outer: [{scope: [{items: made}]}]})))
    checked(stream, json.dumps(body).encode(), JSON)


def checked(stream: str, body: bytes, kind: str) -> None:
    signal = SIGNALS[stream]
    try:
        taken = signal.check(body, kind)
    except RefusedError as error:
        says_why(error)
        return
    again = signal.check(taken.payload, PROTOBUF)
    assert (again.items, again.rejected) == (taken.items, 0)
    if signal.part:
        assert signal.check(signal.part(taken.payload, None), PROTOBUF).items == taken.items


@fuzzed()
@given(damaged(ROWS))
def test_rows_are_taken_or_refused(body: bytes) -> None:
    try:
        assert check_ledger(body, TABLE.schema) >= 0
    except RefusedError as error:
        says_why(error)


@fuzzed()
@given(
    st.dictionaries(
        st.sampled_from((HEADER_PROJECT, HEADER_CLIENT, HEADER_SEQUENCE, HEADER_ITEMS, HEADER_TOTAL)),
        st.text(max_size=30) | UINT64.map(str),
    )
)
def test_a_sender_is_understood_or_refused(headers: dict[str, str]) -> None:
    try:
        made = read_sender(headers, lambda _token, named: Admission(named or "default", ANYONE.project, Rule()))
    except (RefusedError, BusyError):
        return
    taken = made.record("spans", 1, b"")
    assert decode(memoryview(encode(taken)))[0] == taken


def says_why(error: RefusedError) -> None:
    assert error.status in {400, 413, 415, 422}
    assert str(error)


def test_the_body_that_is_damaged_is_right_before() -> None:
    request = ExportTraceServiceRequest.FromString(BODY)
    assert SIGNALS["spans"].check(BODY, PROTOBUF).items == sum(
        len(scope.spans) for each in request.resource_spans for scope in each.scope_spans
    )
