from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import chdb
import pytest
from clickhouse_connect.driver.client import Client

from costspan_collector.errors import StartError
from costspan_collector.store.cli import main
from costspan_collector.store.clickhouse import TOPOLOGY, apply_schema, connect_embedded, schema, statements
from costspan_collector.store.retention import Keep
from costspan_collector.store.roles import roles
from costspan_collector.store.topology import SHARDED, Topology, plan

DIGEST = "ab" * 32
TOPOLOGIES = [Topology(), Topology(1, 3), Topology(2, 1), Topology(3, 2, "main", "telemetry")]
READERS = {"acme": DIGEST, "it's `x` \\": "", "p') OR 1 --": ""}


def tables(client: Client, database: str) -> dict[str, str]:
    """How a store's tables are made, whichever database they are in."""
    rows = client.query(
        "SELECT name, create_table_query FROM system.tables WHERE database = {database:String}",
        parameters={"database": database},
    ).result_rows
    return {name: made.replace(f"{database}.", "") for name, made in rows if name != "schema_files"}


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.chdir(tmp_path)
    with connect_embedded(tmp_path / "store") as client:
        yield client


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
def test_every_statement_is_one_that_clickhouse_understands(empty: Client, topology: Topology) -> None:
    printed = [*plan(topology, Keep()), *roles(topology, READERS)]
    assert len(printed) > 50
    for statement in printed:
        assert len(re.findall(r"^(?:CREATE|ALTER|INSERT|GRANT|USE) ", statement, re.MULTILINE)) == 1
        empty.query(f"EXPLAIN AST {statement}")


def test_the_plan_of_one_node_makes_what_a_collector_makes(empty: Client) -> None:
    for _ in range(2):  # the second time it changes nothing
        for statement in plan(Topology(database="planned"), Keep(None, None, None, None)):
            empty.command(statement)
    planned = tables(empty, "planned")
    applied = empty.query("SELECT name, digest FROM schema_files FINAL ORDER BY name").result_rows
    apply_schema(empty)
    assert empty.query("SELECT name, digest FROM schema_files FINAL ORDER BY name").result_rows == applied
    empty.command("USE default")
    apply_schema(empty)
    assert planned == tables(empty, "default")


def test_it_keeps_what_it_is_told_to_keep(empty: Client) -> None:
    for statement in plan(Topology(), Keep(rows=45)):
        empty.command(statement)
    made = tables(empty, "costspan")
    assert {name for name, text in made.items() if "toIntervalDay(46)" in text} == {
        "spans", "attempts", "steps", "evictions", "gpu_samples", "deliveries",
    }  # fmt: skip
    assert {name for name, text in made.items() if "toIntervalDay(15)" in text} == {"payloads"}
    assert not [name for name in ("prices", "invoices", "postings", "engines") if "toIntervalDay" in made[name]]


CLUSTER = """<clickhouse><remote_servers><costspan>
<shard><replica><host>127.0.0.1</host><port>1</port></replica></shard>
<shard><replica><host>127.0.0.1</host><port>1</port></replica></shard>
</costspan></remote_servers></clickhouse>"""


def test_the_tables_of_a_cluster_are_made_on_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but what needs a Keeper: replication, and the way of the statements to the other nodes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.xml").write_text(CLUSTER)
    connection = chdb.connect(f"{tmp_path}/store?config-file={tmp_path}/config.xml")
    try:
        for statement in plan(Topology(2, 2), Keep()):
            alone = re.sub(
                r"Replicated(\w*MergeTree)\('[^']*', '[^']*'(?:, )?", r"\1(", statement.replace(" ON CLUSTER costspan", "")
            )
            connection.query(alone)
        found = connection.query("SELECT name, engine FROM system.tables WHERE database = 'costspan'", "TSV").data()
    finally:
        connection.close()
    engines = dict(line.split("\t") for line in found.splitlines())
    assert {name for name, engine in engines.items() if engine == "Distributed"} == set(SHARDED)
    assert {name.removesuffix("_local") for name in engines if name.endswith("_local")} == set(SHARDED)
    assert engines["landing"] == "Null"


def test_a_cluster_counts_repeats_and_names_its_nodes() -> None:
    printed = "\n".join(plan(Topology(2, 2), Keep()))
    created = re.findall(r"ENGINE = (\w*MergeTree\(.*\))$", printed, re.MULTILINE)
    assert created
    assert all(each.startswith("Replicated") for each in created)
    assert "non_replicated" not in printed
    assert printed.count("replicated_deduplication_window =") == schema_windows()
    assert "'/clickhouse/tables/{shard}/costspan/spans', '{replica}'" in printed
    assert "'/clickhouse/tables/all/costspan/prices', '{shard}-{replica}'" in printed
    assert "Distributed('costspan', 'costspan', 'spans_local', cityHash64(trace_id))" in printed


def schema_windows() -> int:
    return sum(text.count("non_replicated_deduplication_window") for text in schema().values())


def test_every_file_of_the_schema_is_one_statement_after_another() -> None:
    for name, text in schema().items():
        for statement in statements(text):
            assert len(re.findall(r"^CREATE ", statement, re.MULTILINE)) == 1, name


def test_a_collector_does_not_alter_a_cluster_of_another_version(empty: Client) -> None:
    apply_schema(empty)
    empty.insert("schema_files", [[TOPOLOGY, "2 x 2"]], column_names=["name", "digest"])
    apply_schema(empty)  # the same version: nothing to do
    empty.insert("schema_files", [["views/calls.sql", "another"]], column_names=["name", "digest"])
    with pytest.raises(StartError, match="this store is a cluster, made by another version of costspan"):
        apply_schema(empty)


def test_every_row_of_a_project_is_behind_a_policy(empty: Client) -> None:
    apply_schema(empty)
    rows = empty.query(
        "SELECT table FROM system.columns AS c JOIN system.tables AS t ON t.name = c.table AND t.database = c.database "
        "WHERE c.database = currentDatabase() AND c.name = 'project' AND engine LIKE '%MergeTree'"
    ).result_rows
    needed = {row[0] for row in rows} | {f"{table}_local" for table in SHARDED}
    for statement in (each for each in roles(Topology(2, 2), {"acme": ""}) if "ROW POLICY" in each):
        covered = statement.partition(" ON costspan.")[2].partition(" USING ")[0]
        assert set(covered.replace("costspan.", "").split(", ")) == needed
    assert needed > {"spans", "payloads", "postings", "closed_days"}


def test_a_project_is_data_whatever_its_name(empty: Client) -> None:
    for project in READERS:
        policy = next(each for each in roles(Topology(), {project: ""}) if f"{project[:2]}" in each and "POLICY" in each)
        condition = policy.partition(" USING ")[2].rpartition(" TO ")[0]
        rows = "SELECT project FROM values('project String', ('acme'), ({project:String}), ('other'))"
        found = empty.query(
            f"SELECT DISTINCT project FROM ({rows}) WHERE {condition}",  # noqa: S608  (what is tested)
            parameters={"project": project},
        ).result_rows
        assert found == [(project,)]


def test_a_reader_asks_under_limits_and_changes_nothing() -> None:
    printed = "\n".join(roles(Topology(), {"acme": DIGEST}))
    assert printed.count("readonly = 2 CONST, max_execution_time = 60 MAX 60") == 2
    user = f"`costspan_acme` IDENTIFIED WITH sha256_hash BY '{DIGEST}' DEFAULT ROLE `costspan_reader_acme`"
    assert f"CREATE USER IF NOT EXISTS {user}" in printed
    assert "INSERT" not in printed.partition("CREATE ROLE IF NOT EXISTS costspan_reader\n")[2]


def test_what_cannot_be_is_said_in_a_sentence() -> None:
    for wrong in ("two words", "", "a;b", "1a"):
        with pytest.raises(StartError, match="is no name for a cluster"):
            Topology(cluster=wrong)
    with pytest.raises(StartError, match="at least one shard"):
        Topology(shards=0)
    with pytest.raises(StartError, match="must come as its SHA-256 in hex"):
        roles(Topology(), {"acme": "secret"})


def test_the_command_prints_what_a_client_can_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--shards", "2", "--replicas", "2", "--keep", "rows=30"]) == 0
    assert statements(capsys.readouterr().out) == plan(Topology(2, 2), Keep(rows=30))
    assert main(["roles", "--database", "main", "--reader", f"acme={DIGEST}", "--reader", "beta"]) == 0
    assert statements(capsys.readouterr().out) == roles(Topology(database="main"), {"acme": DIGEST, "beta": ""})
