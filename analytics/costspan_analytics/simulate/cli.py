"""``costspan simulate``: a scenario on a virtual clock, its verdict in seconds."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from costspan_analytics import render
from costspan_analytics.audit import Audit
from costspan_analytics.book import Book
from costspan_analytics.diagnose import Diagnosis
from costspan_analytics.diagnose.cli import diagnosis_table
from costspan_analytics.diagnose.confirm import Confirmation, confirm
from costspan_analytics.simulate.expectations import unmet
from costspan_analytics.simulate.rows import scratch
from costspan_analytics.simulate.rows import simulate as fill
from costspan_analytics.simulate.tails import tail_by_tenant, tenants_table
from costspan_analytics.store import Store
from costspan_analytics.summary import cost_summary, tail_summary, waste_summary
from costspan_analytics.tail import Tail
from costspan_analytics.timeline import Timeline
from costspan_engine.simulate.scenario import Scenario, ScenarioError, library

PROJECT = "simulation"
LEVEL = 0.95
"""The quantile that the tail begins at."""
_BAR = 30


def simulate(argv: list[str]) -> int:
    """A scenario on a virtual clock: both laws, the tail, the diagnosis, waste and cost."""
    made = argparse.ArgumentParser(prog="costspan simulate", description="Play a scenario on a virtual clock, and diagnose it.")
    made.add_argument("scenario", nargs="?", help="a YAML file, or a built-in scenario's name")
    made.add_argument("--list", action="store_true", help="name the built-in scenarios")
    made.add_argument("--seed", type=int, metavar="N", help="in place of the scenario's")
    made.add_argument("--out", type=Path, metavar="DIR", help="keep the store there: `costspan collector --data DIR` opens it")
    made.add_argument("--json", action="store_true", help="print one JSON document")
    options = made.parse_args(argv)
    if options.list:
        print("\n".join(f"{name:<18} {Scenario.find(name).about}" for name in library()))
        return 0
    if options.scenario is None:
        raise ScenarioError("Which scenario? Give a YAML file or a built-in name; `costspan simulate --list` has them.")
    scenario = Scenario.find(options.scenario)
    if options.seed is not None:
        scenario = scenario.reseeded(options.seed)
    with scratch(options.out) as client, closing(_Progress(scenario.name)) as progress:
        answer = Answer.load(fill(client, scenario, PROJECT, progress.show))
    missed = unmet(scenario.expect, answer.diagnosis) if scenario.expect else []
    if options.json:
        print(json.dumps(answer.as_dict(), indent=2))
    else:
        answer.show()
        for sentence in missed:
            render.show(Text(sentence, style="bold red"))
    return 1 if missed or not answer.audit.holds else 0


@dataclass(frozen=True)
class Answer:
    """Every analysis of what a scenario left."""

    audit: Audit
    tail: Tail
    book: Book
    diagnosis: Diagnosis
    confirmation: Confirmation | None

    @classmethod
    def load(cls, store: Store) -> Answer:
        """Run them."""
        timeline = Timeline.load(store)
        book = Book.load(store, timeline)
        found = Diagnosis.load(store, timeline)
        tail = Tail.load(store, timeline, LEVEL)
        return cls(Audit.load(store, timeline, book), tail, book, found, confirm(store, timeline, found))

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        waste = waste_summary(self.book)
        return {
            "audit": self.audit.as_dict(),
            "tail": {**tail_summary(self.tail), "tenants": tail_by_tenant(self.tail)},
            "diagnosis": [finding.as_dict() for finding in self.diagnosis.findings],
            "waste": [
                {"category": row["category"], "tokens": row["tokens"], "gpu_ns": row["device_ns"], "usd": row["usd"]}
                for row in waste["rows"]
            ],
            "cost": cost_summary(self.book),
        }

    def show(self) -> None:
        """Print tables."""
        tables = (
            render.audit_tables(self.audit.as_dict()),
            tenants_table(tail_by_tenant(self.tail)),
            diagnosis_table(self.diagnosis, self.confirmation),
            render.waste_table(waste_summary(self.book)),
            render.cost_table(cost_summary(self.book)),
        )
        for each in tables:
            render.show(each)


class _Progress:
    """A line on standard error that is written over, where that is a terminal."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._shown = sys.stderr.isatty()

    def close(self) -> None:
        """Leave no trace."""
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def show(self, share: float) -> None:
        """Say how far it is."""
        if self._shown:
            done = round(_BAR * share)
            print(f"\r{'█' * done}{'·' * (_BAR - done)} {share:4.0%}  {self._name}", end="", file=sys.stderr, flush=True)
