"""What a check found, in sentences."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from costspan_hooks.conformance.rules import Rule
from costspan_hooks.errors import ContractError

_KEPT = 5
"""Findings kept of a rule: a breach in every step is one mistake."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A breach of the contract.

    Attributes:
        rule: What was broken.
        told: What the engine reported, or failed to.
        call: Which of the observer's calls it was found in, counted from 1.
    """

    rule: Rule
    told: str
    call: int

    def __str__(self) -> str:
        return f"Call {self.call}: {self.told}; {self.rule.asks}: {self.rule.advice}."


@dataclass(slots=True)
class Findings:
    """All that was found, the first few of each rule in full.

    Attributes:
        found: Breaches in the order in which they were found.
        counts: How often each rule was broken.
        calls: Calls that were checked.
    """

    found: list[Finding] = field(default_factory=list)
    counts: Counter[Rule] = field(default_factory=Counter)
    calls: int = 0

    def add(self, rule: Rule, told: str) -> None:
        """Note a breach."""
        self.counts[rule] += 1
        if self.counts[rule] <= _KEPT:
            self.found.append(Finding(rule, told, self.calls))

    def unless(self, holds: bool, rule: Rule, told: str) -> None:
        """Note a breach if ``holds`` is false."""
        if not holds:
            self.add(rule, told)

    def __bool__(self) -> bool:
        return bool(self.found)

    def __str__(self) -> str:
        lines = [str(each) for each in self.found]
        lines += [f"({count - _KEPT} more of {rule.name})" for rule, count in self.counts.items() if count > _KEPT]
        return "\n".join(lines)

    def raise_if_broken(self) -> None:
        """Raise what was found.

        Raises:
            ContractError: When anything was.
        """
        if self.found:
            raise ContractError(f"The engine broke the observer's contract:\n{self}")
