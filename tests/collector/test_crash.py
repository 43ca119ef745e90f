"""Whatever is killed, what was acknowledged is stored, once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pyarrow as pa
import pytest

from costspan_collector.errors import StoreAwayError
from costspan_collector.store import writer
from costspan_collector.store.sinks import _stretches
from tests.collector.bench import Bench, spoilt
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
    bench.logs["spans"].append(spoilt(8))
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
