"""What every sender says it sent, beside what came and what is stored: sender by sender, stream by stream.

A sender numbers its payloads and adds up its items, so a payload that never came has a number, and items that were given up
before they were sent are missing from the sum. A payload after which nothing came is missed by nobody but the silence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from costspan.clock import now_ns

SPANS = "spans"
LEDGER = ("attempts", "engines", "evictions", "gpu_samples", "steps")
"""The tables that engines fill, by the names of their streams."""

_NS_PER_MS = 1_000_000
_LEAST_SILENCE_MS = 60_000
_PAUSES = 3
"""A sender is silent once it has said nothing for longer than this many of its longest pauses, and a minute."""


@dataclass(frozen=True)
class Gap:
    """Numbers in a row whose payloads never came.

    Attributes:
        first: The first of them.
        last: The last of them.
        items: How many items the sender counted meanwhile: those in them, and those it gave up.
        heard_ms: When the payload before them came, Unix time in milliseconds; None when they were the sender's first.
        again_ms: When the payload after them came.
    """

    first: int
    last: int
    items: int
    heard_ms: int | None
    again_ms: int


@dataclass(frozen=True)
class Short:
    """Payloads that came, and are not in the store as they came.

    Attributes:
        first: Number of the first of them; they came in the same millisecond.
        last: Number of the last.
        items: What they held.
        stored: Rows of them in the store.
    """

    first: int
    last: int
    items: int
    stored: int


@dataclass(frozen=True)
class Sender:
    """One stream of one sender.

    Attributes:
        client: The sender: a process that numbers what it sends. One that starts anew has another name.
        stream: ``spans``, or a table of the ledger.
        payloads_sent: By its own numbers.
        payloads_arrived: Different ones.
        payloads_twice: How often one was stored again.
        items_sent: By its own count.
        items_arrived: In the payloads that came.
        items_given_up: That it counted and put into no payload, those between gaps aside.
        items_stored: Rows of it; None where rows do not say who sent them.
        missing: What never came.
        short: What came, and is stored otherwise.
        first_ms: When it was first heard of, Unix time in milliseconds.
        last_ms: When it was last heard of.
        silent: Whether it has said nothing for so long that it is more than a pause.
    """

    client: str
    stream: str
    payloads_sent: int
    payloads_arrived: int
    payloads_twice: int
    items_sent: int
    items_arrived: int
    items_given_up: int
    items_stored: int | None
    missing: tuple[Gap, ...]
    short: tuple[Short, ...]
    first_ms: int
    last_ms: int
    silent: bool

    @property
    def holds(self) -> bool:
        """Whether everything that it sent came, once. Silence breaks nothing: most senders end."""
        whole = self.items_sent == self.items_arrived and not self.payloads_twice and not self.missing
        return whole and (self.items_stored is None or self.items_stored >= self.items_arrived)

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {**asdict(self), "holds": self.holds}


def senders(arrivals: pl.DataFrame, short: pl.DataFrame, stored: Iterable[tuple[str, str, int]]) -> list[Sender]:
    """Every sender of a project.

    Args:
        arrivals: What ``queries/arrivals.sql`` finds, read before the others: what arrives meanwhile is in the store sooner.
        short: What ``queries/short.sql`` finds.
        stored: Streams and clients, and how many rows each has.
    """
    rows = {(stream, client): count for stream, client, count in stored}
    wrong: dict[str, list[Short]] = {}
    for client, *figures in short.iter_rows():
        wrong.setdefault(client, []).append(Short(*figures))
    now_ms = now_ns() // _NS_PER_MS
    return [_sender(row, rows, wrong, now_ms) for row in arrivals.iter_rows(named=True)]


def _sender(row: dict[str, Any], rows: dict[tuple[str, str], int], wrong: dict[str, list[Short]], now_ms: int) -> Sender:
    client, stream = row["client"], row["stream"]
    missing = tuple(_gap(*gap.values()) for gap in row["missing"])
    return Sender(
        client,
        stream,
        row["payloads_sent"],
        row["payloads_arrived"],
        row["payloads_twice"],
        row["items_sent"],
        row["items_arrived"],
        row["items_sent"] - row["items_arrived"] - sum(gap.items for gap in missing),
        rows.get((stream, client), 0) if stream in (SPANS, *LEDGER) else None,
        missing,
        tuple(wrong.get(client, ())) if stream == SPANS else (),
        row["first_ms"],
        row["last_ms"],
        now_ms - row["last_ms"] > max(_LEAST_SILENCE_MS, _PAUSES * row["pause_ms"]),
    )


def _gap(first: int, last: int, items: int, heard_ms: int, again_ms: int) -> Gap:
    return Gap(first, last, items, heard_ms or None, again_ms)
