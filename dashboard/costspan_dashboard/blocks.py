"""Pieces of the page as HTML: cards of the two laws, figures, dense tables. Everything that comes from the store is escaped."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from costspan_analytics.audit import MONEY_LIMIT, TIME_LIMIT, dollars
from costspan_analytics.palette import PHASE_COLOURS
from costspan_analytics.render import percent, usd
from costspan_dashboard.overview import Overview

STYLE = """<style>
.block-container { padding: 1.4rem 2rem 3rem; max-width: 1360px; }
header[data-testid="stHeader"] { background: transparent; height: 0; }
[data-testid="stVerticalBlock"] { gap: .7rem; }
.cs { color: #1f2733; font-size: 13.5px; line-height: 1.45; font-variant-numeric: tabular-nums; }
.cs h3 { font-size: 15px; font-weight: 650; margin: 14px 0 2px; padding: 0; letter-spacing: -.005em; }
.cs .soft { color: #667180; font-size: 12.5px; }
.cs .brand { font-size: 22px; font-weight: 700; letter-spacing: -.02em; line-height: 1.2; }
.cs table { border-collapse: collapse; width: 100%; margin: 6px 0 0; border: 0; }
.cs th { font-weight: 600; font-size: 12px; color: #667180; text-align: left; border: 0; border-bottom: 1px solid #b9c2cc;
         padding: 3px 10px 3px 0; }
.cs td { border: 0; border-bottom: 1px solid #eceff2; padding: 4px 10px 4px 0; vertical-align: middle; }
.cs td:not(:has(*)) { max-width: 22em; overflow-wrap: break-word; }
.cs th.n, .cs td.n { text-align: right; white-space: nowrap; }
.cs td.wide { width: 30%; min-width: 90px; padding-right: 0; }
.cs td.heat, .cs td.n:has(+ td.heat) { padding-right: 10px; } .cs td.heat { border-left: 2px solid #fff; }
.cs tr.total td { font-weight: 650; border-top: 1px solid #b9c2cc; border-bottom: 0; }
.cs tr.apart td { background: #fdf6ea; }
.cs .card { border: 1px solid #dfe3e8; border-left: 4px solid #1b7f4d; border-radius: 6px; padding: 12px 16px 8px; }
.cs .card.broken { border-left-color: #b3261e; }
.cs .card .top { display: flex; justify-content: space-between; font-weight: 650; font-size: 15px; }
.cs .figure { font-size: 22px; font-weight: 650; letter-spacing: -.015em; margin: 2px 0 0; }
.cs .good { color: #1b7f4d; } .cs .bad { color: #b3261e; }
.cs .figures { display: flex; gap: 0; border-top: 1px solid #dfe3e8; border-bottom: 1px solid #dfe3e8; }
.cs .figures > div { flex: 1; padding: 10px 16px; border-left: 1px solid #dfe3e8; }
.cs .figures > div:first-child { border-left: 0; padding-left: 0; }
.cs .bar { display: flex; height: 11px; border-radius: 2px; overflow: hidden; }
.cs .swatch { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 8px; }
</style>"""


@dataclass(frozen=True, slots=True)
class Bar:
    """A cell with a bar: (share of the cell's width, colour) from left to right."""

    parts: tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True)
class PhaseName:
    """A cell with a phase's name and its colour."""

    name: str


@dataclass(frozen=True, slots=True)
class Heat:
    """A cell with a number on a ground that is the darker, the larger its share (0 to 1) of the largest is."""

    text: str
    share: float
    colour: str


Cell = str | Bar | PhaseName | Heat


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table; ``style`` is "", ``total`` or ``apart``."""

    cells: Sequence[Cell]
    style: str = ""


def block(content: str) -> str:
    """Content in the page's own typography."""
    return f'<div class="cs">{content}</div>'


def title(text: str, note: str = "") -> str:
    """The heading of a section, with a line of small print."""
    return f"<h3>{escape(text)}</h3>" + (f'<div class="soft">{escape(note)}</div>' if note else "")


def table(heads: Sequence[str], rows: Sequence[Row], numbers: Collection[int]) -> str:
    """A table.

    Args:
        heads: Column titles.
        rows: Its rows.
        numbers: Which columns are numbers, and so stand on the right.
    """
    head = "".join(f"<th{' class=n' if at in numbers else ''}>{escape(text)}</th>" for at, text in enumerate(heads))
    body = "".join(
        f'<tr class="{row.style}">{"".join(_cell(cell, at in numbers) for at, cell in enumerate(row.cells))}</tr>'
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(cell: Cell, number: bool) -> str:
    if isinstance(cell, Bar):
        parts = "".join(
            f'<span style="width:{100 * max(0.0, share):.2f}%;background:{colour}"></span>' for share, colour in cell.parts
        )
        return f'<td class="wide"><div class="bar">{parts}</div></td>'
    if isinstance(cell, Heat):
        # A ground of at most 60 %, so that dark text stays readable on it.
        ground = f"color-mix(in srgb, {cell.colour} {60 * min(1.0, max(0.0, cell.share)):.0f}%, transparent)"
        return f'<td class="n heat" style="background:{ground}">{escape(cell.text)}</td>'
    if isinstance(cell, PhaseName):
        swatch = f'<span class="swatch" style="background:{PHASE_COLOURS[cell.name]}"></span>'
        return f"<td>{swatch}{escape(cell.name)}</td>"
    return f"<td{' class=n' if number else ''}>{escape(cell)}</td>"


def ms(value: float) -> str:
    """Milliseconds, to a tenth where they are few."""
    return f"{value:z,.0f}" if abs(value) >= 100 else f"{value:z,.1f}"


def time_card(overview: Overview) -> str:
    """The first law: the mean request, group of phases by group, with what nothing explains as a row of its own."""
    time, wall = overview.audit["time"], overview.time[-1][1] or 1.0
    rows = [Row((name, f"{ms(value)} ms", percent(value / wall)), _style(name)) for name, value in overview.time]
    return _card(
        "Time",
        time["holds"],
        f"{percent(time['unaccounted_share_p99'])} unaccounted at p99",
        f"Phases add up to the wall time that clients measured. Limit {TIME_LIMIT:.0%} at p99; "
        f"{time['negative_phases']} negative phases.{_unseen(time['without_engine'])}{_elsewhere(time['elsewhere'])}",
        table(("mean request", "time", "share"), rows, {1, 2}),
    )


def _unseen(calls: int) -> str:
    return f" {calls:,} calls have no engine's record: what it did for them is unaccounted." if calls else ""


def _elsewhere(calls: int) -> str:
    return f" {calls:,} more were answered by providers that show no phases." if calls else ""


def money_card(overview: Overview) -> str:
    """The second law: what the bill is made of, with what nothing explains as a row of its own."""
    money, bill = overview.audit["money"], overview.book.bill
    rows = [
        Row((name, usd(dollars(amount)), percent(float(amount / bill) if bill else None)), _style(name))
        for name, amount in overview.money
    ]
    unpriced = f" No price for {', '.join(money['unpriced'])}: add it to the price book." if money["unpriced"] else ""
    return _card(
        "Money",
        money["holds"],
        f"{usd(money['unexplained_usd'])} unexplained",
        f"Requests, waste and idle add up to the bill. Line by line {percent(money['unexplained_share'])} of it differs; "
        f"limit {MONEY_LIMIT:.1%}.{unpriced}",
        table(("the bill", "cost", "share"), rows, {1, 2}),
    )


def _style(name: str) -> str:
    return "apart" if name in {"unaccounted", "unexplained"} else "total" if name in {"wall", "bill"} else ""


def _card(law: str, holds: bool, figure: str, small: str, content: str) -> str:
    verdict = '<span class="good">✓ holds</span>' if holds else '<span class="bad">✗ broken</span>'
    return block(
        f'<div class="card{"" if holds else " broken"}"><div class="top"><span>{law}</span>{verdict}</div>'
        f'<div class="figure">{escape(figure)}</div><div class="soft">{escape(small)}</div>{content}</div>'
    )


def figures(overview: Overview) -> str:
    """How many requests there were, how many were aborted, and how long they took."""
    time = overview.audit["time"]
    share = time["aborted"] / time["requests"] if time["requests"] else 0.0
    quantiles = [
        (f"p{row['q'] * 100:g}", f"{ms(row['ms'])} ms", f"{ms(row['low_ms'])}–{ms(row['high_ms'])} ms with 95 %")
        for row in overview.tail["quantiles"]
    ]
    shown = [
        ("requests", f"{time['requests']:,}", "as their clients measured them"),
        ("aborted", f"{time['aborted']:,}", f"{share:.1%} left before the answer was whole"),
        *quantiles,
    ]
    cells = (
        f'<div><div class="soft">{escape(name)}</div><div class="figure">{escape(value)}</div>'
        f'<div class="soft">{escape(note)}</div></div>'
        for name, value, note in shown
    )
    return block(f'<div class="figures">{"".join(cells)}</div>')


def arrival_note(audit: dict[str, Any]) -> str:
    """A sentence when not everything that was sent is stored, else ""."""
    spans = audit["spans"]
    if spans["holds"] and not spans["gaps"]:
        return ""
    return f"Not everything arrived: {spans['sent']:,} spans sent, {spans['stored']:,} stored, {spans['duplicates']:,} twice."
