"""How true the simulator is, and how fast.

Run: ``python benchmarks/simulator.py``, or with ``--day FOLDER`` for a ServeGen folder's day as well.

*Truth*: two stretches of the Azure slice, lengths divided by 8, run on the CPU with the engine's scheduler and the ``tiny``
model. Time is the process's own CPU time, and nothing sleeps: what else the machine does stays out of it. The cost model is
fitted on the steps of the first; with that fit both are simulated, and compared with what was measured: of the second the fit
saw nothing. *Speed*: one request in six of the slice on an L4, step by step and jumping; then all of it on as many as it
needs, laid end to end for an hour.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.cpu_engine import Ask, Books, CpuEngine
from costspan_engine.compute.torch_executor import TorchExecutor
from costspan_engine.models.presets import tiny
from costspan_engine.settings import EngineConfig
from costspan_engine.simulate.executor import SimulatedExecutor, StepTimes, VirtualClock
from costspan_engine.simulate.fleet import Fleet, Offered
from costspan_engine.simulate.profiles import HOST_NS, Deployment, Model
from costspan_engine.simulate.replay import Replica
from costspan_engine.simulate.tally import Served, Tally, quantiles
from costspan_engine.simulate.traffic import Arrival, Traffic
from costspan_hooks.cost_model import Load, Roofline, fit
from costspan_hooks.records import AttemptRecord

SLICE = Path(__file__).parents[1] / "demo" / "costspan_demo" / "traces" / "azure_conversation.csv"
STRETCH = 180
SHRINK = 8
ROUNDS = 3
SEED = 7
CPU = EngineConfig(max_num_seqs=32, max_batched_tokens=256, kv_blocks=2048, prefix_cache=False)


@dataclass
class Run:
    """What a run of a stretch gave; times in nanoseconds from its start."""

    served: list[Served] = field(default_factory=list)
    busy_ns: int = 0

    def figures(self) -> dict[str, float]:
        """What is compared, in milliseconds."""
        tally = Tally()
        for served in self.served:
            tally.add(served)
        each = {"ttft": quantiles(tally.latencies.ttft), "e2e": quantiles(tally.latencies.e2e)}
        named = {f"{name} {quantile}": times[quantile] for name, times in each.items() for quantile in ("p50", "p99")}
        return {**named, "busy time": self.busy_ns / 1e6}


def stretches() -> tuple[list[Arrival], list[Arrival]]:
    """Two stretches of the slice, one after the other, each from time 0."""
    rows = list(Traffic.read([SLICE], seed=SEED, hours=1))
    first, second = rows[:STRETCH], rows[STRETCH : 2 * STRETCH]
    return shrunk(first), shrunk(second)


def shrunk(rows: list[Arrival]) -> list[Arrival]:
    """So long as a CPU can serve at their pace."""
    start_ns = rows[0].at_ns
    return [
        replace(
            row,
            at_ns=row.at_ns - start_ns,
            prompt_tokens=max(1, row.prompt_tokens // SHRINK),
            output_tokens=max(1, row.output_tokens // SHRINK),
        )
        for row in rows
    ]


def measured(executor: TorchExecutor, arrivals: Iterable[Arrival]) -> tuple[Run, Books]:
    """Serve a stretch on the real executor."""
    draw, rows, books = random.Random(SEED), list(arrivals), Books()
    CpuEngine(executor, CPU, books).serve(
        Ask(row.at_ns, row.tenant, draw.choices(range(0x20, 0x7F), k=row.prompt_tokens), row.output_tokens) for row in rows
    )
    ran = [step for step in books.steps if step.participants]
    return Run([_served(record) for record in books.attempts], sum(step.duration_ns for step in ran)), books


def _served(record: AttemptRecord) -> Served:
    request, removal = record.request, record.removal
    arrival = Arrival(request.enqueued_ns, request.tenant, request.prompt_tokens, removal.output_tokens)
    admitted_ns = record.segments[0].start_ns + record.segments[0].duration_ns
    return Served(arrival, removal.outcome, admitted_ns, record.first_token_ns, removal.at_ns, removal.output_tokens, 0)


def replayed(
    arrivals: Iterable[Arrival], times: StepTimes, config: EngineConfig, *, stepwise: bool = False
) -> tuple[Run, Replica]:
    """Simulate a stretch on one replica."""
    run = Run()
    executor = SimulatedExecutor(times, VirtualClock())
    replica = Replica(executor, config, max_context=131_072, serve=run.served.append, stepwise=stepwise)
    replica.run(arrivals)
    run.busy_ns = replica.busy_ns
    return run, replica


def truth() -> None:
    """Print how well simulations agree with what was measured, of the stretch that was fitted and of the next one."""
    torch.set_num_threads(1)
    executor = TorchExecutor(tiny().model, CPU)
    rounds = [compare(executor) for _ in range(ROUNDS)]
    print(f"truth: simulated over measured, {STRETCH} requests each; median of {ROUNDS} rounds (least to most)")
    print(f"  {'':<12}{'fitted stretch':>22}{'next stretch':>22}")
    for name in rounds[0][0]:
        cells = []
        for stretch in range(2):
            ratios = sorted(each[stretch][name] for each in rounds)
            cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})")
        print(f"  {name:<12}{cells[0]:>22}{cells[1]:>22}")


def compare(executor: TorchExecutor) -> list[dict[str, float]]:
    """Measure both stretches, simulate both with the fit of the first; ratios by figure, for each stretch."""
    rows = stretches()
    runs = [measured(executor, stretch) for stretch in rows]
    steps = [step for step in runs[0][1].steps if step.participants]
    loads = [Load(step.prefill_tokens, step.prefill_pairs, step.decode_seqs, step.decode_tokens) for step in steps]
    roofline = Roofline(executor.shape, executor.device)
    fitted = fit(roofline, loads, [step.duration_ns for step in steps])
    times = StepTimes(roofline, fitted, host_ns=int(statistics.median(step.host_gap_ns for step in steps)))
    ratios = []
    for (run, _), stretch in zip(runs, rows, strict=True):
        real, simulated = run.figures(), replayed(stretch, times, CPU)[0].figures()
        ratios.append({name: simulated[name] / real[name] for name in real})
    return ratios


def l4() -> tuple[StepTimes, EngineConfig]:
    """Llama 8B on an L4."""
    deployment = Deployment(Model.find("llama-8b"), "l4")
    config = EngineConfig(max_num_seqs=64, max_batched_tokens=2048, kv_blocks=deployment.kv_blocks(16), prefix_cache=False)
    return StepTimes(deployment.roofline, host_ns=HOST_NS), config


def speed() -> None:
    """Print how many steps a second are simulated, one by one and in jumps, and how long an hour of traffic takes."""
    times, config = l4()
    rows = list(Traffic.read([SLICE], seed=SEED, hours=1))
    length_ns = rows[-1].at_ns + rows[-1].at_ns // len(rows)
    hour = [replace(row, at_ns=row.at_ns + lap * length_ns) for lap in range(36) for row in rows]
    # As many as one replica serves.
    some = hour[: 6 * len(rows) : 6]
    for name, stepwise in (("stepping", True), ("jumping", False)):
        began = time.perf_counter()
        run, replica = replayed(some, times, config, stepwise=stepwise)
        took = time.perf_counter() - began
        turns = f"{replica.steps:,} steps in {replica.leaps:,} turns"
        print(f"{name}: {len(run.served)} requests, {turns}: {took:.2f} s, {replica.steps / took:,.0f} steps/s")
    day(hour, times, config, "an hour of Azure on L4")


def day(arrivals: Iterable[Arrival], times: StepTimes, config: EngineConfig, name: str) -> None:
    """Simulate traffic on as many replicas as it needs, and print what that took."""
    began = time.perf_counter()
    fleet = Fleet(times, config, max_context=131_072, replicas=Offered.of(arrivals).replicas(times, config))
    fleet.run(arrivals, lambda _at_ns, _count: None)
    took = time.perf_counter() - began
    requests = sum(tally.ended for tally in fleet.tenants.values())
    steps = sum(replica.steps for replica in fleet.replicas)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    print(
        f"{name}: {requests:,} requests, {steps:,} steps on {len(fleet.replicas)} replicas: {took:.1f} s, "
        f"{requests / took:,.0f} requests/s; peak {peak:,.0f} MiB"
    )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description="How true the simulator is, and how fast.")
    parser.add_argument("--day", type=Path, metavar="FOLDER", help="a ServeGen folder, simulated for its day")
    folder = parser.parse_args().day
    truth()
    speed()
    if folder:
        deployment = Deployment(Model.find("llama-8b"), "h200")
        config = EngineConfig(max_num_seqs=256, max_batched_tokens=8192, kv_blocks=deployment.kv_blocks(16), prefix_cache=False)
        times = StepTimes(deployment.roofline, host_ns=HOST_NS)
        day(Traffic.read([folder], seed=SEED, hours=24), times, config, "a day of ServeGen on H200")


if __name__ == "__main__":
    main()
