"""Who delayed whom: direct blame between tenants, over all engine requests of a window or over one tenant's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from costspan_analytics.blame import blame, model_error
from costspan_analytics.errors import NotFoundError
from costspan_analytics.store import Store
from costspan_analytics.tail import MS


@dataclass(frozen=True)
class Matrix:
    """The interference matrix.

    Attributes:
        attempts: The delayed requests: rows of ``queries/attempts.sql``.
        blame: Their delays: rows of :func:`~costspan_analytics.blame.blame`.
        model_error: How far off the model is that shares of steps rest on.
    """

    attempts: pl.DataFrame
    blame: pl.DataFrame
    model_error: dict[str, float]

    @classmethod
    def load(cls, store: Store, tenant: str = "") -> Matrix:
        """Blame for all requests that came in the window, or for a tenant's.

        Raises:
            NotFoundError: The tenant asked for nothing in the window.
        """
        came = pl.col("enqueued_ns").is_between(store.window.since, store.window.until, closed="left")
        attempts = store.frame("attempts").filter(came)
        if tenant:
            known = attempts["tenant"].unique().sort().to_list()
            attempts = attempts.filter(pl.col("tenant") == tenant)
            if attempts.is_empty():
                raise NotFoundError(
                    f"No engine request of {tenant!r} came in this window; there are {', '.join(known) or 'none'}."
                )
        segments = store.frame("segments").join(attempts, on=["engine", "request_id"], how="semi")
        return cls(attempts, blame(store, segments), model_error(store))

    @property
    def requests(self) -> dict[str, int]:
        """How many requests each tenant had, most first."""
        counted = self.attempts.group_by("tenant").len().sort(["len", "tenant"], descending=[True, False])
        return dict(counted.iter_rows())

    @property
    def cells(self) -> dict[tuple[str, str], float]:
        """Milliseconds by (delayed tenant, culprit)."""
        summed = self.blame.group_by("tenant", "culprit").agg(ms=pl.col("ns").sum() / MS)
        return {(tenant, culprit): ms for tenant, culprit, ms in summed.iter_rows()}

    @property
    def delays(self) -> list[tuple[str, str, str, float]]:
        """(delayed tenant, culprit, mechanism, milliseconds), longest first."""
        summed = self.blame.group_by("tenant", "culprit", "mechanism").agg(ms=pl.col("ns").sum() / MS)
        return summed.sort(["ms", "tenant", "culprit"], descending=[True, False, False]).rows()

    @property
    def direct(self) -> pl.DataFrame:
        """The same by engine, as :func:`~costspan_analytics.causal.causal_answers` takes it: ``engine, culprit, ms``."""
        return self.blame.group_by("engine", "culprit").agg(ms=pl.col("ns").sum() / MS)

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints: milliseconds over all requests of the delayed tenant."""
        return {
            "requests": self.requests,
            "matrix": [
                {"tenant": tenant, "culprit": culprit, "ms": ms, "ms_a_request": ms / self.requests[tenant]}
                for (tenant, culprit), ms in sorted(self.cells.items(), key=lambda each: -each[1])
            ],
            "delays": [
                {"tenant": tenant, "culprit": culprit, "mechanism": how, "ms": ms} for tenant, culprit, how, ms in self.delays
            ],
            "model_error": self.model_error,
        }
