"""Whatever is killed, what was acknowledged is stored, once."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client

from costspan_collector.errors import StoreAwayError
from costspan_collector.store import writer
from costspan_collector.store.clickhouse import apply_schema, connect_embedded
from costspan_collector.store.sinks import LedgerSink, SignalSink, Sink, _stretches
from costspan_collector.store.tables import arrow_schema
from costspan_collector.store.writer import Writer
from costspan_collector.wal.budget import Budget
from costspan_collector.wal.log import Log
from costspan_collector.wal.quarantine import Quarantine
from tests.collector.conftest import Start
from tests.collector.harness import PROTOBUF, Running, delivery, evictions, ipc, record, sentence, spans


class Sender(threading.Thread):
    """Sends numbered payloads, each until it is acknowledged, to whichever collector runs now."""

    def __init__(self, name: str, target: Callable[[], str], stop: threading.Event) -> None:
        super().__init__()
        self.sender, self.target, self.stopped = name, target, stop
        self.acknowledged: list[str] = []

    def run(self) -> None:
        sequence = 0
        while not self.stopped.is_set():
            sequence += 1
            batch = spans(20, seed=10 * sequence + int(self.sender[-1]))
            headers = {"content-type": PROTOBUF} | delivery(sequence, client=self.sender, items=20)
            while not self._acknowledged(batch.body, headers):
                time.sleep(0.02)
            self.acknowledged += batch.ids

    def _acknowledged(self, body: bytes, headers: dict[str, str]) -> bool:
        try:
            return (
                httpx.post(self.target() + "/v1/traces", content=body, headers=headers, timeout=5, trust_env=False).status_code
                == 200
            )
        except httpx.TransportError:
            return False


def test_killed_in_traffic_again_and_again_it_stores_each_span_once(start: Start) -> None:
    running = start()
    stop = threading.Event()
    senders = [Sender(f"sender-{at}", lambda: running.url, stop) for at in range(3)]
    for sender in senders:
        sender.start()
    rng = random.Random(5)
    for _ in range(3):
        time.sleep(rng.uniform(0.3, 0.9))
        running.kill()
        running = start()
    time.sleep(0.3)
    stop.set()
    for sender in senders:
        sender.join(timeout=20)
        assert not sender.is_alive()
    running.drained()
    with running.client() as client:
        stored = [row[0] for row in client.query("SELECT span_id FROM spans").result_rows]
        deliveries = client.query("SELECT sum(items), uniqExact(client, sequence), count() FROM deliveries").result_rows[0]
    acknowledged = [each for sender in senders for each in sender.acknowledged]
    assert len(acknowledged) > 200
    assert sorted(stored) == sorted(acknowledged)
    assert deliveries == (len(stored), len(stored) // 20, len(stored) // 20)
    assert running.stop() == 0


def test_what_the_log_holds_is_written_before_the_end(start: Start) -> None:
    running = start()
    for number in range(20):
        assert running.post("/v1/traces", spans(50, seed=number).body, headers=delivery(number, items=50)).status_code == 200
    assert running.stop() == 0
    running = start()
    assert running.health()["pending_bytes"] == 0
    with running.client() as client:
        assert client.query("SELECT count() FROM spans").result_rows == [(1000,)]


class Bench:
    """Logs, a store and a writer that a test drives by hand, and can stop between any two of its moves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.opened: list[Client] = []
        self.client = self._connect_embedded()
        apply_schema(self.client)
        self.away = False
        self.open()

    def open(self) -> None:
        budget = Budget(1 << 30)
        self.logs = {stream: Log(self.folder / "log" / stream, budget) for stream in ("spans", "evictions")}
        schema = arrow_schema(self.client, "evictions")
        sinks: dict[str, Sink] = {"spans": SignalSink("spans"), "evictions": LedgerSink("evictions", schema)}
        self.writer = Writer(
            self.logs, sinks.__getitem__, self._connect, Quarantine(self.folder / "quarantine", budget), "bench"
        )

    def _connect(self) -> Client:
        if self.away:
            raise StoreAwayError("away")
        return self._connect_embedded()

    def _connect_embedded(self) -> Client:
        self.opened.append(connect_embedded(self.folder / "store"))
        return self.opened[-1]

    def close(self) -> None:
        """Close the engine, which ends with its last connection."""
        while self.opened:
            self.opened.pop().close()

    def crash_after_insert(self, stream: str) -> None:
        """Insert the next range, and be gone before the cursor moves."""
        span = self.logs[stream].next_range(1 << 20)
        assert span
        self.logs[stream].intend(span)
        self.writer._insert_range(self.writer._connected(), stream, span)
        self.open()

    def lose_the_last_part(self, table: str) -> None:
        """What a kill between the token's log and the part's rename leaves: the token without the rows."""
        query = "SELECT path FROM system.parts WHERE active AND table = {table:String} ORDER BY modification_time"
        path = self.client.query(query, parameters={"table": table}).result_rows[-1][0]
        self.close()
        shutil.rmtree(path)
        self.client = self._connect_embedded()
        self.open()

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        return [tuple(row) for row in self.client.query(sql).result_rows]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def fill(bench: Bench) -> None:
    bench.logs["spans"].append(record(1, spans(5, seed=1).body, items=5))
    bench.logs["spans"].append(
        record(2, spans(5, seed=2, start_ns=1_700_000_000_000_000_000).body, items=5)
    )  # another partition
    bench.logs["spans"].append(
        record(0, spans(5, seed=3, start_ns=(1 << 64) - 10_000).body, client="")
    )  # no time of this world
    bench.logs["evictions"].append(record(1, ipc(evictions(range(3))), stream="evictions", items=3))
    bench.logs["evictions"].append(record(2, ipc(evictions(range(3, 6))), stream="evictions", items=3))


def check(bench: Bench) -> None:
    bench.writer.write_pending()
    assert bench.rows("SELECT count(), uniqExact(span_id) FROM spans") == [(15, 15)]
    assert bench.rows("SELECT step FROM evictions ORDER BY step") == [(step,) for step in range(6)]
    assert bench.rows("SELECT stream, sequence FROM deliveries ORDER BY ALL") == [
        ("evictions", 1), ("evictions", 2), ("spans", 1), ("spans", 2),
    ]  # fmt: skip
    assert not any(log.pending_bytes for log in bench.logs.values())


@pytest.mark.parametrize("stream", ["spans", "evictions"])
def test_a_crash_between_insert_and_cursor_does_not_double(bench: Bench, stream: str) -> None:
    fill(bench)
    bench.crash_after_insert(stream)
    check(bench)


@pytest.mark.parametrize("stream", ["spans", "evictions"])
@pytest.mark.parametrize("table", ["data", "deliveries"])
def test_a_token_without_its_rows_does_not_lose_them(bench: Bench, stream: str, table: str) -> None:
    fill(bench)
    bench.crash_after_insert(stream)
    bench.lose_the_last_part(stream if table == "data" else table)
    check(bench)


@pytest.mark.parametrize("stream", ["spans", "evictions"])
def test_what_the_store_has_is_not_doubled_when_it_has_forgotten_the_token(bench: Bench, stream: str) -> None:
    fill(bench)
    bench.crash_after_insert(stream)
    for table in (stream, "deliveries"):  # as ten thousand other inserts would do
        for window in (0, 10_000):
            bench.client.command(f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = {window}")
    check(bench)


@pytest.mark.parametrize("stream", ["spans", "evictions"])
@pytest.mark.parametrize("cursor", [b"", b'{"done": 1', None])
def test_without_a_cursor_what_is_stored_is_found_out(bench: Bench, stream: str, cursor: bytes | None) -> None:
    bench.logs[stream].append(record(9, spans(3, seed=9).body if stream == "spans" else ipc(evictions([9])), stream=stream))
    bench.writer.write_pending()
    fill(bench)
    bench.crash_after_insert(stream)
    path = bench.folder / "log" / stream / "cursor"
    path.unlink()
    if cursor is not None:
        path.write_bytes(cursor)
    bench.open()
    bench.writer.write_pending()
    extra = 3 * (stream == "spans")
    assert bench.rows("SELECT count(), uniqExact(span_id) FROM spans") == [(15 + extra, 15 + extra)]
    assert bench.rows("SELECT count(), uniqExact(step) FROM evictions") == [(6 + (not extra),) * 2]
    assert bench.rows("SELECT count(), uniqExact(stream, sequence) FROM deliveries") == [(5, 5)]


def test_damage_in_a_range_that_may_be_inserted_doubles_nothing(bench: Bench) -> None:
    for number in range(1, 6):
        bench.logs["spans"].append(record(number, spans(4, seed=number).body, items=4))
    bench.crash_after_insert("spans")
    path = next((bench.folder / "log" / "spans").glob("*.log"))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 255
    path.write_bytes(raw)
    bench.open()
    bench.writer.write_pending()
    assert bench.rows("SELECT count(), uniqExact(span_id) FROM spans") == [(20, 20)]
    assert bench.rows("SELECT sequence FROM deliveries ORDER BY ALL") == [(number,) for number in range(1, 6)]


def test_clocks_that_are_set_back_cost_no_look_at_what_came_between(bench: Bench) -> None:
    hour_ms = 3_600_000
    assert _stretches([5, 9 * hour_ms, 4, 6, 9 * hour_ms + 7]) == [(4, 6), (9 * hour_ms, 9 * hour_ms + 7)]
    for number in (50_000_000, 1, 2):
        bench.logs["spans"].append(record(number, spans(5, seed=number).body, items=5))
    bench.crash_after_insert("spans")
    bench.lose_the_last_part("spans")
    bench.writer.write_pending()
    assert bench.rows("SELECT count(), uniqExact(span_id) FROM spans") == [(15, 15)]


def test_one_table_that_takes_nothing_does_not_hold_up_the_others(bench: Bench) -> None:
    fill(bench)
    bench.client.command("RENAME TABLE landing TO elsewhere")
    with pytest.raises(StoreAwayError, match="landing"):
        bench.writer.write_pending()
    assert bench.rows("SELECT count() FROM evictions") == [(6,)]
    assert not list((bench.folder / "quarantine").rglob("*.record"))
    bench.client.command("RENAME TABLE elsewhere TO landing")
    check(bench)


def test_a_store_that_is_away_gets_everything_when_it_is_back(bench: Bench) -> None:
    bench.away = True
    bench.writer.start()
    fill(bench)
    bench.writer.wake()
    deadline = time.monotonic() + 5
    while not bench.writer.trouble and time.monotonic() < deadline:
        time.sleep(0.01)
    assert bench.writer.trouble == "away"
    bench.away = False
    assert bench.writer.stop(timeout_s=10)
    check(bench)


def test_what_the_store_refuses_is_set_aside_with_the_reason(bench: Bench) -> None:
    bench.logs["spans"].append(record(8, b"\x0a\xff\xff\xff\x0fno spans", client=""))  # passes no intake
    bench.logs["evictions"].append(record(9, b"no arrow", stream="evictions", client=""))
    fill(bench)
    check(bench)
    kept = sorted(path.relative_to(bench.folder / "quarantine") for path in (bench.folder / "quarantine").rglob("*.record"))
    assert [path.parent.name for path in kept] == ["evictions", "spans"]
    assert b"no spans" in (bench.folder / "quarantine" / kept[1]).read_bytes()
    assert "Code: " in (bench.folder / "quarantine" / kept[1]).with_suffix(".reason").read_text()


def test_spans_of_many_days_in_one_payload_are_stored(bench: Bench) -> None:
    for day in range(150):
        batch = spans(1, seed=day, start_ns=1_700_000_000_000_000_000 + day * 86_400_000_000_000)
        bench.logs["spans"].append(record(day, batch.body))
    bench.writer.write_pending()
    assert bench.rows("SELECT count() FROM spans") == [(150,)]


def test_a_full_log_answers_503_and_asks_to_come_back(start: Start) -> None:
    running = start("--store", "http://127.0.0.1:1", "--disk-budget-mb", "1")
    sent = 0
    while (
        answer := running.post("/v1/traces", spans(800, seed=sent).body, headers=delivery(sent, items=800))
    ).status_code == 200:
        sent += 1
        assert sent < 20
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "disk budget" in sentence(answer)
    assert httpx.get(running.url + "/ready", trust_env=False).status_code == 503
    early = running.post("/v1/ledger/evictions", ipc(evictions([1])), "application/vnd.apache.arrow.stream")
    assert (early.status_code, "not been reached" in early.json()["error"]) == (503, True)
    assert running.stop() == 1


def test_another_store_over_http_gets_the_same_rows(tmp_path: Path, start: Start) -> None:
    server = start()  # its door stands for a ClickHouse server
    log_only = Running(tmp_path / "second", "--store", server.store)
    try:
        assert log_only.post("/v1/traces", spans(30).body, headers=delivery(1, items=30)).status_code == 200
        table = evictions(range(4), {"victim": pa.large_string()})
        while log_only.post("/v1/ledger/evictions", ipc(table), "application/vnd.apache.arrow.stream").status_code == 503:
            time.sleep(0.05)
        log_only.drained()
        with server.client() as client:
            assert client.query("SELECT count() FROM spans").result_rows == [(30,)]
            assert client.query("SELECT sum(step) FROM evictions").result_rows == [(6,)]
        server.kill()
        assert log_only.post("/v1/traces", spans(30, seed=2).body, headers=delivery(2, items=30)).status_code == 200
    finally:
        log_only.kill()


def behind(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next range of spans be one that is inserted as two halves at once."""
    for number in range(1, 8):
        bench.logs["spans"].append(record(number, spans(5, seed=number).body, items=5))
    pending = bench.logs["spans"].pending_bytes
    monkeypatch.setattr(writer, "INSERT_BYTES", pending // 2 + 1)
    monkeypatch.setattr(writer, "_BEHIND_BYTES", pending)


def check_behind(bench: Bench) -> None:
    bench.writer.write_pending()
    assert bench.rows("SELECT count(), uniqExact(span_id) FROM spans") == [(35, 35)]
    assert bench.rows("SELECT sequence FROM deliveries ORDER BY ALL") == [(number,) for number in range(1, 8)]
    assert not bench.logs["spans"].pending_bytes


def test_a_store_that_is_behind_gets_two_inserts_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    behind(bench, monkeypatch)
    tokens: list[str] = []
    both = threading.Barrier(2, timeout=20)
    insert = SignalSink.insert

    def noted(sink: SignalSink, client: Client, data: bytes, token: str) -> None:
        tokens.append(token)
        both.wait()  # raises unless the other comes too
        insert(sink, client, data, token)

    monkeypatch.setattr(SignalSink, "insert", noted)
    check_behind(bench)
    assert len(set(tokens)) == 2


@pytest.mark.parametrize("failing", [0, 1])
def test_of_two_inserts_at_once_one_may_not_happen(bench: Bench, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    behind(bench, monkeypatch)
    insert = SignalSink.insert

    def failed(sink: SignalSink, client: Client, data: bytes, token: str) -> None:
        if token.startswith("bench/spans/0-") != bool(failing):
            raise StoreAwayError("gone in the middle", answered=False)
        insert(sink, client, data, token)

    monkeypatch.setattr(SignalSink, "insert", failed)
    with pytest.raises(StoreAwayError):
        bench.writer.write_pending()
    monkeypatch.setattr(SignalSink, "insert", insert)
    assert bench.rows("SELECT count() BETWEEN 1 AND 34 FROM spans") == [(True,)]
    bench.open()
    check_behind(bench)


@pytest.mark.parametrize("table", ["spans", "deliveries"])
def test_two_inserts_at_once_are_the_same_two_after_a_crash(bench: Bench, monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    behind(bench, monkeypatch)
    bench.crash_after_insert("spans")
    bench.lose_the_last_part(table)
    check_behind(bench)


def test_what_the_store_refuses_of_two_inserts_at_once_is_set_aside(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.logs["spans"].append(record(8, b"\x0a\xff\xff\xff\x0fno spans", client=""))  # passes no intake
    behind(bench, monkeypatch)
    check_behind(bench)
    [kept] = (bench.folder / "quarantine").rglob("*.record")
    assert b"no spans" in kept.read_bytes()


def test_of_two_inserts_at_once_one_is_refused_and_one_happens_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.logs["spans"].append(record(8, b"\x0a\xff\xff\xff\x0fno spans", client=""))
    behind(bench, monkeypatch)
    insert = SignalSink.insert
    under_way: list[tuple[bytes, str]] = []

    def slow(sink: SignalSink, client: Client, data: bytes, token: str) -> None:
        if not token.startswith("bench/spans/0-"):
            under_way.append((data, token))
            raise StoreAwayError("no answer in time", answered=False)
        insert(sink, client, data, token)

    def late(sink: SignalSink, client: Client, data: bytes, token: str) -> None:
        while under_way:  # it looked for the rows before they came
            insert(sink, client, *under_way.pop())
        insert(sink, client, data, token)

    monkeypatch.setattr(SignalSink, "insert", slow)
    for _ in range(2):
        with pytest.raises(StoreAwayError):
            bench.writer.write_pending()
    assert len({token for _, token in under_way}) == 1
    monkeypatch.setattr(SignalSink, "insert", late)
    check_behind(bench)
    assert len(list((bench.folder / "quarantine").rglob("*.record"))) == 1


def test_a_crash_while_one_of_two_is_taken_apart_doubles_nothing_of_the_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.logs["spans"].append(record(8, b"\x0a\xff\xff\xff\x0fno spans", client=""))
    behind(bench, monkeypatch)
    pending = bench.logs["spans"].pending_bytes
    with monkeypatch.context() as patch:
        patch.setattr(Quarantine, "keep", lambda *_: (_ for _ in ()).throw(StoreAwayError("killed")))
        with pytest.raises(StoreAwayError):
            bench.writer.write_pending()
    monkeypatch.setattr(writer, "_BEHIND_BYTES", 2 * pending)  # the rest of the log was not on the disk yet
    monkeypatch.setattr(writer, "INSERT_BYTES", pending * 7 // 8)
    bench.open()
    check_behind(bench)


def test_a_piece_that_happens_later_is_tried_again_as_it_was_though_more_came(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 5):
        bench.logs["spans"].append(record(number, spans(5, seed=number).body, items=5))
    bench.logs["spans"].append(record(8, b"\x0a\xff\xff\xff\x0fno spans", client=""))
    insert = SignalSink.insert
    under_way: list[tuple[bytes, str]] = []

    def slow(sink: SignalSink, client: Client, data: bytes, token: str) -> None:
        if "/again-" in token:
            under_way.append((data, token))
            raise StoreAwayError("no answer in time", answered=False)
        insert(sink, client, data, token)

    def late(sink: SignalSink, client: Client, data: bytes, token: str) -> None:
        if under_way and b"no spans" not in data:  # after its rows were looked for
            insert(sink, client, *under_way.pop())
        insert(sink, client, data, token)

    monkeypatch.setattr(SignalSink, "insert", slow)
    with pytest.raises(StoreAwayError):
        bench.writer.write_pending()
    assert under_way
    for number in range(5, 8):
        bench.logs["spans"].append(record(number, spans(5, seed=number).body, items=5))
    monkeypatch.setattr(SignalSink, "insert", late)
    check_behind(bench)


def test_a_stream_that_never_ends_leaves_the_others_their_turn(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "INSERT_BYTES", 1)  # a record each
    for number in range(10):
        bench.logs["spans"].append(record(number + 1, spans(5, seed=number).body, items=5))
    bench.logs["evictions"].append(record(1, ipc(evictions(range(3))), stream="evictions", items=3))
    bench.writer.write_pending()
    assert bench.logs["spans"].pending_records == 6
    assert not bench.logs["evictions"].pending_records
    assert bench.writer._wanted.is_set()
    bench.writer.start()
    assert bench.writer.stop(timeout_s=20)
    assert bench.rows("SELECT count() FROM spans") == [(50,)]
