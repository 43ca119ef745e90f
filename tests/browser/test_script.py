"""The script as it is served: small, and what its source gives."""

from __future__ import annotations

import json
import shutil
import subprocess
import zlib
from importlib.resources import files
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "instrument" / "browser"
MOST_BYTES = 3072


def test_it_is_small() -> None:
    packed = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    script = served()
    assert len(packed.compress(script) + packed.flush()) <= MOST_BYTES
    assert script.isascii()  # whatever charset the page that includes it has


def test_it_is_what_its_source_gives(tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None or not (SOURCE / "node_modules" / "terser").exists():
        pytest.skip("the script is NOT built here: install Node.js and run `make browser`")
    subprocess.run(
        [npm, "run", "--silent", "build", "--", "--output", str(tmp_path / "built.js")],
        cwd=SOURCE,
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert (tmp_path / "built.js").read_bytes() == served()


def test_what_builds_it_is_pinned_to_no_registry() -> None:
    wanted = json.loads((SOURCE / "package.json").read_text())["devDependencies"]
    locked = json.loads((SOURCE / "package-lock.json").read_text())["packages"]
    assert all(locked[f"node_modules/{name}"]["version"] == version for name, version in wanted.items())
    assert all("integrity" in package for path, package in locked.items() if path)
    assert "http" not in (SOURCE / "package-lock.json").read_text()


def served() -> bytes:
    return (files("costspan") / "browser" / "costspan.min.js").read_bytes()
