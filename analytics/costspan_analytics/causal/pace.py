"""How fast an engine was: its steps' times and the host's between them, from what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import polars as pl

from costspan_engine.simulate.executor import TICK, StepKind, StepTimes
from costspan_hooks.cost_model import Load, Roofline, fit
from costspan_hooks.devices import Device
from costspan_hooks.observer import ModelShape

_FEATURES = ("prefill_tokens", "prefill_pairs", "decode_seqs", "decode_tokens")
_SHAPE = ("parameters", "bytes_per_parameter", "kv_bytes_per_token", "flops_per_pair", "resident_parameters")
_NEAR = 8.0
"""How much more a step counts than one with one decoding sequence more or fewer."""


def step_times(engine: dict[str, Any], steps: pl.DataFrame) -> StepTimes:
    """The cost model, fitted to all of the steps; and what it leaves over, by the number of sequences that decode.

    The ledger's model must be linear, so that shares add up. A replay's need not be: where batches of three take a tenth
    longer than the line through all batches says, they take a tenth longer again. All steps of a kind, and all gaps between
    steps, come out at the time that they took together. Rows that were computed for nobody are left to the sequences beside
    them.

    Args:
        engine: A row of table ``engines``.
        steps: Rows of table ``steps`` that ran.
    """
    shape = ModelShape(**{name: int(engine[name]) for name in _SHAPE})
    roofline = Roofline(shape, Device(engine["flops_per_s"], engine["bytes_per_s"]))
    loads = [Load(*row) for row in steps.select(_FEATURES).iter_rows()]
    durations = steps["duration_ns"].to_list()
    fitted = fit(roofline, loads, durations)
    host_ns = max(0, round(float(steps["host_gap_ns"].to_numpy().mean())))
    linear = StepTimes(roofline, fitted, host_ns=host_ns)
    return StepTimes(roofline, fitted, host_ns=host_ns, stretch=dict(_stretches(linear, loads, durations)))


def _stretches(linear: StepTimes, loads: Sequence[Load], durations: Sequence[int]) -> Iterator[tuple[StepKind, float]]:
    """Measured over predicted time by kind of step; where a kind is rare or unseen, that of its neighbours."""
    sums: dict[StepKind, list[float]] = {}
    for load, duration in zip(loads, durations, strict=True):
        both = sums.setdefault(linear.kind(load), [0.0, 0.0])
        both[0] += duration
        both[1] += linear.ticks(load) / TICK
    for (regime, prefills), kinds in groupby(sorted(sums), key=itemgetter(0, 1)):
        seen = list(kinds)
        seqs = np.array([kind.decode_seqs for kind in seen])
        measured, predicted = np.array([sums[kind] for kind in seen]).T
        for count in range(int(seqs[-1]) + 1):
            weight = _NEAR ** -np.abs(seqs - count).astype(np.float64)
            yield StepKind(regime, prefills, count), float((weight * measured).sum() / (weight * predicted).sum())
