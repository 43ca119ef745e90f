"""A documentation page: what it tells its reader to run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "sdk"
INDEX = FOLDER / "README.md"
_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_SERVICE = re.compile(r"""\bservice=["']([^"']+)["']""")


@dataclass(frozen=True)
class Page:
    """One page of the SDK's documentation.

    Attributes:
        path: Its file.
    """

    path: Path

    def __str__(self) -> str:
        return self.path.stem

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def service(self) -> str:
        """What its app is called where it does not say so itself."""
        return f"docs-{self}"

    @property
    def services(self) -> list[str]:
        """Whose spans are the page's."""
        return [self.service, *_SERVICE.findall(self.text)]

    @property
    def script(self) -> str:
        """Its Python, from top to bottom."""
        return "\n\n".join(self._blocks("python"))

    @property
    def languages(self) -> set[str]:
        """How its blocks are fenced."""
        return {found[1] for found in _BLOCK.finditer(self.text)}

    @property
    def commands(self) -> list[list[str]]:
        """What it tells to type in a shell, a command a line."""
        lines = "\n".join(self._blocks("sh")).replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]

    def _blocks(self, language: str) -> Iterator[str]:
        return (found[2] for found in _BLOCK.finditer(self.text) if found[1] == language)


def pages() -> list[Page]:
    """Every page there is; the index only lists them."""
    return [Page(path) for path in sorted(FOLDER.glob("*.md")) if path != INDEX]


def moved(text: str, addresses: Mapping[str, str]) -> str:
    """``text`` with the addresses that pages print replaced by a test's."""
    for printed, actual in addresses.items():
        text = text.replace(printed, actual)
    return text
