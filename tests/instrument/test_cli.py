"""The front door, with rooms made for the test."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

COMMANDS = '''
"""A room."""

from costspan.errors import CostspanError

def good(argv):
    """Says what it was told."""
    print(*argv)
    return 3

def bad(argv):
    """Goes wrong on purpose.

    Not part of the summary.
    """
    raise CostspanError("the folder is not there; create it")

def stopped(argv):
    raise KeyboardInterrupt

def lacking(argv):
    import no_such_dependency

def broken(argv):
    import costspan.no_such_module
'''

ENTRY_POINTS = """
[costspan.commands]
good = costspan_room:good
bad = costspan_room:bad
stopped = costspan_room:stopped
lacking = costspan_room:lacking
broken = costspan_room:broken
absent = costspan_absent.cli:main
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "costspan_room.py").write_text(COMMANDS)
    absent = tmp_path / "costspan_absent"
    absent.mkdir()
    (absent / "__init__.py").touch()
    (absent / "cli.py").write_text('import no_such_dependency\n\ndef main(argv):\n    """Needs an extra."""\n')
    information = tmp_path / "room-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: room\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    return tmp_path


def costspan(site: Path, *arguments: str, module: str = "costspan") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_commands_without_importing_them(site: Path, arguments: tuple[str, ...]) -> None:
    shown = costspan(site, *arguments)
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = {line.split()[0]: line.split(maxsplit=1)[1:] for line in shown.stdout.splitlines() if line.startswith("  ")}
    assert lines["good"] == ["Says what it was told"]
    assert lines["bad"] == ["Goes wrong on purpose"]
    assert lines["absent"] == ["Needs an extra"]
    assert lines["stopped"] == []


def test_a_command_gets_its_arguments_and_decides_the_status(site: Path) -> None:
    said = costspan(site, "good", "--json", "x", module="costspan.cli")
    assert (said.returncode, said.stdout) == (3, "--json x\n")


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("bad", "costspan: the folder is not there; create it"),
        ("nonsense", "costspan: there is no command 'nonsense'; `costspan --help` lists them"),
        ("absent", "costspan: `costspan absent` needs no_such_dependency: pip install 'costspan[absent]'"),
        ("lacking", "costspan: `costspan lacking` needs no_such_dependency: pip install 'costspan[room]'"),
    ],
)
def test_what_goes_wrong_is_one_line(site: Path, command: str, sentence: str) -> None:
    failed = costspan(site, command)
    assert (failed.returncode, failed.stdout, failed.stderr) == (2, "", sentence + "\n")


def test_interrupted(site: Path) -> None:
    stopped = costspan(site, "stopped")
    assert (stopped.returncode, stopped.stderr) == (130, "")


def test_a_missing_module_of_our_own_is_a_bug_and_shows_itself(site: Path) -> None:
    assert "Traceback" in costspan(site, "broken").stderr


def test_version(site: Path) -> None:
    assert costspan(site, "--version").stdout == f"costspan {version('costspan')}\n"
