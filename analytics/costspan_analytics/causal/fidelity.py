"""How well a replay of what did happen reproduces what was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

METRICS = ("ttft", "e2e")
MOST_BIAS = 0.15
"""How far a mean may be off: on two cores of a shared machine, two runs of the same traffic differ by about as much."""
MOST_ERROR = 0.25
"""How far half of the requests may be off."""


@dataclass(frozen=True, slots=True)
class Match:
    """One metric of a replay over what was measured.

    Attributes:
        mean: The replay's mean over the mean that was measured.
        p50: The same of medians.
        p99: And of 99th percentiles.
        error: Over requests, the median of the relative error's size.
        bias: Over requests, the mean of the relative error with its sign.
    """

    mean: float
    p50: float
    p99: float
    error: float
    bias: float

    @classmethod
    def of(cls, measured: pl.Series, replayed: pl.Series) -> Match:
        """Compare, request by request; nanoseconds."""
        real, again = (np.maximum(1.0, each.cast(pl.Float64).to_numpy()) for each in (measured, replayed))
        relative = again / real - 1.0
        p50, p99 = (float(np.quantile(again, q) / np.quantile(real, q)) for q in (0.5, 0.99))
        return cls(float(again.mean() / real.mean()), p50, p99, float(np.median(np.abs(relative))), float(relative.mean()))


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How well a replay reproduces what was measured.

    Attributes:
        requests: How many were compared.
        matches: By metric, of :data:`METRICS`.
    """

    requests: int
    matches: dict[str, Match]

    @classmethod
    def of(cls, measured: pl.DataFrame, replayed: pl.DataFrame) -> Fidelity:
        """Compare a replay with what was measured, by ``request_id``."""
        both = measured.join(replayed, on="request_id", suffix="_again")
        if both.is_empty():
            return cls(0, {})
        return cls(both.height, {each: Match.of(both[f"{each}_ns"], both[f"{each}_ns_again"]) for each in METRICS})

    @property
    def trouble(self) -> str:
        """Why not to believe what rests on it, in a sentence; "" when there is no reason."""
        if not self.requests:
            return "No request of the window ended well: there is nothing to check a replay against."
        for name, match in self.matches.items():
            if abs(match.mean - 1.0) > MOST_BIAS or match.error > MOST_ERROR:
                return (
                    f"A replay of what happened does not give what was measured: the mean {name} comes to {match.mean:.2f} "
                    f"of it, and half of the requests are off by more than {match.error:.0%}."
                )
        return ""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"requests": self.requests, **{name: asdict(match) for name, match in self.matches.items()}}
