"""The same answers as tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from costspan_analytics.explain import Explanation
from costspan_analytics.journey import Journey
from costspan_analytics.operations import Operation

BAR = 24
WATERFALL = 36
WIDTH_OF_A_FILE = 120
LONGEST_NAME = 40
SHOWN_BLAME = 8
SHOWN_SLOWEST = 5
SHOWN_UNITS = 20
SHOWN_SENDERS = 20


def table(title: str, *columns: str, right: int = 1) -> Table:
    """A plain table; columns from the ``right``-th on are numbers."""
    made = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", padding=(0, 1))
    for at, column in enumerate(columns):
        made.add_column(
            column,
            justify="right" if at >= right else "left",
            no_wrap=at == 0 or at >= right,
            max_width=LONGEST_NAME if at == 0 else None,
        )
    return made


def add(made: Table, *cells: str | Text) -> None:
    """A row whose cells are taken as they are: a tenant may be called ``[red]``."""
    made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def verdict(holds: bool) -> Text:
    """A tick or a cross, for a terminal with or without colour."""
    return Text("✓ holds", style="green") if holds else Text("✗ broken", style="bold red")


def usd(amount: float | None) -> str:
    """US dollars, to the millionth where they are small."""
    if amount is None:
        return "–"
    sign = "-" if amount < 0 else ""
    return f"{sign}${abs(amount):,.2f}" if abs(amount) >= 100 else f"{sign}${abs(amount):,.6f}"


def percent(share: float | None) -> str:
    """A share as per cent."""
    return "–" if share is None else f"{share:.3%}"


def audit_tables(audit: dict[str, Any]) -> RenderableType:
    """Both laws, and what was sent beside what is stored."""
    time, money, spans, left = audit["time"], audit["money"], audit["spans"], audit["cancellation"]
    laws = table("Audit", "law", "", "in figures", right=9)
    add(
        laws,
        "time",
        verdict(time["holds"]) if time["requests"] else Text("– nothing to check"),
        f"{time['requests']:,} requests, {time['aborted']} aborted; "
        f"unaccounted {percent(time['unaccounted_share_p99'])} at p99, {time['negative_phases']} negative phases"
        + (f"; {time['elsewhere']:,} answered by providers that show no phases" if time["elsewhere"] else ""),
    )
    add(
        laws,
        "money",
        verdict(money["holds"]) if money["bill_usd"] or money["posted_usd"] else Text("– nothing to check"),
        f"bill {usd(money['bill_usd'])}, posted {usd(money['posted_usd'])}, unexplained {usd(money['unexplained_usd'])} "
        f"({percent(money['unexplained_share'])})",
    )
    add(
        laws,
        "spans",
        verdict(spans["holds"]),
        f"{spans['sent']:,} sent, {spans['stored']:,} stored, {spans['duplicates']} twice",
    )
    rows = [sum(row[name] for row in audit["rows"]) for name in ("sent", "stored")]
    add(laws, "ledger", verdict(all(row["holds"] for row in audit["rows"])), f"{rows[0]:,} rows sent, {rows[1]:,} stored")
    add(
        laws,
        "cancellation",
        verdict(left["holds"]),
        f"{left['disconnects']} disconnects seen, {len(left['left_late'])} left late",
    )
    lines = table("The bill", "what", "billed by", "bill", "posted", "unexplained", right=2)
    for line in money["lines"]:
        amounts = (line["bill_usd"], line["posted_usd"], line["unexplained_usd"])
        add(lines, line["sku"], line["source"], *(usd(amount) for amount in amounts))
    troubles = []
    if time["without_client"]:
        troubles.append(f"{time['without_client']} engine requests were measured by no client: their callers have no SDK.")
    if time["without_engine"]:
        troubles.append(
            f"Calls without an engine's record: {time['without_engine']}. They never reached one, "
            "or it keeps its books in another project (its --project)."
        )
    if money["impossible_steps"]:
        troubles.append(f"{money['impossible_steps']} steps report more time than passed.")
    return Group(
        laws,
        lines,
        *senders_table(audit["senders"]),
        *(Text(trouble, style="bold red") for trouble in troubles),
        *_unpriced(money["unpriced"]),
    )


def senders_table(senders: list[dict[str, Any]]) -> list[RenderableType]:
    """The senders of which something is missing, and how many have gone silent."""
    broken = [row for row in senders if not row["holds"]]
    made = table("Sent and stored", "sender", "stream", "payloads", "came", "items", "stored", "", right=2)
    made.columns[6].justify = "left"
    for row in broken[:SHOWN_SENDERS]:
        stored = row["items_arrived"] if row["items_stored"] is None else row["items_stored"]
        figures = (row["payloads_sent"], row["payloads_arrived"], row["items_sent"], stored)
        add(made, row["client"], row["stream"], *(f"{figure:,}" for figure in figures), "; ".join(_troubles(row)))
    notes = []
    if len(broken) > SHOWN_SENDERS:
        notes.append(f"  and {len(broken) - SHOWN_SENDERS} more, in --json")
    if quiet := [row["last_ms"] for row in senders if row["silent"]]:
        notes.append(
            f"  {len(quiet)} of {len(senders)} streams have ended or gone silent, the last one at {clock(max(quiet))}."
        )
    return [*([made] if broken else []), *(Text(note + "\n", "dim") for note in notes)]


def _troubles(sender: dict[str, Any]) -> Iterator[str]:
    for gap in sender["missing"]:
        numbers = f"{gap['first']}" if gap["first"] == gap["last"] else f"{gap['first']}–{gap['last']}"
        since = f"after {clock(gap['heard_ms'])}" if gap["heard_ms"] else f"before {clock(gap['again_ms'])}"
        yield f"{numbers} never came ({gap['items']:,} items), {since}"
    for short in sender["short"]:
        yield f"{short['first']} holds {short['items']:,}, of which {short['stored']:,} are stored"
    if sender["items_given_up"]:
        yield f"{sender['items_given_up']:,} items given up before they were sent"
    if sender["payloads_twice"]:
        yield f"{sender['payloads_twice']:,} payloads stored twice"


def clock(unix_ms: int) -> str:
    """A moment, UTC."""
    return f"{datetime.fromtimestamp(unix_ms / 1000, timezone.utc):%Y-%m-%d %H:%M:%S}"


def _unpriced(skus: list[str]) -> list[Text]:
    """A loud line for each thing that was used and has no price."""
    sentence = "Some {0} was used at a time that has no price: enter one with `costspan prices {0} RATE --from TIME`."
    return [Text(sentence.format(sku), style="bold red") for sku in skus]


def tail_tables(tail: dict[str, Any]) -> RenderableType:
    """Where slow requests spend their time, and who delayed whom."""
    heads = ", ".join(
        f"p{quantile['q'] * 100:g} {quantile['ms']:,.0f} ms [{quantile['low_ms']:,.0f}–{quantile['high_ms']:,.0f}]"
        for quantile in tail["quantiles"]
    )
    slow = f"slowest {tail['tail_requests']}, ms"
    phases = table(f"Tail: {heads}", "phase", f"all {tail['requests']}, ms", slow, "")
    longest = max([row["tail_ms"] for row in tail["phases"]], default=0.0) or 1.0
    phases.columns[3].justify = "left"
    for row in tail["phases"]:
        bar = "█" * round(BAR * max(0.0, row["tail_ms"]) / longest)
        add(phases, row["phase"], f"{row['mean_ms']:,.1f}", f"{row['tail_ms']:,.1f}", bar)
    phases.add_section()
    add(phases, "wall", *(f"{sum(row[key] for row in tail['phases']):,.1f}" for key in ("mean_ms", "tail_ms")), "")
    delays = table("Who delayed the tail", "victim", "culprit", "how", "ms", right=3)
    for row in tail["blame"][:SHOWN_BLAME]:
        culprit = "its own traffic" if row["culprit"] == row["tenant"] else row["culprit"]
        add(delays, row["tenant"], culprit, row["mechanism"], f"{row['ms']:,.0f}")
    slowest = table("The slowest, for `costspan explain`", "id", "tenant", "outcome", "ms", right=3)
    for row in tail["slowest"][:SHOWN_SLOWEST]:
        add(slowest, row["span_id"], row["tenant"], row["outcome"], f"{row['ms']:,.0f}")
    return Group(phases, delays, estimated(tail["model_error"]), slowest)


def estimated(model_error: dict[str, float]) -> Text:
    """How far to trust a split of measured step times."""
    if not model_error:
        return Text("")
    half, most = (f"{model_error[name]:.0%}" for name in ("p50", "p90"))
    return Text(
        f"  Steps are measured, shares estimated: half the steps within {half} of the model, 90% within {most}.\n", "dim"
    )


def cost_table(cost: dict[str, Any]) -> RenderableType:
    """What was spent, by a dimension."""
    made = table(f"Cost by {cost['by']}", cost["by"], "cost", "of it waste", "postings")
    for row in cost["rows"]:
        shown = "no price" if row[cost["by"]] in cost["unpriced"] and not row["usd"] else usd(row["usd"])
        named = (
            " ".join(filter(None, (row.get("tenant"), row.get("unit_kind"), row["unit"]))) if "unit" in row else row[cost["by"]]
        )
        add(made, named, shown, usd(row["waste_usd"]), f"{row['postings']:,}")
    made.add_section()
    add(made, "posted", usd(cost["posted_usd"]), usd(cost["waste_usd"]), "")
    return Group(made, *_unpriced(cost["unpriced"]))


def waste_table(waste: dict[str, Any]) -> RenderableType:
    """Money that no user got anything for."""
    title = f"Waste: {percent(waste['share_of_bill'])} of the bill"
    made = table(title, "category", "cost", "device time", "tokens", "caused by")
    made.columns[4].justify, made.columns[4].no_wrap = "left", False
    for row in waste["rows"]:
        causes = ", ".join(f"{each['tenant']} {usd(each['usd'])}" for each in row["culprits"])
        add(made, row["category"], usd(row["usd"]), f"{row['device_ns'] / 1e9:,.2f} s", f"{row['tokens']:,}", causes)
    made.add_section()
    add(made, "waste", usd(waste["waste_usd"]), f"{sum(row['device_ns'] for row in waste['rows']) / 1e9:,.2f} s", "", "")
    return made


def units_table(units: dict[str, Any]) -> RenderableType:
    """What one outcome cost."""
    made = table("Unit cost", "outcome", "units", "resolved", "cost", "waste", "each", "worth")
    for row in units["rows"]:
        add(
            made,
            f"{row['tenant']} {row['unit_kind']}",
            str(row["units"]),
            str(row["resolved"]),
            usd(row["cost_usd"]),
            usd(row["waste_usd"]),
            usd(row["usd_per_resolved"]),
            f"${row['value_usd']:,.2f}",
        )
    made.add_section()
    add(made, "shared", "", "", usd(units["shared_usd"]), "", "", "")
    return made


def each_unit_table(units: list[dict[str, Any]]) -> RenderableType:
    """The dearest units, and what each spent its money on."""
    made = table("The dearest units", "unit", "status", "spent on", "took", "cost", "worth", "margin", right=3)
    for row in units[:SHOWN_UNITS]:
        spent = [f"{kind} {usd(amount)}" for kind, amount in row["spent"].items()]
        wasted = row["waste_usd"] - row["retries_usd"]
        spent += [
            f"{name} {usd(amount)}" for name, amount in (("retries", row["retries_usd"]), ("waste", wasted)) if amount > 0
        ]
        add(
            made,
            f"{row['tenant']} {row['unit_kind']} {row['unit']}",
            row["status"] or "–",
            ", ".join(spent),
            "–" if row["took_ns"] is None else _lasted(row["took_ns"]),
            usd(row["cost_usd"]),
            usd(row["value_usd"]),
            usd(row["margin_usd"]),
        )
    return made


def _lasted(ns: int) -> str:
    """A duration in the two largest units of time that it has."""
    text: list[str] = []
    left = ns // 1_000_000_000
    for name, seconds in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if left >= seconds or text:
            text.append(f"{left // seconds} {name}")
            left %= seconds
    return " ".join(text[:2]) or f"{ns / 1e9:.1f} s"


def explain_tables(explained: Explanation) -> RenderableType:
    """One call as a waterfall, its sum, who delayed it, and what it cost."""
    call = explained.call
    wall = max(1, call["wall_ns"])
    title = f"{call['span_id']}  {call['tenant']}  {call['outcome']}  {wall / 1e6:,.1f} ms"
    waterfall = table(title, "phase", "from (ms)", "ms", "")
    waterfall.columns[3].justify = "left"
    for row in explained.intervals.iter_rows(named=True):
        start, length = row["start_ns"] - call["call_start_ns"], row["end_ns"] - row["start_ns"]
        before = round(WATERFALL * start / wall)
        bar = " " * before + "█" * max(1, round(WATERFALL * length / wall))
        add(waterfall, row["phase"], f"{start / 1e6:,.2f}", f"{length / 1e6:,.2f}", bar)
    waterfall.add_section()
    add(waterfall, "unaccounted", "", f"{call['unaccounted'] / 1e6:,.2f}", "")
    add(waterfall, "wall", "", f"{sum(ms for _, ms in explained.phases):,.2f}", "")
    delays = table("Delayed by", "tenant", "how", "ms", right=2)
    for culprit, how, ms in explained.delays:
        add(delays, "its own traffic" if culprit == call["tenant"] else culprit, how, f"{ms:,.2f}")
    costs = table("What it cost", "category", "tokens", "cost")
    for row in explained.postings:
        add(costs, row["category"], f"{row['tokens']:,}", usd(float(row["amount"])))
    held = Text(f"  {_engine(explained.engine)}\n", "dim")
    slower = Text(f"  {_deviation(explained)}\n", "yellow" if explained.throttled_ms else "dim")
    parts: list[RenderableType] = [
        waterfall,
        Text(f"  {_occasion(call)}\n", "dim"),
        delays,
        estimated(explained.model_error),
        slower,
        costs,
        held,
    ]
    if explained.operation is not None:
        parts += operation_tables(explained.operation)
    if explained.journey is not None:
        parts += journey_tables(explained.journey)
    return Group(*parts)


def operation_tables(operation: Operation) -> list[RenderableType]:
    """Every try at an answer, and the sum of what they cost."""
    wall = (operation.end_ns - operation.start_ns) / 1e6
    tries = table(
        f"The tries of operation {operation.id}", "try", "why", "model", "outcome", "waste", "from (ms)", "ms", "cost", right=5
    )
    for call in operation.calls:
        model = "/".join(filter(None, (call["provider"], call["model"])))
        at = (f"{call['start_ms']:,.2f}", f"{call['wall_ms']:,.2f}", usd(call["usd"]))
        add(tries, str(call["attempt"]), call["why"], model, call["outcome"], call["waste"], *at)
    tries.add_section()
    if elsewhere := operation.spent.get("", 0):
        add(tries, "", "", "what else was used", "", "", "", "", usd(float(elsewhere)))
    add(tries, "all", "", "", "", "", "", f"{wall:,.2f}", usd(float(operation.usd)))
    waited = operation.between_ns / 1e6
    return [tries, Text(f"  For {waited:,.1f} ms of it no try was under way.\n", "dim")]


def journey_tables(journey: Journey) -> list[RenderableType]:
    """A stop by every clock that it passed, how much of the answer came how far, and where it was held up."""
    clocks = table("The abort's clocks", "clock", "", "ms after the call began", "its clock ahead by", right=2)
    for clock in journey.clocks:
        at = f"{(clock.at_ns - journey.start_ns) / 1e6:,.2f}" if clock.at_ns else "never"
        add(clocks, clock.where, clock.event, at, f"{clock.offset_ns / 1e6:+,.3f} ms")
    tokens = table("Tokens", "", "by", "tokens", "spent when the last was made", right=2)
    for count in journey.counts:
        add(tokens, count.name, count.where, f"{count.tokens:,}", usd(None if count.usd is None else float(count.usd)))
    ways = table("Where the stop was held up", "from", "to", "ms later", "tokens meanwhile", "cost", right=2)
    for way in journey.boundaries:
        later = "never" if way.lag_ns is None else f"{way.lag_ns / 1e6:,.2f}"
        made = "–" if way.tokens is None else f"{way.tokens:,}"
        add(ways, way.origin, way.target, later, made, usd(None if way.usd is None else float(way.usd)))
    return [clocks, tokens, ways, Text(f"  {journey.verdict}\n", "yellow" if journey.worst else "dim")]


def _occasion(call: dict[str, Any]) -> str:
    """When a call began, and what for."""
    began = datetime.fromtimestamp(call["call_start_ns"] / 1e9, timezone.utc)
    what = ", ".join(filter(None, (call["feature"], call["unit"])))
    return f"It began at {began:%Y-%m-%d %H:%M:%S} UTC" + (f", for {what}." if what else ".")


def _deviation(explained: Explanation) -> str:
    """How its steps compare with what the model says, and whether the device says why."""
    ms = explained.deviation_ms
    said = f"Its steps took {abs(ms):,.1f} ms {'more' if ms >= 0 else 'less'} than the model says"
    reasons = ", ".join(f"{reason} for {held:,.0f} ms" for reason, held in explained.throttled_ms.items())
    return f"{said}; the device's clocks were held down meanwhile: {reasons}." if reasons else f"{said}."


def _engine(engine: dict[str, Any]) -> str:
    """What a call held and guessed, as a sentence."""
    said = f"It held {engine['kv_block_s']:,.2f} KV block-seconds"
    if engine["drafted_tokens"]:
        said += f"; {engine['accepted_tokens']:,} of {engine['drafted_tokens']:,} guessed tokens were right"
    if engine["joules"] is not None:
        said += f"; it used {engine['joules']:,.2f} J"
    return f"{said}; adapter {engine['adapter']}." if engine["adapter"] else f"{said}."


def report_table(report: dict[str, Any]) -> RenderableType:
    """Where a report is, and what it closed."""
    made = table(f"Closing {report['closing']}", "postings", f"{report['postings']:,}", right=9)
    for kind, path in report["files"].items():
        add(made, kind, path)
    return made


def show(renderable: RenderableType) -> None:
    """Print for a person on standard output; a file or a pipe gets every column whole."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_OF_A_FILE
    console.print(renderable)
