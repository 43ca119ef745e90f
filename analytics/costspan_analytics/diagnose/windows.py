"""Where requests were much slower than usual: a scan of one tenant's requests in order.

Slow means at least twice as long as usual, four or eight times. What is usual comes from the tenant's own better stretches, how
often a request is slow by chance from all that lies outside of incidents. A stretch of requests is an incident when it is far
likelier under "half of these are slow" than under chance: its log-likelihood ratio is a sum over requests, so the likeliest
stretches are maximal segments (Ruzzo and Tompa, ISMB 1999), and ``E = n·exp(-score)`` bounds how many such stretches chance
makes of n requests (Karlin and Altschul, PNAS 87, 1990).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVELS = (2.0, 4.0, 8.0)
"""Times as long as usual that are looked for."""
FALSE_ALARMS = 1e-3
"""Incidents that chance may make of a whole diagnosis."""
FEWEST = 40
"""Requests of a tenant below which nothing is usual."""
_STRETCHES = 20
_SLOW_SHARE = 0.5

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Requests ``first`` to ``last``, both included, that were slow; ``score`` is the log-likelihood ratio."""

    first: int
    last: int
    score: float


def usual(values: Floats) -> Flags:
    """Which requests lie in the better half of the stretches that a tenant's requests are cut into, shape (n,).

    Args:
        values: What each took, in the order in which they began, shape (n,).
    """
    parts = np.array_split(np.arange(len(values)), min(_STRETCHES, max(1, len(values) // 5)))
    medians = [float(np.median(values[part])) for part in parts]
    limit = float(np.median(medians))
    better = np.zeros(len(values), dtype=bool)
    for part, median in zip(parts, medians, strict=True):
        better[part] = median <= limit
    return better


def scan(values: Floats, tests: int) -> list[Stretch]:
    """Stretches in which requests were slow, likeliest first; none overlaps another.

    Args:
        values: As for :func:`usual`.
        tests: How many series are scanned besides: chance has as many tries.
    """
    if len(values) < FEWEST:
        return []
    better = usual(values)
    typical = float(np.median(values[better]))
    threshold = math.log(tests * len(LEVELS) * len(values) / FALSE_ALARMS)
    found = [stretch for level in LEVELS for stretch in _slow_stretches(values > level * typical, better, threshold)]
    kept: list[Stretch] = []
    for stretch in sorted(found, key=lambda each: -each.score):
        if all(stretch.last < other.first or other.last < stretch.first for other in kept):
            kept.append(stretch)
    return kept


def _slow_stretches(slow: Flags, better: Flags, threshold: float) -> Iterator[Stretch]:
    """Stretches that stand out against the better half, and still do against all that lies outside of them."""
    found = list(_segments(_scores(slow, better), 0, threshold))
    outside = np.ones(len(slow), dtype=bool)
    for stretch in found:
        outside[stretch.first : stretch.last + 1] = False
    again = _scores(slow, outside) if outside.any() else np.zeros(len(slow))
    for stretch in found:
        score = float(again[stretch.first : stretch.last + 1].sum())
        if score >= threshold:
            yield Stretch(stretch.first, stretch.last, score)


def _scores(slow: Flags, normal: Flags) -> Floats:
    """Each request's log-likelihood ratio, shape (n,), chance being what it is among the ``normal`` ones.

    What delays one request delays those beside it, so slow ones come in clusters, by chance too. Of a cluster one is evidence:
    scores are scaled by the share of slow requests that begin one (the extremal index, by its runs estimator: Smith and
    Weissman, JRSS B 56, 1994).
    """
    chance = (int(slow[normal].sum()) + 1) / (int(normal.sum()) + 2)
    if chance >= _SLOW_SHARE:
        return np.full(len(slow), -1.0)
    begins = slow & normal & ~np.concatenate([[False], slow[:-1]])
    index = (int(begins.sum()) + 1) / (int(slow[normal].sum()) + 1)
    ratio = np.where(slow, math.log(_SLOW_SHARE / chance), math.log((1 - _SLOW_SHARE) / (1 - chance)))
    return np.asarray(index * ratio)


def _segments(scores: Floats, offset: int, threshold: float) -> Iterator[Stretch]:
    """The segment of the largest sum, and those beside it, as long as their sums reach a threshold."""
    if not len(scores):
        return
    sums = np.concatenate([[0.0], np.cumsum(scores)])
    lowest = np.minimum.accumulate(sums[:-1])
    end = int(np.argmax(sums[1:] - lowest))
    score = float(sums[end + 1] - lowest[end])
    if score < threshold:
        return
    start = int(np.argmin(sums[: end + 1]))
    yield Stretch(offset + start, offset + end, score)
    yield from _segments(scores[:start], offset, threshold)
    yield from _segments(scores[end + 1 :], offset + end + 1, threshold)
