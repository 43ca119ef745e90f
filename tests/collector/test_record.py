from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costspan_collector.wal.record import Record, TornRecordError, decode, decode_all, encode, record_ends
from costspan_collector.wal.seen import Seen

NUMBERS = st.integers(0, 2**64 - 1)
NAMES = st.text(max_size=20)
RECORDS = st.builds(Record, NAMES, NAMES, NAMES, NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.binary(max_size=300))


@given(st.lists(RECORDS, max_size=5))
def test_records_come_back(records: list[Record]) -> None:
    data = b"".join(map(encode, records))
    assert decode_all(data) == records
    assert len(record_ends(data)) == len(records)


@given(RECORDS, st.data())
def test_a_torn_record_is_no_record(record: Record, data: st.DataObject) -> None:
    raw = encode(record)
    torn = raw[: data.draw(st.integers(0, len(raw) - 1))]
    with pytest.raises(TornRecordError):
        decode(memoryview(torn))
    assert record_ends(torn) == []


@given(RECORDS, st.data())
def test_a_changed_byte_is_noticed(record: Record, data: st.DataObject) -> None:
    raw = bytearray(encode(record))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found, _ = decode(memoryview(bytes(raw)))
    except TornRecordError:
        return
    assert found == record  # only a longer spelling of the same number can pass, and no bit flip makes one


@given(st.lists(st.integers(0, 40), max_size=80))
def test_seen_is_a_set(numbers: list[int]) -> None:
    seen, truth = Seen(), set[int]()
    for number in numbers:
        assert seen.add("p", "c", number) == (number not in truth)
        truth.add(number)
    copy = Seen.load(seen.dump())
    assert all((("p", "c", number) in copy) == (number in truth) for number in range(42))
    assert ("p", "other", 1) not in copy


def test_seen_keeps_its_memory_bounded_and_never_invents() -> None:
    seen = Seen()
    for number in range(0, 10_000, 2):
        seen.add("p", "c", number)
    assert len(seen._runs["p", "c"]) == 1000
    assert ("p", "c", 9_998) in seen
    assert ("p", "c", 9_997) not in seen
    assert ("p", "c", 0) not in seen
