"""A store that is behind gets two inserts at once, and each row once whatever becomes of either."""

from __future__ import annotations

import threading

import pytest
from clickhouse_connect.driver.client import Client

from costspan_collector.errors import StoreAwayError
from costspan_collector.store import writer
from costspan_collector.store.sinks import SignalSink
from costspan_collector.wal.quarantine import Quarantine
from tests.collector.bench import Bench, spoilt
from tests.collector.harness import record, spans


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
    bench.logs["spans"].append(spoilt(8))
    behind(bench, monkeypatch)
    check_behind(bench)
    [kept] = (bench.folder / "quarantine").rglob("*.record")
    assert b"no spans" in kept.read_bytes()


def test_of_two_inserts_at_once_one_is_refused_and_one_happens_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.logs["spans"].append(spoilt(8))
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
    bench.logs["spans"].append(spoilt(8))
    behind(bench, monkeypatch)
    pending = bench.logs["spans"].pending_bytes

    def killed(*_: object) -> None:
        raise StoreAwayError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Quarantine, "keep", killed)
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
    bench.logs["spans"].append(spoilt(8))
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
