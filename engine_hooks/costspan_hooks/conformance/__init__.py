"""A conformance test kit: whether an engine's adapter keeps the observer's contract.

:class:`ContractChecker` is an observer that finds breaches in whatever runs; :func:`rehearse` leads an engine through what an
adapter must get right. ``docs/adapters.md`` says how to write an adapter.
"""

from costspan_hooks.conformance.checker import ContractChecker
from costspan_hooks.conformance.driver import Abilities, Driver
from costspan_hooks.conformance.findings import Finding, Findings
from costspan_hooks.conformance.rehearsal import Report, rehearse
from costspan_hooks.conformance.rules import Rule

__all__ = ["Abilities", "ContractChecker", "Driver", "Finding", "Findings", "Report", "Rule", "rehearse"]
