"""Native at a protocol version, as clickhouse-go (Grafana's plugin) reads it, for columns of every type that it reads."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costspan_collector.embedded.failure import Failure
from costspan_collector.embedded.native import Reviser
from tests.collector.harness import Running

_VERSION = "54460"
_TYPES = (
    *("UInt8", "Int128", "UInt256", "Float32", "Bool", "String", "FixedString(7)", "Date", "Date32", "DateTime"),
    *("DateTime('UTC')", "DateTime64(3, 'UTC')", "Decimal(7, 2)", "Decimal(38, 12)", "Decimal(60, 2)", "UUID", "IPv4", "IPv6"),
    *("Enum8('a, (b)' = 1, 'c' = 2)", "Nullable(String)", "Nullable(Int32)", "Array(Array(Nullable(Int16)))"),
    *("LowCardinality(String)", "LowCardinality(Nullable(String))", "Array(String)", "Array(LowCardinality(String))"),
    *("Map(LowCardinality(String), String)", "Map(String, Array(LowCardinality(Nullable(String))))"),
    *("Tuple(a Int8, `b c` String)", "Tuple(Int8, LowCardinality(String))"),
    "Array(Tuple(x LowCardinality(String), y Map(String, Int8)))",
)
_INFORMATION = b"\x01\x00\x02\xff\xff\xff\xff\x00"


def random_rows(collector: Running, rows: int, **parameters: str) -> bytes:
    """Rows of all types, the same each time."""
    structure = ", ".join(f"c{at} {kind}" for at, kind in enumerate(_TYPES)).replace("'", "\\'")
    source = f"generateRandom('{structure}', 1, 10, 3)"
    sql = f"SELECT * FROM {source} LIMIT {rows} SETTINGS max_block_size = 700, max_threads = 1 FORMAT Native"  # noqa: S608
    answer = httpx.post(collector.store, params=parameters, content=sql.encode(), timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.content


@pytest.mark.parametrize("rows", [0, 1, 3, 3000])
def test_each_block_has_information_and_each_column_a_flag(collector: Running, rows: int) -> None:
    plain, versioned = random_rows(collector, rows), random_rows(collector, rows, client_protocol_version=_VERSION)
    assert random_rows(collector, rows, client_protocol_version="54405") == plain
    blocks = versioned.count(_INFORMATION)
    assert blocks == max(-(-rows // 700), 1)
    assert len(versioned) - len(plain) == blocks * (len(_INFORMATION) + len(_TYPES))
    assert versioned.startswith(_INFORMATION + plain[: 2 + len(str(rows)) // 4])


@given(cuts=st.lists(st.integers(0, 5000), max_size=20))
@settings(max_examples=50)
def test_however_it_is_cut(cuts: list[int]) -> None:
    block = b"\x02\x02\x01n\x05UInt8\x01\x02\x01s\x06String\x01a\x02bc"
    stream, places = block * 200, sorted({0, *cuts, 200 * len(block)})
    reviser = Reviser()
    revised = b"".join(reviser.take(stream[start:end]) for start, end in pairwise(places)) + reviser.rest()
    assert revised == (_INFORMATION + b"\x02\x02\x01n\x05UInt8\x00\x01\x02\x01s\x06String\x00\x01a\x02bc") * 200


def test_what_it_cannot_read_it_says(collector: Running) -> None:
    def ask(sql: str) -> Any:
        parameters = {"client_protocol_version": _VERSION, "default_format": "Native"}
        return httpx.post(collector.store, params=parameters, content=sql.encode(), timeout=60, trust_env=False)

    refused = ask("SELECT sumState(number) FROM numbers(3)")
    assert (refused.status_code, refused.headers["X-ClickHouse-Exception-Code"]) == (501, "48")
    assert "AggregateFunction(sum, UInt64)" in refused.text
    assert ask("SELECT displayName(), version(), revision(), timezone()").content.startswith(_INFORMATION)
    with pytest.raises(Failure, match="JSON"):
        Reviser().take(b"\x01\x01\x01j\x04JSON\x00")
