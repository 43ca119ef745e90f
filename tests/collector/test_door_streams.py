"""Large results and inserts pass through the door in pieces, and whoever leaves or asks too much is stopped."""

# ruff: noqa: S608  (statements are what is tested)
from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
import urllib.parse
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
import lz4.frame  # type: ignore[import-untyped]  # ships no types
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.collector.harness import Running, wait_until

_PLAIN = {"accept-encoding": "identity"}
_ENDLESS = "SELECT number FROM system.numbers"
_LATE = "SELECT throwIf(number = 3000000), number FROM numbers(10000000)"


@pytest.fixture
def client(collector: Running) -> Client:
    return collector.client()


@pytest.fixture
def table(client: Client) -> Iterator[str]:
    client.command("CREATE OR REPLACE TABLE streamed (a UInt64, b String) ENGINE = MergeTree ORDER BY a")
    yield "streamed"
    client.command("DROP TABLE streamed")


def memory_mib(collector: Running) -> int:
    status = Path(f"/proc/{collector.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) // 1024


def send(collector: Running, body: bytes) -> socket.socket:
    """Send a statement, and wait for nothing."""
    host, _, port = urllib.parse.urlsplit(collector.store).netloc.partition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def running(client: Client, part: str) -> int:
    sql = "SELECT count() FROM system.processes WHERE position(query, {part:String}) > 0 AND query NOT LIKE '%processes%'"
    return int(client.query(sql, parameters={"part": part}).result_rows[0][0])


def test_a_large_result_is_never_whole_in_memory(collector: Running) -> None:
    before, highest, size = memory_mib(collector), 0, 0
    sql = b"SELECT number, repeat('x', 90) AS text FROM numbers(5000000) FORMAT JSONEachRow"
    with httpx.stream("POST", collector.store, content=sql, headers=_PLAIN, timeout=60, trust_env=False) as answer:
        for piece in answer.iter_raw(1 << 22):
            size += len(piece)
            highest = max(highest, memory_mib(collector))
    assert size > 500_000_000
    assert highest - before < 250


@pytest.mark.parametrize(
    ("fmt", "read"),
    [
        ("JSON", lambda body: len(json.loads(body)["data"])),
        ("CSVWithNames", lambda body: body.count(b"\n") - 1),
        ("Parquet", lambda body: pa.parquet.read_table(pa.BufferReader(body)).num_rows),
        ("ArrowStream", lambda body: pa.ipc.open_stream(body).read_all().num_rows),
        ("Arrow", lambda body: pa.ipc.open_file(body).read_all().num_rows),
    ],
)
def test_a_result_in_many_pieces_is_one_document(collector: Running, fmt: str, read: Callable[[bytes], int]) -> None:
    import pyarrow.parquet  # noqa: F401  (makes pa.parquet)

    sql = f"SELECT number, toString(number) AS s FROM numbers(300000) FORMAT {fmt}".encode()
    answer = httpx.post(collector.store, content=sql, timeout=60, trust_env=False)
    assert read(answer.content) == 300_000


def test_totals_extremes_and_nothing(client: Client, collector: Running) -> None:
    def ask(sql: str, **settings: str) -> Any:
        return httpx.post(collector.store, params=settings, content=sql.encode(), timeout=60, trust_env=False).json()

    whole = ask("SELECT number % 2 AS k, count() FROM numbers(5) GROUP BY k WITH TOTALS FORMAT JSON", extremes="1")
    assert whole["totals"] == {"k": 0, "count()": 5}
    assert whole["extremes"]["max"]["k"] == 1
    assert ask("SELECT 1 AS one WHERE 0 FORMAT JSON")["meta"] == [{"name": "one", "type": "UInt8"}]
    assert client.query("SELECT 1 AS one WHERE 0").column_names == ("one",)


def test_streams_of_clickhouse_connect(client: Client) -> None:
    sql = "SELECT number AS a, toString(number) AS b FROM numbers(200000)"
    sizes: dict[str, Callable[[Any], int]] = {
        "query_row_block_stream": len,
        "query_column_block_stream": lambda block: len(block[0]),
        "query_rows_stream": lambda _: 1,
        "query_df_stream": len,
        "query_np_stream": len,
        "query_arrow_stream": lambda batch: int(batch.num_rows),
        "query_df_arrow_stream": len,
    }
    for method, size in sizes.items():
        with getattr(client, method)(sql) as stream:
            assert sum(size(block) for block in stream) == 200_000, method
    assert client.query_df(sql).shape == (200_000, 2)
    assert client.query_arrow(sql).num_rows == 200_000
    polars = client.query_df_arrow(sql, dataframe_library="polars")
    assert isinstance(polars, pl.DataFrame)
    assert polars["a"].sum() == 199_999 * 100_000
    with client.raw_stream(sql, fmt="CSV") as raw:
        assert raw.read().count(b"\n") == 200_000


def test_the_async_client(collector: Running, table: str) -> None:
    async def use() -> tuple[int, int, int]:
        client = await clickhouse_connect.get_async_client(dsn=collector.store)
        try:
            await client.insert(table, [[1, "x"], [2, "y"]], column_names=["a", "b"])
            several = await asyncio.gather(*(client.query(f"SELECT sum(a) + {n} FROM {table}") for n in range(5)))
            streamed = 0
            async with await client.query_row_block_stream("SELECT number FROM numbers(100000)") as stream:
                async for block in stream:
                    streamed += len(block)
            frame = await client.query_df(f"SELECT * FROM {table}")
            return sum(result.result_rows[0][0] for result in several), streamed, len(frame)
        finally:
            await client.close()

    assert asyncio.run(use()) == (25, 100_000, 2)


def test_frames_go_in(client: Client, table: str) -> None:
    client.insert_df(table, pd.DataFrame({"a": [1], "b": ["pandas"]}))
    client.insert_df_arrow(table, pl.DataFrame({"a": [2], "b": ["polars"]}))
    client.insert_arrow(table, pa.table({"a": pa.array([3], pa.uint64()), "b": ["arrow"]}))
    client.raw_insert(table, ["a", "b"], gzip.compress(b"4,raw\n"), fmt="CSV", compression="gzip")
    assert client.query(f"SELECT b FROM {table} ORDER BY a").result_rows == [("pandas",), ("polars",), ("arrow",), ("raw",)]


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("", bytes), ("gzip", gzip.compress), ("deflate", zlib.compress), ("lz4", lz4.frame.compress)],
)
def test_inserts_stream_in(collector: Running, table: str, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    rows = b"".join(b"%d\t%s\n" % (number, b"x" * 100) for number in range(50_000))
    packed = pack(rows)
    pieces = [packed[start : start + 20_000] for start in range(0, len(packed), 20_000)]
    headers = {"content-encoding": encoding} if encoding else {}
    params = {"query": f"INSERT INTO {table} FORMAT TSV"}
    answer = httpx.post(
        collector.store, params=params, content=iter(pieces), headers=headers, timeout=60, trust_env=False
    )  # chunked: no length
    assert json.loads(answer.headers["X-ClickHouse-Summary"])["written_rows"] == "50000"
    headed = pack(f"INSERT INTO {table} (a, b) FORMAT TSV\n".encode() + rows)
    assert httpx.post(collector.store, content=headed, headers=headers, timeout=60, trust_env=False).status_code == 200
    assert collector.client().query(f"SELECT count(), uniqExact(a) FROM {table}").result_rows == [(100_000, 50_000)]


def test_a_broken_insert_says_so(collector: Running, table: str) -> None:
    def insert(body: bytes, **headers: str) -> httpx.Response:
        params = {"query": f"INSERT INTO {table} FORMAT TSV"}
        return httpx.post(collector.store, params=params, content=body, headers=headers, timeout=60, trust_env=False)

    assert insert(b"no number\tx\n").headers["X-ClickHouse-Exception-Code"] == "27"
    assert insert(gzip.compress(b"1\tx\n")[:-9], **{"content-encoding": "gzip"}).headers["X-ClickHouse-Exception-Code"] == "271"
    assert insert(b"1\tx\n", **{"content-encoding": "zip"}).headers["X-ClickHouse-Exception-Code"] == "89"
    assert collector.client().query(f"SELECT count() FROM {table}").result_rows == [(0,)]


@pytest.mark.parametrize("accepted", ["gzip", "deflate", "lz4", "zstd", "gzip;q=0, identity"])
def test_answers_are_packed_when_asked(collector: Running, accepted: str) -> None:
    unpack = {"gzip": gzip.decompress, "deflate": zlib.decompress, "lz4": lz4.frame.decompress}
    for rows in (10, 500_000):  # whole, and in pieces
        sql = f"SELECT number FROM numbers({rows})".encode()
        with httpx.stream(
            "POST", collector.store, content=sql, headers={"accept-encoding": accepted}, timeout=60, trust_env=False
        ) as answer:
            body = b"".join(answer.iter_raw())
        encoding = answer.headers.get("content-encoding", "")
        assert encoding == ("" if ";" in accepted else accepted)
        if encoding != "zstd":  # clickhouse-connect unpacks that in test_door
            assert unpack.get(encoding, bytes)(body).count(b"\n") == rows


def test_an_error_after_the_beginning(collector: Running, client: Client) -> None:
    with pytest.raises(StreamFailureError, match="throwIf"), client.query_row_block_stream(_LATE) as stream:
        for _ in stream:
            pass
    with pytest.raises(DatabaseError) as whole:  # not streamed: it waits for the end, and has a status
        client.query(_LATE)
    assert whole.value.code == 395
    pieces: list[bytes] = []
    with (
        pytest.raises(httpx.RemoteProtocolError),  # cut off, so that nobody takes it for the whole
        httpx.stream("POST", collector.store, content=_LATE.encode(), headers=_PLAIN, timeout=60, trust_env=False) as answer,
    ):
        pieces.extend(answer.iter_raw())
    last = b"".join(pieces)[-1000:]
    tag = answer.headers["X-ClickHouse-Exception-Tag"]
    assert f"__exception__\r\n{tag}\r\nCode: 395.".encode() in last
    assert last.endswith(f" {tag}\r\n__exception__\r\n".encode())


@pytest.mark.parametrize("sql", [_ENDLESS, "SELECT sum(sipHash64(number)) FROM system.numbers"])
def test_who_leaves_ends_the_query(collector: Running, client: Client, sql: str) -> None:
    body = f"{sql} WHERE 'leaver' != ''".encode()
    leaver = send(collector, body)
    wait_until(lambda: running(client, "leaver") == 1)
    leaver.close()
    wait_until(lambda: running(client, "leaver") == 0)


def test_limits_and_ceilings(client: Client) -> None:
    for sql, asked, code in (
        ("SELECT sum(sipHash64(number)) FROM system.numbers", {"max_execution_time": 1}, 159),
        ("SELECT uniqExact(number) FROM numbers(100000000)", {"max_memory_usage": 50_000_000}, 241),
        ("SELECT 1", {"max_execution_time": 1_000_000}, 452),
        ("SELECT 1", {"max_execution_time": 0}, 452),
        ("SELECT 1 SETTINGS max_memory_usage = 0", {}, 452),
        ("SELECT 1 SETTINGS max_memory_usage = DEFAULT", {}, 452),
        ("SET max_execution_time = DEFAULT", {}, 452),
    ):
        with pytest.raises(DatabaseError) as refused:
            client.query(sql, settings=asked)
        assert refused.value.code == code, sql
    lifted = "SELECT * FROM (SELECT uniqExact(number) FROM numbers(100000000) SETTINGS max_memory_usage = 8000000000)"
    with pytest.raises(DatabaseError, match="memory limit"):
        client.query(lifted, settings={"max_memory_usage": 50_000_000})
    assert client.query("SELECT getSetting('max_execution_time') > 0 AND getSetting('max_memory_usage') > 0").result_rows == [
        (1,)
    ]


def test_a_session_keeps_its_limits_and_is_locked(collector: Running) -> None:
    client = clickhouse_connect.get_client(dsn=collector.store, session_id="limited")
    client.command("SET max_execution_time = 7")
    assert client.query("SELECT getSetting('max_execution_time')", settings={"max_execution_time": 9}).result_rows == [(9,)]
    assert client.query("SELECT getSetting('max_execution_time')").result_rows == [(7,)]

    def ask(**fields: str) -> str:
        url = httpx.URL(collector.store, params={"query": "SELECT 1", **fields})
        return httpx.get(url, timeout=30, trust_env=False).headers["X-ClickHouse-Exception-Code"]

    assert ask(session_id="unheard of", session_check="1") == "372"
    assert ask(session_id="limited", session_timeout="a while") == "374"
    slow = threading.Thread(target=lambda: client.query("SELECT sleep(1)"))
    slow.start()
    wait_until(lambda: running(collector.client(), "sleep(1)") == 1)
    busy = httpx.post(collector.store, params={"session_id": "limited"}, content=b"SELECT 1", trust_env=False)
    slow.join()
    assert busy.headers["X-ClickHouse-Exception-Code"] == "373"


def test_too_many_at_once(collector: Running, client: Client) -> None:
    crowd = [send(collector, b"SELECT sleep(3) FROM system.numbers WHERE 'crowd' != ''") for _ in range(32)]
    try:
        wait_until(lambda: httpx.post(collector.store, content=b"SELECT 1", trust_env=False).status_code == 503)
        refused = httpx.post(collector.store, content=b"SELECT 1", trust_env=False)
        assert refused.headers["X-ClickHouse-Exception-Code"] == "202"
    finally:
        for one in crowd:
            one.close()
    wait_until(lambda: httpx.post(collector.store, content=b"SELECT 1", trust_env=False).status_code == 200)
    wait_until(lambda: running(client, "crowd") == 0)


def test_what_else_a_server_says(collector: Running) -> None:
    head = httpx.head(httpx.URL(collector.store, params={"query": "SELECT 1"}), trust_env=False)
    assert (head.status_code, head.headers["X-ClickHouse-Format"], head.content) == (200, "TabSeparated", b"")
    assert httpx.get(f"{collector.store}/replicas_status", trust_env=False).text == "Ok.\n"
    assert httpx.head(f"{collector.store}/ping", trust_env=False).status_code == 200
    assert httpx.get(f"{collector.store}/play", trust_env=False).status_code == 404
    assert httpx.put(collector.store, content=b"SELECT 1", trust_env=False).status_code == 501
    for unspoken in ({"compress": "1"}, {"decompress": "1"}):
        answer = httpx.post(collector.store, params=unspoken, content=b"SELECT 1", trust_env=False)
        assert answer.headers["X-ClickHouse-Exception-Code"] == "48"
    external = {"mine": ("mine", b"1\n")}
    assert (
        httpx.post(collector.store, params={"query": "SELECT 1"}, files=external, trust_env=False).headers[
            "X-ClickHouse-Exception-Code"
        ]
        == "48"
    )
    named = httpx.post(
        collector.store, content=b"SELECT 1 AS x", headers={"X-ClickHouse-Format": "JSONEachRow"}, trust_env=False
    )
    assert (named.text, named.headers["content-type"]) == ('{"x":1}\n', "application/x-ndjson; charset=UTF-8")


_FIELDS = st.sampled_from(
    [
        *(
            "query",
            "query_id",
            "database",
            "default_format",
            "session_id",
            "session_timeout",
            "session_check",
            "user",
            "password",
        ),
        *(
            "compress",
            "client_protocol_version",
            "wait_end_of_query",
            "enable_http_compression",
            "param_x",
            "param_",
            "max_threads",
        ),
        *("readonly", "limit", "nonsense", "a b", "'", "extremes"),
    ]
)
_TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        "SELECT {x:String}",
        "SELECT 1 FORMAT",
        "INSERT INTO x FORMAT TSV\n1",
        "SHOW TABLES",
        "Native",
        "TSV SETTINGS readonly = 0",
        "54460",
    ]
)


@given(
    method=st.sampled_from(["GET", "POST", "HEAD"]),
    fields=st.dictionaries(_FIELDS, _TEXTS, max_size=4),
    body=st.binary(max_size=20) | _TEXTS.map(str.encode),
    encoding=st.sampled_from(["", "gzip", "lz4", "zstd", "deflate", "multipart/form-data; boundary=x"]),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nonsense_is_answered_as_such(
    collector: Running, method: str, fields: dict[str, str], body: bytes, encoding: str
) -> None:
    headers = {"content-type" if "/" in encoding else "content-encoding": encoding} if encoding else {}
    answer = httpx.request(method, collector.store, params=fields, content=body, headers=headers, timeout=30, trust_env=False)
    assert answer.status_code < 500 or answer.status_code == 501, answer.text
    assert answer.status_code == 200 or int(answer.headers["X-ClickHouse-Exception-Code"])
