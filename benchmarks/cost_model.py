"""How true the cost model is on steps that it has not seen, beside prices by the token.

Run: ``python -m benchmarks.cost_model``. The engine's scheduler and the ``tiny`` model serve a mix on one core: chats, long
prompts, long outputs and prompts that begin alike, at rates that fill between one slot and all 32. Each step is predicted
before it is learnt from, as in the ledger; errors are ``|T̂/T - 1|``, sums ``Σ T̂ / Σ T``.

*Per token*: a step costs so much a token, what the last steps cost. *Step and token*: so much a step and so much a token, by
least squares on relative errors over the same steps; there are as many of them as the model sees of both regimes. *Shares
moved* is the part of the engine's time that goes to somebody else than by the model, when steps are split by tokens.

The same steps are timed by two clocks: the process's own CPU time, which other work on the machine takes no part of, though it
slows it through what they share; and the executor's wall clock, which is what the ledger is told. *Repeats* is what no model
can be better than: one step in ten is computed five times on end, and each of them is held against their median.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.cpu_engine import Ask, CpuEngine
from costspan_engine.compute.torch_executor import TorchExecutor
from costspan_engine.executor import Result
from costspan_engine.models.presets import tiny
from costspan_engine.null_observer import NullObserver
from costspan_engine.scheduler import Batch
from costspan_engine.settings import EngineConfig
from costspan_engine.simulate.executor import load_of
from costspan_hooks.cost_model import REGIMES, WINDOW, Coefficients, CostModel, Load, Regime, Roofline
from costspan_hooks.devices import Device
from costspan_hooks.observer import ModelShape

CONFIG = EngineConfig(max_num_seqs=32, max_batched_tokens=256, kv_blocks=2048)
RATES = (0.5, 2.0, 5.0, 9.0, 1.0, 4.0)
"""Requests a second, one stretch after the other."""
REPEATED, TIMES = 10, 5
"""One step in so many is computed so many times."""
_LETTERS = range(0x20, 0x7F)
_NS = 1_000_000_000

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Timed:
    """A step: what it had to do, (prompt tokens, context) of each chunk, contexts of those that decode, and what it took."""

    load: Load
    chunks: Sequence[tuple[int, int]]
    contexts: Sequence[int]
    cpu_ns: int
    wall_ns: int

    def moved(self, unit: Coefficients) -> float:
        """The part of the step that is somebody else's when it is split by tokens instead."""
        costs = [unit.prefill(*chunk) for chunk in self.chunks] + [unit.decode(context) for context in self.contexts]
        tokens = [tokens for tokens, _ in self.chunks] + [1] * len(self.contexts)
        by_model = (np.array(costs) + unit.fixed / len(costs)) / (sum(costs) + unit.fixed)
        return float(np.abs(by_model - np.array(tokens) / sum(tokens)).sum() / 2)


@dataclass
class Watch:
    """Times every step of an executor, and repeats some: a step writes the same keys and values again."""

    executor: TorchExecutor
    steps: list[Timed] = field(default_factory=list)
    repeats: list[float] = field(default_factory=list)

    @property
    def shape(self) -> ModelShape:
        """The executor's."""
        return self.executor.shape

    @property
    def device(self) -> Device:
        """The executor's."""
        return self.executor.device

    def launch(self, batch: Batch) -> Callable[[], Result]:
        """As the executor does."""
        return partial(self._compute, batch)

    def _compute(self, batch: Batch) -> Result:
        if len(self.steps) % REPEATED == 0:
            took = np.array([self._time(batch)[1] for _ in range(TIMES)])
            self.repeats += (took / np.median(took) - 1.0).tolist()
        result, cpu_ns = self._time(batch)
        chunks = [(prefill.tokens, prefill.context) for prefill in batch.prefills]
        contexts = [seq.computed for seq in batch.decodes]
        self.steps.append(Timed(load_of(batch), chunks, contexts, cpu_ns, result.duration_ns))
        return result

    def _time(self, batch: Batch) -> tuple[Result, int]:
        start_ns = time.process_time_ns()
        result = self.executor.launch(batch)()
        return result, time.process_time_ns() - start_ns


def asks(seed: int, stretch_s: float) -> Iterator[Ask]:
    """The mix: six tenths chats, two tenths on a known beginning, one tenth long prompts, one tenth long outputs."""
    draw = random.Random(seed)
    known = [draw.choices(_LETTERS, k=draw.randint(200, 1200)) for _ in range(6)]
    for stretch, rate in enumerate(RATES):
        at_s = stretch * stretch_s + draw.expovariate(rate)
        while at_s < (stretch + 1) * stretch_s:
            prompt, output = draw.choices(_LETTERS, k=draw.randint(10, 250)), draw.randint(5, 80)
            match draw.choices(("chat", "known", "prompt", "output"), (6, 2, 1, 1))[0]:
                case "known":
                    prompt = draw.choice(known) + prompt
                case "prompt":
                    prompt = draw.choices(_LETTERS, k=round(draw.lognormvariate(7.4, 0.6)))[:6000]
                case "output":
                    output = min(1500, round(draw.lognormvariate(6.0, 0.6)))
            yield Ask(round(at_s * _NS), "acme", prompt, output)
            at_s += draw.expovariate(rate)


@dataclass
class Column:
    """One way to predict steps."""

    name: str
    predicted: list[float] = field(default_factory=list)

    def row(self, took: Floats, chosen: NDArray[np.bool_]) -> str:
        """Errors of some of the steps."""
        predicted = np.array(self.predicted)[chosen]
        return f"{quantiles(predicted / took[chosen] - 1.0)}   sum {predicted.sum() / took[chosen].sum():.3f}"


def quantiles(errors: Floats) -> str:
    """p50, p90 and p99 in per cent."""
    return "  ".join(
        f"{name} {100 * value:5.1f} %"
        for name, value in zip(("p50", "p90", "p99"), np.quantile(np.abs(errors), (0.5, 0.9, 0.99)), strict=True)
    )


class TokenPrices:
    """What people do without a model, learnt online like the model, from the last steps."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, float]] = []

    def predict(self, tokens: int) -> tuple[float, float]:
        """Nanoseconds of a step of so many tokens: at a price per token, and at one per step and one per token."""
        if not self._seen:
            return 1.0, 1.0
        counts, took = np.array(self._seen[-len(REGIMES) * WINDOW :]).T
        rows = np.column_stack([np.ones(len(counts)), counts]) / took[:, None]
        step, token = np.linalg.lstsq(rows, np.ones(len(counts)), rcond=None)[0]
        return float(took.sum() / counts.sum() * tokens), float(max(1.0, step + token * tokens))

    def learn(self, tokens: int, took_ns: int) -> None:
        """Take a step in."""
        self._seen.append((tokens, float(took_ns)))


def report(steps: Sequence[Timed], roofline: Roofline, clock: Callable[[Timed], int]) -> None:
    """Predict all steps in their order, and print the errors by regime."""
    model, prices = CostModel(roofline), TokenPrices()
    columns = [Column("cost model"), Column("per token"), Column("step and token")]
    regimes: list[Regime] = []
    moved = 0.0
    for step in steps:
        load, took_ns = step.load, clock(step)
        regime, tokens = model.regime(load), load.prefill_tokens + load.decode_seqs
        regimes.append(regime)
        unit = model.coefficients(regime)
        for column, predicted in zip(columns, (load.predict(unit), *prices.predict(tokens)), strict=True):
            column.predicted.append(predicted)
        moved += step.moved(unit) * took_ns
        model.learn(regime, load, took_ns)
        prices.learn(tokens, took_ns)
    took, of = np.array([clock(step) for step in steps], dtype=np.float64), np.array(regimes)
    for name, chosen in [("all", of != ""), *((regime, of == regime) for regime in REGIMES)]:
        print(f"  {name}: {chosen.sum():,} steps, {took[chosen].sum() / took.sum():.0%} of the time")
        for column in columns:
            print(f"    {column.name:<15} {column.row(took, chosen)}")
    print(f"  shares moved when steps are split by tokens: {moved / took.sum():.0%} of the time")


def main() -> None:
    """Serve the mix and print what the model made of it."""
    parser = argparse.ArgumentParser(description="How true the cost model is on steps that it has not seen.")
    parser.add_argument("--seed", type=int, default=1, help="of the traffic (default 1)")
    parser.add_argument("--seconds", type=float, default=6.0, help=f"of traffic at each of {len(RATES)} rates (default 6)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    executor = TorchExecutor(tiny().model, CONFIG)
    watch = Watch(executor)
    CpuEngine(watch, CONFIG, NullObserver()).serve(asks(options.seed, options.seconds))
    batches = sorted(len(step.contexts) + len(step.chunks) for step in watch.steps)
    print(f"{len(watch.steps):,} steps, batches of {batches[0]} to {batches[-1]}, seed {options.seed}")
    print(f"  repeats of a step, CPU time: {quantiles(np.array(watch.repeats))}")
    roofline = Roofline(executor.shape, executor.device)
    print("CPU time")
    report(watch.steps, roofline, lambda step: step.cpu_ns)
    print("wall clock")
    report(watch.steps, roofline, lambda step: step.wall_ns)


if __name__ == "__main__":
    main()
