"""How much longer an engine's steps took than its usual ones would have: a throttled clock, a stalled host.

The ledger's model is refitted as it goes, so that an engine that stays slow is soon predicted to be: ``deviation`` shows the
change, not the state. Here every step is held against one vector a regime, the median of those that the engine ever had.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from costspan_analytics.store import Store

_WORK = {
    "prefill_tokens": "prefill_token_ns",
    "prefill_pairs": "prefill_pair_ns",
    "decode_seqs": "decode_seq_ns",
    "decode_tokens": "decode_token_ns",
}


@dataclass(frozen=True)
class Paces:
    """An engine's steps, in order.

    Attributes:
        index: Step numbers, shape (n,).
        late: Running sum of the nanoseconds that they took longer than usual, shape (n + 1,).
    """

    index: NDArray[np.int64]
    late: NDArray[np.float64]

    @classmethod
    def load(cls, store: Store) -> dict[str, Paces]:
        """Those of every engine in the store's window."""
        return {engine: cls.of(steps) for (engine,), steps in store.frame("paces").partition_by("engine", as_dict=True).items()}

    @classmethod
    def of(cls, steps: pl.DataFrame) -> Paces:
        """Those of rows of ``queries/paces.sql``, of one engine."""
        units = [pl.col(unit).median().over("regime") for unit in _WORK.values()]
        expected = pl.col("fixed_ns").median().over("regime") + sum(
            (pl.col(work).cast(pl.Float64) * unit for work, unit in zip(_WORK, units, strict=True)), pl.lit(0.0)
        )
        paced = steps.with_columns(pace=pl.col("duration_ns") / expected).with_columns(
            usual=pl.col("pace").median().over("regime")
        )
        took = pl.col("duration_ns")
        late = paced.select(took * (1 - pl.col("usual") / pl.col("pace")))["duration_ns"].to_numpy()
        return cls(steps["step"].to_numpy(), np.concatenate([[0.0], np.cumsum(late)]))

    def between(self, first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.float64]:
        """Nanoseconds that steps ``first`` to ``last`` took longer than usual, together; 0 where ``first`` is -1."""
        upto = self.late[np.searchsorted(self.index, last, side="right")]
        return np.where(first < 0, 0.0, upto - self.late[np.searchsorted(self.index, first)])
