"""Every page of ``docs/sdk`` does what it says: its Python is one script, run from top to bottom; its commands run after it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.docs.conftest import World
from tests.docs.page import INDEX, Page, moved, pages

PATIENCE_S = 90
SERVERS = {"collector", "engine", "sidecar", "dashboard", "demo"}  # commands that last: the test's own stand in for them
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
every_page = pytest.mark.parametrize("page", pages(), ids=str)


def ran(command: Sequence[str], folder: Path, environment: dict[str, str], well: Collection[int] = (0,)) -> str:
    """What a command that ends well says on standard error. What it has started ends with it."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("COSTSPAN_", "OTEL_"))} | environment
    with subprocess.Popen(
        command, cwd=folder, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            printed, said = process.communicate(timeout=PATIENCE_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode in well, f"{printed}\n{said}"
    return said


@every_page
def test_a_page_runs_as_it_is_printed(page: Page, world: World, tmp_path: Path) -> None:
    assert page.script, "a page shows how"
    script = tmp_path / "app.py"
    script.write_text(moved(page.script, world.addresses), encoding="utf-8")
    began_ns = time.time_ns()
    said = ran([sys.executable, str(script)], tmp_path, {"COSTSPAN_SERVICE": page.service})
    assert "Traceback" not in said, said
    assert "costspan could not" not in said, said
    assert world.spans_of(page.services, began_ns) > 0
    for command in asked(page):
        well = (0, 1) if command[1] == "audit" else (0,)  # what the pages do together need not hold to the laws
        ran([sys.executable, "-m", "costspan.cli", *command[1:]], tmp_path, {"COSTSPAN_STORE": world.store}, well)


def asked(page: Page) -> list[list[str]]:
    """The questions that a page tells its reader to ask."""
    return [command for command in page.commands if command[0] == "costspan" and command[1] not in SERVERS]


@every_page
def test_a_page_installs_what_there_is(page: Page) -> None:
    extras = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    installs = [Requirement(word) for command in page.commands if command[:2] == ["pip", "install"] for word in command[2:]]
    assert any(requirement.name == "costspan" for requirement in installs)
    for requirement in installs:
        installed = importlib.metadata.version(canonicalize_name(requirement.name))
        assert requirement.specifier.contains(installed)
        assert requirement.name != "costspan" or requirement.extras <= set(extras)


@every_page
def test_no_block_escapes_its_test(page: Page) -> None:
    assert page.languages <= {"python", "sh", "text", "html", "js", "json", "toml", "ini", "yaml", "nginx", ""}


def test_the_index_lists_every_page() -> None:
    listed = re.findall(r"\]\(([^)#]+\.md)\)", INDEX.read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(page.path.name for page in pages())
