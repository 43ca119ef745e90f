"""Leads an engine through all scenarios and reports what its adapter broke."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from costspan_hooks.conformance.checker import ContractChecker
from costspan_hooks.conformance.driver import Driver
from costspan_hooks.conformance.findings import Findings
from costspan_hooks.conformance.rules import Rule
from costspan_hooks.conformance.scenarios import SCENARIOS, lone
from costspan_hooks.conformance.stage import Skipped, Stage
from costspan_hooks.conformance.witness import Witness
from costspan_hooks.observer import EngineObserver


@dataclass(slots=True)
class Report:
    """What a rehearsal showed.

    Attributes:
        findings: Every breach.
        played: For each scenario what became of it: ``ok``, ``broken``, or why it was skipped.
    """

    findings: Findings
    played: dict[str, str] = field(default_factory=dict)

    @property
    def skipped(self) -> dict[str, str]:
        """Scenarios that were not played, and why."""
        return {name: what for name, what in self.played.items() if what not in {"ok", "broken"}}

    def __str__(self) -> str:
        width = max(map(len, self.played), default=0)
        lines = [f"{name:{width}}  {what}" for name, what in self.played.items()]
        count = self.findings.counts.total()
        lines.append(f"{self.findings.calls} calls checked, {count} breach{'es' * (count != 1)} found")
        return "\n".join([*lines, *([str(self.findings)] if self.findings else [])])

    def raise_if_broken(self) -> None:
        """Raise what was found.

        Raises:
            ContractError: With a sentence for each breach.
        """
        self.findings.raise_if_broken()


def rehearse(start: Callable[[EngineObserver], Driver]) -> Report:
    """Play all scenarios with one engine; takes a few seconds beside what the engine takes.

    Args:
        start: Starts the engine with the observer that it is given.
    """
    told = Witness()
    checker = ContractChecker(told)
    report = Report(checker.findings)
    driver = start(checker)
    try:
        stage = Stage(driver, told, report.findings)
        for play in SCENARIOS:
            if report.played.get(lone.__name__) == "broken":
                report.played[play.__name__] = "skipped: a lone request comes first"
            else:
                report.played[play.__name__] = _play(play, stage, report.findings)
    finally:
        driver.stop()
    checker.finish()
    return report


def _play(play: Callable[[Stage], None], stage: Stage, found: Findings) -> str:
    before = found.counts.total()
    try:
        play(stage)
    except Skipped as reason:
        stage.clear()
        return f"skipped: {reason}"
    except TimeoutError as late:
        found.add(Rule.SHOWN, f"in {play.__name__} an answer was not over in time ({late})")
        stage.clear()
    return "ok" if found.counts.total() == before else "broken"
