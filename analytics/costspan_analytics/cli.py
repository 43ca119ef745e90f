"""The analytic commands: each prints tables for a person, or with ``--json`` one stable document."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Group, RenderableType

from costspan_analytics import render
from costspan_analytics.audit import Audit
from costspan_analytics.book import Book
from costspan_analytics.causal import Answer, causal_answers
from costspan_analytics.causal.progress import progress
from costspan_analytics.causal.table import causal_tables
from costspan_analytics.errors import NotFoundError
from costspan_analytics.explain import SLOWEST, Explanation
from costspan_analytics.matrix import Matrix
from costspan_analytics.matrix_table import blame_tables, delayed_by
from costspan_analytics.report import Weekly, publish, weekly_window
from costspan_analytics.store import Store, Window
from costspan_analytics.summary import DIMENSIONS, cost_summary, each_unit, tail_summary, units_summary, waste_summary
from costspan_analytics.tail import Tail
from costspan_analytics.timeline import Timeline

DEFAULT_STORE = "http://127.0.0.1:8123"


def parser(command: str, summary: str) -> argparse.ArgumentParser:
    """What every analytic command takes."""
    made = argparse.ArgumentParser(prog=f"costspan {command}", description=summary)
    made.add_argument("--store", default=os.environ.get("COSTSPAN_STORE", DEFAULT_STORE), help="ClickHouse's HTTP address")
    made.add_argument("--project", default=os.environ.get("COSTSPAN_PROJECT", "default"))
    made.add_argument("--since", help="an age such as 2h or 7d, or an ISO time (UTC)")
    made.add_argument("--until", help="the same; not included")
    made.add_argument("--json", action="store_true", help="print one JSON document")
    return made


def open_store(options: argparse.Namespace) -> Store:
    """The store that the options name."""
    return Store(options.store, options.project, Window.parse(options.since, options.until))


def _known_store(options: argparse.Namespace) -> Store:
    """The same, if it has anything of the project.

    Raises:
        NotFoundError: It has not.
    """
    store = open_store(options)
    known = store.frame("projects")["project"].to_list()
    if store.project not in known:
        has = f"it has {', '.join(known)}: name one with --project" if known else "it is empty: send something first"
        raise NotFoundError(f"Nothing of project {store.project!r} is in this store; {has}.")
    return store


def _print(options: argparse.Namespace, answer: dict[str, Any], draw: Callable[[], RenderableType]) -> None:
    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        render.show(draw())


def audit(argv: list[str]) -> int:
    """Check both laws: phases add up to wall time, postings to the bill."""
    options = parser("audit", "Check both laws. Exit status 1 where one is broken.").parse_args(argv)
    store = _known_store(options)
    timeline = Timeline.load(store)
    found = Audit.load(store, timeline, Book.load(store, timeline))
    _print(options, found.as_dict(), lambda: render.audit_tables(found.as_dict()))
    return 0 if found.holds else 1


def tail(argv: list[str]) -> int:
    """Where slow requests spend their time, and who delayed them."""
    made = parser("tail", "Where slow requests spend their time, and who delayed them.")
    made.add_argument("--level", type=_share, default=0.95, help="the quantile that the tail begins at (0.95)")
    options = made.parse_args(argv)
    store = _known_store(options)
    found = tail_summary(Tail.load(store, Timeline.load(store), options.level))
    _print(options, found, lambda: render.tail_tables(found))
    return 0


def blame(argv: list[str]) -> int:
    """Who delayed whom: a matrix of tenants, or one tenant's requests by culprit and mechanism."""
    made = parser("blame", "Who delayed whom: a matrix of tenants, or one tenant's requests by culprit and mechanism.")
    made.add_argument("--tenant", default="", help="whose requests were delayed (default: everybody's)")
    made.add_argument("--culprit", default="", help="tell of this one's delays alone")
    _add_causal(made)
    options = made.parse_args(argv)
    if options.causal and not options.tenant:
        made.error("--causal needs --tenant: say whose requests to explain")
    store = _known_store(options)
    found = Matrix.load(store, options.tenant)
    causal = _replay(store, found.attempts, found.direct) if options.causal else []
    document = delayed_by(found.as_dict(), options.culprit) | {"causal": [each.as_dict() for each in causal]}
    _print(options, document, lambda: Group(blame_tables(document, options.tenant), *causal_tables(causal, options.tenant)))
    return 0


def explain(argv: list[str]) -> int:
    """One request: its phases, who delayed it, what it cost."""
    made = parser("explain", "One request: its phases, who delayed it, what it cost.")
    made.add_argument("id", help=f"a span, trace or engine request id, the beginning of one, or `{SLOWEST}`")
    _add_causal(made)
    options = made.parse_args(argv)
    store = _known_store(options)
    timeline = Timeline.load(store)
    found = Explanation.load(store, timeline, Book.load(store, timeline), options.id)
    causal = _replay(store, found.cohort, found.direct) if options.causal else []
    document = found.as_dict() | {"causal": [each.as_dict() for each in causal]}
    _print(options, document, lambda: Group(render.explain_tables(found), *causal_tables(causal, found.call["tenant"])))
    return 0


def _add_causal(made: argparse.ArgumentParser) -> None:
    made.add_argument("--causal", action="store_true", help="replay what happened with and without each other tenant")


def _replay(store: Store, cohort: pl.DataFrame, direct: pl.DataFrame) -> list[Answer]:
    with progress("replaying") as show:
        return causal_answers(store, cohort, direct, show=show)


def cost(argv: list[str]) -> int:
    """What was spent, by tenant, feature, unit, kind of operation, adapter, sku or category."""
    made = parser("cost", "What was spent.")
    made.add_argument("--by", choices=DIMENSIONS, default=DIMENSIONS[0])
    options = made.parse_args(argv)
    store = _known_store(options)
    found = cost_summary(Book.load(store, Timeline.load(store)), options.by)
    _print(options, found, lambda: render.cost_table(found))
    return 0


def waste(argv: list[str]) -> int:
    """Money that no user got anything for."""
    options = parser("waste", "Money that no user got anything for.").parse_args(argv)
    store = _known_store(options)
    found = waste_summary(Book.load(store, Timeline.load(store)))
    _print(options, found, lambda: render.waste_table(found))
    return 0


def units(argv: list[str]) -> int:
    """What one outcome cost, with everything that went into it."""
    made = parser("units", "What one outcome cost, with everything that went into it.")
    made.add_argument("id", nargs="?", default="", help="of one unit, whoever's it is (default: all, the dearest shown)")
    options = made.parse_args(argv)
    store = _known_store(options)
    book = Book.load(store, Timeline.load(store))
    each = each_unit(store, book, options.id)
    if options.id and not each:
        raise NotFoundError(f"No unit {options.id!r} is in this window: give an earlier --since, or another --project.")
    found = units_summary(store, book) | {"each": each}
    shown = [] if options.id else [render.units_table(found)]
    _print(options, found, lambda: Group(*shown, render.each_unit_table(each)))
    return 0


def report(argv: list[str]) -> int:
    """The finance pack: what a week cost and why it was slow, as XLSX, HTML and CSV."""
    made = parser("report", "Write the finance pack (XLSX, HTML, CSV) and close its postings in the store.")
    made.add_argument("period", choices=("weekly",), help="the seven days up to now, unless --since or --until say otherwise")
    made.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where the files go (default: here)")
    options = made.parse_args(argv)
    store = Store(options.store, options.project, weekly_window(options.since, options.until))
    found = publish(store, Weekly.load(store), options.out)
    _print(options, found, lambda: render.report_table(found))
    return 0


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
