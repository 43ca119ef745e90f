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

from costspan.semconv import Outcome
from costspan_engine.compute.torch_executor import TorchExecutor
from costspan_engine.models.presets import tiny
from costspan_engine.null_observer import NullObserver
from costspan_engine.scheduler import Scheduler
from costspan_engine.sequence import Request, Sampling, Sequence
from costspan_engine.settings import EngineConfig
from costspan_engine.simulate.executor import SimulatedExecutor, StepTimes, VirtualClock, load_of
from costspan_engine.simulate.fleet import Fleet, Offered
from costspan_engine.simulate.profiles import HOST_NS, Deployment, Model
from costspan_engine.simulate.replay import Replica
from costspan_engine.simulate.tally import Served, Tally, quantiles
from costspan_engine.simulate.traffic import Arrival, Traffic
from costspan_hooks.cost_model import CostModel, Regime, Roofline
from costspan_hooks.devices import ONE_CORE
from costspan_hooks.observer import RequestInfo

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
    gaps: list[int] = field(default_factory=list)

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


class CpuClock:
    """Runs while this process computes, and jumps over the time in which it would have waited."""

    def __init__(self) -> None:
        self._skipped_ns = -time.process_time_ns()

    def __call__(self) -> int:
        """Nanoseconds since it was made."""
        return time.process_time_ns() + self._skipped_ns

    def wait(self, until_ns: int) -> None:
        """Jump to a moment; it never goes back."""
        self._skipped_ns += max(0, until_ns - self())


class Measured:
    """The engine's scheduler over a real executor; its steps teach a cost model."""

    def __init__(self, executor: TorchExecutor, model: CostModel) -> None:
        self.run = Run()
        self._executor = executor
        self._model = model
        self._clock = CpuClock()
        self._scheduler = Scheduler(CPU, NullObserver(), self._clock)
        self._arrivals: dict[str, Arrival] = {}
        self._firsts: dict[str, tuple[int, int]] = {}
        self._draw = random.Random(SEED)

    def serve(self, arrivals: Iterable[Arrival]) -> Run:
        """Serve a stretch."""
        coming = list(reversed(list(arrivals)))
        while coming or len(self._scheduler):
            if not len(self._scheduler):
                self._clock.wait(coming[-1].at_ns)
            turn_ns = self._clock()
            while coming and coming[-1].at_ns <= turn_ns:
                self._scheduler.add(self._sequence(coming.pop()))
            self._step(turn_ns)
        return self.run

    def _sequence(self, arrival: Arrival) -> Sequence:
        name = str(len(self._arrivals))
        self._arrivals[name] = arrival
        prompt = self._draw.choices(range(0x20, 0x7F), k=arrival.prompt_tokens)
        info = RequestInfo(name, arrival.tenant, "", "", 1, "", "", "tiny", len(prompt), 0, 0, has_server=False)
        return Sequence(Request(info, prompt, Sampling(max_tokens=arrival.output_tokens)))

    def _step(self, turn_ns: int) -> None:
        """Compute one step; its turn of the loop began a moment ago."""
        batch = self._scheduler.schedule()
        load = load_of(batch)
        start_ns = self._clock()
        result = self._executor.launch(batch)()
        end_ns = self._clock()
        self.run.busy_ns += end_ns - start_ns
        self._model.learn(self._model.regime(load), load, end_ns - start_ns)
        for prefill in batch.prefills:
            admitted_ns, _ = self._firsts.get(prefill.seq.request_id, (turn_ns, 0))
            self._firsts[prefill.seq.request_id] = admitted_ns, end_ns
        for each in self._scheduler.complete(batch, result.tokens):
            if each.reason:
                self._scheduler.remove(each.seq.request_id)
                self._end(each.seq, end_ns)
        self.run.gaps.append(start_ns - turn_ns + self._clock() - end_ns)

    def _end(self, seq: Sequence, at_ns: int) -> None:
        admitted_ns, first_ns = self._firsts[seq.request_id]
        arrival = self._arrivals[seq.request_id]
        self.run.served.append(Served(arrival, Outcome.OK, admitted_ns, first_ns, at_ns, seq.output_tokens, 0))


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
    roofline = Roofline(executor.shape, ONE_CORE)
    model, unread = CostModel(roofline), CostModel(roofline)
    first, second = stretches()
    measured = [(Measured(executor, model).serve(first), first), (Measured(executor, unread).serve(second), second)]
    regimes: tuple[Regime, ...] = ("memory", "compute")
    host_ns = int(statistics.median(measured[0][0].gaps))
    times = StepTimes(roofline, {regime: model.coefficients(regime) for regime in regimes}, host_ns=host_ns)
    ratios = []
    for run, rows in measured:
        real, simulated = run.figures(), replayed(rows, times, CPU)[0].figures()
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
