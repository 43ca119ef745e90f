"""A ledger beside the engine: whether what was told adds up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from costspan_hooks.conformance.findings import Findings
from costspan_hooks.conformance.rules import Rule
from costspan_hooks.errors import ProtocolError
from costspan_hooks.ledger import StepLedger
from costspan_hooks.records import AttemptRecord, LedgerRecord, StepRecord

_SHARE = 1_000_000
"""Of the engine's life, what may be nobody's: a millionth."""


class Books:
    """Adds up what a :class:`StepLedger` hands on.

    Args:
        found: Where breaches go.
    """

    def __init__(self, found: Findings) -> None:
        self.ledger = StepLedger(self._keep)
        self._found = found
        self._booked_ns = 0
        self._started_ns: int | None = None
        self._refused = False

    def tell(self, call: Callable[..., None], *arguments: Any) -> None:
        """Let the ledger take something in; what it refuses is a breach, unless the reason was found already."""
        before = len(self._found.counts)
        try:
            call(*arguments)
        except (ProtocolError, ArithmeticError, LookupError, AttributeError) as error:
            if not self._refused and before == 0:
                self._found.add(Rule.LEDGER, f"the ledger could not book {call.__name__}(): {error!r}")
            self._refused = True

    def ready(self, started_ns: int) -> None:
        """The engine's life begins."""
        self._started_ns = started_ns

    def stopped(self, at_ns: int) -> None:
        """Compare the engine's life with all that was booked."""
        self.tell(self.ledger.stopped, at_ns)
        if self._started_ns is None or self._refused:
            return
        life_ns = at_ns - self._started_ns
        missing_ns = life_ns - self._booked_ns
        told = f"{missing_ns} of {life_ns} ns are nobody's"
        self._found.unless(abs(missing_ns) * _SHARE <= max(life_ns, _SHARE), Rule.CLOSES, told)

    def _keep(self, record: LedgerRecord) -> None:
        if isinstance(record, AttemptRecord):
            self._booked_ns += sum(segment.cost_ns for segment in record.segments)
        elif isinstance(record, StepRecord):
            self._booked_ns += record.padding_ns + record.idle_ns + record.host_gap_ns + record.cold_start_ns
