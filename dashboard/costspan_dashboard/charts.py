"""The page's charts. A phase has the same colour in all of them."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from costspan.semconv import Phase
from costspan_analytics.explain import Explanation
from costspan_analytics.palette import PHASE_COLOURS, USEFUL, WASTED

_MS = 1e6
_INK, _SOFT, _LINE = "#1f2733", "#667180", "#eceff2"


def tail_chart(tail: dict[str, Any]) -> alt.Chart:
    """Two stacked bars: the mean request, and the mean of the slowest, phase by phase."""
    order = {row["phase"]: at for at, row in enumerate(tail["phases"])}
    rows = [
        {"which": which, "phase": row["phase"], "at": order[row["phase"]], "ms": max(0.0, row[key])}
        for which, key in (("all", "mean_ms"), ("slowest", "tail_ms"))
        for row in tail["phases"]
    ]
    chart = (
        alt.Chart(pl.DataFrame(rows))
        .mark_bar(height=26)
        .encode(
            x=alt.X("ms:Q", title="milliseconds", axis=alt.Axis(tickCount=6)),
            y=alt.Y("which:N", title=None, sort=["all", "slowest"]),
            color=_phase_colour(),
            order=alt.Order("at:Q"),
            tooltip=["which", "phase", alt.Tooltip("ms:Q", format=",.1f")],
        )
    )
    return _dressed(chart, height=118)


def cost_chart(cost: dict[str, Any]) -> alt.Chart:
    """A bar a tenant, split into what somebody got an answer for and what was waste."""
    rows = [
        {"tenant": row[cost["by"]], "what": what, "at": at, "usd": usd}
        for row in cost["rows"]
        for at, (what, usd) in enumerate((("useful", row["usd"] - row["waste_usd"]), ("waste", row["waste_usd"])))
    ]
    chart = (
        alt.Chart(pl.DataFrame(rows, schema={"tenant": pl.String, "what": pl.String, "at": pl.Int64, "usd": pl.Float64}))
        .mark_bar(height={"band": 0.62})
        .encode(
            x=alt.X("usd:Q", title="US dollars", axis=alt.Axis(tickCount=5, format="$~g")),
            y=alt.Y("tenant:N", title=None, sort=[row[cost["by"]] for row in cost["rows"]]),
            color=alt.Color(
                "what:N",
                scale=alt.Scale(domain=["useful", "waste"], range=[USEFUL, WASTED]),
                legend=alt.Legend(title=None, orient="top", direction="horizontal"),
            ),
            order=alt.Order("at:Q"),
            tooltip=["tenant", "what", alt.Tooltip("usd:Q", format="$,.6f")],
        )
    )
    return _dressed(chart, height=70 + 30 * len(cost["rows"]))


def waterfall(explained: Explanation) -> alt.Chart:
    """One call from the client's first reading to its last: a row a phase, in the order in which they first came."""
    start = explained.call["call_start_ns"]
    rows = [
        {"phase": row["phase"], "from": (row["start_ns"] - start) / _MS, "to": (row["end_ns"] - start) / _MS}
        for row in explained.intervals.iter_rows(named=True)
    ]
    order = list(dict.fromkeys(row["phase"] for row in rows))
    frame = pl.DataFrame(rows, schema={"phase": pl.String, "from": pl.Float64, "to": pl.Float64}).with_columns(
        ms=pl.col("to") - pl.col("from")
    )
    base = alt.Chart(frame).encode(y=alt.Y("phase:N", title=None, sort=order))
    bars = base.mark_bar(height={"band": 0.6}, strokeWidth=1.5).encode(
        x=alt.X("from:Q", title="milliseconds after the call began"),
        x2="to:Q",
        color=_phase_colour(),
        stroke=_phase_colour(alt.Stroke),  # an outline, so that a phase of microseconds is still seen
        tooltip=["phase", *(alt.Tooltip(f"{name}:Q", format=",.2f") for name in ("from", "to", "ms"))],
    )
    return _dressed(bars, height=60 + 26 * len(order))


def _phase_colour(channel: type[alt.Color | alt.Stroke] = alt.Color) -> alt.Color | alt.Stroke:
    names = [phase.value for phase in Phase]
    return channel("phase:N", scale=alt.Scale(domain=names, range=[PHASE_COLOURS[name] for name in names]), legend=None)


def _dressed(chart: alt.Chart, height: int) -> alt.Chart:
    return (
        chart.properties(height=height, width="container")
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=_INK, titleColor=_SOFT, titleFontWeight="normal", gridColor=_LINE, domain=False, ticks=False,
            labelFontSize=12, titleFontSize=12, labelPadding=8, labelLimit=220,
        )
        .configure_axisY(grid=False)
        .configure_legend(labelColor=_INK, labelFontSize=12, padding=0)
    )  # fmt: skip
