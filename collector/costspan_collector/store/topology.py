"""The schema on any number of nodes: the statements of ``schema/*.sql``, changed in what a topology changes.

One node holds every table as it is written. Replicas hold the same tables, replicated. With several shards, large tables are
split: each node has ``X_local``, and ``X`` is all of them. Small tables, which queries of any shard look up, are whole on every
node. ``landing`` and the views that read it are on every node too, so a collector may insert at any of them: what it inserts
goes on to the shards before it is acknowledged, under the token it came with.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MappingProxyType

from costspan_collector.errors import StartError
from costspan_collector.store.clickhouse import SCHEMA_FILES, TOPOLOGY, schema, statements
from costspan_collector.store.retention import TABLES, Keep, expire

_TRACE, _ENGINE, _SENDER = "cityHash64(trace_id)", "cityHash64(engine)", "cityHash64(client)"
SHARDED = MappingProxyType(
    {
        "spans": _TRACE,
        "payloads": _TRACE,
        "metrics": "cityHash64(received)",  # a payload is whole on one shard: after a crash it is looked up as such
        "logs": "cityHash64(received)",
        "attempts": _ENGINE,  # a request is explained from the steps that it was in, so both are where their engine's are
        "steps": _ENGINE,
        "evictions": _ENGINE,
        "gpu_samples": "cityHash64(host)",
        "deliveries": _SENDER,
    }
)
"""What decides on which shard a row is. Tables that are not named here are on every node."""

_NAME = re.compile(r"[A-Za-z_]\w*")
_TABLE = re.compile(r"CREATE TABLE IF NOT EXISTS (\w+)")
_VIEW = re.compile(r"CREATE OR REPLACE VIEW (\w+)")
_FILL = re.compile(r"CREATE MATERIALIZED VIEW IF NOT EXISTS (\w+)( TO \w+ AS\n)(.*)", re.DOTALL)
_ENGINE_CLAUSE = re.compile(r"\bENGINE = (\w*MergeTree)(?:\(([\w, ]*)\))?")
_PARTITION = re.compile(r"^PARTITION BY (.+)$", re.MULTILINE)
_WINDOW = re.compile(r"\bnon_replicated_deduplication_window = (\d+)")
_REMEMBER_S = 7 * 86400  # a collector may find the store again after a weekend


@dataclass(frozen=True, slots=True)
class Topology:
    """How many nodes there are, and what they are called.

    Attributes:
        shards: How many parts the large tables are split into.
        replicas: How many nodes hold each part.
        cluster: The cluster's name in the servers' ``remote_servers``.
        database: Where the tables are.

    Raises:
        StartError: A name is none, or there is no node.
    """

    shards: int = 1
    replicas: int = 1
    cluster: str = "costspan"
    database: str = "costspan"

    def __post_init__(self) -> None:
        for what, name in (("cluster", self.cluster), ("database", self.database)):
            if not _NAME.fullmatch(name):
                raise StartError(f"{name!r} is no name for a {what}: write letters, digits and underscores")
        if min(self.shards, self.replicas) < 1:
            raise StartError("a store has at least one shard and one replica")

    @property
    def on_cluster(self) -> str:
        """What sends a statement to all nodes, with a space before it; "" when there is one."""
        return f" ON CLUSTER {self.cluster}" if self.shards * self.replicas > 1 else ""

    def stored(self, table: str) -> str:
        """The name of the table that holds the rows of a table on a node."""
        return f"{table}_local" if self.shards > 1 and table in SHARDED else table

    def spread(self, statement: str) -> Iterator[str]:
        """What a statement of the schema is on this topology.

        Raises:
            ValueError: It is none that a schema may hold.
        """
        if table := _TABLE.search(statement):
            yield from self._table(statement, table[1])
        elif _VIEW.search(statement):
            yield _VIEW.sub(rf"\g<0>{self.on_cluster}", statement)
        elif fill := _FILL.search(statement):
            yield _FILL.sub(rf"CREATE MATERIALIZED VIEW IF NOT EXISTS \1{self.on_cluster}\2", statement, count=1) + fill[3]
            yield f"ALTER TABLE {fill[1]}{self.on_cluster} MODIFY QUERY\n{fill[3]}"
        else:
            raise ValueError(f"not a table or a view: {statement[:60]}")

    def _table(self, statement: str, table: str) -> Iterator[str]:
        if not self.on_cluster:
            yield statement
            return
        stored = self.stored(table)
        statement = _TABLE.sub(f"CREATE TABLE IF NOT EXISTS {stored}{self.on_cluster}", statement, count=1)
        statement = _ENGINE_CLAUSE.sub(self._replicated(table), statement)
        yield _WINDOW.sub(
            rf"replicated_deduplication_window = \1, replicated_deduplication_window_seconds = {_REMEMBER_S}", statement
        )
        if stored != table:
            target = f"'{self.cluster}', '{self.database}', '{stored}', {SHARDED[table]}"
            yield f"CREATE TABLE IF NOT EXISTS {table}{self.on_cluster} AS {stored}\nENGINE = Distributed({target})"

    def _replicated(self, table: str) -> Callable[[re.Match[str]], str]:
        """A table's engine, replicated: among the nodes of a shard, or among all where every node has the whole table."""
        shard, replica = ("{shard}", "{replica}") if table in SHARDED else ("all", "{shard}-{replica}")
        place = f"'/clickhouse/tables/{shard}/{self.database}/{table}', '{replica}'"
        return lambda engine: f"ENGINE = Replicated{engine[1]}({', '.join(filter(None, (place, engine[2])))})"


def plan(topology: Topology, keep: Keep) -> list[str]:
    """The statements that make a store, or bring one that this made up to date; in order, without semicolons.

    Args:
        topology: On which nodes.
        keep: How long it keeps what.
    """
    texts = schema()
    made = [
        each
        for text in (SCHEMA_FILES, *texts.values())
        for statement in statements(text)
        for each in topology.spread(statement)
    ]
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    if topology.on_cluster:
        digests[TOPOLOGY] = f"{topology.shards} x {topology.replicas}"
    known = ", ".join(f"('{name}', '{digest}')" for name, digest in digests.items())
    return [
        f"CREATE DATABASE IF NOT EXISTS {topology.database}{topology.on_cluster}",
        f"USE {topology.database}",
        *made,
        *_retention(topology, keep, "\n".join(texts.values())),
        f"INSERT INTO schema_files (name, digest) VALUES {known}",  # noqa: S608  (our own files and their digests)
    ]


def _retention(topology: Topology, keep: Keep, text: str) -> Iterator[str]:
    for group, tables in TABLES.items():
        days = getattr(keep, group)
        for table in tables if days is not None else ():
            partition = _PARTITION.search(text, text.index(f"EXISTS {table}\n"))
            if partition:
                yield from expire(topology.stored(table), partition[1], days, topology.on_cluster)
