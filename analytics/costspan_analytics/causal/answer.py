"""Who caused a cohort's latency: direct and causal blame side by side, and how far to trust the second."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl

from costspan_analytics.causal.effect import named, of, summary
from costspan_analytics.causal.fidelity import MOST_ERROR, Fidelity
from costspan_analytics.causal.recording import Recording
from costspan_analytics.causal.rerun import Rerun
from costspan_analytics.causal.shapley import EXACT, Coalition, Floats, Shapley, Show, silent
from costspan_analytics.errors import NotFoundError
from costspan_analytics.store import Store, Window

OTHERS = "(others)"
"""All tenants but the top ones."""
TOP = 6
"""Tenants that are told apart, where there are more than can be looked at exactly."""

AROUND_NS = 60 * 1_000_000_000
"""Requests that came so long before the cohort are compared with what was measured too: of a few one cannot tell much."""

Figures = dict[str, dict[str, float]]
"""Milliseconds by metric and statistic."""


@dataclass(frozen=True, slots=True)
class Culprit:
    """A tenant, and what it did to each request of the cohort on average, in milliseconds.

    Attributes:
        tenant: Which; of the cohort's own, the requests that are not in the cohort.
        direct_ms: Of its wall time: who was in its steps, and who held what it waited for.
        causal_ms: What would not have been without this tenant; nothing where there is no replay to be trusted.
        share_ms: Its share of what all tenants together caused.
        error_ms: The standard error of that.
    """

    tenant: str
    direct_ms: float
    causal_ms: Figures = field(default_factory=dict)
    share_ms: Figures = field(default_factory=dict)
    error_ms: Figures = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """Who caused the latency of a cohort of requests on one engine.

    Attributes:
        engine: The engine's id.
        requests: How many are in the cohort and ended well.
        culprits: Those with the largest share first.
        measured_ms: The cohort's latencies as they were measured.
        excess_ms: What they would lose without anybody else; the shares add up to it.
        exact: Whether all coalitions were looked at; if not, shares have an error.
        fidelity: How well a replay of what happened reproduces what was measured.
        fallback: Why there is no causal answer, in a sentence; "" when there is one.
    """

    engine: str
    requests: int
    culprits: list[Culprit]
    measured_ms: Figures = field(default_factory=dict)
    excess_ms: Figures = field(default_factory=dict)
    exact: bool = True
    fidelity: Fidelity | None = None
    fallback: str = ""

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return asdict(self) | {"fidelity": self.fidelity.as_dict() if self.fidelity else None}


def causal_answers(store: Store, cohort: pl.DataFrame, direct: pl.DataFrame, *, show: Show = silent) -> list[Answer]:
    """Who caused the latency of a cohort, on each engine that served some of it; those that served most of it first.

    Args:
        store: Where it was recorded.
        cohort: Requests to be explained: ``engine, request_id, enqueued_ns, removed_ns``.
        direct: Direct blame for them: ``engine, culprit, ms``.
        show: Told of the replays that were made so far, and of how many there may be.

    Raises:
        StoreError: The store refuses, or is gone.
    """
    answers = []
    for (engine,), own in sorted(cohort.partition_by("engine", as_dict=True).items(), key=lambda each: -each[1].height):
        blamed = direct.filter(pl.col("engine") == engine).group_by("culprit").agg(pl.col("ms").sum())
        first, last = own.select(pl.col("enqueued_ns").min() - AROUND_NS, pl.col("removed_ns").max()).row(0)
        window = Window(first, last + 1)
        answers.append(
            causal_answer(store, str(engine), own["request_id"].to_list(), dict(blamed.iter_rows()), window=window, show=show)
        )
    return answers


def causal_answer(
    store: Store,
    engine: str,
    cohort: Collection[str],
    direct: Mapping[str, float],
    *,
    window: Window | None = None,
    show: Show = silent,
) -> Answer:
    """Replay a window of an engine with and without the cohort's neighbours.

    Args:
        store: Where it was recorded.
        engine: The engine's id.
        cohort: Ids of the requests to be explained; they are in every replay.
        direct: Direct blame for all of them together, in milliseconds by culprit.
        window: Requests that came in it are compared with what was measured; by default the store's window.
        show: Told of the replays that were made so far, and of how many there may be.

    Raises:
        StoreError: The store refuses, or is gone.
    """
    try:
        recording = Recording.load(store, engine, window)
    except NotFoundError as error:
        return _direct_alone(engine, len(cohort), direct, str(error))
    return answer(recording, cohort, direct, show=show)


def answer(
    recording: Recording,
    cohort: Collection[str],
    direct: Mapping[str, float],
    *,
    show: Show = silent,
) -> Answer:
    """The same, of a recording at hand."""
    engine = str(recording.engine["engine"])
    own = recording.measured.filter(pl.col("request_id").is_in(list(cohort)))
    obstacle = recording.obstacle or ("" if own.height else "None of these requests ended well, so no latency can be compared.")
    if obstacle:
        return _direct_alone(engine, len(cohort), direct, obstacle)
    rerun = Rerun(recording)
    everybody = rerun()
    fidelity = Fidelity.of(recording.measured, everybody)
    if trouble := fidelity.trouble or _strays(own, everybody):
        return _direct_alone(engine, len(cohort), direct, trouble, fidelity)
    groups = _groups(recording, cohort, direct)
    whole = frozenset(groups)

    def value(present: Coalition) -> Floats:
        if present == whole:
            return summary(of(own, everybody))
        absent = [tenant for name in whole - present for tenant in groups[name]]
        return summary(of(own, rerun(absent, kept=cohort)))

    game = Shapley(list(groups), value, show=show)
    shares = game.shares()
    culprits = [
        Culprit(
            name,
            sum(direct.get(tenant, 0.0) for tenant in tenants) / len(cohort),
            named(game.value(whole) - game.value(whole - {name})),
            named(shares[name].value),
            named(shares[name].error),
        )
        for name, tenants in groups.items()
    ]
    culprits.sort(key=lambda each: -each.share_ms["e2e"]["mean"])
    return Answer(engine, own.height, culprits, named(summary(own)), named(game.excess), game.exact, fidelity)


def _groups(recording: Recording, cohort: Collection[str], direct: Mapping[str, float]) -> dict[str, list[str]]:
    """The tenants that had requests beside the cohort's, by the player that each is: itself, or one of the others."""
    beside = recording.attempts.filter(~pl.col("request_id").is_in(list(cohort)))["tenant"].unique()
    tenants = sorted((each for each in recording.tenants if each in beside), key=lambda each: -direct.get(each, 0.0))
    alone = len(tenants) if len(tenants) <= EXACT else TOP
    rest = {OTHERS: tenants[alone:]} if tenants[alone:] else {}
    return {each: [each] for each in tenants[:alone]} | rest


def _strays(own: pl.DataFrame, everybody: pl.DataFrame) -> str:
    """Whether the cohort itself is not what was measured, in a sentence."""
    measured, replayed = (float(each["e2e_ns"].to_numpy().mean()) for each in (own, of(own, everybody)))
    if abs(replayed / measured - 1.0) <= MOST_ERROR:
        return ""
    return f"A replay of what happened gives these requests {replayed / measured:.2f} times the latency that was measured."


def _direct_alone(
    engine: str, requests: int, direct: Mapping[str, float], why: str, fidelity: Fidelity | None = None
) -> Answer:
    culprits = [Culprit(tenant, ms / requests) for tenant, ms in sorted(direct.items(), key=lambda each: -each[1])]
    return Answer(engine, requests, culprits, fidelity=fidelity, fallback=f"{why} Direct blame stands alone.")
