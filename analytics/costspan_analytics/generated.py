"""What engines made for one call, by the moment and by the token: from their own steps, at the price that it is posted at."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl

from costspan_analytics.book import NS_PER_HOUR, Book
from costspan_analytics.parts import Halves
from costspan_analytics.steps import Steps
from costspan_analytics.store import FOREVER, Store
from costspan_analytics.timeline import Timeline


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One engine request.

    Attributes:
        row: Its row of ``Timeline.joined``.
        segments: Its phases in time order.
        steps: The engine's steps that it was in.
        rate: US dollars a nanosecond.
    """

    row: dict[str, Any]
    segments: list[dict[str, Any]]
    steps: Steps
    rate: Decimal

    def cut(self, at_ns: int) -> Halves:
        """Cut it at a moment of the call's clock."""
        moment_ns = min(at_ns, FOREVER - abs(self.row["offset_ns"])) + self.row["offset_ns"]
        return Halves.at(moment_ns, self.row, self.segments, self.steps)

    def spent(self, share: float) -> Decimal:
        """Dollars until a share of its tokens was made."""
        left = self.row["output_tokens"] - round(share * self.row["output_tokens"])
        made = self.cut(FOREVER).before
        by_token = np.concatenate([np.zeros(0), *(cost for _, cost in made)])
        later = float(by_token[max(0, by_token.size - left) :].sum()) if left else 0.0
        return self.rate * (int(self.row["cost_ns"]) - round(later))

    def last_step_ns(self) -> int:
        """When the last step that it was in ended, on the engine's clock; 0 if it was in none."""
        ends = self.steps.end[self.steps.rows(self.row["last_step"], self.row["last_step"])]
        return int(ends[-1]) if ends.size else 0


@dataclass(frozen=True)
class Generated:
    """The engine requests that answered a call: several for several choices, none where no engine in the ledger did."""

    requests: list[EngineRequest]

    @classmethod
    def load(cls, store: Store, timeline: Timeline, book: Book, call: dict[str, Any]) -> Generated:
        """Those of a call."""
        answered = timeline.joined.filter((pl.col("call_id") == call["span_id"]) & pl.col("answered"))
        prices = {posting.source_id: posting.price for posting in book.postings}
        requests = []
        for row in answered.iter_rows(named=True):
            own = timeline.segments.filter((pl.col("engine") == row["engine"]) & (pl.col("request_id") == row["request_id"]))
            ran = own.filter(pl.col("step_first") >= 0)
            first, last = (ran["step_first"].min(), ran["step_last"].max()) if ran.height else (0, -1)
            steps = Steps.load(store, row["engine"], first, last)  # type: ignore[arg-type]  # numbers, as the column's are
            price = prices.get(row["request_id"])
            rate = price.rate / NS_PER_HOUR if price else Decimal(0)
            requests.append(EngineRequest(row, own.to_dicts(), steps, rate))
        return cls(requests)

    @property
    def tokens(self) -> int:
        """Output tokens, all of them."""
        return sum(int(request.row["output_tokens"]) for request in self.requests)

    @property
    def final(self) -> EngineRequest | None:
        """The request that the call ended with."""
        return next((request for request in self.requests if request.row["final"]), None)

    @property
    def end_ns(self) -> int:
        """When the last of them left its batch, on the call's clock."""
        return max((request.row["removed_ns"] - request.row["offset_ns"] for request in self.requests), default=FOREVER)

    def between(self, since_ns: int, until_ns: int) -> tuple[int, Decimal] | tuple[None, None]:
        """Output tokens and dollars between two moments of the call's clock; nobody knows where no engine tells."""
        if not self.requests:
            return None, None
        tokens, usd = 0, Decimal(0)
        for request in self.requests:
            since, until = request.cut(since_ns), request.cut(until_ns)
            tokens += since.after_tokens - until.after_tokens
            usd += request.rate * (since.after_ns - until.after_ns)
        return tokens, usd

    def spent(self, tokens: int) -> Decimal | None:
        """What had been spent when so many tokens were made, of choices in proportion; nobody knows where no engine tells."""
        if not self.requests:
            return None
        share = min(1.0, tokens / self.tokens) if self.tokens else 0.0
        return sum((request.spent(share) for request in self.requests), Decimal(0))
