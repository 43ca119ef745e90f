"""What observing costs: µs a call beside a raw OpenTelemetry span with the same attributes, paired in one run, medians.

Run: ``python benchmarks/sdk.py``. Both kinds leave through the same provider to a collector that discards, in another process.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing.connection import Connection

import costspan
from costspan import Kind, _runtime, semconv

ROUNDS = 41
CALLS = 500


class Discard(BaseHTTPRequestHandler):
    """Acknowledges everything."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Read and forget."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class names it so)
        """Say nothing."""


def serve(port: Connection) -> None:
    """Answer until killed."""
    server = HTTPServer(("127.0.0.1", 0), Discard)
    port.send(server.server_address[1])
    server.serve_forever()


@costspan.observe(name="work", kind=Kind.TOOL)
def observed() -> None:
    """Do nothing, observed."""


def plain() -> None:
    """Do nothing."""


def raw() -> None:
    """Do nothing in a span of OpenTelemetry's, with what an observed call says."""
    runtime = _runtime.current()
    assert runtime is not None  # noqa: S101  (the benchmark has just initialised it)
    attributes = {semconv.KIND: "tool", semconv.TENANT: "acme", semconv.FEATURE: "search", semconv.UNIT: "T-1"}
    with runtime.tracer.start_as_current_span("work", attributes=attributes) as span:
        span.set_attribute(semconv.OUTCOME, "ok")


@costspan.observe(name="items")
def items() -> Iterator[int]:
    """Yield, observed."""
    yield from range(CALLS)


def generate() -> None:
    """One metered call of no tokens."""
    with costspan.generation(model="m", provider="p") as call:
        call.headers()


def metered() -> None:
    """One metered call of many tokens."""
    with costspan.generation(model="m", provider="p") as call:
        for _ in call.meter(range(CALLS)):
            pass


def microseconds(work: Callable[[], object]) -> float:
    """Time ``CALLS`` runs of ``work``, a run."""
    costspan.flush()
    began = time.perf_counter()
    for _ in range(CALLS):
        work()
    return (time.perf_counter() - began) / CALLS * 1e6


def main() -> None:
    """Measure and print."""
    print(f"observed call before init(): {statistics.median(microseconds(observed) for _ in range(ROUNDS)):.2f} µs")
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    costspan.init(endpoint=f"http://127.0.0.1:{ours.recv()}")
    with costspan.unit("ticket", "T-1", tenant="acme", feature="search"):
        pairs = [(microseconds(raw), microseconds(observed)) for _ in range(ROUNDS)]
        calls = statistics.median(microseconds(generate) for _ in range(ROUNDS))
        steps = statistics.median(per_item(lambda: list(items())) for _ in range(ROUNDS))
        tokens = statistics.median(per_item(metered) for _ in range(ROUNDS))
    costspan.shutdown()
    server.terminate()
    raw_us, observed_us = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(ours_us / raw_us for raw_us, ours_us in pairs)
    print(f"raw OpenTelemetry span:      {raw_us:.2f} µs")
    print(f"observed call:               {observed_us:.2f} µs, {ratio:.2f} of raw (median of {ROUNDS} paired rounds)")
    print(f"metered call with headers:   {calls:.2f} µs")
    print(f"observed generator, an item: {steps:.2f} µs")
    print(f"metered stream, a token:     {tokens:.2f} µs")


def per_item(work: Callable[[], object]) -> float:
    """Time one run of ``work``, an item of the ``CALLS`` in it."""
    costspan.flush()
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) / CALLS * 1e6


if __name__ == "__main__":
    main()
