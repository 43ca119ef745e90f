"""What the demo says at its beginning and at its end, as one document and as tables for a person."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

from rich.console import Console
from rich.table import Table

from costspan.semconv import Outcome, Waste
from costspan_analytics import render
from costspan_demo.run import Findings
from costspan_demo.stack import PROJECT, Stack
from costspan_demo.tickets import Trouble, Workload
from costspan_demo.traffic import Tally, quantile

_DOCUMENT = "summary.json"


def announce(workload: Workload, stack: Stack, console: Console) -> None:
    """Say what is about to happen."""
    console.print(
        f"[bold]costspan demo[/]: {len(workload.tickets)} tickets in {workload.duration_s:.0f} s, seed {workload.seed}\n"
        f"  everything goes to {stack.out}\n  traces: times x {workload.time_factor:g}, prompts x {workload.prompt_factor:g}, "
        f"answers x {workload.answer_factor:g}",
        highlight=False,
    )


def document(findings: Findings, stack: Stack) -> dict[str, Any]:
    """Everything that was found, as ``--json`` prints it."""
    return {
        **findings.answers,
        "traffic": _traffic(findings.workload, findings.tally),
        "trouble": [_trouble(trouble, findings) for trouble in findings.workload.troubles],
        "store": stack.store_url,
        "out": str(stack.out),
    }


def save(document: dict[str, Any], stack: Stack) -> None:
    """Keep the document beside the data."""
    (stack.out / _DOCUMENT).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def show(document: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    for tables in (
        render.audit_tables(document["audit"]),
        render.tail_tables(document["tail"]),
        render.units_table(document["units"]),
        render.cost_table(document["cost"]),
        render.waste_table(document["waste"]),
        _trouble_table(document["trouble"]),
    ):
        console.print(tables, highlight=False)
    console.print(_weight(document["bytes_a_request"]), highlight=False)
    console.print("Report:", *document["report"]["files"].values(), highlight=False, soft_wrap=True)


def show_paths(stack: Stack, console: Console) -> None:
    """Say where everything is while the store is up."""
    console.print(f"\nDashboard: {stack.dashboard_url}", highlight=False)
    console.print("The slowest request, and everything else that costspan can tell of this store:", highlight=False)
    console.print(f"  costspan explain slowest --store {stack.store_url} --project {PROJECT}", highlight=False, soft_wrap=True)


def farewell(stack: Stack, console: Console) -> None:
    """Say how to come back."""
    console.print(f"\nData, logs, report and {_DOCUMENT} are in {stack.out}. To open the store again:", highlight=False)
    console.print(f"  {stack.reopen_command}", highlight=False, soft_wrap=True)


def _traffic(workload: Workload, tally: Tally) -> dict[str, Any]:
    latencies = [served.latency_s * 1000 for served in tally.served]
    return {
        "seed": workload.seed,
        "time_factor": workload.time_factor,
        "prompt_factor": workload.prompt_factor,
        "answer_factor": workload.answer_factor,
        "seconds": workload.duration_s,
        "tickets": len(tally.served),
        "calls": tally.calls,
        "aborted": tally.aborted,
        "retried": tally.retried,
        "asked_again": tally.asked_again,
        "failed": tally.failed,
        "latency_p50_ms": quantile(latencies, 0.5),
        "latency_p95_ms": quantile(latencies, 0.95),
        "sent_late_max_ms": max(served.late_s * 1000 for served in tally.served),
    }


def _trouble(trouble: Trouble, findings: Findings) -> dict[str, Any]:
    def moment(after_s: float) -> str:
        return datetime.fromtimestamp(findings.started_ns / 1e9 + after_s, timezone.utc).isoformat(timespec="milliseconds")

    return {
        "name": trouble.name,
        "tenants": list(trouble.tenants),
        "from": moment(trouble.start_s),
        "until": moment(trouble.end_s),
        "from_s": trouble.start_s,
        "until_s": trouble.end_s,
        "tickets": trouble.tickets,
        "put_in": trouble.story,
        "found": _found(trouble, findings.answers),
    }


def _found(trouble: Trouble, answers: dict[str, Any]) -> str:
    """What the analytic commands say about something that was put in."""
    match trouble.name:
        case "very long prompts":
            [culprit] = trouble.tenants
            others = [row for row in answers["tail"]["blame"] if row["culprit"] == culprit != row["tenant"]]
            return f"{culprit} held up others of the slowest requests by {sum(row['ms'] for row in others):,.0f} ms"
        case "users who leave":
            return _ended(answers, Outcome.ABANDONED, Waste.ABANDONED)
        case "users who press stop":
            return _ended(answers, Outcome.CANCELLED, Waste.UNDELIVERED, Waste.AFTER_ABORT)
        case "time-outs that retry":
            return _ended(answers, Outcome.TIMEOUT, Waste.RETRIED)
        case _:
            return _wasted(answers, Waste.RECOMPUTED_EVICTION)


def _ended(answers: dict[str, Any], outcome: Outcome, *categories: Waste) -> str:
    return f"{answers['outcomes'].get(outcome, 0)} calls ended as {outcome}; {_wasted(answers, *categories)}"


def _wasted(answers: dict[str, Any], *categories: Waste) -> str:
    rows = {row["category"]: row for row in answers["waste"]["rows"]}
    found = [(category, rows.get(category, {"usd": 0.0, "tokens": 0})) for category in categories]
    return ", ".join(f"{category} {render.usd(row['usd'])} ({row['tokens']:,} tokens)" for category, row in found)


def _weight(weights: dict[str, dict[str, float]]) -> str:
    def said(where: str) -> str:
        parts = ", ".join(f"{table} {each[where]:,.0f}" for table, each in weights.items())
        return f"{sum(each[where] for each in weights.values()):,.0f} bytes ({parts})"

    return f"A request with its phases and its share of the steps: {said('wire')} on the wire, {said('disk')} on disk.\n"


def _trouble_table(troubles: list[dict[str, Any]]) -> Table:
    made = render.table("Trouble, put in and found", "what", "put in", "when", "found", right=9)
    for trouble in troubles:
        put_in = f"{', '.join(trouble['tenants'])}: {trouble['tickets']} tickets; {trouble['put_in']}"
        made.add_row(trouble["name"], put_in, f"{trouble['from_s']:.0f}-{trouble['until_s']:.0f} s", trouble["found"])
    return made
