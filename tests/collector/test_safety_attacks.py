"""Payloads and connections that are made to hurt: each is refused, in little memory, and the collector goes on."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import zlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import grpc
import httpx
import pyarrow as pa
import pytest
import uvicorn
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from costspan_collector.errors import BusyError, RefusedError
from costspan_collector.intake import connection, inflation
from costspan_collector.intake.connection import GuardedProtocol
from costspan_collector.intake.inflation import check_declared, check_decoded
from costspan_collector.intake.outline import MOST_JSON_BYTES, check_json_outline, check_outline
from costspan_collector.intake.room import Room
from costspan_collector.settings import MIB
from costspan_collector.wal.record import field
from tests.collector.harness import ARROW, PROTOBUF, Running, evictions, get, ipc, sentence, spans

JSON = "application/json"


def peak_mb(running: Running) -> int:
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A collector with the limits that it has by default, which must live through all of this in a little more memory."""
    running = Running(tmp_path_factory.mktemp("victim") / "data")
    assert running.post("/v1/traces", spans(10).body).status_code == 200
    before = peak_mb(running)
    yield running
    assert running.post("/v1/traces", spans(10, seed=1).body).status_code == 200
    running.drained()
    assert running.client().query("SELECT count() FROM spans").result_rows == [(20,)]
    assert peak_mb(running) - before < 700
    assert running.stop() == 0


def packed(size: int, wbits: int) -> Iterator[bytes]:
    pack = zlib.compressobj(1, wbits=wbits)
    for _ in range(size >> 20):
        yield pack.compress(bytes(MIB))
    yield pack.flush()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_refused_while_it_is_read(victim: Running, encoding: str) -> None:
    bomb = b"".join(packed(256 * MIB, wbits=31 if encoding == "gzip" else 15))
    assert len(bomb) < 2 * MIB
    answer = victim.post("/v1/traces", bomb, headers={"content-encoding": encoding})
    assert answer.status_code == 413
    assert "larger than 32 MB" in sentence(answer)


def test_a_bomb_over_grpc_is_refused_too(victim: Running) -> None:
    with grpc.insecure_channel(victim.grpc, options=[("grpc.max_send_message_length", -1)]) as channel:
        export: Any = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        with pytest.raises(grpc.RpcError) as refused:
            export(bytes(64 * MIB), compression=grpc.Compression.Gzip, timeout=30)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_body_without_a_length_has_the_same_limit(victim: Running) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += MIB
            yield bytes(MIB)

    try:
        answer = httpx.post(
            f"{victim.url}/v1/traces", content=endless(), headers={"content-type": PROTOBUF}, timeout=20, trust_env=False
        )
        assert answer.status_code == 413
    except httpx.TransportError:  # the connection was closed before the answer could be read
        pass
    assert sent < 128 * MIB


def nested(depth: int) -> bytes:
    value = AnyValue(string_value="x").SerializeToString()
    for _ in range(depth):
        value = field(5, field(1, value))
    span = field(1, b"t" * 16) + field(2, b"s" * 8) + field(9, field(1, b"k") + field(2, value))
    return field(1, field(2, field(2, span)))


HEX = {"traceId": "ab" * 16, "spanId": "cd" * 8}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param(PROTOBUF, nested(20_000), id="deep protobuf"),
        pytest.param(PROTOBUF, b"\n\x00" * (5 * MIB), id="empty resources"),
        pytest.param(PROTOBUF, field(1, b"\x12\x00" * (5 * MIB)), id="empty scopes"),
        pytest.param(PROTOBUF, field(1, field(2, b"\x12\x00" * (5 * MIB))), id="empty spans"),
        pytest.param(PROTOBUF, field(1, field(2, b"\x12\x02\x30\x01" * (7 * MIB))), id="spans of a byte"),
        pytest.param(JSON, b"[" * (4 * MIB) + b"]" * (4 * MIB), id="deep JSON lists"),
        pytest.param(JSON, b'{"a":' * MIB + b"1" + b"}" * MIB, id="deep JSON objects"),
        pytest.param(JSON, b'{"resourceSpans":[' + b"{}," * (2 * MIB) + b"{}]}", id="empty JSON objects"),
        pytest.param(JSON, b'{"a":' + b"9" * (6 * MIB) + b"}", id="a long JSON number"),
        pytest.param(JSON, b" " * (MOST_JSON_BYTES + 1), id="much JSON"),
    ],
)
def test_a_body_that_would_fill_the_memory_is_refused(victim: Running, kind: str, body: bytes) -> None:
    bomb = gzip.compress(body, 6)
    answer = victim.post("/v1/traces", bomb, kind, {"content-encoding": "gzip"})
    assert answer.status_code in {400, 413}
    assert len(bomb) < MIB


def test_as_deep_as_the_wire_allows_is_taken() -> None:
    deep: dict[str, object] = {"stringValue": "x"}
    for _ in range(20):
        deep = {"arrayValue": {"values": [deep]}}
    span = {**HEX, "name": "n", "attributes": [{"key": "k", "value": deep}]}
    check_json_outline(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode())
    check_outline(nested(20))


def test_honest_requests_pass_by_their_outline() -> None:
    check_outline(spans(1000).body)
    check_outline(spans(1).body)
    check_outline(b"")
    shortest = {"key": "a", "value": {"intValue": 1}}
    span = {**HEX, "attributes": [shortest] * 5000}
    check_json_outline(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}, separators=(",", ":")).encode())


def test_arrow_that_declares_gigabytes_is_refused_before_it_is_unpacked(victim: Running) -> None:
    body = ipc(pa.table({"at_ns": zeros(pa.int64(), 40_000_000)}), compression="zstd")
    assert len(body) < MIB
    answer = victim.post("/v1/ledger/evictions", body, ARROW)
    assert answer.status_code == 413
    assert "unpack to 305 MB, and 128 are the most" in sentence(answer)


def zeros(kind: pa.DataType, count: int) -> pa.Array[Any]:
    return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(bytes(count * kind.bit_width // 8))])


def test_a_dictionary_that_would_write_out_terabytes_is_refused(victim: Running) -> None:
    rows = 100_000
    columns: dict[str, Any] = {name: pa.repeat(column[0], rows) for name, column in zip(*one_row(), strict=True)}
    columns["project"] = pa.DictionaryArray.from_arrays(zeros(pa.int8(), rows), pa.array(["x" * MIB]))
    table = pa.table(columns)
    answer = victim.post("/v1/ledger/evictions", gzip.compress(ipc(table)), ARROW, {"content-encoding": "gzip"})
    assert answer.status_code == 413
    assert "unpack to 100000 MB" in sentence(answer)


def one_row() -> tuple[list[str], list[Any]]:
    table = evictions([1])
    return table.schema.names, table.columns


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_compressed_arrow_declares_what_it_unpacks_to(compression: Literal["lz4", "zstd"]) -> None:
    table = pa.table({"a": pa.array(range(5000)), "b": pa.array([str(at) for at in range(5000)]).dictionary_encode()})
    body = ipc(table, compression=compression)
    check_declared(body)
    declared = sum(map(inflation._unpacked_bytes, pa.ipc.MessageReader.open_stream(body)))
    assert 0 <= declared - table.nbytes < 4096
    check_decoded(table)


@pytest.mark.parametrize("cut", [10, 300, 1000, 4000])
def test_cut_and_spoilt_arrow_is_malformed_and_no_more(victim: Running, cut: int) -> None:
    body = ipc(evictions(range(1000)), compression="lz4")
    for spoilt in (body[:cut], body[:cut] + b"\xff" * 16 + body[cut + 16 :]):
        assert victim.post("/v1/ledger/evictions", spoilt, ARROW).status_code in {400, 413, 422, 200}
    assert get(victim.url + "/ready")[0] == 200


def test_more_at_once_than_there_is_room_for_has_to_wait() -> None:
    room = Room(10)
    with room.claim() as first, room.claim() as second:
        first.grow(6)
        with pytest.raises(BusyError, match="send it again later"):
            second.grow(5)
        second.grow(4)
    assert room.used_bytes == 0


# --- connections -----------------------------------------------------------------------------------------------------


def connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20)


def ended(peer: socket.socket) -> bytes:
    """What comes until the other side hangs up."""
    got = b""
    try:
        while piece := peer.recv(65536):
            got += piece
    except ConnectionError:
        pass
    return got


def flood(peer: socket.socket, head: bytes, piece: bytes) -> bytes:
    """Send a head and then a piece again and again, until the other side hangs up."""
    sent = 0
    try:
        peer.sendall(head)
        while sent < 64 * MIB:
            peer.sendall(piece)
            sent += len(piece)
    except OSError:
        pass
    assert sent < 32 * MIB
    return ended(peer)


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        pytest.param(b"GET /", b"a" * 65536, id="a path without end"),
        pytest.param(b"GET / HTTP/1.1\r\nx: ", b"a" * 65536, id="a header without end"),
        pytest.param(b"GET / HTTP/1.1\r\n", b"".join(b"x%d: y\r\n" % at for at in range(5000)), id="headers without end"),
        pytest.param(
            b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\n"
            b"transfer-encoding: chunked\r\n\r\n0\r\n",
            b"".join(b"x%d: y\r\n" % at for at in range(5000)),
            id="trailers without end",
        ),
    ],
)
def test_a_head_without_end_is_cut_off(victim: Running, head: bytes, piece: bytes) -> None:
    with connected(victim.url) as peer:
        flood(peer, head, piece)
    assert get(victim.url + "/ready")[0] == 200


async def _ends(protocol_data: list[bytes], pause_s: float) -> bytes:
    """What a server says to a peer that sends pieces with pauses between, until it hangs up."""

    async def app(_scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    config = uvicorn.Config(app, http=GuardedProtocol, ws="none", lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        reader, writer = await asyncio.open_connection(*bound.getsockname())
        try:
            for piece in protocol_data:
                writer.write(piece)
                await asyncio.sleep(pause_s)
            return await asyncio.wait_for(reader.read(), 10)
        except ConnectionError:
            return b""
        finally:
            writer.close()
            server.should_exit = True
            await serving


WHOLE = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc"


LAST = WHOLE.replace(b"host: x", b"host: x\r\nconnection: close")


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([], id="nothing"),
        pytest.param([WHOLE[at : at + 1] for at in range(10)], id="a head, byte by byte"),
        pytest.param([WHOLE[:-1]], id="a body that never ends"),
        pytest.param([WHOLE[:-3], b"a", b"b"], id="a body, byte by byte"),
    ],
)
def test_a_request_that_dribbles_in_is_cut_off(monkeypatch: pytest.MonkeyPatch, pieces: list[bytes]) -> None:
    monkeypatch.setattr(connection, "WHOLE_WITHIN_S", 0.3)
    assert asyncio.run(_ends(pieces, 0.05)) == b""


def test_a_slow_request_that_is_whole_in_time_is_answered() -> None:
    got = asyncio.run(_ends([WHOLE[:10], WHOLE[10:-2], WHOLE[-2:] + LAST], 0.02))
    assert got.count(b"HTTP/1.1 200 OK") == 2


def test_a_refusal_has_a_sentence() -> None:
    with pytest.raises(RefusedError, match="16000 parts in 32000 bytes: that is no request of OTLP"):
        check_outline(b"\n\x00" * 16_000)
