"""A recording, run again on the virtual clock: the engine's own scheduler, at the pace that was measured."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import polars as pl

from costspan.semconv import LatencyClass, Outcome, Phase
from costspan_analytics.causal.beginnings import Beginnings
from costspan_analytics.causal.pace import step_times
from costspan_analytics.causal.recording import Recording
from costspan_engine.settings import EngineConfig, Policy
from costspan_engine.simulate.executor import SimulatedExecutor, VirtualClock
from costspan_engine.simulate.replay import Replica
from costspan_engine.simulate.tally import Served
from costspan_engine.simulate.traffic import Arrival

_RULES = ("max_num_seqs", "max_batched_tokens", "kv_blocks", "block_size", "tenant_max_seqs")
_LATENCIES = {"request_id": pl.String, "ttft_ns": pl.Int64, "e2e_ns": pl.Int64}


class Rerun:
    """Runs a recording as often as it is asked to, each time without other tenants.

    What their clients would have done in a world without one of them nobody knows. Here requests come when they came, and
    answers are as long as they were. Who left while it read its answer leaves at the same token. Who left before that, or was
    late for its deadline, has patience: it leaves at the same moment, and if it is served until then, its answer is of the
    length that its tenant's have.
    """

    def __init__(self, recording: Recording) -> None:
        engine = recording.engine
        self._config = EngineConfig(
            policy=Policy(engine["policy"]),
            prefix_cache=bool(engine["prefix_cache"]),
            **{name: int(engine[name]) for name in _RULES},
        )
        self._max_context = int(engine["max_context"])
        self._start_ns = int(recording.attempts["enqueued_ns"][0])
        self._times = step_times(engine, recording.steps)
        well = recording.attempts.filter(pl.col("outcome") == Outcome.OK.value)
        self._lengths = {tenant: rows["output_tokens"].to_numpy() for (tenant,), rows in well.group_by("tenant")}
        beginnings = Beginnings(block=self._config.block_size, grain=int(engine["prefix_grain"]))
        self._before = [
            self._arrival(row, names, row["output_tokens"])
            for row, names in zip(recording.before.iter_rows(named=True), beginnings.name(recording.before), strict=True)
        ]
        self._arrivals = [
            self._again(row, names)
            for row, names in zip(recording.attempts.iter_rows(named=True), beginnings.name(recording.attempts), strict=True)
        ]

    def __call__(self, absent: Collection[str] = (), kept: Collection[str] = ()) -> pl.DataFrame:
        """Run it without the requests of tenants in ``absent``, but with those that are ``kept`` by their ids.

        Returns:
            ``request_id, ttft_ns, e2e_ns`` of those that ended well.
        """
        gone, stay = frozenset(absent), frozenset(kept)
        served: list[Served] = []
        executor = SimulatedExecutor(self._times, VirtualClock())
        replica = Replica(executor, self._config, max_context=self._max_context, serve=served.append)
        replica.warm(each for each in self._before if each.tenant not in gone)
        replica.run(each for each in self._arrivals if each.tenant not in gone or each.request_id in stay)
        rows = [
            (each.arrival.request_id, each.first_token_ns - each.arrival.at_ns, each.end_ns - each.arrival.at_ns)
            for each in served
            if each.outcome is Outcome.OK
        ]
        return pl.DataFrame(rows, schema=_LATENCIES, orient="row")

    def _again(self, row: dict[str, Any], names: tuple[int, ...]) -> Arrival:
        made = int(row["output_tokens"])
        reading = row["outcome"] == Outcome.CANCELLED.value and row["left_in"] == Phase.DECODE.value
        if row["outcome"] == Outcome.OK.value or reading:
            return self._arrival(row, names, made)
        left_ns = int(row["disconnect_ns"] or row["removed_ns"])
        return self._arrival(row, names, self._longer(row, made), abort_ns=left_ns - self._start_ns)

    def _longer(self, row: dict[str, Any], made: int) -> int:
        """How long an answer would have become that was cut short: the median of its tenant's that are longer."""
        lengths = self._lengths.get(row["tenant"], np.empty(0))
        longer = lengths[lengths > made]
        return min(int(np.median(longer)) if len(longer) else made + 1, self._max_context - int(row["prompt_tokens"]))

    def _arrival(self, row: dict[str, Any], names: tuple[int, ...], output_tokens: int, abort_ns: int = 0) -> Arrival:
        return Arrival(
            at_ns=int(row["enqueued_ns"]) - self._start_ns,
            tenant=row["tenant"],
            prompt_tokens=int(row["prompt_tokens"]),
            output_tokens=max(1, output_tokens),
            prefix=names,
            abort_ns=abort_ns,
            latency_class=LatencyClass(row["latency_class"] or LatencyClass.INTERACTIVE),
            priority=int(row["priority"]),
            grain=self._config.block_size,
            answered=True,
            request_id=row["request_id"],
        )
