"""The demo as a command, and its parts when processes are shot down."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from rich.console import Console

from costspan_demo import run, workload
from costspan_demo.bill import Books
from costspan_demo.processes import Children
from costspan_demo.progress import Progress
from costspan_demo.stack import PROJECT, Stack

COMMAND = [sys.executable, "-m", "costspan.cli", "demo"]


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=150, check=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    out = tmp_path_factory.mktemp("demo") / "out"
    done = demo("--no-dashboard", "--json", "--requests", "16", "--seed", "3", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr, out


def test_one_document_holds_every_answer(small: tuple[dict[str, Any], str, Path]) -> None:
    document, _, out = small
    assert {"audit", "tail", "waste", "cost", "units", "report", "traffic", "trouble"} <= document.keys()
    assert all(Path(path).is_file() for path in document["report"]["files"].values())
    assert document["traffic"]["failed"] == 0
    assert document["traffic"]["calls"] == document["audit"]["time"]["requests"]
    assert document["traffic"]["aborted"] == document["audit"]["time"]["aborted"]
    assert json.loads((out / "summary.json").read_text(encoding="utf-8")) == document


def test_nothing_is_lost_on_the_way(small: tuple[dict[str, Any], str, Path]) -> None:
    audit = small[0]["audit"]
    assert audit["spans"]["sent"] == audit["spans"]["stored"] > 0
    assert audit["spans"]["duplicates"] == 0
    assert all(row["sent"] == row["stored"] for row in audit["rows"])


def test_vendors_and_spans_agree(small: tuple[dict[str, Any], str, Path]) -> None:
    lines = {line["sku"]: line for line in small[0]["audit"]["money"]["lines"]}
    for sku in ("retrieval_queries", "rerank_calls"):
        assert lines[sku]["bill_usd"] == lines[sku]["posted_usd"] > 0
    assert small[0]["audit"]["money"]["unpriced"] == []


def test_a_person_sees_what_goes_on(small: tuple[dict[str, Any], str, Path]) -> None:
    _, said, out = small
    for words in ("seed 3", "traffic:", "Audit", "Trouble", "Unit cost", f"--data {out}"):
        assert words in said


def test_an_earlier_run_is_not_overwritten(small: tuple[dict[str, Any], str, Path]) -> None:
    done = demo("--out", str(small[2]))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "holds an earlier demo" in done.stderr


def test_a_folder_that_cannot_be_written_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    done = demo("--out", str(tmp_path / "file"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A job in a shell's background ignores Ctrl-C, and so does what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_every_process(tmp_path: Path) -> None:
    with (
        (tmp_path / "said").open("w", encoding="utf-8") as said,
        subprocess.Popen([*COMMAND, "--requests", "200", "--out", str(tmp_path / "out")], stderr=said) as process,
    ):
        try:
            deadline = time.monotonic() + 60
            while "traffic:" not in (tmp_path / "said").read_text(encoding="utf-8") and time.monotonic() < deadline:
                assert process.poll() is None
                time.sleep(0.1)
            children = _children_of(process.pid)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        finally:
            process.terminate()  # if it is still there, it ends its children
    assert len(children) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_a_killed_collector_loses_nothing(tmp_path: Path) -> None:
    stack = Stack.plan(tmp_path / "out")
    progress = Progress(Console(file=io.StringIO()))
    with Children() as children:
        run.start(stack, children, progress)
        books = Books(stack.collector_url, PROJECT)
        books.post_prices()
        shot = threading.Thread(target=_kill_and_restart, args=(stack,))
        shot.start()
        try:
            tally, meters = asyncio.run(run.traffic(stack, workload.build(5, 24), children, progress))
        finally:
            shot.join()  # or it would start a collector that nobody ends
        stack.collector.wait_ready(60)
        run.finish(stack, books, meters, progress)
        audit = run.ask(stack)["audit"]
    assert tally.failed == 0
    assert audit["time"]["requests"] == tally.calls
    assert audit["spans"]["sent"] == audit["spans"]["stored"] > 0
    assert audit["spans"]["duplicates"] == 0
    assert all(row["sent"] == row["stored"] for row in audit["rows"])


def _kill_and_restart(stack: Stack) -> None:
    time.sleep(3)
    stack.collector.kill()
    assert not _listens(stack.collector_url)
    time.sleep(1)
    stack.collector.start()


def _listens(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", urlsplit(url).port or 0)) == 0


def _children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
