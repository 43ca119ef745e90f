from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client

from costspan import semconv
from costspan_collector.cli import main
from costspan_collector.store import apply_schema
from costspan_collector.tables import TIME_COLUMN, arrow_schema
from tests.collector.conftest import Start
from tests.collector.harness import Running

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
