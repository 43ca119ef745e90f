from __future__ import annotations

import re
import shutil
import socket
from pathlib import Path

import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client

from costspan import semconv
from costspan_collector.cli import main
from costspan_collector.store import apply_schema, connect_embedded
from costspan_collector.tables import TIME_COLUMN, arrow_schema
from tests.collector.conftest import Start
from tests.collector.harness import ARROW, Running, delivery, ipc, wait_until

SCHEMA = Path(__file__).parents[2] / "collector" / "costspan_collector" / "schema"


def sentence(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_taken_port(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = sentence(capsys, "--data", str(tmp_path), "--port", port, "--store-port", "0")
        assert f"port {port} on 127.0.0.1 is taken" in said
        assert "--port" in said
        assert "--store-port" in sentence(capsys, "--data", str(tmp_path), "--port", "0", "--store-port", port)


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    said = sentence(capsys, "--data", str(tmp_path / "file"), "--port", "0", "--store-port", "0")
    assert "cannot write in the data folder" in said
    assert "--data" in said


def test_a_second_process_on_the_same_folder(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    running = start()
    said = sentence(capsys, "--data", str(running.data), "--port", "0", "--store-port", "0")
    assert f"process {running.process.pid} already uses the data folder" in said
    assert "stop it" in said
    assert running.stop() == 0


@pytest.mark.parametrize(("option", "value"), [("--port", "x"), ("--store", "nowhere"), ("--max-body-mb", "0")])
def test_options_that_cannot_work(option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--data", str(tmp_path), option, value])
    assert ended.value.code == 2
    assert repr(value) in capsys.readouterr().err


def test_the_schema_is_applied_once(collector: Running) -> None:
    with collector.client() as client:
        applied = client.query("SELECT version, name FROM schema_versions ORDER BY version").result_rows
        apply_schema(client)
        assert client.query("SELECT version, name FROM schema_versions ORDER BY version").result_rows == applied
    assert [name for _, name in applied] == sorted(path.name for path in SCHEMA.glob("*.sql"))


def test_the_views_spell_names_as_the_vocabulary_does() -> None:
    known = {str(value) for name, value in vars(semconv).items() if name.isupper() and isinstance(value, str)}
    spelled = {name for file in SCHEMA.glob("*.sql") for name in re.findall(r"\['([a-z_.]+)'\]", file.read_text())}
    assert spelled
    assert spelled <= known


def test_every_ledger_table_has_an_arrow_schema_with_its_time(collector: Running) -> None:
    client: Client = collector.client()
    for table, time in TIME_COLUMN.items():
        assert time in arrow_schema(client, table).names


LATER = {
    "attempts": ("adapter", "latency_class", "priority", "block_ns", "drafted_tokens", "accepted_tokens"),
    "steps": ("drafted_tokens", "expert_tokens", "expert_skew"),
}
"""Columns that came with 006, by table."""


def zeros(schema: pa.Schema) -> pa.Table:
    row: dict[str, object] = {
        field.name: [] if pa.types.is_list(field.type) else "" if pa.types.is_string(field.type) else 0 for field in schema
    }
    return pa.Table.from_pylist([row], schema=schema)


def test_a_store_of_the_former_version_opens_and_takes_what_former_engines_send(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = tmp_path / "schema"
    former.mkdir()
    for file in SCHEMA.glob("00[1-5]_*.sql"):
        shutil.copy(file, former)
    (tmp_path / "data").mkdir()
    with monkeypatch.context() as patched, connect_embedded(tmp_path / "data" / "store") as client:
        patched.setattr("costspan_collector.store._SCHEMA", former)
        apply_schema(client)
        rows = {table: zeros(arrow_schema(client, table)) for table in LATER}
        for table, row in rows.items():
            assert not set(LATER[table]) & set(row.column_names)
            client.insert_arrow(table, row)
    running = start()
    wait_until(lambda: bool(running.health()["ready"]))
    for table, row in rows.items():
        answer = running.post(f"/v1/ledger/{table}", ipc(row), ARROW, delivery(1, client="engine"))
        assert (answer.status_code, answer.json()) == (200, {"rows": 1})
    running.drained()
    with running.client() as client:
        for table, names in LATER.items():
            found = client.query(f"SELECT {', '.join(names)} FROM {table}").result_rows  # noqa: S608  (names from this file)
            assert len(found) == 2
            assert not any(value for each in found for value in each)
    assert running.stop() == 0


def test_a_column_that_was_always_there_must_still_be_sent(collector: Running) -> None:
    wait_until(lambda: bool(collector.health()["ready"]))
    with collector.client() as client:
        rows = zeros(arrow_schema(client, "attempts"))
    answer = collector.post("/v1/ledger/attempts", ipc(rows.drop_columns("tenant")), ARROW)
    assert answer.status_code == 422
    assert "column 'tenant' is missing: it must be there once, as string" in answer.text
