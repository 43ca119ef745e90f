from __future__ import annotations

import threading
import time
import urllib.parse

import clickhouse_connect
import httpx
import pandas as pd
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from tests.collector.harness import Running, delivery, get, spans


@pytest.fixture
def client(collector: Running) -> Client:
    return collector.client()


def test_queries_parameters_and_settings(client: Client) -> None:
    nasty = 'it\'s\ta \\ "text" ü\n'
    result = client.query(
        "SELECT {n:Int64} + 1 AS n, {s:String} AS s, getSetting('max_threads') AS t",
        parameters={"n": 41, "s": nasty},
        settings={"max_threads": 3},
    )
    assert result.result_rows == [(42, nasty, 3)]
    assert client.query("SELECT getSetting('max_threads') = 3").result_rows == [(0,)]
    assert client.query(
        "SELECT has({many:Array(String)}, 'ü999')", parameters={"many": [f"ü{at}" for at in range(5000)]}
    ).result_rows == [(1,)]
    assert client.command("SELECT count() FROM numbers(5)") == 5
    assert client.ping()


@pytest.mark.parametrize("compress", [False, "gzip", "lz4", "zstd"])
def test_inserts_and_frames(collector: Running, *, compress: bool | str) -> None:
    client = clickhouse_connect.get_client(dsn=collector.store, compress=compress)
    client.command(
        "CREATE OR REPLACE TABLE scratch (a Int64, b String, c LowCardinality(String), d Map(String, String)) ENGINE = Memory"
    )
    client.insert("scratch", [[1, "x FORMAT y", "c", {"k": "v"}], [2, "", "d", {}]], column_names=["a", "b", "c", "d"])
    client.insert_df("scratch", pd.DataFrame({"a": [3], "b": ["df"], "c": ["e"], "d": [{}]}))
    client.insert_arrow("scratch", pa.table({"a": pa.array([4]), "b": pa.array(["arrow"])}))
    client.command("INSERT INTO scratch (a, b) VALUES (5, 'a FORMAT b')")
    frame = client.query_df("SELECT a, b, c FROM scratch ORDER BY a")
    assert frame["a"].tolist() == [1, 2, 3, 4, 5]
    assert frame["b"].tolist() == ["x FORMAT y", "", "df", "arrow", "a FORMAT b"]
    assert client.query_arrow("SELECT sum(a) AS s FROM scratch").to_pydict() == {"s": [15]}
    assert client.query("SELECT d FROM scratch WHERE a = 1").result_rows == [({"k": "v"},)]
    assert client.query_df_arrow("SELECT a, b FROM scratch WHERE a > 9").shape == (0, 2)
    assert client.query("SELECT a FROM scratch WHERE a > {n:Int64}", parameters={"n": 9}).column_names == ("a",)
    client.command("DROP TABLE scratch")


def test_errors_carry_clickhouses_code(client: Client) -> None:
    with pytest.raises(DatabaseError) as missing:
        client.query("SELECT * FROM nothing")
    assert (missing.value.code, missing.value.name) == (60, "UNKNOWN_TABLE")


def test_plain_http(collector: Running) -> None:
    status, headers, body = get(f"{collector.store}/?{urllib.parse.urlencode({'query': 'SELECT 1 AS one FORMAT JSON'})}")
    assert (status, headers["X-ClickHouse-Format"]) == (200, "JSON")
    assert b'"one"' in body
    assert get(f"{collector.store}/ping")[2] == b"Ok.\n"
    assert get(collector.store)[2] == b"Ok.\n"
    status, headers, body = get(f"{collector.store}/?{urllib.parse.urlencode({'query': 'SELEC'})}")
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (400, "62")
    assert body.startswith(b"Code: 62.")
    status, headers, _ = get(f"{collector.store}/?{urllib.parse.urlencode({'query': 'SELECT 1', 'no_such': '1'})}")
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (404, "115")
    posted = httpx.post(collector.store, params={"param_x": "7"}, content=b"SELECT {x:Int8} FORMAT TSV", trust_env=False)
    assert posted.text == "7\n"


def test_a_get_changes_nothing(collector: Running) -> None:
    status, headers, _ = get(
        f"{collector.store}/?{urllib.parse.urlencode({'query': 'CREATE TABLE t (a Int8) ENGINE = Memory'})}"
    )
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (403, "164")


def test_web_pages_are_refused(collector: Running) -> None:
    for headers in ({"origin": "https://example.org"}, {"host": "rebound.example.org"}):
        answer = httpx.post(collector.store, content=b"SELECT 1", headers=headers, trust_env=False)
        assert (answer.status_code, answer.headers["X-ClickHouse-Exception-Code"]) == (403, "497")


def test_a_session_keeps_its_tables_and_settings(collector: Running) -> None:
    client = clickhouse_connect.get_client(dsn=collector.store, session_id="s1")
    client.command("CREATE TEMPORARY TABLE mine (a Int8)")
    client.command("INSERT INTO mine VALUES (7)")
    client.command("SET max_block_size = 77")
    assert client.query("SELECT a, getSetting('max_block_size') FROM mine").result_rows == [(7, 77)]
    with pytest.raises(DatabaseError, match="mine"):
        clickhouse_connect.get_client(dsn=collector.store, session_id="s2").query("SELECT a FROM mine")


def test_many_ask_while_it_ingests(collector: Running) -> None:
    stop = threading.Event()
    answers: list[tuple[object, object]] = []

    def ask() -> None:
        client = collector.client()
        try:
            while not stop.is_set():
                rows, ids = client.query("SELECT count(), uniqExact(span_id) FROM spans WHERE project = 'busy'").result_rows[0]
                answers.append((rows, ids))
        except DatabaseError as error:
            answers.append((str(error), None))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(20):
        headers = delivery(number, client="busy", items=100, project="busy")
        assert collector.post("/v1/traces", spans(100, seed=1000 + number).body, headers=headers).status_code == 200
        time.sleep(0.05)
    collector.drained()
    stop.set()
    for thread in threads:
        thread.join()
    assert len(answers) > 20
    assert [answer for answer in answers if answer[0] != answer[1]] == []
    assert collector.client().query("SELECT count() FROM spans WHERE project = 'busy'").result_rows == [(2000,)]
