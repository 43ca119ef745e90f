"""What the collector takes, on two cores with the embedded store: how fast, how late, in how much memory and on how much disk.

The spans are those of ``benchmarks/spans.py``, sent uncompressed, about a thousand to a payload, each payload numbered.

1. *From socket to queryable row*: spans are sent for a minute, as fast as the store follows: nothing is sent while more than
   256 MB of the log waits for it, which is four seconds' worth. Rows that can be queried when the minute is over count, those
   that still wait do not. The load generator runs on the same two cores.
2. *Acknowledgement*: payloads at half the wanted rate of the first, due at random instants whatever the collector does, and
   timed from the instant they were due.
3. *Disk*: the collector ends, the parts of the store are merged to one a day, and their bytes are counted.
4. *The intake alone*: a collector whose store is away takes spans as fast as it can: checked, in the log, fsynced and
   acknowledged. Its processor time counts, all its threads included.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import clickhouse_connect
import httpx
import numpy as np
from clickhouse_connect.driver.client import Client

from benchmarks.load import Load, Sent, sending
from benchmarks.spans import Traffic
from costspan_collector.settings import MIB
from costspan_collector.store.clickhouse import connect_embedded

CORES = 2
LEAST_ACCEPTED, LEAST_QUERYABLE = 250_000, 150_000  # spans/s
MOST_ACK_S, MOST_MEMORY, MOST_DISK = 0.050, 1.5e9, 30
LONGEST_ALONE_S = 6.0  # the log of the intake alone may not outgrow its disk budget
MOST_PENDING_BYTES = 256 * MIB
NOWHERE = "http://127.0.0.1:9"  # a store that is away
READY = re.compile(r"collector ready: (\S+)  store: (\S+)")
ROTEL = "clickhouse.com/blog/otel-to-rotel-petabyte-scaling-tracing-4x-greater-throughput"
JAEGER = "thenewstack.io/jaeger-clickhouse-storage-backend"


@dataclass(frozen=True)
class Collector:
    """A collector in a process of its own.

    Attributes:
        url: Its intake.
        store: Its store.
        pid: Its process.
    """

    url: str
    store: str
    pid: int

    def cpu_s(self) -> float:
        """Processor time of all its threads so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_bytes(self) -> int:
        """The most memory it has held at once."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def health(self, *keys: str) -> int:
        """A number out of what it says of itself."""
        state = httpx.get(self.url + "/health", timeout=60, trust_env=False).json()
        for key in keys:
            state = state[key]
        return int(state)


@contextmanager
def running(data: str, *options: str) -> Iterator[Collector]:
    """A collector, until left; then everything it took is in the store."""
    command = [sys.executable, "-m", "costspan.cli", "collector", "--data", data, "--port", "0", "--store-port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr or ():
                if ready := READY.match(line):
                    yield Collector(ready[1], ready[2], process.pid)
                    return
            raise SystemExit("the collector did not start")
        finally:
            process.terminate()


@dataclass(frozen=True)
class Flow:
    """What became of spans that were sent as fast as the store followed.

    Attributes:
        sent: What was sent.
        queryable: Rows that could be queried when the time was over.
        seconds: That time.
        drained_s: How much later everything could be queried.
        stored: Rows then.
    """

    sent: Sent
    queryable: int
    seconds: float
    drained_s: float
    stored: int


def sustained(collector: Collector, seconds: float) -> Flow:
    """Send as fast as the store follows, and count what can be queried."""
    with clickhouse_connect.get_client(dsn=collector.store) as client:
        with sending(Load(collector.url, seconds, most_pending_bytes=MOST_PENDING_BYTES, seed=1)) as sender:
            started = time.perf_counter()
            while (passed := time.perf_counter() - started) < seconds:
                show(f"sustained: {passed:.0f} of {seconds:.0f} s, {rows(client):,} spans can be queried")
                time.sleep(min(1.0, seconds - passed))
            queryable, seconds = rows(client), time.perf_counter() - started
        sent: Sent = sender.recv()
        while collector.health("pending_bytes"):
            time.sleep(0.02)
        return Flow(sent, queryable, seconds, time.perf_counter() - started - seconds, rows(client))


def acknowledged(collector: Collector, seconds: float) -> Sent:
    """Send at half the wanted rate, payloads due at random instants."""
    rate = LEAST_QUERYABLE / 2 / Traffic(2, pages=4).spans_per_payload
    with sending(Load(collector.url, seconds, senders=32, payloads_per_s=rate, seed=2)) as sender:
        started = time.perf_counter()
        while not sender.poll(1):
            show(f"acknowledgement: {time.perf_counter() - started:.0f} of {seconds:.0f} s")
        sent: Sent = sender.recv()
    return sent


def alone(seconds: float) -> tuple[Sent, float, int]:
    """Send to an intake without a store: what was sent, the collector's processor time, and bytes in its log."""
    with tempfile.TemporaryDirectory() as data, running(data, "--store", NOWHERE) as collector:
        with sending(Load(collector.url, seconds, seed=3)) as sender:
            show(f"intake alone: {seconds:.0f} s")
            before_s = collector.cpu_s()
            sent: Sent = sender.recv()
        return sent, collector.cpu_s() - before_s, collector.health("log", "used_bytes")


def merged_bytes(data: str) -> float:
    """Bytes a span on disk once everything is merged."""
    with connect_embedded(Path(data) / "store") as client:
        client.command("OPTIMIZE TABLE spans FINAL")
        held = "SELECT sum(bytes_on_disk), sum(rows) FROM system.parts WHERE active AND table = 'spans'"
        on_disk, count = client.query(held).result_rows[0]
    return float(on_disk / count)


def rows(client: Client) -> int:
    """Spans that can be queried."""
    return int(client.query("SELECT count() FROM spans").result_rows[0][0])


class Finding(NamedTuple):
    """A figure beside what it should be."""

    what: str
    seen: str
    wanted: str
    holds: bool
    notes: tuple[str, ...] = ()


def measure(seconds: float) -> Iterator[Finding]:
    """Measure everything."""
    with tempfile.TemporaryDirectory() as data:
        with running(data) as collector:
            flow = sustained(collector, seconds)
            first_peak = collector.peak_bytes()
            acks = acknowledged(collector, max(seconds / 2, 5))
            peak = collector.peak_bytes()
        show("merging")
        disk = merged_bytes(data)
    yield _queryable(flow)
    yield _acknowledgement(acks)
    yield Finding(
        "peak memory of the collector",
        f"{peak / 1e6:,.0f} MB",
        f"<= {MOST_MEMORY / 1e6:,.0f} MB",
        peak <= MOST_MEMORY,
        (f"VmHWM; {first_peak / 1e6:,.0f} MB after the first part",),
    )
    yield Finding(
        "on disk after merges",
        f"{disk:.1f} bytes/span",
        f"<= {MOST_DISK}",
        disk <= MOST_DISK,
        (f"known: Jaeger on ClickHouse 75.7 ({JAEGER})",),
    )
    yield _accepted(*alone(min(seconds, LONGEST_ALONE_S)))


def _queryable(flow: Flow) -> Finding:
    rate = flow.queryable / flow.seconds
    behind = flow.sent.spans - flow.queryable
    return Finding(
        "from socket to queryable row",
        f"{rate:,.0f} spans/s",
        f">= {LEAST_QUERYABLE:,}",
        rate >= LEAST_QUERYABLE and flow.stored == flow.sent.spans,
        (
            f"sustained for {flow.seconds:.0f} s, load generator ({flow.sent.cpu_s / flow.sent.seconds:.2f} cores) included",
            f"{behind:,} spans were on their way in the end, and in the store {flow.drained_s:.1f} s later",
            f"{flow.sent.spans:,} spans sent, {flow.stored:,} stored",
            f"known: Jaeger on ClickHouse 52,000 ({JAEGER})",
        ),
    )


def _acknowledgement(acks: Sent) -> Finding:
    median, p99, longest = np.quantile(acks.waited_s, (0.5, 0.99, 1.0)) * 1_000
    return Finding(
        "acknowledgement, p99",
        f"{p99:.1f} ms",
        f"<= {MOST_ACK_S * 1_000:.0f} ms",
        p99 <= MOST_ACK_S * 1_000,
        (
            f"p50 {median:.1f} ms, max {longest:.1f} ms, of {acks.payloads:,} payloads",
            f"at {acks.spans / acks.seconds:,.0f} spans/s, from the instant each was due",
        ),
    )


def _accepted(sent: Sent, cpu_s: float, log_bytes: int) -> Finding:
    per_core = sent.spans / cpu_s
    payload = Traffic(4, pages=1).payload(time.time_ns())
    packed = len(gzip.compress(payload.body, 1)) / payload.spans
    return Finding(
        "accepted and fsynced, the intake alone",
        f"{per_core:,.0f} spans/s a core",
        f">= {LEAST_ACCEPTED:,}",
        per_core >= LEAST_ACCEPTED,
        (
            f"{sent.spans / sent.seconds:,.0f} spans/s, load generator on the same cores ({sent.cpu_s / sent.seconds:.2f})",
            f"{sent.body_bytes / sent.spans:.0f} bytes/span on the wire ({packed:.0f} with gzip)",
            f"{log_bytes / sent.spans:.0f} in the log",
            f"known: OpenTelemetry Collector 137,000, Rotel 462,000 a core, collectors alone ({ROTEL})",
        ),
    )


def show(progress: str) -> None:
    """Say on standard error how far it is."""
    if sys.stderr.isatty():
        print(f"\r\033[K{progress}", end="", file=sys.stderr, flush=True)
    elif progress:
        print(progress, file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, metavar="N", help="how long spans are sent (default: %(default)s)")
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    print(f"{len(os.sched_getaffinity(0))} cores, data under {tempfile.gettempdir()}")
    for finding in measure(given.seconds):
        show("")
        print(f"{'ok  ' if finding.holds else 'MISS'} {finding.what:40} {finding.seen:>24}   wanted {finding.wanted}")
        for note in finding.notes:
            print(f"       {note}")


if __name__ == "__main__":
    main()
