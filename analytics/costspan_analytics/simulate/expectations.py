"""What a scenario says that its diagnosis must find, held against what it found."""

from __future__ import annotations

from costspan_analytics.diagnose import Diagnosis, Finding
from costspan_engine.simulate.scenario import Expectation, Verdict
from costspan_engine.simulate.world import EPOCH_NS

_NS = 1e9


def unmet(expected: Expectation, diagnosis: Diagnosis) -> list[str]:
    """A sentence for each expectation that the diagnosis does not meet."""
    missing = [
        f"Not found: {verdict.tenant} slow by {verdict.cause}" + (f" of {verdict.culprit}" if verdict.culprit else "") + "."
        for verdict in expected.found
        if not any(_meets(finding, verdict) for finding in diagnosis.findings)
    ]
    allowed = expected.only
    surplus = [
        f"Found without reason: {finding.tenant} slow by {finding.cause}."
        for finding in diagnosis.findings
        if allowed is not None and finding.cause not in allowed
    ]
    return missing + surplus


def _meets(finding: Finding, verdict: Verdict) -> bool:
    since_s, until_s = ((end - EPOCH_NS) / _NS for end in (finding.window.since, finding.window.until))
    return (
        (finding.tenant, finding.cause) == (verdict.tenant, verdict.cause)
        and verdict.culprit in {None, finding.culprit}
        and since_s < verdict.until_s
        and until_s > verdict.from_s
    )
