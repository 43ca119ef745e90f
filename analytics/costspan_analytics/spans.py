"""What tenants did between some steps of an engine: sums that the store makes, so that a long stretch costs no more to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from costspan.semconv import Bound, Mechanism
from costspan_analytics.store import Store

Floats = NDArray[np.float64]

_QUEUE = {
    Bound.TOKEN_BUDGET.value: Mechanism.QUEUE_TOKEN_BUDGET,
    Bound.SEQ_SLOTS.value: Mechanism.QUEUE_SEQ_SLOTS,
    Bound.KV_BLOCKS.value: Mechanism.QUEUE_KV_BLOCKS,
    Bound.NONE.value: Mechanism.QUEUE_STEP,
    Bound.TENANT_CAP.value: Mechanism.QUEUE_TENANT_CAP,
}
"""How a wait is called, by what bound the step that was waited through."""
QUEUED = tuple(_QUEUE.values())


@dataclass(frozen=True)
class Spans:
    """Running sums over an engine's steps, read at marks.

    Attributes:
        marks: Steps at which they are read, ascending; m of them, the first before any that is summed.
        tenants: Whose sums they are, n of them.
        prefill: Predicted nanoseconds of prompts up to each mark, shape (m, n).
        decode: The same of decoding, drafts included.
        waited: By mechanism of the queue: step time that each tenant held up, shape (m, n).
        times: When the steps that are marks began, and how long they took, in nanoseconds.
    """

    marks: NDArray[np.int64]
    tenants: list[str]
    prefill: Floats
    decode: Floats
    waited: dict[Mechanism, Floats]
    times: dict[int, tuple[int, int]]

    @classmethod
    def load(cls, store: Store, engine: str, marks: Sequence[int], in_flight: Sequence[int]) -> Spans:
        """Sums of the steps after the first of ``marks`` up to the last, and the times of the steps ``in_flight``."""
        at = np.unique(np.array(marks, dtype=np.int64))
        bounds = {bound.value: bound.value for bound in (Bound.TOKEN_BUDGET, Bound.SEQ_SLOTS, Bound.KV_BLOCKS)}
        span = {"engine": engine, "after": int(at[0]), "last": int(at[-1])}
        rows = store.frame("held", marks=at.tolist(), **span, **bounds)
        flown = sorted(set(in_flight))
        asked = {"engine": engine, "steps": flown, "first": flown[0], "last": flown[-1]} if flown else {}
        times = store.frame("step_times", **asked).rows() if flown else []
        return cls.of(at, rows, {step: (start, duration) for step, start, duration in times})

    @classmethod
    def of(cls, marks: NDArray[np.int64], rows: pl.DataFrame, times: dict[int, tuple[int, int]]) -> Spans:
        """Add up rows of ``queries/held.sql``."""
        tenants = rows["tenant"].unique().sort().to_list()
        place = {tenant: at for at, tenant in enumerate(tenants)}

        def running(own: pl.DataFrame, column: str) -> Floats:
            grid = np.zeros((len(marks), len(tenants)))
            columns = np.array([place[tenant] for tenant in own["tenant"]], dtype=np.int64)
            lines = np.searchsorted(marks, own["mark"].to_numpy()).astype(np.int64)
            np.add.at(grid, (lines, columns), own[column].to_numpy())
            return grid.cumsum(axis=0)

        waited = {how: running(rows.filter(pl.col("bound") == bound), "waited") for bound, how in _QUEUE.items()}
        return cls(marks, tenants, running(rows, "prefill"), running(rows, "decode"), waited, times)

    def between(self, sums: Floats, after: NDArray[np.int64], last: NDArray[np.int64]) -> Floats:
        """What was added in the steps after one mark up to another, for several such pairs, shape (pairs, n)."""
        low, high = np.searchsorted(self.marks, after), np.searchsorted(self.marks, last)
        added: Floats = sums[high] - sums[low]
        return added
