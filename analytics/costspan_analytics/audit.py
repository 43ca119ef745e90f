"""``costspan audit``: both laws, and whether what was sent is what is stored."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import polars as pl

from costspan.semconv import ABORTED, Phase
from costspan_analytics.arrivals import LEDGER, SPANS, Sender, senders
from costspan_analytics.book import UNPRICED, Book
from costspan_analytics.store import Store
from costspan_analytics.tail import unaccounted_share
from costspan_analytics.timeline import PHASES, Timeline

TIME_LIMIT = 0.01
"""The share of wall time that may stay unaccounted at the 99th percentile."""
MONEY_LIMIT = Decimal("0.001")
"""The share of the bill that may stay unexplained."""
MICRODOLLAR = Decimal("0.000001")


@dataclass(frozen=True)
class Audit:
    """What the two laws say of a window, and of the way it came here."""

    time: dict[str, Any]
    money: dict[str, Any]
    spans: dict[str, Any]
    rows: list[dict[str, Any]]
    cancellation: dict[str, Any]
    senders: list[Sender]

    @classmethod
    def load(cls, store: Store, timeline: Timeline, book: Book) -> Audit:
        """Check everything in the store's window."""
        arrivals, before = store.frame("arrivals"), store.frame("deliveries")
        spans, rows = store.frame("stored_spans"), store.frame("stored_rows")
        stored = [(SPANS, client, count) for client, count, _ in spans.iter_rows()]
        stored += rows.select("stream", "client", "stored").iter_rows()
        claims = _claims(before, store.frame("deliveries"))
        return cls(
            _time(timeline),
            _money(book, int(store.frame("engine_time", changes=[])["impossible"].sum())),
            _spans(claims, spans),
            ledger_rows(claims, rows),
            _cancellation(timeline),
            senders(arrivals, store.frame("short"), stored),
        )

    @property
    def holds(self) -> bool:
        """Whether everything holds."""
        laws = all(part["holds"] for part in (self.time, self.money, self.spans, self.cancellation, *self.rows))
        return laws and all(sender.holds for sender in self.senders)

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "holds": self.holds,
            "time": self.time,
            "money": self.money,
            "spans": self.spans,
            "rows": self.rows,
            "cancellation": self.cancellation,
            "senders": [sender.as_dict() for sender in self.senders],
        }


def _time(timeline: Timeline) -> dict[str, Any]:
    requests, elsewhere = timeline.requests, timeline.elsewhere
    own = requests.join(elsewhere, on=["trace_id", "span_id"], how="anti")
    shares = unaccounted_share(own)
    negative = sum(int((requests[phase] < 0).sum()) for phase in PHASES if phase != Phase.UNACCOUNTED)
    p99 = float(shares.quantile(0.99, "higher") or 0.0) if own.height else None
    window = timeline.window
    ended = timeline.attempts.filter(pl.col("removed_ns").is_between(window.since, window.until, closed="left"))
    aborted = requests.filter(pl.col("outcome").is_in([outcome.value for outcome in ABORTED]))
    return {
        "requests": requests.height,
        "aborted": aborted.height,
        "elsewhere": elsewhere.height,
        "without_engine": own.join(timeline.joined, left_on="span_id", right_on="call_id", how="anti").height,
        "without_client": ended.join(timeline.joined, on=["engine", "request_id"], how="anti").height,
        "unaccounted_share_p50": float(shares.median() or 0.0) if own.height else None,  # type: ignore[arg-type]
        "unaccounted_share_p99": p99,
        "unaccounted_share_max": float(shares.max() or 0.0) if own.height else None,  # type: ignore[arg-type]
        "negative_phases": negative,
        "holds": (p99 <= TIME_LIMIT if p99 is not None else elsewhere.height > 0) and negative == 0,
    }


def _money(book: Book, impossible: int) -> dict[str, Any]:
    unexplained = book.bill - book.posted
    # Line by line: one bill posted twice must not hide another that was not posted.
    share = sum((abs(line.unexplained) for line in book.lines), Decimal(0)) / book.bill if book.bill else None
    return {
        "bill_usd": dollars(book.bill),
        "posted_usd": dollars(book.posted),
        "unexplained_usd": dollars(unexplained),
        "unexplained_share": float(share) if share is not None else None,
        "lines": [
            {
                "sku": line.sku,
                "source": line.source,
                "bill_usd": dollars(line.bill),
                "posted_usd": dollars(line.posted),
                "unexplained_usd": dollars(line.unexplained),
            }
            for line in book.lines
        ],
        UNPRICED: book.unpriced,
        "impossible_steps": impossible,
        "holds": share is not None and share <= MONEY_LIMIT and not book.unpriced and not impossible,
    }


def dollars(amount: Decimal) -> float:
    """US dollars to a millionth, as JSON has no Decimal."""
    return float(amount.quantize(MICRODOLLAR))


def _claims(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """What each sender said it had sent, read before and after the rows were counted (``sent`` and ``later``)."""
    later = after.rename({"sent": "later"})
    return before.join(later, on=["client", "stream"], how="right").with_columns(pl.col("sent").fill_null(0))


def _settled() -> pl.Expr:
    """What was sent, leaving out what arrived while the rows were counted: neither lost nor twice."""
    return pl.max_horizontal("sent", pl.min_horizontal("stored", "later"))


def _spans(claims: pl.DataFrame, stored: pl.DataFrame) -> dict[str, Any]:
    """What numbered senders say they sent, beside what is in ``spans`` of theirs."""
    senders = claims.filter(pl.col("stream") == SPANS).join(stored, on="client", how="left").fill_null(0)
    senders = senders.with_columns(sent=_settled())
    sent, kept, distinct = (int(senders[name].sum()) for name in ("sent", "stored", "distinct"))
    return {
        "sent": sent,
        "stored": kept,
        "duplicates": kept - distinct,
        "senders": senders.height,
        "gaps": senders.filter(pl.col("sent") != pl.col("stored")).select("client", "sent", "stored").to_dicts(),
        "holds": sent == kept == distinct,
    }


def ledger_rows(claims: pl.DataFrame, stored: pl.DataFrame) -> list[dict[str, Any]]:
    """The same for the tables that engines fill, sender by sender: one's missing rows are not made up for by another's."""
    ledger = claims.filter(pl.col("stream").is_in(LEDGER))
    both = ledger.join(stored, on=["stream", "client"], how="left").fill_null(0).with_columns(sent=_settled())
    holds = (pl.col("sent") == pl.col("stored")).all()
    return both.group_by("stream").agg(pl.col("sent", "stored").sum(), holds=holds).sort("stream").to_dicts()


def _cancellation(timeline: Timeline) -> dict[str, Any]:
    """A request whose disconnect was seen during step k may finish step k, and be in no later one."""
    seen = timeline.attempts.filter(pl.col("disconnect_ns") > 0)
    late = seen.filter(pl.col("last_step") > pl.col("disconnect_step"))
    return {"disconnects": seen.height, "left_late": late["request_id"].to_list(), "holds": late.is_empty()}
