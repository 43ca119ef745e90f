from __future__ import annotations

import re
import socket
from pathlib import Path

import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client

from costspan import semconv
from costspan_collector.cli import main
from costspan_collector.errors import StartError
from costspan_collector.store.clickhouse import apply_schema, connect_embedded, schema
from costspan_collector.store.tables import TIME_COLUMN, arrow_schema
from tests.collector.conftest import Start
from tests.collector.harness import ARROW, Running, ipc, wait_until


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


def applied(client: Client) -> list[tuple[str, str]]:
    return [(row[0], row[1]) for row in client.query("SELECT name, digest FROM schema_files ORDER BY name").result_rows]


def test_the_schema_is_applied_once(collector: Running) -> None:
    with collector.client() as client:
        before = applied(client)
        apply_schema(client)
        assert applied(client) == before
    assert [name for name, _ in before] == list(schema())


def test_a_view_whose_text_changed_is_defined_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = schema()
    changed["views/calls.sql"] = changed["views/calls.sql"].replace("duration_ns,", "duration_ns AS took_ns,", 1)
    changed["views/landing_deliveries.sql"] = changed["views/landing_deliveries.sql"].replace(
        "items, total,", "items, 7 AS total,"
    )
    with connect_embedded(tmp_path / "store") as client:
        apply_schema(client)
        monkeypatch.setattr("costspan_collector.store.clickhouse.schema", lambda: changed)
        apply_schema(client)
        client.query("SELECT took_ns FROM calls")
        client.command(
            "INSERT INTO landing (project, client, stream, sequence, items, received) VALUES ('p', 'c', 'spans', 1, 2, 3)"
        )
        assert client.query("SELECT items, total FROM deliveries").result_rows == [(2, 7)]


def test_a_store_whose_tables_another_version_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect_embedded(tmp_path / "early") as client:
        client.command("CREATE TABLE spans (project String) ENGINE = MergeTree ORDER BY project")
        with pytest.raises(StartError, match="early version of costspan: start with an empty folder"):
            apply_schema(client)
    with connect_embedded(tmp_path / "other") as client:
        apply_schema(client)
        changed = schema() | {"001_deliveries.sql": "CREATE TABLE other (x Int8) ENGINE = Null"}
        monkeypatch.setattr("costspan_collector.store.clickhouse.schema", lambda: changed)
        with pytest.raises(StartError, match=r"001_deliveries\.sql differs"):
            apply_schema(client)


def test_the_views_spell_names_as_the_vocabulary_does() -> None:
    known = {str(value) for name, value in vars(semconv).items() if name.isupper() and isinstance(value, str)}
    spelled = {name for text in schema().values() for name in re.findall(r"\['([a-z_.]+)'\]", text)}
    assert spelled
    assert spelled <= known


def test_every_ledger_table_has_an_arrow_schema_with_its_time(collector: Running) -> None:
    client: Client = collector.client()
    for table, time in TIME_COLUMN.items():
        assert time in arrow_schema(client, table).names


def zeros(schema: pa.Schema) -> pa.Table:
    row: dict[str, object] = {
        field.name: [] if pa.types.is_list(field.type) else "" if pa.types.is_string(field.type) else 0 for field in schema
    }
    return pa.Table.from_pylist([row], schema=schema)


def test_a_payload_may_leave_out_columns_that_have_a_default(collector: Running) -> None:
    wait_until(lambda: bool(collector.health()["ready"]))
    with collector.client() as client:
        for table in ("attempts", "steps"):
            schema = arrow_schema(client, table)
            later = [field.name for field in schema if (field.metadata or {}).get(b"default")]
            assert later
            answer = collector.post(f"/v1/ledger/{table}", ipc(zeros(schema).drop_columns(later)), ARROW)
            assert (answer.status_code, answer.json()) == (200, {"rows": 1})
        collector.drained()
        for table in ("attempts", "steps"):
            found = client.query(f"SELECT * FROM {table}").result_rows  # noqa: S608  (names from this file)
            assert len(found) == 1
            assert not any(value for each in found for value in each)


def test_a_column_that_was_always_there_must_still_be_sent(collector: Running) -> None:
    wait_until(lambda: bool(collector.health()["ready"]))
    with collector.client() as client:
        rows = zeros(arrow_schema(client, "attempts"))
    answer = collector.post("/v1/ledger/attempts", ipc(rows.drop_columns("tenant")), ARROW)
    assert answer.status_code == 422
    assert "column 'tenant' is missing: it must be there once, as string" in answer.text
