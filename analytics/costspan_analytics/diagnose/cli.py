"""``costspan diagnose``: the incidents of a window."""

from __future__ import annotations

import json

from rich.console import Group, RenderableType
from rich.text import Text

from costspan_analytics import render
from costspan_analytics.cli import open_store, parser
from costspan_analytics.diagnose.confirm import Confirmation, confirm
from costspan_analytics.diagnose.verdicts import Diagnosis, Finding
from costspan_analytics.timeline import Timeline


def diagnose(argv: list[str]) -> int:
    """Incidents: who was slow when, why, and because of whom."""
    options = parser("diagnose", "Incidents: who was slow when, why, and because of whom.").parse_args(argv)
    store = open_store(options)
    timeline = Timeline.load(store)
    found = Diagnosis.load(store, timeline)
    confirmed = confirm(store, timeline, found)
    if options.json:
        print(json.dumps(as_dict(found, confirmed), indent=2))
    else:
        render.show(diagnosis_table(found, confirmed))
    return 0


def as_dict(found: Diagnosis, confirmed: Confirmation | None) -> dict[str, object]:
    """What ``costspan diagnose --json`` prints."""
    return {
        "diagnosis": [finding.as_dict() for finding in found.findings],
        "confirmation": confirmed.as_dict() if confirmed else None,
    }


def diagnosis_table(found: Diagnosis, confirmed: Confirmation | None = None) -> RenderableType:
    """The findings, and what a replay without the first culprit says."""
    if not found.findings:
        return Text("Diagnosis: nobody was much slower than usual.")
    made = render.table("Diagnosis", "tenant", "metric", "from (UTC)", "to", "cause", "culprit", "ms", "confidence", right=6)
    for each in found.findings:
        render.add(made, *_cells(each))
    return Group(made, Text(confirmed.sentence)) if confirmed else made


def _cells(finding: Finding) -> list[str]:
    row = finding.as_dict()
    since, until = (row["window"][end].replace("T", " ")[5:21] for end in ("since", "until"))
    return [
        finding.tenant,
        finding.metric,
        since,
        until[6:] if until[:5] == since[:5] else until,
        str(finding.cause),
        finding.culprit or "–",
        f"{finding.share_ms:,.1f}",
        f"{finding.confidence:.0%}",
    ]
