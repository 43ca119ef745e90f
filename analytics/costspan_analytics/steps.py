"""An engine's steps as arrays, so that what happened between two of them is one subtraction per tenant."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from costspan.semconv import Bound
from costspan_analytics.store import Store

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_HELD = {
    Bound.TOKEN_BUDGET: "tokens",
    Bound.SEQ_SLOTS: "seqs",
    Bound.KV_BLOCKS: "blocks",
    Bound.NONE: "cost_ns",
    Bound.TENANT_CAP: "cost_ns",
}
"""What a waiting request was kept out by, by what bound the step: its holders are charged in proportion (docs/ledger.md).

A tenant's own cap keeps that tenant out, and nobody else holds it: see :attr:`Steps.capped`.
"""


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

    @cached_property
    def tenants(self) -> list[str]:
        """Every tenant that had work in one of the steps, sorted."""
        return sorted(self.frame["names"].explode().drop_nulls().unique().to_list())

    @cached_property
    def _long(self) -> pl.DataFrame:
        """One row a step and tenant, with the tenant's share of what a waiting request waited for."""
        columns = ["names", "seqs", "tokens", "blocks", "compute_ns", "prefill_ns", "cost_ns"]
        long = self.frame.select("bound", "duration_ns", *columns).with_row_index("row").explode(columns).drop_nulls("names")
        held = pl.coalesce(
            *(pl.when(pl.col("bound") == bound.value).then(pl.col(column).cast(pl.Float64)) for bound, column in _HELD.items())
        )
        share = pl.col("held") / pl.col("held").sum().over("row")
        return long.with_columns(held=held).with_columns(share=pl.when(share.is_finite()).then(share).otherwise(0.0))

    def _by_tenant(self, column: pl.Expr) -> Floats:
        """A value per step and tenant, shape (n, tenants)."""
        grid = np.zeros((self.frame.height, len(self.tenants)))
        long = self._long.select("row", "names", value=column)
        place = {name: at for at, name in enumerate(self.tenants)}
        grid[long["row"].to_numpy(), [place[name] for name in long["names"]]] = long["value"].to_numpy()
        return grid

    @cached_property
    def prefill(self) -> Floats:
        """Running sum over steps of each tenant's predicted prefill nanoseconds, shape (n + 1, tenants)."""
        return _running(self._by_tenant(pl.col("prefill_ns")))

    @cached_property
    def decode(self) -> Floats:
        """Running sum over steps of each tenant's predicted decode nanoseconds, shape (n + 1, tenants)."""
        return _running(self._by_tenant(pl.col("compute_ns") - pl.col("prefill_ns")))

    @cached_property
    def held(self) -> Floats:
        """Each tenant's share of what kept the queue waiting, shape (n, tenants); rows sum to one or zero."""
        return self._by_tenant(pl.col("share"))

    @cached_property
    def capped(self) -> NDArray[np.bool_]:
        """In which steps the waiting were kept out by their own tenants' caps alone, shape (n,)."""
        return (self.frame["bound"] == Bound.TENANT_CAP.value).to_numpy()

    @cached_property
    def waited(self) -> Floats:
        """Running sum of step time by who held what was waited for, nanoseconds, shape (n + 1, tenants); no capped steps."""
        return _running(self.held * np.where(self.capped, 0, self.end - self.start)[:, None])

    @cached_property
    def waited_for_cap(self) -> Floats:
        """Running sum of the time of capped steps, nanoseconds, shape (n + 1, 1)."""
        return _running(np.where(self.capped, self.end - self.start, 0)[:, None])


def _running(values: Floats) -> Floats:
    return np.vstack([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
