"""What the store holds of one engine over a stretch of time: all that a replay needs, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from costspan.semconv import Outcome, Phase
from costspan_analytics.errors import NotFoundError
from costspan_analytics.store import Store, Window
from costspan_hooks.observer import BUNDLED

LEAD_NS = 600 * 1_000_000_000
"""How long before its window a replay begins at the most, where the engine was never idle before it."""
MOST_MISSING = 0.02
"""Of the engine's time, or of its steps, how much may be missing."""


@dataclass(frozen=True)
class Recording:
    """One engine's rows.

    Attributes:
        engine: Its row of table ``engines``.
        attempts: Requests to be replayed, in the order in which they came; columns as in table ``attempts``, and ``left_in``,
            the phase in which each left the engine.
        steps: Steps that ran meanwhile, and perhaps some before: what they took is its pace. Columns as in table ``steps``.
        before: Requests that had left before, in the order in which they left: the prefix cache begins with what they had.
        first_ns: Steps from here on ran for ``attempts`` alone.
        window: Requests that came in it are measured; the others were in the engine with them.
    """

    engine: dict[str, Any]
    attempts: pl.DataFrame
    steps: pl.DataFrame
    before: pl.DataFrame
    first_ns: int
    window: Window

    @classmethod
    def of(cls, engines: pl.DataFrame, attempts: pl.DataFrame, steps: pl.DataFrame) -> Recording:
        """All that one engine did, from its first request on.

        Args:
            engines: Rows of table ``engines``; of several lives the last.
            attempts: Rows of table ``attempts``.
            steps: Rows of table ``steps``.

        Raises:
            NotFoundError: One of them is empty.
        """
        return cls(_last(engines), _in_order(attempts), _ran(steps), attempts.clear(), 0, Window())

    @classmethod
    def load(cls, store: Store, engine: str, window: Window | None = None) -> Recording:
        """Read a window of an engine, and what was in the engine and its cache when the window began.

        The replay begins where the engine was last idle before the window; where it was busy for longer than :data:`LEAD_NS`,
        so long before it, with the requests that it had then. It goes on until the last request of the window has left.

        Args:
            store: Where the rows are.
            engine: Its id, as in column ``engine``.
            window: Requests that came in it are measured; by default the store's window.

        Raises:
            NotFoundError: The store does not know the engine, or nothing was asked of it in the window.
            StoreError: The store refuses, or is gone.
        """
        window = window or store.window
        row = _last(store.frame("engines", engine=engine))
        edges = store.frame("replay_edges", engine=engine, first=window.since, last=window.until, lead=LEAD_NS)
        first, last = edges.row(0)
        attempts = _in_order(store.frame("replay_attempts", engine=engine, first=first, last=last))
        steps = _ran(store.frame("replay_steps", engine=engine, first=first, last=last))
        before = store.frame("replay_before", engine=engine, first=first, tokens=_reach(row))
        return cls(row, attempts, steps, before, first, window)

    @cached_property
    def measured(self) -> pl.DataFrame:
        """Requests of the window that ended well, as they were measured: ``request_id, tenant, ttft_ns, e2e_ns``."""
        came = pl.col("enqueued_ns").is_between(self.window.since, self.window.until, closed="left")
        return self.attempts.filter(came, pl.col("outcome") == Outcome.OK.value, pl.col("first_token_ns") > 0).select(
            "request_id",
            "tenant",
            ttft_ns=pl.col("first_token_ns") - pl.col("enqueued_ns"),
            e2e_ns=pl.col("removed_ns") - pl.col("enqueued_ns"),
        )

    @cached_property
    def tenants(self) -> Sequence[str]:
        """Whose requests are in it, those with the most engine time first."""
        spent = self.attempts.group_by("tenant").agg(pl.col("cost_ns").sum())
        return spent.sort("cost_ns", "tenant", descending=[True, False])["tenant"].to_list()

    @property
    def obstacle(self) -> str:
        """Why it cannot be replayed, in a sentence; "" when it can."""
        if self.engine["scheduler"] != BUNDLED:
            return "This engine's scheduling rules are its own, so that its traffic cannot be replayed."
        if self.attempts["drafted_tokens"].sum():
            return "This engine guessed tokens ahead, which a replay without texts cannot do again."
        if self._missing > MOST_MISSING:
            return f"Of the engine's time, {self._missing:.0%} went to requests, or into steps, that are not in the store."
        return ""

    @cached_property
    def _missing(self) -> float:
        """The share of steps that are not there, or of their time that no request here was charged with; the larger."""
        index = self.steps["step"]
        gone = 1.0 - len(index) / (int(index[-1]) - int(index[0]) + 1)
        since = self.steps.filter(pl.col("start_ns") >= self.first_ns)
        took = float(since.select((pl.col("duration_ns") - pl.col("padding_ns")).sum()).item())
        charged = float(self.attempts.select(pl.col("cost_ns").sum()).item())
        return max(gone, 1.0 - charged / took if took else 0.0)


def _last(engines: pl.DataFrame) -> dict[str, Any]:
    if engines.is_empty():
        raise NotFoundError("Table `engines` has no row of this engine: it was recorded before costspan could replay.")
    return engines.sort("ready_ns").row(-1, named=True)


def _in_order(attempts: pl.DataFrame) -> pl.DataFrame:
    if attempts.is_empty():
        raise NotFoundError("Nothing was asked of this engine in the window: widen --since.")
    in_engine = pl.col("phases.name").list.eval(pl.element().filter(pl.element() != Phase.STREAM.value))
    # Those of one moment came in the order of their numbers: r2 before r10.
    order = ("enqueued_ns", pl.col("request_id").str.len_chars(), "request_id")
    return attempts.with_columns(left_in=in_engine.list.last()).sort(*order)


def _ran(steps: pl.DataFrame) -> pl.DataFrame:
    ran = steps.filter(pl.col("participants") > 0, pl.col("duration_ns") > 0).sort("step")
    if ran.is_empty():
        raise NotFoundError("No step of this engine is in the store: nothing says how fast it is.")
    return ran


def _reach(engine: dict[str, Any]) -> int:
    """Tokens of earlier requests that may be in its cache: twice what it holds, as without a tenant it reaches further back."""
    return 2 * int(engine["kv_blocks"]) * int(engine["block_size"]) if engine["prefix_cache"] else 0
