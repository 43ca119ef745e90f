"""The sections of the overview page, from top to bottom."""

from __future__ import annotations

from typing import Any

import streamlit as st

from costspan_analytics.audit import dollars
from costspan_analytics.explain import Explanation
from costspan_analytics.matrix_table import Line, grid
from costspan_analytics.palette import USEFUL, WASTED
from costspan_analytics.render import percent, usd
from costspan_dashboard import charts
from costspan_dashboard.blocks import (
    Bar,
    Heat,
    PhaseName,
    Row,
    arrival_note,
    block,
    figures,
    money_card,
    ms,
    table,
    time_card,
    title,
)
from costspan_dashboard.overview import Overview

SHOWN_BLAME = 10
SHOWN_CULPRITS = 8
_OWN = "its own traffic"


def laws(overview: Overview) -> None:
    """Both laws, side by side, and whether everything arrived."""
    time, money = st.columns(2)
    time.html(time_card(overview))
    money.html(money_card(overview))
    if note := arrival_note(overview.audit):
        st.warning(note)
    st.html(figures(overview))


def tail(found: dict[str, Any]) -> None:
    """Where slow requests spend their time, and who delayed whom."""
    left, right = st.columns([7, 5], gap="large")
    with left:
        slow = f"the slowest {1 - found['level']:.0%} ({found['tail_requests']})"
        st.html(
            block(title("Where slow requests spend their time", f"Mean of all {found['requests']} requests beside {slow}."))
        )
        st.altair_chart(charts.tail_chart(found), theme=None)
        rows = [
            Row(
                (PhaseName(row["phase"]), ms(row["mean_ms"]), ms(row["tail_ms"]), ms(row["tail_ms"] - row["mean_ms"])),
                "apart" if row["phase"] == "unaccounted" else "",
            )
            for row in found["phases"]
        ]
        sums = [sum(row[key] for row in found["phases"]) for key in ("mean_ms", "tail_ms")]
        wall = Row(("wall", ms(sums[0]), ms(sums[1]), ms(sums[1] - sums[0])), "total")
        st.html(block(table(("phase", "all, ms", "slowest, ms", "more, ms"), [*rows, wall], {1, 2, 3})))
    with right:
        st.html(
            block(title("Who delayed whom", "Among the slowest; by accounting, not yet by cause.") + _blame(found["blame"]))
        )


def _blame(delays: list[dict[str, Any]]) -> str:
    longest = max((row["ms"] for row in delays), default=0.0) or 1.0
    rows = [
        Row((row["tenant"], _culprit(row["tenant"], row["culprit"]), row["mechanism"], ms(row["ms"]), _delay_bar(row, longest)))
        for row in delays[:SHOWN_BLAME]
    ]
    return table(("delayed", "by", "how", "ms", ""), rows, {3})


def _culprit(victim: str, culprit: str) -> str:
    return _OWN if culprit == victim else culprit


def _delay_bar(row: dict[str, Any], longest: float) -> Bar:
    return Bar(((row["ms"] / longest, USEFUL if row["tenant"] == row["culprit"] else WASTED),))


def matrix(found: dict[str, Any]) -> None:
    """Who was delayed (rows), by whom (columns): every engine request of the window."""
    culprits, lines = grid(found, SHOWN_CULPRITS)
    hottest = max((value for line in lines for value in line.by), default=0.0) or 1.0
    rows = [
        Row(
            (line.tenant, f"{line.requests:,}", *_heat(line, culprits, hottest), ms(line.whole), ms(line.whole / line.requests))
        )
        for line in lines
    ]
    requests = sum(found["requests"].values())
    sums = [sum(line.by[at] for line in lines) for at in range(len(culprits))]
    each = sum(sums) / max(1, requests)
    total = Row(("all", f"{requests:,}", *map(ms, sums), ms(sum(sums)), ms(each)), "total")
    small = "Milliseconds that each tenant (row) was delayed by each (column), over all its engine requests; its own other"
    heads = ("delayed", "requests", *(f"by {name}" for name in culprits), "by all", "a request")
    content = title("Interference between tenants", f"{small} traffic is blue. By accounting, not yet by cause.")
    st.html(block(content + table(heads, [*rows, total], set(range(1, len(heads))))))


def _heat(line: Line, culprits: list[str], hottest: float) -> list[Heat]:
    """A tenant's cells, the one of its own other traffic in the colour of what is useful."""
    return [
        Heat(ms(value), value / hottest, USEFUL if culprit == line.tenant else WASTED)
        for culprit, value in zip(culprits, line.by, strict=True)
    ]


def money(overview: Overview) -> None:
    """Cost by tenant, waste by category, the bill line by line."""
    left, right = st.columns([7, 5], gap="large")
    with left:
        cost = overview.cost
        st.html(block(title("Cost by tenant", "What no request pays (idle, host gaps, loading) is shared.")))
        st.altair_chart(charts.cost_chart(cost), theme=None)
        rows = [
            Row((row["tenant"], usd(row["usd"]), usd(row["waste_usd"]), percent(_share(row["waste_usd"], row["usd"]))))
            for row in cost["rows"]
        ]
        wasted = sum(row["waste_usd"] for row in cost["rows"])
        total = Row(("posted", usd(cost["posted_usd"]), usd(wasted), percent(_share(wasted, cost["posted_usd"]))), "total")
        st.html(block(table(("tenant", "cost", "of it waste", "waste share"), [*rows, total], {1, 2, 3})))
    with right:
        st.html(block(title("Waste", "Money that no user got anything for.") + _waste(overview.waste)))
        st.html(block(title("The bill, line by line") + _bill(overview)))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _waste(waste: dict[str, Any]) -> str:
    dearest = max((row["usd"] for row in waste["rows"]), default=0.0) or 1.0
    rows = [
        Row(
            (
                row["category"],
                usd(row["usd"]),
                f"{row['device_ns'] / 1e9:,.2f} s",
                f"{row['tokens']:,}" if row["tokens"] else "",
                Bar(((row["usd"] / dearest, WASTED),)),
            )
        )
        for row in waste["rows"]
    ]
    total = Row((f"{percent(waste['share_of_bill'])} of the bill", usd(waste["waste_usd"]), "", "", ""), "total")
    return table(("category", "cost", "device time", "tokens", ""), [*rows, total], {1, 2, 3})


def _bill(overview: Overview) -> str:
    audit = overview.audit["money"]
    rows = [
        Row((line["sku"], line["source"], usd(line["bill_usd"]), usd(line["posted_usd"]), usd(line["unexplained_usd"])))
        for line in audit["lines"]
    ]
    sums = (usd(audit["bill_usd"]), usd(audit["posted_usd"]), usd(audit["unexplained_usd"]))
    return table(("what", "billed by", "bill", "posted", "unexplained"), [*rows, Row(("total", "", *sums), "total")], {2, 3, 4})


def units(found: dict[str, Any]) -> None:
    """What one outcome cost."""
    rows = [
        Row(
            (
                row["unit_kind"],
                row["tenant"],
                f"{row['units']:,}",
                f"{row['resolved']:,}",
                usd(row["cost_usd"]),
                usd(row["waste_usd"]),
                usd(row["usd_per_resolved"]),
                f"${row['value_usd']:,.2f}",
            )
        )
        for row in found["rows"]
    ]
    shared = Row(("shared", "no unit pays it", "", "", usd(found["shared_usd"]), "", "", ""), "total")
    heads = ("unit", "tenant", "units", "resolved", "cost", "of it waste", "a resolved one", "worth")
    small = "With every attempt, retrieval, rerank and review minute in it; a resolved one carries those that were not."
    st.html(block(title("What an outcome cost", small) + table(heads, [*rows, shared], {2, 3, 4, 5, 6, 7})))


def slowest(overview: Overview) -> None:
    """The slowest requests; the chosen one explained."""
    st.html(block(title("The slowest requests", "Choose one to see where its time went, who delayed it and what it cost.")))
    calls = {row["span_id"]: row for row in overview.tail["slowest"]}
    if not calls:
        return
    chosen = st.selectbox(
        "Request",
        list(calls),
        format_func=lambda span_id: _call_label(calls[span_id]),
        label_visibility="collapsed",
        key="request",
    )
    if chosen is not None:
        _explanation(overview.explain(chosen))


def _call_label(call: dict[str, Any]) -> str:
    return f"{ms(call['ms'])} ms · {call['tenant']} · {call['outcome']} · {call['span_id']}"


def _explanation(explained: Explanation) -> None:
    call, wall_ms = explained.call, max(1e-6, sum(value for _, value in explained.phases))
    left, right = st.columns([7, 5], gap="large")
    with left:
        st.altair_chart(charts.waterfall(explained), theme=None)
        phases = [
            Row((PhaseName(name), f"{value:,.2f}", percent(value / wall_ms)), "apart" if name == "unaccounted" else "")
            for name, value in explained.phases
            if value or name == "unaccounted"
        ]
        wall = Row(("wall", f"{wall_ms:,.2f}", ""), "total")
        st.html(block(table(("phase", "ms", "share"), [*phases, wall], {1, 2})))
    with right:
        delays = [
            Row((_culprit(call["tenant"], culprit), how, f"{value:,.2f}"))
            for culprit, how, value in explained.delays[:SHOWN_BLAME]
        ]
        costs = [Row((row["category"], f"{row['tokens']:,}", usd(dollars(row["amount"])))) for row in explained.postings]
        aborts = [Row((name, f"{at:,.2f}")) for name, at in explained.aborts]
        content = title("Delayed by") + table(("tenant", "how", "ms"), delays, {2})
        content += title("Cost of its engine time") + table(("category", "tokens", "cost"), costs, {1, 2})
        if aborts:
            content += title("The abort's clocks") + table(("clock", "ms after the call began"), aborts, {1})
        st.html(block(content))
