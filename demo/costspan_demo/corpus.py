"""The help centre of Larkspur, a made-up bookings and invoicing service: text that ships with the demo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Passage:
    """One article of the help centre.

    Attributes:
        number: Position in the help centre, from 1.
        section: Heading above it.
        title: Its own heading.
        question: How a customer asks for it.
        text: What it says.
    """

    number: int
    section: str
    title: str
    question: str
    text: str


@cache
def passages() -> tuple[Passage, ...]:
    """Every article, in the order of the help centre."""
    return tuple(_parse(files(__package__).joinpath("help_center.md").read_text(encoding="utf-8")))


def _parse(markdown: str) -> Iterator[Passage]:
    """Read sections (``#``), titles (``##``), one question (``?``) and one paragraph below each title."""
    section = title = question = ""
    number = 0
    for line in markdown.splitlines():
        if line.startswith("# "):
            section = line[2:]
        elif line.startswith("## "):
            title = line[3:]
        elif line.startswith("? "):
            question = line[2:]
        elif line:
            number += 1
            yield Passage(number, section, title, question, line)
