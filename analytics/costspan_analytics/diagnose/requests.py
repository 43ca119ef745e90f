"""What users waited for: operations with all their attempts, and how long each took."""

from __future__ import annotations

import polars as pl

from costspan.semconv import Outcome
from costspan_analytics.timeline import Timeline, left_at

TTFT, E2E, INTER_TOKEN = "ttft", "e2e", "inter_token"
METRICS = (TTFT, E2E, INTER_TOKEN)
_FEWEST_TOKENS = 5
"""Tokens of an answer below which the time between them says little."""


def load_requests(timeline: Timeline) -> pl.DataFrame:
    """One row an operation of the window, in the order in which they began.

    An operation's first token and end are those of its last attempt, or of the last whole one where others ran beside it; its
    beginning is the first one's. Where patience ended before a first token or the end, it took at least that long. A user who
    pressed stop has an end of their own, which says nothing of speed.

    Returns:
        Columns ``request, call_id, tenant, start_ns, attempts, retry_ns``, one for each of :data:`METRICS` in nanoseconds,
        null where there is none, ``gaps`` (between its tokens), and its last attempt's ``device_kind``, ``prompt_tokens`` and
        ``cached_tokens``.
    """
    named = pl.when(pl.col("operation") != "").then(pl.concat_str("client", "operation", separator="/")).otherwise("span_id")
    calls = timeline.requests.with_columns(request=named, left_ns=left_at()).drop("start_ns", strict=False)
    ordered = calls.sort(pl.col("outcome") == Outcome.OK, "attempt", "call_start_ns")
    final = timeline.joined.filter("final").select(
        "device_kind", "prompt_tokens", pl.col("cached_tokens").cast(pl.Int64), span_id="call_id"
    )
    ordered = ordered.drop("cached_tokens").join(final, on="span_id", how="left")
    found = ordered.group_by("request").agg(pl.all().last(), start_ns=pl.col("call_start_ns").min(), attempts=pl.len())
    begun = pl.when(pl.col("call_first_ns") > 0).then("call_first_ns")
    gave_up = pl.col("outcome") == Outcome.TIMEOUT.value
    stopped = pl.col("outcome").is_in([Outcome.CANCELLED.value, Outcome.ABANDONED.value])
    gaps = pl.col("delivered_tokens").cast(pl.Int64) - 1
    between = (pl.col("call_last_ns") - pl.col("call_first_ns")) / gaps
    return found.select(
        "request",
        pl.col("span_id").alias("call_id"),
        "tenant",
        "start_ns",
        "attempts",
        (pl.col("call_start_ns") - pl.col("start_ns")).alias("retry_ns"),
        (pl.coalesce(begun, pl.when(gave_up).then("left_ns")) - pl.col("start_ns")).alias(TTFT),
        pl.when(~stopped).then(pl.col("left_ns") - pl.col("start_ns")).alias(E2E),
        pl.when(gaps + 1 >= _FEWEST_TOKENS).then(between).alias(INTER_TOKEN),
        pl.max_horizontal(gaps, 1).alias("gaps"),
        "device_kind",
        "prompt_tokens",
        "cached_tokens",
    ).sort("start_ns", "request")
