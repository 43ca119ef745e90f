"""Does blame tell the truth? What is claimed that a tenant cost the others, beside what they gained when it was not there.

Run: ``python benchmarks/counterfactual.py [--seeds N] [FAMILY ...]``. The engine's scheduler and the ``tiny`` model run on one
core, in the process's own time. Each family of traffic runs twice with the culprit and twice without it, from the same seed.
The rows go through a real collector into an embedded store, and from there come the claims: direct (accounting), and causal
(the recorded window replayed without the culprit). The truth is the mean of the runs with it less the mean of those without;
the noise is what two runs of the same traffic differ by, over the truth.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pyarrow as pa
import torch
from numpy.typing import NDArray

from benchmarks.cpu_engine import Ask, Books, CpuEngine
from benchmarks.families import CULPRIT, FAMILIES, Family
from costspan.delivery import Delivery
from costspan_analytics.blame import blame
from costspan_analytics.causal import Recording, effect
from costspan_analytics.store import Store
from costspan_demo.processes import Child, free_ports
from costspan_engine.compute.torch_executor import TorchExecutor
from costspan_engine.models.model import CausalModel
from costspan_engine.models.presets import tiny
from costspan_hooks import wire
from costspan_hooks.records import AttemptRecord

METRICS = ("ttft mean", "ttft p99", "e2e mean", "e2e p99")
ENGINE = "engine"
MS = 1e6

Floats = NDArray[np.float64]


def figures(ttft: Floats, e2e: Floats) -> Floats:
    """:data:`METRICS` of some requests, in milliseconds."""
    return np.array([np.mean(ttft), np.quantile(ttft, 0.99), np.mean(e2e), np.quantile(e2e, 0.99)])


@dataclass(frozen=True)
class Stack:
    """A collector with its embedded store."""

    collector: str
    store: str

    def keep(self, project: str, books: Books) -> None:
        """Have a run's rows stored."""
        origin = wire.Origin(project, ENGINE, "cpu")
        self._post(project, "engines", wire.engines(origin, books.engines))
        self._post(project, "attempts", wire.attempts(origin, [_delivered(record) for record in books.attempts]))
        self._post(project, "steps", wire.steps(origin, books.steps))
        while httpx.get(f"{self.collector}/health").json()["pending_records"]:
            time.sleep(0.05)

    def _post(self, project: str, table: str, rows: pa.Table) -> None:
        delivery = Delivery(self.collector, project=project, client="engine", stream=table, patience_s=20)
        if not delivery.send(f"/v1/ledger/{table}", wire.encode(rows), wire.MEDIA_TYPE, rows.num_rows):
            raise RuntimeError(f"the collector did not take {table}")


def _delivered(record: AttemptRecord) -> wire.Delivered:
    return wire.Delivered(record, "", "", record.removal.at_ns, record.removal.output_tokens)


@dataclass(frozen=True)
class Ran:
    """A run that is stored.

    Attributes:
        project: Its name in the store.
        others: :data:`METRICS` of the requests that are not the culprit's, as they were measured.
    """

    project: str
    others: Floats


@dataclass(frozen=True)
class Claim:
    """What the culprit is said to have cost the others, :data:`METRICS` in milliseconds; and the replay's error."""

    direct: Floats
    causal: Floats
    error: float


class Bench:
    """Runs traffic, and asks the store what it claims.

    Args:
        model: What the engine serves.
        stack: Where rows go.
    """

    def __init__(self, model: CausalModel, stack: Stack) -> None:
        self._model, self._stack = model, stack
        self._runs = 0

    def compare(self, family: Family, seed: int) -> Outcome:
        """Run a family with its culprit and without, twice each, and see what is claimed of the former."""
        others, culprit = family.draw(seed)
        executor = TorchExecutor(self._model, family.config)
        serve = partial(self._serve, executor, family)
        pairs = [(serve(others + culprit), serve(others)) for _ in range(2)]
        with_, without = (np.array([run.others for run in side]) for side in zip(*pairs, strict=True))
        claims = [self._claims(run.project) for run, _ in pairs]
        truth = with_.mean(axis=0) - without.mean(axis=0)
        noise = (np.ptp(with_, axis=0) + np.ptp(without, axis=0)) / 2 / truth
        return Outcome(
            truth,
            noise,
            direct=np.mean([claim.direct for claim in claims], axis=0) / truth,
            causal=np.mean([claim.causal for claim in claims], axis=0) / truth,
            error=statistics.mean(claim.error for claim in claims),
        )

    def _serve(self, executor: TorchExecutor, family: Family, asks: list[Ask]) -> Ran:
        self._runs += 1
        project, books = f"run-{self._runs}", Books()
        CpuEngine(executor, family.config, books).serve(asks)
        self._stack.keep(project, books)
        ended = [each for each in books.attempts if each.request.tenant != CULPRIT]
        ttft = np.array([each.first_token_ns - each.request.enqueued_ns for each in ended]) / MS
        e2e = np.array([each.removal.at_ns - each.request.enqueued_ns for each in ended]) / MS
        return Ran(project, figures(ttft, e2e))

    def _claims(self, project: str) -> Claim:
        store = Store(self._stack.store, project)
        replayed = effect(Recording.load(store, ENGINE), CULPRIT)
        return Claim(_direct(store), _of(replayed.with_) - _of(replayed.without), replayed.fidelity.matches["e2e"].error)


def _of(requests: pl.DataFrame) -> Floats:
    return figures(requests["ttft_ns"].to_numpy() / MS, requests["e2e_ns"].to_numpy() / MS)


def _direct(store: Store) -> Floats:
    """By how much the figures would be less, had each request been spared what the culprit is blamed for."""
    attempts = store.frame("attempts").filter(pl.col("tenant") != CULPRIT)
    segments = store.frame("segments").join(attempts.select("request_id", "first_token_ns"), on="request_id")
    spared = attempts.select(
        "request_id",
        ttft_ns=pl.col("first_token_ns") - pl.col("enqueued_ns"),
        e2e_ns=pl.col("removed_ns") - pl.col("enqueued_ns"),
    )
    before = _of(spared)
    for name, blamed in (("ttft_ns", segments.filter(pl.col("start_ns") < pl.col("first_token_ns"))), ("e2e_ns", segments)):
        claimed = blame(store, blamed).filter(pl.col("culprit") == CULPRIT).group_by("request_id").agg(pl.col("ns").sum())
        joined = spared.join(claimed, on="request_id", how="left", maintain_order="left")
        spared = joined.with_columns(pl.col(name) - pl.col("ns").fill_null(0.0)).drop("ns")
    return before - _of(spared)


@dataclass(frozen=True)
class Outcome:
    """What a family and a seed gave: arrays over :data:`METRICS`.

    Attributes:
        truth: What the others gained without the culprit, in milliseconds.
        noise: By how much two runs of the same traffic differ, over the truth.
        direct: Claimed over true.
        causal: Claimed over true.
        error: Of the replay of what did happen, over what was measured.
    """

    truth: Floats
    noise: Floats
    direct: Floats
    causal: Floats
    error: float


def show(name: str, outcomes: Sequence[Outcome]) -> None:
    """Print a family: medians over its seeds, and the ratios of each."""
    print(f"{name}: replay off by {statistics.median(each.error for each in outcomes):.1%}")
    print(f"  {'':<10}{'truth ms':>10}{'noise':>8}{'direct':>9}{'causal':>9}   causal by seed")
    for at, metric in enumerate(METRICS):
        truth, noise, direct, causal = (
            statistics.median(getattr(each, what)[at] for each in outcomes) for what in ("truth", "noise", "direct", "causal")
        )
        seeds = " ".join(f"{each.causal[at]:.2f}" for each in outcomes)
        print(f"  {metric:<10}{truth:>10.1f}{noise:>8.0%}{direct:>9.2f}{causal:>9.2f}   {seeds}", flush=True)


def verdict(found: dict[str, list[Outcome]]) -> None:
    """Print how all families did together."""
    for what in ("direct", "causal"):
        ratios = np.array([getattr(each, what) for outcomes in found.values() for each in outcomes])
        means = {name: float(np.mean([getattr(each, what) for each in outcomes])) for name, outcomes in found.items()}
        medians = ", ".join(f"{metric} {value:.2f}" for metric, value in zip(METRICS, np.median(ratios, axis=0), strict=True))
        print(f"{what}: median ratio {np.median(ratios):.2f} ({medians})")
        print("  family means: " + ", ".join(f"{name} {mean:.2f}" for name, mean in means.items()))


def main() -> None:
    """Run the families that were asked for."""
    parser = argparse.ArgumentParser(description="Blame against the same traffic without the culprit.")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"some of: {'; '.join(FAMILIES)} (default: all)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of each family (default: %(default)s)")
    asked = parser.parse_args()
    if unknown := set(asked.families) - set(FAMILIES):
        parser.error(f"there is no family {', '.join(sorted(unknown))}: choose from {'; '.join(FAMILIES)}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as stack:
        bench, found = Bench(tiny().model, stack), dict[str, list[Outcome]]()
        for name in asked.families or FAMILIES:
            found[name] = [bench.compare(FAMILIES[name], seed) for seed in range(1, asked.seeds + 1)]
            show(name, found[name])
    verdict(found)


@contextmanager
def running(folder: Path) -> Iterator[Stack]:
    """A collector with its embedded store, for as long as it is needed."""
    collector, store = (f"http://127.0.0.1:{port}" for port in free_ports(2))
    port, store_port = (url.rpartition(":")[2] for url in (collector, store))
    command = ["collector", "--data", str(folder / "data"), "--port", port, "--store", "embedded", "--store-port", store_port]
    child = Child("collector", command, f"{collector}/health", folder)
    child.start()
    try:
        child.wait_ready(60)
        yield Stack(collector, store)
    finally:
        child.stop(20)


if __name__ == "__main__":
    main()
