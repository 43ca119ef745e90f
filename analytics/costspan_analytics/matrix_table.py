"""Who delayed whom, as a grid of tenants and as a table for people."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType

from costspan_analytics.render import add, estimated, table

COLUMNS = 6
ROWS = 20
"""Beyond those, ``--json`` has all."""


@dataclass(frozen=True, slots=True)
class Line:
    """A tenant's row of the grid.

    Attributes:
        tenant: Who was delayed.
        requests: How many requests of its own.
        by: Milliseconds by culprit, in the order of the columns.
    """

    tenant: str
    requests: int
    by: list[float]

    @property
    def whole(self) -> float:
        """Milliseconds by all of them."""
        return sum(self.by)


def delayed_by(found: dict[str, Any], culprit: str) -> dict[str, Any]:
    """The document of ``Matrix.as_dict`` with one culprit's delays alone; "" leaves everybody's."""
    if not culprit:
        return found
    return found | {name: [row for row in found[name] if row["culprit"] == culprit] for name in ("matrix", "delays")}


def grid(found: dict[str, Any], shown: int) -> tuple[list[str], list[Line]]:
    """That document as columns and rows.

    Args:
        found: The document.
        shown: How many columns there may be; where there are more culprits, the last column is the rest.

    Returns:
        The culprits, who delayed most first; and a line for each tenant that had requests, the most delayed first.
    """
    cells = {(row["tenant"], row["culprit"]): row["ms"] for row in found["matrix"]}
    caused = defaultdict[str, float](float)
    for (_, culprit), value in cells.items():
        caused[culprit] += value
    culprits = sorted(caused, key=lambda name: (-caused[name], name))
    alone = culprits if len(culprits) <= shown else culprits[: shown - 1]
    rest = culprits[len(alone) :]
    lines = []
    for tenant, requests in found["requests"].items():
        by = [cells.get((tenant, culprit), 0.0) for culprit in alone]
        others = [sum(cells.get((tenant, culprit), 0.0) for culprit in rest)] if rest else []
        lines.append(Line(tenant, requests, by + others))
    heads = [*alone, f"({len(rest)} others)"] if rest else alone
    return heads, sorted(lines, key=lambda line: (-line.whole, line.tenant))


def blame_tables(found: dict[str, Any], tenant: str = "") -> RenderableType:
    """The interference matrix of everybody, or one tenant's delays by culprit and mechanism."""
    return Group(_mechanisms(found, tenant) if tenant else _matrix(found), estimated(found["model_error"]))


def _matrix(found: dict[str, Any]) -> RenderableType:
    """Rows were delayed, columns delayed them; a tenant's own other traffic is on the diagonal."""
    culprits, lines = grid(found, COLUMNS)
    requests = sum(found["requests"].values())
    made = table("Who was delayed, by whom, ms", "delayed", "requests", *culprits, "all", "a request")
    for column in made.columns[2:-2]:
        column.max_width, column.overflow = 12, "ellipsis"
    for line in lines[:ROWS]:
        each = line.whole / line.requests
        add(made, line.tenant, f"{line.requests:,}", *map(_cell, line.by), _cell(line.whole), f"{each:,.1f}")
    made.add_section()
    sums = [sum(line.by[at] for line in lines) for at in range(len(culprits))]
    add(made, "all", f"{requests:,}", *map(_cell, sums), _cell(sum(sums)), f"{sum(sums) / max(1, requests):,.1f}")
    return made


def _mechanisms(found: dict[str, Any], tenant: str) -> RenderableType:
    requests = found["requests"][tenant]
    made = table(f"Who delayed {tenant}, over {requests:,} requests", "by", "how", "ms", "a request", right=2)
    for row in found["delays"][:ROWS]:
        culprit = "its own other traffic" if row["culprit"] == tenant else row["culprit"]
        add(made, culprit, row["mechanism"], f"{row['ms']:,.1f}", f"{row['ms'] / requests:,.2f}")
    made.add_section()
    whole = sum(row["ms"] for row in found["delays"])
    add(made, "all", "", f"{whole:,.1f}", f"{whole / requests:,.2f}")
    return made


def _cell(ms: float) -> str:
    return f"{ms:,.0f}" if ms >= 0.5 else "·"
