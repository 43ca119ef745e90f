"""The diagnosis: each stretch of slow requests with what explains it best.

What a stretch's requests were spent on, less what the tenant's usual ones are spent on, is the excess by cause and culprit. A
finding is a cause that explains at least a quarter of it. Its confidence is the share of the excess that it explains times
``n / (n + 2)``, n being the requests that it slowed (Laplace's rule of succession, for n of n): one request proves little.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, TypeAlias

import numpy as np
import polars as pl

from costspan.semconv import Cause
from costspan_analytics.diagnose.components import FIRST, OTHERS, REST, Components
from costspan_analytics.diagnose.loads import Loads
from costspan_analytics.diagnose.requests import E2E, INTER_TOKEN, METRICS, TTFT, load_requests
from costspan_analytics.diagnose.windows import scan, usual
from costspan_analytics.store import Store, Window
from costspan_analytics.timeline import Timeline

LEAST_SHARE = 0.25
"""Of an excess, what a cause must explain to be told of."""
ECHO = ("echo", "")
"""The key of time that the usual traffic of others took: the cause of it is another's."""
_NO_ECHO = (ECHO[0], Cause.SLOW_CLIENT, Cause.NETWORK, Cause.UNKNOWN)
Sums: TypeAlias = dict[tuple[str, str], float]
"""Nanoseconds by (cause, culprit)."""
MOST_USUAL = 500
"""About how many usual requests slow ones are compared with."""
_MS = 1e6
_PARTS = {TTFT: (FIRST,), E2E: (FIRST, REST), INTER_TOKEN: (REST,)}


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a tenant was slow for a while.

    Attributes:
        tenant: Who.
        metric: In what: ``ttft``, ``e2e`` or ``inter_token``.
        window: From when the first of its slow requests began until the last of them was over.
        cause: Why.
        culprit: The tenant behind it, or "".
        share_ms: Milliseconds of the excess that it explains, for each request of the window (each token, of ``inter_token``).
        confidence: From 0 to 1; see the module.
    """

    tenant: str
    metric: str
    window: Window
    cause: str
    culprit: str
    share_ms: float
    confidence: float

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "tenant": self.tenant,
            "metric": self.metric,
            "window": {"since": _moment(self.window.since), "until": _moment(self.window.until)},
            "cause": self.cause,
            "culprit": self.culprit,
            "share_ms": round(self.share_ms, 3),
            "confidence": round(self.confidence, 3),
        }


def _moment(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns / 1e9, timezone.utc).isoformat(timespec="milliseconds")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything found in a window; the largest excess first."""

    findings: list[Finding]

    @classmethod
    def load(cls, store: Store, timeline: Timeline) -> Diagnosis:
        """Look at every tenant's requests."""
        requests = load_requests(timeline)
        components = Components.load(store, timeline, requests)
        loads = Loads.of(timeline, components.segments)
        by_tenant = requests.partition_by("tenant", maintain_order=True)
        tests = len(by_tenant) * len(METRICS)
        incidents = [incident for own in by_tenant for metric in METRICS for incident in _incidents(own, metric, tests)]
        found = [finding for incident in incidents for finding in incident.explain(components, loads)]
        return cls(sorted(found, key=lambda each: (-each.share_ms * each.confidence, each.tenant, each.metric)))


@dataclass(frozen=True, slots=True)
class _Incident:
    """A stretch of a tenant's requests that were slow.

    Attributes:
        metric: In what.
        slow: Rows of ``load_requests`` in the stretch.
        usual: Those to compare with.
    """

    metric: str
    slow: pl.DataFrame
    usual: pl.DataFrame

    @property
    def tenant(self) -> str:
        return str(self.slow["tenant"][0])

    @property
    def window(self) -> Window:
        took = self.slow[self.metric] if self.metric != INTER_TOKEN else self.slow[E2E].fill_null(0)
        until = (self.slow["start_ns"] + took.cast(pl.Int64)).max()
        return Window(int(self.slow["start_ns"][0]), int(until) + 1)  # type: ignore[arg-type]

    def explain(self, components: Components, loads: Loads) -> Iterator[Finding]:
        """The causes that explain most of its excess."""
        spent, typical = (
            components.of(requests).join(requests.select("request", "gaps"), on="request")
            for requests in (self.slow, self.usual)
        )
        every = self._direct(self._excess(spent, typical, E2E), loads)
        excess = self._excess(spent, typical, self.metric)
        more = _mean(self.slow, self.metric) - _mean(self.usual, self.metric)
        excess[Cause.UNKNOWN, ""] = excess.get((Cause.UNKNOWN, ""), 0.0) + more - sum(excess.values())
        causes = _with_echo(self._direct(excess, loads), every)
        total, count = sum(ns for ns in causes.values() if ns > 0), self.slow.height
        for (cause, culprit), ns in causes.items():
            if ns > 0 and ns >= LEAST_SHARE * total:
                sure = ns / total * count / (count + 2)
                yield Finding(self.tenant, self.metric, self.window, cause, culprit, ns / _MS, sure)

    def _excess(self, spent: pl.DataFrame, typical: pl.DataFrame, metric: str) -> Sums:
        """Nanoseconds more for each request, by (cause, culprit); of ``inter_token``, for each token."""
        each = pl.col("ns") / (pl.col("gaps") if metric == INTER_TOKEN else 1)
        now, then = (
            frame.filter(pl.col("part").is_in(_PARTS[metric])).group_by("cause", "culprit").agg(ns=each.sum() / count)
            for frame, count in ((spent, self.slow.height), (typical, max(1, self.usual.height)))
        )
        both = now.join(then, on=["cause", "culprit"], how="full", coalesce=True).fill_null(0).sort("cause", "culprit")
        more = both.select("cause", "culprit", pl.col("ns") - pl.col("ns_right"))
        return {(cause, culprit): ns for cause, culprit, ns in more.rows()}

    def _direct(self, excess: Sums, loads: Loads) -> Sums:
        """The excess with causes that have names of their own; under :data:`ECHO` what none of them explains.

        Of the time that other requests took, the share by which their tenant asked for more than usual is that tenant's. The
        rest is an echo: the usual traffic takes longer where an engine loads, is slow or has lost its cache.
        """
        moved = self._moved()
        direct: Sums = defaultdict(float)
        for (cause, culprit), ns in excess.items():
            direct[Cause.ROUTING_CHANGE, ""] += moved * ns
            kept = (1 - moved) * ns
            if cause == OTHERS:
                growth = loads.growth(culprit, self.window)
                named = growth.cause if culprit == self.tenant else Cause.NOISY_NEIGHBOUR
                direct[named, culprit] += growth.share * kept
                direct[ECHO] += (1 - growth.share) * kept
            elif cause == Cause.LONG_PROMPT and self._uncached():
                direct[Cause.COLD_CACHE, ""] += kept
            else:
                direct[cause, culprit] += kept
        return direct

    def _moved(self) -> float:
        """Which share of the requests is on devices of a kind that the usual ones were not on as much."""
        now, then = (
            dict(each.group_by("device_kind").agg(pl.len() / each.height).iter_rows()) for each in (self.slow, self.usual)
        )
        return float(sum(max(0.0, share - then.get(kind, 0.0)) for kind, share in now.items() if kind is not None))

    def _uncached(self) -> bool:
        """Whether fewer tokens were found in the cache rather than more asked for."""
        lost = _mean(self.usual, "cached_tokens") - _mean(self.slow, "cached_tokens")
        return lost > max(0.0, _mean(self.slow, "prompt_tokens") - _mean(self.usual, "prompt_tokens"))


def _with_echo(direct: Sums, every: Sums) -> Sums:
    """Share an echo out over the causes of the whole excess that lie in engines, which it is one of; the largest first."""
    sources = {key: ns for key, ns in every.items() if key[0] not in _NO_ECHO and ns > 0} or {(Cause.UNKNOWN.value, ""): 1.0}
    total = sum(sources.values())
    causes = {key: ns for key, ns in direct.items() if key != ECHO}
    for key, ns in sources.items():
        causes[key] = causes.get(key, 0.0) + direct.get(ECHO, 0.0) * ns / total
    return dict(sorted(causes.items(), key=lambda item: (-item[1], item[0])))


def _incidents(own: pl.DataFrame, metric: str, tests: int) -> Iterator[_Incident]:
    """The stretches of a tenant's requests in which a metric was much worse."""
    measured = own.drop_nulls(metric)
    values = measured[metric].cast(pl.Float64).to_numpy()
    stretches = scan(values, tests)
    if not stretches:
        return
    inside = np.zeros(len(values), dtype=bool)
    for stretch in stretches:
        inside[stretch.first : stretch.last + 1] = True
    better = measured.filter(pl.Series(usual(values) & ~inside))
    better = better.gather_every(max(1, better.height // MOST_USUAL))
    for stretch in stretches:
        yield _Incident(metric, measured.slice(stretch.first, stretch.last - stretch.first + 1), better)


def _mean(requests: pl.DataFrame, column: str) -> float:
    return float(requests.select(pl.col(column).cast(pl.Float64).mean().fill_null(0.0)).item())
