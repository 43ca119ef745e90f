from __future__ import annotations

import errno
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costspan_collector.errors import BusyError, LogFullError
from costspan_collector.wal.budget import Budget
from costspan_collector.wal.log import Log
from costspan_collector.wal.record import Record, decode_all, encode
from tests.collector.harness import record

MANY = 1 << 30


def opened(folder: Path, budget: int = MANY, segment_bytes: int = MANY) -> Log:
    return Log(folder, Budget(budget), segment_bytes=segment_bytes)


def written(log: Log, limit: int = MANY) -> list[Record]:
    """Write all that a log holds, and say what it was."""
    records: list[Record] = []
    while span := log.next_range(limit):
        log.intend(span)
        records += decode_all(span.data)
        log.advance(span)
    return records


def test_what_was_appended_is_read_in_order_and_once(tmp_path: Path) -> None:
    log = opened(tmp_path, segment_bytes=500)
    records = [record(number, bytes([number]) * 100) for number in range(20)]
    assert all(log.append(each) for each in records)
    assert log.pending_records == 20
    assert written(log, limit=250) == records
    assert (log.pending_bytes, log.pending_records) == (0, 0)
    log.close()
    again = opened(tmp_path)
    assert again.next_range(MANY) is None
    again.close()


def test_a_number_is_taken_once_across_restarts_and_dropped_segments(tmp_path: Path) -> None:
    log = opened(tmp_path, segment_bytes=300)
    for number in range(10):
        log.append(record(number, b"x" * 100))
    written(log)
    log.close()
    assert len(list(tmp_path.glob("*.log"))) == 1
    log = opened(tmp_path)
    assert not any(log.append(record(number, b"x" * 100)) for number in range(10))
    assert log.append(record(3, b"y", client="another"))
    assert log.append(record(0, b"z", client=""))
    assert log.append(record(0, b"z", client=""))
    assert [each.payload for each in written(log)] == [b"y", b"z", b"z"]
    log.close()


@settings(max_examples=40)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=6), st.data())
def test_a_torn_tail_is_cut_back_to_the_last_whole_record(payloads: list[bytes], data: st.DataObject) -> None:
    records = [record(number, payload) for number, payload in enumerate(payloads)]
    raw = b"".join(map(encode, records))
    kept = data.draw(st.integers(0, len(raw)))
    garbage = data.draw(st.binary(max_size=10)) if kept < len(raw) else b""
    whole = [each for at, each in enumerate(records) if len(b"".join(map(encode, records[: at + 1]))) <= kept]
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{0:020d}.log"
        path.write_bytes(raw[:kept] + b"\xff" * bool(garbage) + garbage)
        log = opened(Path(folder))
        assert path.stat().st_size == len(b"".join(map(encode, whole)))
        for each in records:  # what was cut can be sent again, what was not is there
            log.append(each)
        assert written(log) == records
        log.close()


def test_an_intended_range_is_the_same_after_a_crash(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for number in range(3):
        log.append(record(number, b"x" * 50))
    span = log.next_range(MANY)
    assert span
    assert not span.doubtful
    log.intend(span)
    log.append(record(3, b"later"))
    os.close(log._file)  # no close(): the process is gone
    log = opened(tmp_path)
    again = log.next_range(1)
    assert again
    assert (again.start, again.end, again.data, again.records, again.doubtful) == (span.start, span.end, span.data, 3, True)
    log.advance(again)
    assert [each.payload for each in written(log)] == [b"later"]
    log.close()


def test_damage_in_an_older_segment_is_set_aside_and_the_rest_is_read(tmp_path: Path) -> None:
    log = opened(tmp_path, segment_bytes=200)
    for number in range(4):
        log.append(record(number, b"x" * 150))
    log.close()
    first = min(tmp_path.glob("*.log"))
    first.write_bytes(first.read_bytes()[:-1] + b"!")
    log = opened(tmp_path)
    assert [each.sequence for each in written(log)] == [1, 2, 3]
    assert len(list(tmp_path.glob("*.damaged"))) == 1
    log.close()


def test_damage_in_the_middle_costs_what_is_damaged_and_no_more(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for number in range(6):
        log.append(record(number, bytes([number]) * 150))
    log.close()
    path = next(tmp_path.glob("*.log"))
    raw = bytearray(path.read_bytes())
    place = raw.index(bytes([2]) * 150)
    raw[place] = 99
    path.write_bytes(raw)
    for _ in range(2):  # the second time there is nothing new
        log = opened(tmp_path)
        assert log.pending_records == 5
        log.close()
        assert sum(file.stat().st_size for file in tmp_path.glob("*.damaged")) == len(encode(record(2, bytes(150))))
    log = opened(tmp_path)
    assert log.append(record(2, b"sent again"))
    assert [each.sequence for each in written(log)] == [0, 1, 3, 4, 5, 2]
    log.close()


def test_a_log_that_is_shorter_than_its_cursor_goes_on_behind_it(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for number in range(3):
        log.append(record(number, b"x" * 100))
    written(log)
    log.close()
    os.truncate(next(tmp_path.glob("*.log")), 10)
    log = opened(tmp_path)
    assert log.append(record(7, b"later"))
    assert [each.payload for each in written(log)] == [b"later"]
    log.close()


def test_a_full_disk_refuses_before_the_cursor_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(tmp_path, segment_bytes=300)
    log.append(record(1, b"x" * 200))
    disk = os.statvfs(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstatvfs", lambda _file: os.statvfs_result((disk.f_bsize, disk.f_frsize, 0, 0, 2, *disk[5:])))
        with pytest.raises(LogFullError, match="free disk space"):
            log.append(record(2, b"x" * 200))
    assert log.append(record(2, b"x" * 200))
    assert [each.sequence for each in written(log)] == [1, 2]
    log.close()


def test_a_segment_that_cannot_be_begun_leaves_the_last_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(tmp_path, segment_bytes=300)
    log.append(record(1, b"x" * 200))

    def none_left(*_args: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", none_left)
        with pytest.raises(LogFullError, match="Too many open files"):
            log.append(record(2, b"x" * 200))
    assert log.append(record(2, b"x" * 200))
    assert [each.sequence for each in written(log)] == [1, 2]
    log.close()


def test_the_same_bytes_without_a_number_are_the_same_payload(tmp_path: Path) -> None:
    def again() -> Log:
        return Log(tmp_path, Budget(MANY), segment_bytes=300, by_content=True)

    log = again()
    for number in range(10):
        assert log.append(record(0, bytes([number]) * 100, client=""))
    assert not log.append(record(0, bytes(100), client=""))
    assert log.append(replace(record(0, bytes(100), client=""), project="another"))
    assert log.append(record(0, bytes(100)))  # a number says more than the content
    log.close()
    log = again()
    assert not any(log.append(record(0, bytes([number]) * 100, client="")) for number in range(10))
    assert len(written(log)) == 12
    log.close()
    log = again()  # the segments are gone
    assert not any(log.append(record(0, bytes([number]) * 100, client="")) for number in range(10))
    log.close()


def test_a_full_log_refuses_and_recovers_once_written(tmp_path: Path) -> None:
    log = opened(tmp_path, budget=10_000)
    for number in range(9):
        log.append(record(number, b"x" * 1000))
    with pytest.raises(LogFullError, match="disk budget"):
        log.append(record(9, b"x" * 1000))
    written(log)
    assert log.append(record(9, b"x" * 1000))
    log.close()


def test_a_closed_log_takes_nothing(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.close()
    with pytest.raises(BusyError, match="closed"):
        log.append(record(1, b""))


def test_concurrent_appends_share_syncs_and_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = 0
    sync = os.fdatasync

    def slow(file: int) -> None:
        nonlocal syncs
        syncs += 1
        time.sleep(0.005)
        sync(file)

    monkeypatch.setattr(os, "fdatasync", slow)
    log = opened(tmp_path, segment_bytes=3000)

    def send(client: str) -> None:
        for number in range(20):
            log.append(record(number // 2, b"x" * 100, client=client))  # each number twice

    threads = [threading.Thread(target=send, args=(f"client-{at}",)) for at in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    appended = syncs
    found = written(log)
    assert sorted((each.client, each.sequence) for each in found) == sorted(
        (f"client-{at}", number) for at in range(16) for number in range(10)
    )
    assert appended < 320  # how many share one is up to the threads' timing; that some do is not
    log.close()
