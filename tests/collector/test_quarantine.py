"""What the store refuses is kept with the reason, counted, and taken once the store wants it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from costspan_collector.errors import LogFullError, QuarantineError
from costspan_collector.wal.budget import Budget
from costspan_collector.wal.cli import main
from costspan_collector.wal.log import Log
from costspan_collector.wal.quarantine import Quarantine, all_held
from costspan_collector.wal.record import encode
from tests.collector.conftest import Start
from tests.collector.harness import ARROW, Running, delivery, evictions, ipc, record, wait_until


def post(running: Running, step: int) -> None:
    answer = running.post("/v1/ledger/evictions", ipc(evictions([step])), ARROW, delivery(step, client="engine"))
    assert answer.status_code == 200
    running.drained()


def stored(running: Running) -> list[int]:
    with running.client() as client:
        assert (
            client.query("SELECT count(), uniqExact(sequence) FROM deliveries").result_rows
            == client.query("SELECT count(), count() FROM evictions").result_rows
        )
        return [row[0] for row in client.query("SELECT step FROM evictions ORDER BY step").result_rows]


def test_a_record_is_refused_seen_replayed_and_taken(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    running = start()
    data = ["--data", str(running.data)]
    with running.client() as client:
        client.command("ALTER TABLE evictions ADD CONSTRAINT small CHECK step < 5")
    for step in (1, 7, 8, 9):
        post(running, step)
    assert stored(running) == [1]
    assert running.health()["quarantine"]["records"] == 3
    assert running.health()["streams"]["evictions"]["quarantined_records"] == 3

    assert main(["list", *data]) == 0
    said = capsys.readouterr().out
    assert said.count("engine #") == 3
    name = said.splitlines()[0].split()[0]
    assert main(["show", name, *data]) == 0
    said = capsys.readouterr().out
    assert "VIOLATED_CONSTRAINT" in said
    assert '"victim": "a"' in said

    assert main(["replay", name, *data]) == 1
    assert "still refused" in capsys.readouterr().out
    with running.client() as client:
        client.command("ALTER TABLE evictions DROP CONSTRAINT small")
    assert main(["replay", name, *data]) == 0
    assert f"{name}: taken" in capsys.readouterr().out
    assert stored(running) == [1, 7]

    assert running.stop() == 0
    again, dropped = (held.name for held in all_held(running.data / "quarantine"))
    command = [sys.executable, "-m", "costspan.cli", "quarantine", "replay", again, *data]
    assert f"{again}: taken" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert main(["drop", dropped, *data]) == 0
    running = start()
    assert stored(running) == [1, 7, 8]
    wait_until(lambda: running.health()["quarantine"]["records"] == 0)


def test_what_is_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(QuarantineError, match="no collector has used"):
        main(["list", "--data", str(tmp_path)])
    (tmp_path / "log").mkdir()
    with pytest.raises(QuarantineError, match="no 'spans/1'"):
        main(["drop", "spans/1", "--data", str(tmp_path)])
    with pytest.raises(QuarantineError, match="say which"):
        main(["drop", "--data", str(tmp_path)])


def test_it_shares_the_disk_budget_of_the_logs(tmp_path: Path) -> None:
    budget = Budget(10_000)
    held = Quarantine(tmp_path / "quarantine", budget)
    log = Log(tmp_path / "log", budget)
    held.keep("spans", 0, encode(record(1, b"x" * 9_500)), "no")
    assert (held.records, held.bytes) == (1, budget.used_bytes)
    with pytest.raises(LogFullError, match="disk budget"):
        log.append(record(2, b"x" * 1_000))
    again = Budget(10_000)
    assert Quarantine(tmp_path / "quarantine", again).bytes == again.used_bytes == budget.used_bytes
    all_held(tmp_path / "quarantine")[0].drop()
    assert not held.look()
    assert log.append(record(2, b"x" * 1_000))
    log.close()
