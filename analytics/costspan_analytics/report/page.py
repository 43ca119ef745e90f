"""The report as one HTML page without scripts: it reads on a screen and prints on paper."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from costspan_analytics.audit import MONEY_LIMIT, TIME_LIMIT, dollars
from costspan_analytics.palette import PHASE_COLOURS, USEFUL, WASTED
from costspan_analytics.render import percent, usd
from costspan_analytics.report.closing import moment
from costspan_analytics.report.weekly import Weekly
from costspan_analytics.summary import SHARED
from costspan_analytics.units import shared_cost

SHOWN_BLAME = 12


def page(weekly: Weekly) -> str:
    """The page's text."""
    environment = Environment(
        loader=PackageLoader("costspan_analytics", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"usd": usd, "percent": percent, "dollars": dollars, "ms": _ms, "moment": moment}
    return environment.get_template("weekly.html.j2").render(
        weekly=weekly,
        audit=weekly.audit,
        tail=weekly.tail,
        law=weekly.law,
        colours=PHASE_COLOURS,
        useful=USEFUL,
        wasted=WASTED,
        time_limit=TIME_LIMIT,
        money_limit=float(MONEY_LIMIT),
        shared=SHARED,
        shared_cost=shared_cost(weekly.book),
        shown_blame=SHOWN_BLAME,
    )


def _ms(value: float) -> str:
    return f"{value:z,.0f}" if abs(value) >= 100 else f"{value:z,.1f}"
