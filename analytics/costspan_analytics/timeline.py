"""The first law: a request's phases add up to what its client measured.

Every phase is an interval between two readings taken where it happened; the engine's readings are moved to the client's clock,
and what the client did not wait for (after it left) is cut off. What no interval covers is ``unaccounted``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import polars as pl

from costspan.semconv import OWN_PROVIDER, Outcome, Phase
from costspan_analytics.store import Store, Window

PHASES = [phase.value for phase in Phase]
CHOICE = r"-\d{1,4}$"
"""What an engine adds to an answer's id for each of its choices but the first."""


@dataclass(frozen=True)
class Timeline:
    """The calls of a window, laid over the engine requests that answered them.

    Attributes:
        calls: Rows of ``queries/calls.sql``: those of the window, and some on either side.
        attempts: Rows of ``queries/attempts.sql``.
        segments: Rows of ``queries/segments.sql``.
        window: A call is in it when it began in it, an engine request when it ended in it.
    """

    calls: pl.DataFrame
    attempts: pl.DataFrame
    segments: pl.DataFrame
    window: Window = field(default_factory=Window)

    @classmethod
    def load(cls, store: Store) -> Timeline:
        """Everything in the store's window."""
        return cls(store.frame("calls"), store.frame("attempts"), store.frame("segments"), store.window)

    @cached_property
    def joined(self) -> pl.DataFrame:
        """Engine requests that have a client's view.

        With ``offset_ns``, the engine's clock less the client's, and two marks. An HTTP client that tries again by itself makes
        several requests of one call, and its stamps are those of the last, the one that was ``answered``. An HTTP request for
        several choices (``n``) makes an engine request for each, all received in the same moment under the same answer's id,
        and all answered; the call ends with the choice that ends last, the ``final`` one. What the client read
        (``read_tokens``) is told apart by what was written of each.
        """
        calls = self.calls.select(
            pl.col("span_id").alias("call_id"),
            "client",
            "call_start_ns",
            "call_sent_ns",
            "call_first_ns",
            "call_last_ns",
            "call_end_ns",
            "call_abort_ns",
            pl.col("outcome").alias("call_outcome"),
            pl.col("delivered_tokens").alias("read_tokens"),
        )
        joined = self.attempts.join(calls, left_on="parent_span_id", right_on="call_id", how="inner", coalesce=False)
        joined = _mark(joined)
        last = joined.filter("final").with_columns(pl.col("answer_first_ns").alias("first_token_ns"))
        aligned = joined.join(clock_offsets(last), on=["client", "engine"], how="left")
        return aligned.with_columns(pl.col("offset_ns").fill_null(0))

    @cached_property
    def waited_for(self) -> pl.DataFrame:
        """Those of :attr:`joined` that their calls waited for, one after another: no choice that others outlasted."""
        return self.joined.filter(pl.col("final") | ~pl.col("answered"))

    @cached_property
    def intervals(self) -> pl.DataFrame:
        """Every phase of every call: ``call_id, phase, start_ns, end_ns`` on the client's clock, cut where it left."""
        ends = self.calls.select(call_id="span_id", cut_ns=left_at())
        everything = pl.concat([self._client_intervals(), self._network_intervals(), self._engine_intervals()])
        return (
            everything.join(ends, on="call_id")
            .with_columns(pl.min_horizontal("start_ns", "cut_ns"), pl.min_horizontal("end_ns", "cut_ns"))
            .filter(pl.col("start_ns") != pl.col("end_ns"))
            .drop("cut_ns")
            .sort("call_id", "start_ns")
        )

    def _client_intervals(self) -> pl.DataFrame:
        sent = pl.when(pl.col("call_sent_ns") > 0).then("call_sent_ns").otherwise("call_start_ns")
        answered = self.calls.filter((pl.col("call_last_ns") > 0) & (pl.col("call_abort_ns") == 0))
        before = self.calls.select(call_id="span_id", start_ns="call_start_ns", end_ns=sent)
        after = answered.select(call_id="span_id", start_ns="call_last_ns", end_ns="call_end_ns")
        # A client that closed its stream, and only later says that it left: the engine saw the first and was rid of it.
        gone = self.joined.filter(pl.col("final") & (pl.col("disconnect_ns") > 0) & (pl.col("call_abort_ns") > 0))
        removed = pl.col("removed_ns") - pl.col("offset_ns")
        leaving = gone.select("call_id", start_ns=pl.min_horizontal(removed, "call_abort_ns"), end_ns="call_abort_ns")
        told = self._refused.select(call_id="span_id", start_ns="call_headers_ns", end_ns="call_end_ns")
        return _named(pl.concat([before, after, leaving, told]), Phase.CLIENT_OVERHEAD)

    def _network_intervals(self) -> pl.DataFrame:
        final = self.joined.filter("final")
        out = final.select(
            call_id="call_id",
            start_ns=pl.when(pl.col("call_sent_ns") > 0).then("call_sent_ns").otherwise("call_start_ns"),
            end_ns=pl.col("received_ns") - pl.col("offset_ns"),
        )
        # An answer that was whole before its client left is on its way until then.
        read = pl.when(pl.col("call_abort_ns") > 0).then("call_abort_ns").otherwise("call_last_ns")
        whole = final.filter((pl.col("disconnect_ns") == 0) & (read > 0))
        back = whole.select(call_id="call_id", start_ns=pl.col("sent_ns") - pl.col("offset_ns"), end_ns=read)
        there_and_back = self._refused.select(call_id="span_id", start_ns="call_sent_ns", end_ns="call_headers_ns")
        return _named(pl.concat([out, back, there_and_back]), Phase.NETWORK)

    @property
    def _refused(self) -> pl.DataFrame:
        """Calls that were answered with an error before an engine had them: to their clients, all else was the way there."""
        turned_away = (pl.col("outcome") == Outcome.ERROR) & (pl.col("call_sent_ns") > 0) & (pl.col("call_headers_ns") > 0)
        answered = self.joined.select("call_id")
        unread = pl.col("call_last_ns") == 0
        return self.calls.filter(turned_away & unread).join(answered, left_on="span_id", right_on="call_id", how="anti")

    def _engine_intervals(self) -> pl.DataFrame:
        final = self.joined.filter("final").select("engine", "request_id", "call_id", "offset_ns")
        moved = self.segments.join(final, on=["engine", "request_id"])
        start = pl.col("start_ns") - pl.col("offset_ns")
        return moved.select("call_id", "phase", start_ns=start, end_ns=start + pl.col("duration_ns"))

    @cached_property
    def requests(self) -> pl.DataFrame:
        """One row a call of the window: who, outcome, ``wall_ns``, and nanoseconds in each phase (named after the phases)."""
        calls = self.calls.filter(pl.col("call_start_ns").is_between(self.window.since, self.window.until, closed="left"))
        spent = (
            self.intervals.with_columns(ns=pl.col("end_ns") - pl.col("start_ns"))
            .pivot("phase", index="call_id", values="ns", aggregate_function="sum")
            .rename({"call_id": "span_id"})
        )
        named = [name for name in PHASES if name != Phase.UNACCOUNTED]
        missing = [pl.lit(0, pl.Int64).alias(name) for name in named if name not in spent.columns]
        requests = calls.with_columns(wall_ns=left_at() - pl.col("call_start_ns")).join(
            spent.with_columns(missing), on="span_id", how="left"
        )
        return requests.with_columns(pl.col(named).fill_null(0)).with_columns(
            (pl.col("wall_ns") - pl.sum_horizontal(named)).alias(Phase.UNACCOUNTED.value)
        )

    @cached_property
    def elsewhere(self) -> pl.DataFrame:
        """Those of :attr:`requests` that somebody else's engine answered, which shows none of its phases.

        A provider is somebody else where no engine in the ledger answered any call to it.
        """
        answered = self.calls.join(self.joined, left_on="span_id", right_on="call_id", how="semi")
        own = {"", OWN_PROVIDER, *answered["provider"]}
        return self.requests.filter(~pl.col("provider").is_in(own))


def left_at() -> pl.Expr:
    """When the client stopped waiting: at its abort, or when it had the answer."""
    return pl.when(pl.col("call_abort_ns") > 0).then("call_abort_ns").otherwise("call_end_ns")


def _mark(joined: pl.DataFrame) -> pl.DataFrame:
    """Add ``answered``, ``final`` and ``answer_first_ns`` (the first token of any choice), and split ``read_tokens``."""
    answer = ["call_id", "engine", "received_ns", "answer_id"]
    ordered = joined.with_columns(answer_id=pl.col("request_id").str.replace(CHOICE, "")).sort(
        "received_ns", "answer_id", "removed_ns", "sent_ns", "request_id"
    )
    begun = pl.when(pl.col("first_token_ns") > 0).then("first_token_ns")
    # Rounded where the running sum is, so that the choices' tokens add up to the call's.
    written = pl.col("delivered_tokens").cast(pl.Int64)
    share = pl.col("read_tokens") * written.cum_sum().over(answer) / pl.max_horizontal(written.sum().over(answer), 1)
    marked = ordered.with_columns(
        answered=pl.struct("engine", "received_ns", "answer_id").last().over("call_id")
        == pl.struct("engine", "received_ns", "answer_id"),
        final=pl.int_range(pl.len()).over("call_id") == pl.len().over("call_id") - 1,
        answer_first_ns=begun.min().over(answer).fill_null(0),
        choices=pl.len().over(answer),
        upto=share.round().cast(pl.Int64),
    )
    own = pl.col("upto") - pl.col("upto").shift(1, fill_value=0).over(answer)
    read = pl.when(pl.col("choices") > 1).then(own).otherwise("read_tokens")
    return marked.with_columns(read_tokens=read).drop("upto", "choices", "answer_id")


def clock_offsets(joined: pl.DataFrame) -> pl.DataFrame:
    """How far each engine's clock is ahead of each client's: the smallest correction under which no effect precedes its cause.

    A request is received after it was sent, an answer read after it was written, and its first token after it was made; so
    an offset lies between the largest ``written - read`` and the smallest ``received - sent`` of the pair (the bounds of
    Cristian's algorithm, 1989).

    Returns:
        Columns ``client``, ``engine``, ``offset_ns``.
    """
    received = pl.col("received_ns") - pl.max_horizontal("call_sent_ns", "call_start_ns")
    answered = (pl.col("call_last_ns") > 0) & (pl.col("call_abort_ns") == 0)
    written = pl.when(answered).then(pl.col("sent_ns") - pl.col("call_last_ns"))
    began = (pl.col("first_token_ns") > 0) & (pl.col("call_first_ns") > 0)
    made = pl.when(began).then(pl.col("first_token_ns") - pl.col("call_first_ns"))
    bounds = joined.group_by("client", "engine").agg(high=received.min(), low=pl.max_horizontal(written.max(), made.max()))
    low = pl.col("low").fill_null(pl.min_horizontal(pl.lit(0), pl.col("high")))
    nearest = pl.max_horizontal(pl.min_horizontal(pl.lit(0), "high"), low)
    torn = low > pl.col("high")
    return bounds.select("client", "engine", offset_ns=pl.when(torn).then((low + pl.col("high")) // 2).otherwise(nearest))


def _named(intervals: pl.DataFrame, phase: Phase) -> pl.DataFrame:
    return intervals.select("call_id", pl.lit(phase.value).alias("phase"), "start_ns", "end_ns")
