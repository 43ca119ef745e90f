"""An engine's steps as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from costspan_analytics.store import Store

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Steps:
    """The steps of one engine that ran, in order.

    Attributes:
        frame: Rows of ``queries/steps.sql``; n rows.
    """

    frame: pl.DataFrame

    @classmethod
    def load(cls, store: Store, engine: str, first: int, last: int) -> Steps:
        """Steps ``first`` to ``last`` of ``engine``."""
        return cls(store.frame("steps", engine=engine, first=first, last=last))

    def _ints(self, name: str) -> Ints:
        return self.frame[name].cast(pl.Int64).to_numpy()

    def _floats(self, name: str) -> Floats:
        return self.frame[name].cast(pl.Float64).to_numpy()

    @cached_property
    def index(self) -> Ints:
        """Step numbers, shape (n,)."""
        return self._ints("step")

    @cached_property
    def start(self) -> Ints:
        """When each step began, nanoseconds, shape (n,)."""
        return self._ints("start_ns")

    @cached_property
    def end(self) -> Ints:
        """When each step ended, nanoseconds, shape (n,)."""
        return self.start + self._ints("duration_ns")

    def rows(self, first: int, last: int) -> slice:
        """Which rows hold steps ``first`` to ``last``; empty where ``first`` is -1."""
        if first < 0:
            return slice(0, 0)
        return slice(int(np.searchsorted(self.index, first)), int(np.searchsorted(self.index, last, side="right")))

    def decode_cost(self, first: int, last: int, context: int, tokens: int) -> Floats:
        """What a sequence paid in each step of a decode segment: ``(T/T̂)·(a/n + e + f·x)`` nanoseconds, shape (steps,).

        Its context grows from ``context`` by ``tokens``, evenly: that is exact for one token a step. Where drafts were right
        some steps made more, and what the drafts themselves cost is not in it.
        """
        rows = self.rows(first, last)
        at = context + (self.index[rows] - first) * (tokens / (last - first + 1))
        stretch = (self.end[rows] - self.start[rows]) / self._floats("predicted_ns")[rows]
        fixed = self._floats("fixed_ns")[rows] / self._floats("participants")[rows]
        return stretch * (fixed + self._floats("decode_seq_ns")[rows] + self._floats("decode_token_ns")[rows] * at)
