"""How fast the collector takes spans (acknowledged, so fsynced) and how fast they become rows, in one run on this machine.

Usage: python benchmarks/ingest.py [--payloads N] [--senders N]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import clickhouse_connect
import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans

from costspan import semconv
from costspan.clock import now_ns

REQUESTS_PER_PAYLOAD = 170
PHASES = (semconv.Phase.QUEUE, semconv.Phase.CACHE_HIT, semconv.Phase.PREFILL, semconv.Phase.DECODE, semconv.Phase.STREAM)
SPANS_PER_PAYLOAD = REQUESTS_PER_PAYLOAD * (1 + len(PHASES))
READY = re.compile(r"collector ready: (\S+)  store: (\S+)")


def payload(rng: random.Random) -> bytes:
    """One export of an engine: request spans, each with its phases under it."""
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    engine = {semconv.SERVICE_NAME: "costspan-engine", semconv.SERVICE_INSTANCE: f"engine-{rng.randrange(4)}"}
    resource.resource.attributes.extend(attributes(engine))
    scope = resource.scope_spans.add()
    for _ in range(REQUESTS_PER_PAYLOAD):
        add_request(scope, rng)
    return request.SerializeToString()


def add_request(scope: ScopeSpans, rng: random.Random) -> None:
    """A request span and a span for each of its phases."""
    trace_id, root, at_ns = rng.randbytes(16), rng.randbytes(8), now_ns()
    who: dict[str, str | int | float] = {
        semconv.TENANT: f"tenant-{rng.randrange(50)}",
        semconv.FEATURE: rng.choice(("chat", "search", "summary")),
        semconv.UNIT: f"ticket-{rng.randrange(10**6)}",
        semconv.ATTEMPT: 1,
    }
    durations = [rng.randrange(1_000_000, 900_000_000) for _ in PHASES]
    whole = scope.spans.add(trace_id=trace_id, span_id=root, name="engine request", start_time_unix_nano=at_ns)
    whole.end_time_unix_nano = at_ns + sum(durations)
    usage = {semconv.GEN_AI_INPUT_TOKENS: rng.randrange(4000), semconv.GEN_AI_OUTPUT_TOKENS: rng.randrange(800)}
    about = {semconv.KIND: "engine_request", semconv.OUTCOME: "ok", semconv.GEN_AI_REQUEST_MODEL: "llama-8b"}
    whole.attributes.extend(attributes(who | about | usage))
    for phase, duration in zip(PHASES, durations, strict=True):
        span = scope.spans.add(trace_id=trace_id, span_id=rng.randbytes(8), parent_span_id=root, name=phase.value)
        span.start_time_unix_nano, span.end_time_unix_nano = at_ns, at_ns + duration
        about = {semconv.KIND: "engine_phase", semconv.PHASE: phase.value}
        span.attributes.extend(attributes(who | about | {"costspan.solo_ns": duration * rng.random()}))
        at_ns += duration


def attributes(values: Mapping[str, str | int | float]) -> Iterator[KeyValue]:
    """Values as OTLP attributes."""
    for key, value in values.items():
        attribute = KeyValue(key=key)
        kind = {str: "string_value", int: "int_value", float: "double_value"}[type(value)]
        setattr(attribute.value, kind, value)
        yield attribute


@contextmanager
def collector(data: str) -> Iterator[tuple[str, str]]:
    """A collector with an embedded store, in a process of its own; its two URLs."""
    command = [sys.executable, "-m", "costspan.cli", "collector", "--data", data, "--port", "0", "--store-port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            ready = READY.match(process.stderr.readline() if process.stderr else "")
            if not ready:
                raise SystemExit("the collector did not start")
            yield ready[1], ready[2]
        finally:
            process.terminate()


def send(url: str, bodies: list[bytes], client: str) -> None:
    """Send payloads one after the other, each acknowledged."""
    with httpx.Client(timeout=60, trust_env=False) as session:
        for sequence, body in enumerate(bodies):
            headers = {
                "content-type": "application/x-protobuf",
                semconv.HEADER_CLIENT: client,
                semconv.HEADER_SEQUENCE: str(sequence),
                semconv.HEADER_ITEMS: str(SPANS_PER_PAYLOAD),
            }
            session.post(url + "/v1/traces", content=body, headers=headers).raise_for_status()


def measure(payloads: int, senders: int) -> dict[str, float]:
    """Send everything, wait until it can be queried, and say how long both took."""
    rng = random.Random(7)
    bodies = [payload(rng) for _ in range(payloads)]
    total = payloads * SPANS_PER_PAYLOAD
    with tempfile.TemporaryDirectory() as data, collector(data) as (url, store):
        client = clickhouse_connect.get_client(dsn=store)
        threads = [threading.Thread(target=send, args=(url, bodies[at::senders], f"sender-{at}")) for at in range(senders)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        acknowledged = time.perf_counter() - started
        while client.query("SELECT count() FROM spans").result_rows[0][0] < total:
            time.sleep(0.05)
        queryable = time.perf_counter() - started
        disk = client.query("SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND table = 'spans'").result_rows[0][0]
    return {
        "spans": total,
        "payload_bytes_per_span": round(sum(map(len, bodies)) / total, 1),
        "acknowledged_spans_per_s": round(total / acknowledged),
        "queryable_spans_per_s": round(total / queryable),
        "stored_bytes_per_span": round(disk / total, 1),
        "cores": os.cpu_count() or 0,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--payloads", type=int, default=400, help=f"exports of {SPANS_PER_PAYLOAD} spans (default: %(default)s)"
    )
    parser.add_argument("--senders", type=int, default=4, help="threads that send (default: %(default)s)")
    given = parser.parse_args()
    print(json.dumps(measure(given.payloads, given.senders), indent=2))
