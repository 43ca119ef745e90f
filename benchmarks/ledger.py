"""What the step ledger costs the engine's thread: µs a step with few and with many sequences, and µs a transition.

Run: ``python benchmarks/ledger.py``. The two batch sizes alternate within one run; medians of the rounds, and their ratio.
"""

from __future__ import annotations

import statistics
import time
from collections import deque

from costspan.semconv import Bound, Outcome
from costspan_hooks import Admission, Chunk, Removal, RequestInfo, Step
from costspan_hooks.devices import ONE_CORE
from costspan_hooks.ledger import StepLedger
from costspan_hooks.observer import EngineInfo, ModelShape

MODEL = ModelShape(parameters=6_400_000, bytes_per_parameter=4, kv_bytes_per_token=2048, flops_per_pair=6144)
ENGINE = EngineInfo(MODEL, ONE_CORE)
TENANTS = 5
SIZES = (8, 256)
STEPS = 2000
ROUNDS = 15
STEP_NS = 5_000_000


class Batch:
    """A ledger with a number of sequences that decode until the end."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.now, self.index = 1_000_000, 0
        self.ledger = StepLedger(deque[object](maxlen=1000).append)
        self.ledger.ready(0, self.now, ENGINE)
        self.blocks = {f"tenant-{tenant}": 100 for tenant in range(TENANTS)}

    def enter(self) -> float:
        """Bring everybody in; µs for each (arrival, admission, its prompt, first token)."""
        began = time.perf_counter()
        chunks = []
        for at in range(self.size):
            name = f"r{at}"
            tenant = f"tenant-{at % TENANTS}"
            self.ledger.enqueued(RequestInfo(name, tenant, "", "", 1, "", "", "m", 64, self.now, self.now, has_server=False))
            self.ledger.admitted(Admission(name, self.now, self.now, 0, 0, ""))
            chunks.append(Chunk(name, 64, 0, last=True))
        self.step(chunks)
        return (time.perf_counter() - began) / self.size * 1e6

    def step(self, chunks: list[Chunk]) -> None:
        """One step of the batch."""
        end = self.now + STEP_NS
        self.ledger.step(Step(self.index, self.now, end, STEP_NS, chunks, Bound.NONE, self.blocks))
        self.now, self.index = end, self.index + 1

    def decode(self) -> float:
        """µs a step while everybody decodes."""
        began = time.perf_counter()
        for _ in range(STEPS):
            self.step([])
        return (time.perf_counter() - began) / STEPS * 1e6

    def leave(self) -> float:
        """µs for each that ends."""
        began = time.perf_counter()
        for at in range(self.size):
            self.ledger.removed(Removal(f"r{at}", self.now, Outcome.OK, "length", STEPS))
        return (time.perf_counter() - began) / self.size * 1e6


def main() -> None:
    """Measure and print."""
    enter: dict[int, list[float]] = {size: [] for size in SIZES}
    steps: dict[int, list[float]] = {size: [] for size in SIZES}
    leave: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(ROUNDS):
        for size in SIZES:
            batch = Batch(size)
            enter[size].append(batch.enter())
            steps[size].append(batch.decode())
            leave[size].append(batch.leave())
    for size in SIZES:
        print(
            f"{size:4d} sequences of {TENANTS} tenants: {statistics.median(steps[size]):6.2f} µs a step, "
            f"{statistics.median(enter[size]):6.2f} µs to come in, {statistics.median(leave[size]):6.2f} µs to leave"
        )
    few, many = SIZES
    ratio = statistics.median(b / a for a, b in zip(steps[few], steps[many], strict=True))
    print(f"a step with {many} costs {ratio:.2f} times a step with {few} (median of {ROUNDS} paired rounds)")


if __name__ == "__main__":
    main()
