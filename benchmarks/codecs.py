"""What the columns of the ledger weigh on disk under the codecs they have, and under others.

Run: ``python benchmarks/codecs.py``, on what a scenario leaves, or with ``--data DIR`` on what is in the data folder of a
collector that has stopped, such as the demo's. Each column is written alone, in its table's order, under each codec that its
type can have. A table's codecs are worth changing where ``best`` is well below ``now``.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clickhouse_connect.driver.client import Client

from costspan_analytics.simulate.rows import scratch, simulate
from costspan_collector.store.clickhouse import connect_embedded, own
from costspan_engine.simulate.scenario import Scenario

TABLES = ("attempts", "steps", "evictions", "gpu_samples", "deliveries", "postings")
SCENARIO = "noisy-neighbour"
TRIAL = "codec_trial"
WHOLE = ("", "Delta, ", "DoubleDelta, ", "T64, ")
FLOATS = ("", "Delta, ", "Gorilla, ", "FPC(12), ")
PACKERS = ("LZ4", "ZSTD(1)", "ZSTD(3)")
WORTH = 0.1
"""Bytes a row from which on a column is named."""


@dataclass(frozen=True)
class Column:
    """A column and the bytes a row that it takes under each codec.

    Attributes:
        name: Its name.
        codec: The codec that it has.
        weights: Bytes a row by codec.
    """

    name: str
    codec: str
    weights: dict[str, float]

    @property
    def best(self) -> str:
        """The codec under which it is smallest."""
        return min(self.weights, key=self.weights.__getitem__)

    @property
    def figures(self) -> tuple[float, float, float]:
        """Bytes a row under LZ4, as it is, and at best."""
        return self.weights["LZ4"], self.weights[self.codec], self.weights[self.best]


def main() -> None:
    """Print a line for each table, and for each column that could be smaller."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, metavar="DIR", help="data folder of a collector that has stopped")
    given = parser.parse_args()
    with opened(given.data) if given.data else scratch() as client:
        if not given.data:
            simulate(client, Scenario.find(SCENARIO), "default")
        print(f"{'':32}{'rows':>9}{'LZ4':>9}{'now':>9}{'best':>9}  bytes a row")
        for table in TABLES:
            show(client, table)


def show(client: Client, table: str) -> None:
    """Weigh a table."""
    ((rows,),) = client.query(f"SELECT count() FROM {table}").result_rows  # noqa: S608  (names from this file)
    if not rows:
        return
    columns = list(weighed(client, table, rows))
    totals = [sum(weights) for weights in zip(*(each.figures for each in columns), strict=True)]
    print(f"{table:32}{rows:9,}" + "".join(f"{total:9.2f}" for total in totals))
    for each in columns:
        _, now, best = each.figures
        if now - best > WORTH:
            print(f"  {each.name:39}" + "".join(f"{figure:9.2f}" for figure in each.figures) + f"  {each.codec} -> {each.best}")


def weighed(client: Client, table: str, rows: int) -> Iterator[Column]:
    """A table's columns, each under each codec."""
    ((order, default),) = client.query(
        "SELECT sorting_key, extract(create_table_query, 'default_compression_codec = \\'([^\\']*)') FROM system.tables "
        "WHERE database = currentDatabase() AND name = {table:String}",
        parameters={"table": table},
    ).result_rows
    described = client.query(
        "SELECT name, type, compression_codec FROM system.columns "
        "WHERE database = currentDatabase() AND table = {table:String}",
        parameters={"table": table},
    )
    for name, kind, codec in described.result_rows:
        values = f"SELECT `{name}` FROM {table} ORDER BY {order}"  # noqa: S608  (names from the store's own schema)
        has = spelled(codec) or default or "LZ4"
        yield Column(name, has, {each: weight(client, values, kind, each) / rows for each in {*candidates(kind), has}})


def spelled(codec: str) -> str:
    """A codec as it is written here: without the sizes that ClickHouse adds."""
    return re.sub(r"(Delta|DoubleDelta|Gorilla)\(\d\)", r"\1", codec.removeprefix("CODEC(").removesuffix(")"))


def candidates(kind: str) -> Iterator[str]:
    """The codecs that a type can have."""
    inner = re.sub(r"(?:Array|Nullable)\(|\)+$", "", kind)
    shapes = WHOLE if re.match(r"U?Int(16|32|64)|DateTime", inner) else FLOATS if inner.startswith("Float") else ("",)
    yield "LZ4"
    yield from (shape + packer for shape in shapes for packer in PACKERS[1:])


def weight(client: Client, values: str, kind: str, codec: str) -> int:
    """Bytes of a column under a codec."""
    client.command(f"DROP TABLE IF EXISTS {TRIAL}")
    client.command(
        f"CREATE TABLE {TRIAL} (v {kind} CODEC({codec})) ENGINE = MergeTree ORDER BY () SETTINGS min_bytes_for_wide_part = 0"
    )
    client.command(f"INSERT INTO {TRIAL} {values} SETTINGS max_threads = 1")
    parts = "SELECT sum(data_compressed_bytes) FROM system.parts WHERE active AND database = currentDatabase() AND table = "
    ((size,),) = client.query(f"{parts}'{TRIAL}'").result_rows
    client.command(f"DROP TABLE {TRIAL}")
    return int(size)


@contextmanager
def opened(data: Path) -> Iterator[Client]:
    """The store in a data folder."""
    lock = own(data.absolute())
    os.chdir(data)
    try:
        with connect_embedded(data.absolute() / "store") as client:
            yield client
    finally:
        os.close(lock)


if __name__ == "__main__":
    main()
