"""One worksheet with tables below each other: number formats, frozen header, widths, totals as formulas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any

from xlsxwriter.utility import xl_rowcol_to_cell
from xlsxwriter.workbook import Workbook

Cell = str | int | float | Decimal | datetime | None
_MAX_WIDTH = 60
_TOP = 4
"""Rows that a header which stays in view may take with all that is above it."""


class Kind(Enum):
    """What a column holds; the value is Excel's number format."""

    TEXT = "@"
    COUNT = "#,##0"
    USD = "$#,##0.000000;[Red]-$#,##0.000000"
    EXACT_USD = "$#,##0.000000000000;[Red]-$#,##0.000000000000"
    QUANTITY = "#,##0.000000######"
    SHARE = "0.000%"
    MS = "#,##0.0"
    TIME = "yyyy-mm-dd hh:mm:ss"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; ``summed`` ones have a formula in the last row."""

    title: str
    kind: Kind = Kind.TEXT
    summed: bool = False


class Styles:
    """The formats of a workbook: one face, hairlines instead of boxes."""

    def __init__(self, book: Workbook) -> None:
        face = {"font_name": "Calibri", "font_size": 11, "valign": "vcenter"}
        self.title = book.add_format({**face, "font_size": 16, "bold": True, "font_color": "#1f2733"})
        self.note = book.add_format({**face, "font_color": "#6b7480", "italic": True})
        self.heading = book.add_format({**face, "font_size": 12, "bold": True, "font_color": "#1f2733"})
        self.good = book.add_format({**face, "bold": True, "font_color": "#1b7f4d"})
        self.bad = book.add_format({**face, "bold": True, "font_color": "#b3261e"})
        head = {**face, "bold": True, "bg_color": "#eef1f5", "bottom": 1, "bottom_color": "#aab3bf", "text_wrap": True}
        self.head_text = book.add_format(head)
        self.head_number = book.add_format({**head, "align": "right"})
        self.cells = {kind: book.add_format({**face, "num_format": kind.value}) for kind in Kind}
        strong = {**face, "bold": True, "top": 1, "top_color": "#aab3bf"}
        self.totals = {kind: book.add_format({**strong, "num_format": kind.value}) for kind in Kind}


class Sheet:
    """A worksheet that is written from the top down."""

    def __init__(self, book: Workbook, styles: Styles, name: str) -> None:
        self._sheet = book.add_worksheet(name)
        self._styles = styles
        self._row = 0
        self._frozen = False
        self._widths: dict[int, int] = {}
        self._sheet.hide_gridlines(2)
        self._sheet.set_landscape()
        self._sheet.set_paper(9)  # A4
        self._sheet.fit_to_pages(1, 0)

    def heading(self, text: str) -> None:
        """A line above a table."""
        self._sheet.write_string(self._row, 0, text, self._styles.title if self._row == 0 else self._styles.heading)
        self._row += 1

    def note(self, text: str) -> None:
        """A line of small print."""
        self._sheet.write_string(self._row, 0, text, self._styles.note)
        self._row += 1

    def verdict(self, law: str, text: str, holds: bool) -> None:
        """A law, whether it holds, and its figures."""
        self._sheet.write_string(self._row, 0, law, self._styles.cells[Kind.TEXT])
        self._sheet.write_string(self._row, 1, "holds" if holds else "broken", self._styles.good if holds else self._styles.bad)
        self._sheet.write_string(self._row, 2, text, self._styles.cells[Kind.TEXT])
        self._row += 1

    def gap(self) -> None:
        """An empty line."""
        self._row += 1

    def table(
        self, columns: Sequence[Column], rows: Iterable[Sequence[Cell]], *, last_is_total: bool = False, filtered: bool = False
    ) -> None:
        """A header and rows; the sheet's first header stays in view.

        Args:
            columns: What each column is. Sums of the ``summed`` ones follow the rows.
            rows: Cells. Decimals are handed on as they are.
            last_is_total: Whether the last row is the total of those above it, to be set apart.
            filtered: Whether the header has filter buttons; one table of a sheet can.
        """
        for at, column in enumerate(columns):
            style = self._styles.head_text if column.kind is Kind.TEXT else self._styles.head_number
            self._sheet.write_string(self._row, at, column.title, style)
            self._widen(at, len(column.title))
        self._row += 1
        if not self._frozen and self._row <= _TOP:
            self._sheet.freeze_panes(self._row, 0)
            self._sheet.repeat_rows(self._row - 1)
            self._frozen = True
        first, body = self._row, list(rows)
        for number, row in enumerate(body, 1):
            styles = self._styles.totals if last_is_total and number == len(body) else self._styles.cells
            for at, (column, value) in enumerate(zip(columns, row, strict=True)):
                self._write(at, value, styles[column.kind], column.kind)
            self._row += 1
        if filtered and body:
            self._sheet.autofilter(first - 1, 0, self._row - 1, len(columns) - 1)
        if body and any(column.summed for column in columns):
            self._totals(columns, body, first)

    def bars(self, column: int, rows: int, colour: str) -> None:
        """Data bars in a column of the last ``rows`` rows."""
        settings = {"type": "data_bar", "bar_color": colour, "bar_solid": True, "min_type": "num", "min_value": 0}
        self._sheet.conditional_format(self._row - rows, column, self._row - 1, column, settings)

    def close(self) -> None:
        """Set the widths to what was written."""
        for at, width in self._widths.items():
            self._sheet.set_column(at, at, min(width, _MAX_WIDTH) + 2)

    def _totals(self, columns: Sequence[Column], body: list[Sequence[Cell]], first: int) -> None:
        self._write(0, "total", self._styles.totals[Kind.TEXT], Kind.TEXT)
        for at, column in enumerate(columns[1:], 1):
            style = self._styles.totals[column.kind]
            if not column.summed:
                self._sheet.write_blank(self._row, at, None, style)
                continue
            cells = f"{xl_rowcol_to_cell(first, at)}:{xl_rowcol_to_cell(self._row - 1, at)}"
            known = sum((Decimal(str(row[at] or 0)) for row in body), Decimal(0))
            self._sheet.write_formula(self._row, at, f"=SUM({cells})", style, known)
            self._widen(at, _shown(known, column.kind))
        self._row += 1

    def _write(self, at: int, value: Cell, style: Any, kind: Kind) -> None:
        if value is None or value == "":
            self._sheet.write_blank(self._row, at, None, style)
        elif isinstance(value, str):
            self._sheet.write_string(self._row, at, value, style)
        elif isinstance(value, datetime):
            self._sheet.write_datetime(self._row, at, value.replace(tzinfo=None), style)
        else:
            self._sheet.write_number(self._row, at, value, style)
        self._widen(at, _shown(value, kind))

    def _widen(self, at: int, width: int) -> None:
        self._widths[at] = max(self._widths.get(at, 8), width)


def _shown(value: Cell, kind: Kind) -> int:
    """About how many characters Excel shows."""
    if isinstance(value, (int, float, Decimal)):
        digits = len(f"{value:,.0f}")
        places = kind.value.partition(";")[0].partition(".")[2]
        return digits + len(places) + (1 if places else 0) + ("$" in kind.value)
    return len(Kind.TIME.value) if isinstance(value, datetime) else len(value or "")
