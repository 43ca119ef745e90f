"""What being observed costs an engine.

Run: ``python -m benchmarks.hooks [--pairs N]``.

*The engine's thread*: µs of Python a step with few and with many sequences, and a transition (arrival, admission, removal),
making what is handed over included; and beside it what the ledger's thread spends on the same.

*The engine*: the ``tiny`` model decodes 32 sequences at a time on one core, from their prompts to their ends, by turns with the
recorder (delivering to a process that discards) and without: throughput and mean step time, paired; and the CPU time of the
whole process, its other threads and the delivery included, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from multiprocessing.connection import Connection

import torch

from benchmarks.cpu_engine import Ask, CpuEngine
from benchmarks.sink import Discard
from costspan.clock import now_ns
from costspan.semconv import Bound, Outcome
from costspan_engine.compute.torch_executor import TorchExecutor
from costspan_engine.models.presets import tiny
from costspan_engine.null_observer import NullObserver
from costspan_engine.settings import EngineConfig
from costspan_hooks import Admission, Chunk, Removal, RequestInfo, Step
from costspan_hooks.devices import ONE_CORE
from costspan_hooks.ledger import StepLedger
from costspan_hooks.observer import EngineInfo, ModelShape
from costspan_hooks.recorder import Recorder
from costspan_hooks.ring import Ring
from costspan_hooks.shipper import PERIOD_S

ENGINE = EngineInfo(ModelShape(6_400_000, 4, 2048, 6144), ONE_CORE)
TENANTS = 5
SIZES = (8, 256)
STEPS = 2000
ROUNDS = 15
STEP_NS = 5_000_000
BATCH = 32
PROMPT, OUTPUT = 48, 160
CONFIG = EngineConfig(max_num_seqs=BATCH, max_batched_tokens=256, kv_blocks=1024, prefix_cache=False)


class Told:
    """An engine of so many sequences that decode until the end: what its thread does for the observer, and nothing else."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.now, self.index = now_ns(), 0
        self.ring, self.ledger = Ring(lambda _lost: None), StepLedger(lambda _record: None)
        self.put = self.ring.put
        self.held = {f"tenant-{tenant}": 100 for tenant in range(TENANTS)}
        self.put(self.ledger.ready, self.now, self.now, ENGINE)

    def enter(self) -> None:
        """Everybody comes in, and its prompt is computed."""
        chunks = []
        for at in range(self.size):
            name, tenant = f"r{at}", f"tenant-{at % TENANTS}"
            info = RequestInfo(name, tenant, "", "", 1, "", "", "m", 64, self.now, self.now, has_server=False)
            self.put(self.ledger.enqueued, info)
            self.put(self.ledger.admitted, Admission(name, self.now, self.now, 0, 0, ""))
            chunks.append(Chunk(name, 64, 0, last=True))
        self.step(chunks, 0)

    def step(self, chunks: list[Chunk], decoding: int) -> None:
        """One step."""
        end = self.now + STEP_NS
        self.put(
            self.ledger.step,
            Step(self.index, self.now, end, STEP_NS, chunks, Bound.NONE, self.held.copy(), decoding=decoding),
        )
        self.now, self.index = end, self.index + 1

    def decode(self) -> None:
        """Everybody decodes."""
        for _ in range(STEPS):
            self.step([], self.size)

    def leave(self) -> None:
        """Everybody ends."""
        for at in range(self.size):
            self.put(self.ledger.removed, Removal(f"r{at}", self.now, Outcome.OK, "length", STEPS))

    def book(self) -> None:
        """The other thread's part, here and now."""
        for call, arguments in self.ring.take():
            call(*arguments)


@dataclass(frozen=True, slots=True)
class Micros:
    """µs on the engine's thread and on the ledger's: a step, and a transition."""

    step: float
    transition: float
    booked_step: float
    booked_transition: float


def micros(size: int) -> Micros:
    """Measure one life of a batch."""
    told = Told(size)

    def timed(work: Callable[[], None], count: int) -> tuple[float, float]:
        told.book()
        began = time.perf_counter()
        work()
        between = time.perf_counter()
        told.book()
        ended = time.perf_counter()
        return (between - began) / count * 1e6, (ended - between) / count * 1e6

    enter, booked_enter = timed(told.enter, 3 * size)
    step, booked_step = timed(told.decode, STEPS)
    leave, booked_leave = timed(told.leave, size)
    return Micros(step, (3 * enter + leave) / 4, booked_step, (3 * booked_enter + booked_leave) / 4)


def hot_path() -> None:
    """Print what the engine's thread pays."""
    rounds: dict[int, list[Micros]] = {size: [] for size in SIZES}
    for _ in range(ROUNDS):
        for size in SIZES:
            rounds[size].append(micros(size))
    for size, measured in rounds.items():
        figures = {name: statistics.median(getattr(each, name) for each in measured) for name in Micros.__slots__}
        print(
            f"{size:4d} sequences: {figures['step']:5.2f} µs a step (limit 10), {figures['transition']:5.2f} a transition "
            "(limit 2); "
            f"on the ledger's thread {figures['booked_step']:5.2f} and {figures['booked_transition']:5.2f}"
        )
    few, many = (rounds[size] for size in SIZES)
    ratio = statistics.median(b.step / a.step for a, b in zip(few, many, strict=True))
    booked = statistics.median(b.booked_step / a.booked_step for a, b in zip(few, many, strict=True))
    print(f"with {SIZES[1]} a step costs {ratio:.2f} times what it costs with {SIZES[0]}, and {booked:.2f} times to book")


@dataclass(frozen=True, slots=True)
class Block:
    """What serving a batch took: seconds by the wall, of the process's CPU, and in a step on average."""

    wall_s: float
    cpu_s: float
    step_s: float


def serve(engine: CpuEngine, seed: int) -> Block:
    """Serve 32 requests from their prompts to their ends, and wait until what was told of them is delivered."""
    draw = random.Random(seed)
    asks = [Ask(0, f"tenant-{at % TENANTS}", draw.choices(range(32, 127), k=PROMPT), OUTPUT) for at in range(BATCH)]
    before, cpu, began = engine.steps, time.process_time(), time.perf_counter()
    engine.serve(asks)
    took = time.perf_counter() - began
    time.sleep(1.5 * PERIOD_S)
    return Block(took, time.process_time() - cpu, took / (engine.steps - before))


class Counting(Discard):
    """Acknowledges everything, and counts bytes."""

    received = 0

    def do_POST(self) -> None:  # noqa: N802  (the base class names it so)
        """Count, and forget."""
        Counting.received += int(self.headers["Content-Length"])
        super().do_POST()


def count(port: Connection) -> None:
    """Answer until killed, and say how many bytes came when asked."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port.send(server.server_address[1])
    while True:
        port.recv()
        port.send(Counting.received)


@contextmanager
def sink() -> Iterator[tuple[str, Callable[[], int]]]:
    """A collector that discards, in another process; its address, and how many bytes it had."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=count, args=(theirs,), daemon=True)
    process.start()

    def received() -> int:
        ours.send(None)
        return int(ours.recv())

    yield f"http://127.0.0.1:{ours.recv()}", received
    process.terminate()


def overhead(pairs: int) -> None:
    """Print how much slower an engine is with a recorder."""
    torch.set_num_threads(1)
    executor = TorchExecutor(tiny().model, CONFIG)
    blocks: list[tuple[Block, Block]] = []
    with sink() as (collector, received):
        recorder = Recorder(collector=collector, project="bench", device_kind="cpu")
        hooked, bare = CpuEngine(executor, CONFIG, recorder), CpuEngine(executor, CONFIG, NullObserver())
        for engine in (hooked, bare):  # the first time is slower
            serve(engine, 0)
        for pair in range(pairs):
            # Both orders in turn, so that a machine that gets slower or faster favours neither.
            if pair % 2:
                blocks.append((serve(hooked, pair), serve(bare, pair)))
            else:
                without = serve(bare, pair)
                blocks.append((serve(hooked, pair), without))
        hooked.stop()
        sent = received()
    for name, what in (("time a batch", "wall_s"), ("time a step", "step_s"), ("CPU time, all threads", "cpu_s")):
        show(name, [getattr(with_, what) / getattr(without, what) - 1 for with_, without in blocks])
    print(f"on the wire: {sent / (pairs + 1) / BATCH:,.0f} bytes a request, {OUTPUT + 8} steps for {BATCH} requests included")


def show(name: str, ratios: Sequence[float]) -> None:
    """Print a median with the middle half of the pairs."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"with hooks {name}: {middle:+.2%} (median of {len(ratios)} pairs; half of them {low:+.2%} to {high:+.2%}; limit +1 %)"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What being observed costs an engine.")
    parser.add_argument("--pairs", type=int, default=24, metavar="N", help="batches with and without (default: %(default)s)")
    asked = parser.parse_args()
    hot_path()
    overhead(asked.pairs)


if __name__ == "__main__":
    main()
