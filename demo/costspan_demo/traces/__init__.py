"""Slices of two public traces of LLM traffic, as the demo replays them; NOTICE names their sources."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files

WINDOW_S = 600.0
"""Length of a ServeGen window."""


@dataclass(frozen=True, slots=True)
class Row:
    """One request of the Azure conversation trace.

    Attributes:
        at_s: Arrival, in seconds after the slice's first.
        context_tokens: Length of its prompt.
        generated_tokens: Length of its answer.
    """

    at_s: float
    context_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Window:
    """How one ServeGen client sent its requests for ten minutes.

    Attributes:
        client: Number of the client.
        second: Start of the window within the day.
        rate: Requests per second.
        cv: Coefficient of variation of the times between requests.
        family: ``Gamma`` or ``Weibull``: what these times were fitted with.
        shape: The family's shape parameter.
    """

    client: int
    second: int
    rate: float
    cv: float
    family: str
    shape: float


def azure_rows() -> list[Row]:
    """The slice of the Azure trace, in the order of arrival."""
    rows = list(_read("azure_conversation.csv"))
    # Seven decimals are one more than datetime knows.
    arrivals = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
    return [
        Row((at - arrivals[0]).total_seconds(), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
        for at, row in zip(arrivals, rows, strict=True)
    ]


def servegen_windows() -> list[Window]:
    """The slice of ServeGen, by client and then by time."""
    return [
        Window(int(row["client"]), int(row["second"]), float(row["rate"]), float(row["cv"]), row["family"], float(row["arg1"]))
        for row in _read("servegen_clients.csv")
    ]


def _read(name: str) -> Iterator[dict[str, str]]:
    with files(__name__).joinpath(name).open(encoding="utf-8") as lines:
        yield from csv.DictReader(lines)
