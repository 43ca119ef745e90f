"""The seam between scheduling and arithmetic: an executor computes batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from costspan_engine.scheduler import Batch
from costspan_hooks.observer import ModelShape


@dataclass(frozen=True, slots=True)
class Result:
    """A computed batch.

    Attributes:
        tokens: The new token of each of ``batch.making``, in its order.
        duration_ns: How long it took, as the executor measured it.
    """

    tokens: list[int]
    duration_ns: int


class Executor(Protocol):
    """Computes batches."""

    @property
    def shape(self) -> ModelShape:
        """What the model's cost depends on."""

    def execute(self, batch: Batch) -> Result:
        """Compute one step."""
