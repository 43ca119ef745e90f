"""The first culprit, tested: the window replayed with and without it (docs/ledger.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from costspan_analytics.causal import Recording, effect
from costspan_analytics.diagnose.requests import E2E, TTFT
from costspan_analytics.diagnose.verdicts import Diagnosis, Finding
from costspan_analytics.errors import NotFoundError, ReplayError
from costspan_analytics.store import Store
from costspan_analytics.timeline import Timeline

_MS = 1e6


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What a replay without the culprit says.

    Attributes:
        finding: Whose culprit was taken away.
        vanished_ms: By how much the tenant's requests of the window are faster without it, on average; ``None`` where that
            cannot be told.
        trouble: Why it cannot, or why it should not be relied upon; "" otherwise.
    """

    finding: Finding
    vanished_ms: float | None
    trouble: str

    @property
    def sentence(self) -> str:
        """For people."""
        who = f"{self.finding.tenant}'s {self.finding.metric}"
        if self.vanished_ms is None:
            return f"{self.finding.culprit} could not be tested by a replay: {self.trouble}"
        said = (
            f"Replayed without {self.finding.culprit}, {who} in that window is {self.vanished_ms:,.1f} ms shorter on average."
        )
        return f"{said} {self.trouble}".strip()

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {"finding": self.finding.as_dict(), "vanished_ms": self.vanished_ms, "trouble": self.trouble}


def confirm(store: Store, timeline: Timeline, diagnosis: Diagnosis) -> Confirmation | None:
    """Test the first finding that has another tenant as its culprit, on the engine that most of its requests were on."""
    named = (each for each in diagnosis.findings if each.culprit not in {"", each.tenant} and each.metric in {TTFT, E2E})
    finding = next(named, None)
    if finding is None:
        return None
    window = finding.window
    there = timeline.attempts.filter(
        pl.col("tenant") == finding.tenant, pl.col("enqueued_ns").is_between(window.since, window.until, closed="left")
    )
    if there.is_empty():
        return Confirmation(finding, None, "no request of the window reached an engine")
    engine = str(there["engine"].mode().sort()[0])
    try:
        found = effect(Recording.load(store, engine, window), finding.culprit)
    except (NotFoundError, ReplayError) as error:
        return Confirmation(finding, None, str(error))
    took = pl.col(f"{finding.metric}_ns").cast(pl.Float64).mean()
    with_, without = (
        run.filter(pl.col("tenant") == finding.tenant).select(took).item() for run in (found.with_, found.without)
    )
    if with_ is None or without is None:
        return Confirmation(finding, None, f"none of {finding.tenant}'s requests in the window ended well")
    return Confirmation(finding, (with_ - without) / _MS, found.fidelity.trouble)
