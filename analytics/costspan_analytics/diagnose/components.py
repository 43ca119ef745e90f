"""What each request's time was spent on, by cause and culprit: the phases, their decomposition, and direct blame.

Components are told apart by whether they fell before the first token or after it, so that they explain the time to it, the time
between tokens and the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from costspan.semconv import Cause, Mechanism, Phase, Waste
from costspan_analytics.blame import blame
from costspan_analytics.diagnose.paces import Paces
from costspan_analytics.store import Store
from costspan_analytics.timeline import Timeline

FIRST, REST = "first", "rest"
"""Before a request's first token, and after it."""
OTHERS = "others"
"""The cause of time that other requests took, before it is told which cause that is."""
_SCHEMA = {"request": pl.String, "part": pl.String, "cause": pl.String, "culprit": pl.String, "ns": pl.Float64}
_COLUMNS = list(_SCHEMA)
_COMPUTING = [Phase.PREFILL.value, Phase.DECODE.value]
_IN_STEPS = (Mechanism.PREFILL.value, Mechanism.DECODE.value)


@dataclass(frozen=True)
class Components:
    """Makes components of requests.

    Attributes:
        store: Where blame is read.
        timeline: The window's calls.
        segments: What engines did for them, one row a segment, with what follows from it.
    """

    store: Store
    timeline: Timeline
    segments: pl.DataFrame

    @classmethod
    def load(cls, store: Store, timeline: Timeline, requests: pl.DataFrame) -> Components:
        """Prepare those of ``requests`` (rows of :func:`~costspan_analytics.diagnose.requests.load_requests`)."""
        final = timeline.joined.filter("final").join(requests.select("request", "call_id"), on="call_id")
        kept = ("engine", "request_id", "request", "first_token_ns", "prompt_tokens", "cached_tokens", "evicted_tokens")
        left = pl.when(pl.col("call_abort_ns") > 0).then(pl.col("call_abort_ns") + pl.col("offset_ns"))
        own = final.select(*kept, left_ns=left)
        segments = timeline.segments.join(own, on=["engine", "request_id"]).sort("engine", "request_id", "start_ns")
        loadings = store.frame("loadings").group_by("engine").agg(pl.col("ready_ns").max())
        segments = segments.join(loadings, on="engine", how="left").with_columns(pl.col("ready_ns").fill_null(0))
        return cls(store, timeline, _with_lateness(_cut(segments), Paces.load(store)))

    def of(self, requests: pl.DataFrame) -> pl.DataFrame:
        """Those of some requests: columns ``request, part, cause, culprit, ns``; :data:`OTHERS` is other requests' work."""
        segments = self.segments.join(requests.select("request"), on="request", how="semi")
        return pl.concat(
            [_retries(requests), self._client_side(requests), _waits(segments), _own_work(segments), *self._of_others(segments)]
        ).filter(pl.col("ns") != 0)

    def _client_side(self, requests: pl.DataFrame) -> pl.DataFrame:
        """Network and reading; what no phase explains is unknown."""
        calls = self.timeline.requests.join(
            requests.select("request", call_id="call_id"), left_on="span_id", right_on="call_id"
        )
        final = self.timeline.joined.filter("final").select(
            "call_id", out=pl.col("received_ns") - pl.col("offset_ns") - pl.max_horizontal("call_sent_ns", "call_start_ns")
        )
        calls = calls.join(final, left_on="span_id", right_on="call_id", how="left").with_columns(pl.col("out").fill_null(0))
        rest = pl.col(Phase.CLIENT_OVERHEAD) + pl.col(Phase.UNACCOUNTED) + pl.col(Phase.ADMISSION)
        parts = [
            (FIRST, Cause.NETWORK, pl.col("out")),
            (REST, Cause.NETWORK, pl.col(Phase.NETWORK) - pl.col("out")),
            (REST, Cause.SLOW_CLIENT, pl.col(Phase.STREAM)),
            (REST, Cause.UNKNOWN, rest),
        ]
        return pl.concat([_component(calls, part, cause, ns) for part, cause, ns in parts])

    def _of_others(self, segments: pl.DataFrame) -> list[pl.DataFrame]:
        """The work of other requests: direct blame, less what was an engine's slowness or its loading."""
        found = []
        for part in (FIRST, REST):
            own = segments.filter(pl.col("part") == part, pl.col("phase") != Phase.PREEMPTED.value)
            sums = own.group_by("engine", "request_id", "request").agg(
                waited=(_queued(pl.col("duration_ns")) - pl.col("cold_ns")).sum(),
                waited_late=_queued(pl.col("late_ns")).sum(),
                ran=(_computing(pl.col("solo_ns") + pl.col("interference_ns"))).sum(),
                usual=_computing(pl.col("duration_ns") - pl.col("host_gap_ns") - pl.col("late_ns")).sum(),
            )
            in_queue = (1 - pl.col("waited_late") / pl.max_horizontal("waited", 1)).clip(0, 1)
            in_steps = (pl.col("usual") / pl.max_horizontal("ran", 1)).clip(0, 2)
            blamed = blame(self.store, own.select(self.timeline.segments.columns)).filter(
                ~pl.col("mechanism").is_in([Mechanism.EVICTION.value, Mechanism.PREEMPTION.value])
            )
            scale = pl.when(pl.col("mechanism").is_in(_IN_STEPS)).then(in_steps).otherwise(in_queue)
            joined = blamed.join(sums, on=["engine", "request_id"])
            found.append(
                joined.select(
                    "request",
                    pl.lit(part).alias("part"),
                    pl.lit(OTHERS).alias("cause"),
                    "culprit",
                    (pl.col("ns") * scale).alias("ns"),
                )
            )
        return found


def _cut(segments: pl.DataFrame) -> pl.DataFrame:
    """Add ``part`` and ``next_culprit``, and cut off what a client that left did not wait for."""
    whole = pl.col("start_ns") + pl.col("duration_ns")
    kept = pl.min_horizontal(whole, pl.col("left_ns").fill_null(whole)) - pl.col("start_ns")
    share = (kept / pl.max_horizontal("duration_ns", 1)).clip(0, 1)
    splits = ["solo_ns", "interference_ns", "deviation_ns", "host_gap_ns"]
    before = (pl.col("first_token_ns") == 0) | (pl.col("start_ns") < pl.col("first_token_ns"))
    return (
        segments.with_columns(
            part=pl.when(before).then(pl.lit(FIRST)).otherwise(pl.lit(REST)),
            wasted=(pl.col("waste_ns") / pl.max_horizontal("cost_ns", 1)).clip(0, 1),
            next_culprit=pl.col("culprit").shift(-2, fill_value="").over("engine", "request_id"),
            cold_ns=pl.when(pl.col("phase") == Phase.QUEUE.value)
            .then((pl.min_horizontal(whole, "ready_ns") - pl.col("start_ns")).clip(0))
            .otherwise(0),
            share=share,
        )
        .with_columns(pl.col("duration_ns") * pl.col("share"), *(pl.col(name) * pl.col("share") for name in splits))
        .with_columns(pl.min_horizontal("cold_ns", "duration_ns"))
    )


def _with_lateness(segments: pl.DataFrame, paces: dict[str, Paces]) -> pl.DataFrame:
    """Add ``late_ns``: how much of a segment was its steps' taking longer than usual; never more than all of it."""
    parts = []
    for (engine,), own in segments.partition_by("engine", as_dict=True).items():
        pace = paces.get(str(engine))
        first, last = own["step_first"].to_numpy(), own["step_last"].to_numpy()
        late = np.zeros(own.height) if pace is None else pace.between(first, last)
        parts.append(own.with_columns(pl.Series("late_ns", late)))
    if not parts:
        return segments.with_columns(late_ns=pl.lit(0.0))
    took = pl.col("duration_ns") - pl.col("cold_ns")
    waited = pl.col("late_ns") * pl.col("share")
    return pl.concat(parts).with_columns(late_ns=pl.min_horizontal(waited, took).clip(-took, None))


def _queued(ns: pl.Expr) -> pl.Expr:
    return pl.when(pl.col("phase") == Phase.QUEUE.value).then(ns).otherwise(0)


def _computing(ns: pl.Expr) -> pl.Expr:
    return pl.when(pl.col("phase").is_in(_COMPUTING)).then(ns).otherwise(0)


def _component(frame: pl.DataFrame, part: str | pl.Expr, cause: str, ns: pl.Expr, culprit: str | pl.Expr = "") -> pl.DataFrame:
    named = {"part": part, "culprit": culprit}
    columns = {name: pl.lit(value) if isinstance(value, str) else value for name, value in named.items()}
    made = frame.select("request", **columns, cause=pl.lit(str(cause)), ns=ns.cast(pl.Float64))
    return made.group_by("request", "part", "cause", "culprit").agg(pl.col("ns").sum()).select(_COLUMNS)


def _retries(requests: pl.DataFrame) -> pl.DataFrame:
    """The attempts that came before the last one."""
    return _component(requests, FIRST, Cause.RETRY, pl.col("retry_ns"))


def _waits(segments: pl.DataFrame) -> pl.DataFrame:
    """Loading, preemption, and steps that took longer than usual, in the queue or in the batch."""
    again = pl.col("waste") == Waste.RECOMPUTED_PREEMPTION.value
    pushed_out = pl.when(pl.col("phase") == Phase.PREEMPTED.value).then("duration_ns").otherwise(0)
    redone = pl.when(again).then(pl.col("duration_ns") * pl.col("wasted")).otherwise(0)
    by = pl.when(again).then("culprit").otherwise("next_culprit")
    late = pl.when(pl.col("phase") == Phase.PREEMPTED.value).then(0).otherwise(pl.col("late_ns"))
    return pl.concat(
        [
            _component(segments, pl.col("part"), Cause.COLD_START, pl.col("cold_ns")),
            _component(segments, pl.col("part"), Cause.SLOW_ENGINE, late),
            _component(segments, pl.col("part"), Cause.PREEMPTION, pushed_out + redone, by),
        ]
    )


def _own_work(segments: pl.DataFrame) -> pl.DataFrame:
    """What a request would have taken alone, at the usual pace: its prompt, what was not cached any more, its answer."""
    took = pl.col("duration_ns") - pl.col("host_gap_ns")
    pace = ((took - pl.col("late_ns")) / pl.max_horizontal(pl.col("solo_ns") + pl.col("interference_ns"), 1)).clip(0, 2)
    solo = pl.col("solo_ns") * pace
    prefill = pl.when(pl.col("phase") == Phase.PREFILL.value).then(solo).otherwise(0)
    decode = pl.when(pl.col("phase") == Phase.DECODE.value).then(solo).otherwise(0)
    lost = pl.when(pl.col("waste") == Waste.RECOMPUTED_EVICTION.value).then(pl.col("wasted")).otherwise(0)
    kept = pl.when(pl.col("waste") == Waste.RECOMPUTED_PREEMPTION.value).then(1 - pl.col("wasted")).otherwise(1 - lost)
    return pl.concat(
        [
            _component(segments, pl.col("part"), Cause.COLD_CACHE, prefill * lost, pl.col("culprit")),
            _component(segments, pl.col("part"), Cause.LONG_PROMPT, prefill * kept),
            _component(segments, pl.col("part"), Cause.LONG_OUTPUT, decode),
            _component(segments, pl.col("part"), Cause.UNKNOWN, _computing(pl.col("host_gap_ns"))),
        ]
    )
