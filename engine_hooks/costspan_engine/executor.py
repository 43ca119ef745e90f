"""The seam between scheduling and arithmetic: an executor computes batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from costspan_engine.scheduler import Batch
from costspan_hooks.devices import Device
from costspan_hooks.observer import ModelShape


@dataclass(frozen=True, slots=True)
class Logprobs:
    """How likely a token was.

    Attributes:
        logprob: Natural logarithm of its probability, before temperature and truncation.
        top: The likeliest tokens with theirs, best first, as many as were asked for.
    """

    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Result:
    """A computed batch.

    Attributes:
        tokens: The new tokens of each of ``batch.making``, in its order: one, and one more for each draft that was right.
        duration_ns: How long it took, as the executor measured it.
        logprobs: By request, for those that asked: one for each of its new tokens.
        experts: Tokens routed to each expert, added up over layers; empty for a dense model.
        expert_skew: The busiest expert's load over the mean, averaged over layers; 0 for a dense model.
        padding: Rows that were computed for nobody.
    """

    tokens: list[list[int]]
    duration_ns: int
    logprobs: Mapping[str, list[Logprobs]] = field(default_factory=dict)
    experts: Sequence[int] = ()
    expert_skew: float = 0.0
    padding: int = 0


class Executor(Protocol):
    """Computes batches."""

    @property
    def shape(self) -> ModelShape:
        """What the model's cost depends on."""

    @property
    def device(self) -> Device:
        """What it runs on can do at best."""

    def launch(self, batch: Batch) -> Callable[[], Result]:
        """Begin a step; what is returned waits for its end. An executor without a device of its own computes there."""
