"""What became of simulated requests, added up: quantiles are exact, at some bytes a request."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from costspan.semconv import Outcome
from costspan_engine.simulate.traffic import Arrival

QUANTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_NS_PER_MS = 1e6


@dataclass(frozen=True, slots=True)
class Served:
    """A request that has left the engine.

    Attributes:
        arrival: What was asked.
        outcome: ``ok``, or ``cancelled`` when its client left before the end.
        admitted_ns: When it entered the batch for the first time; -1 if it never did.
        first_token_ns: When its first token was there; -1 if there was none.
        end_ns: When it left.
        output_tokens: Tokens it got.
        cached_tokens: Prompt tokens found in the prefix cache.
    """

    arrival: Arrival
    outcome: Outcome
    admitted_ns: int
    first_token_ns: int
    end_ns: int
    output_tokens: int
    cached_tokens: int


@dataclass(slots=True)
class Latencies:
    """Nanoseconds of each request that ended well, by what they are of."""

    queue: array[int] = field(default_factory=lambda: array("q"))
    ttft: array[int] = field(default_factory=lambda: array("q"))
    e2e: array[int] = field(default_factory=lambda: array("q"))

    def add(self, served: Served) -> None:
        """Take one in."""
        at_ns = served.arrival.at_ns
        self.queue.append(served.admitted_ns - at_ns)
        self.ttft.append(served.first_token_ns - at_ns)
        self.e2e.append(served.end_ns - at_ns)


@dataclass(slots=True)
class Tally:
    """Requests of one tenant.

    Attributes:
        ended: Requests that left the engine, however they did.
        cancelled: Of these, those whose client left.
        prompt_tokens: Of their prompts.
        cached_tokens: Of these, found in the prefix cache.
        output_tokens: Made for them.
        latencies: Of those that ended well.
    """

    ended: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    latencies: Latencies = field(default_factory=Latencies)

    def add(self, served: Served) -> None:
        """Take one in."""
        self.ended += 1
        self.prompt_tokens += served.arrival.prompt_tokens
        self.cached_tokens += served.cached_tokens
        self.output_tokens += served.output_tokens
        if served.outcome is Outcome.OK:
            self.latencies.add(served)
        else:
            self.cancelled += 1


def quantiles(*samples: array[int]) -> dict[str, float]:
    """Exact quantiles in milliseconds over all samples: the smallest value that at least that share do not exceed."""
    values: NDArray[np.int64] = np.concatenate([np.frombuffer(sample, dtype=np.int64) for sample in samples])
    if not len(values):
        return {}
    found = np.quantile(values, list(QUANTILES.values()), method="inverted_cdf")
    return {name: float(value) / _NS_PER_MS for name, value in zip(QUANTILES, found, strict=True)}
