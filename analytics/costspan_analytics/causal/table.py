"""A causal answer for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from costspan_analytics.causal.answer import Answer, Figures
from costspan_analytics.causal.fidelity import METRICS
from costspan_analytics.render import add, table


def causal_tables(answers: Sequence[Answer], own: str = "") -> list[RenderableType]:
    """One table for each engine; see :func:`causal_table`."""
    return [causal_table(each, own) for each in answers]


def causal_table(answer: Answer, own: str = "") -> RenderableType:
    """What would not have been without each tenant, beside direct blame; and how far to trust it.

    Args:
        answer: What to tell of.
        own: The cohort's tenant, whose other traffic is called so.
    """
    if answer.fallback:
        return Text(f"  No causal answer: {answer.fallback}\n", style="yellow")
    one = answer.requests == 1
    statistics = ("mean",) if one else ("mean", "p99")
    heads = [metric.upper() if one else f"{metric.upper()} {each}" for metric in METRICS for each in statistics]
    title = f"Replayed without them, ms less for {'this request' if one else f'each of {answer.requests:,} requests'}"
    made = table(title, "without", "direct", *heads, "share of E2E")
    for each in answer.culprits:
        share, error = (figures["e2e"]["mean"] for figures in (each.share_ms, each.error_ms))
        name = "its own other traffic" if each.tenant == own else each.tenant
        said = f"{share:,.1f}" + (f" ± {error:,.1f}" if error else "")
        add(made, name, f"{each.direct_ms:,.1f}", *_cells(each.causal_ms, statistics), said)
    made.add_section()
    add(made, "all of them", "", *_cells(answer.excess_ms, statistics), f"{answer.excess_ms['e2e']['mean']:,.1f}")
    add(made, "measured", "", *_cells(answer.measured_ms, statistics), "")
    return Group(made, Text(f"  {_trust(answer)}\n", style="dim"))


def _cells(figures: Figures, statistics: tuple[str, ...]) -> list[str]:
    return [f"{figures[metric][each]:,.1f}" for metric in METRICS for each in statistics]


def _trust(answer: Answer) -> str:
    if answer.fidelity is None:
        return ""
    said = ", ".join(
        f"{name.upper()} mean {match.mean:.0%} and p99 {match.p99:.0%} of what was measured, half of the requests within "
        f"{match.error:.0%}"
        for name, match in answer.fidelity.matches.items()
    )
    return f"The replay of what happened, over {answer.fidelity.requests:,} requests: {said}."
