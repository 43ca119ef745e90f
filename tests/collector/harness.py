"""A collector in a process of its own, and payloads to send to it."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from email.message import Message
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import clickhouse_connect
import httpx
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # ships no types
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from costspan import semconv
from costspan_collector.wal.record import Record

PROTOBUF = "application/x-protobuf"
ARROW = "application/vnd.apache.arrow.stream"
_READY = re.compile(r"collector ready: (https?://\S+)  store: (https?://\S+)  gRPC: (\d+)")


class Batch(NamedTuple):
    body: bytes
    ids: list[str]


def spans(count: int, seed: int = 0, start_ns: int = 1_790_000_000_000_000_000) -> Batch:
    """An OTLP request with engine-like spans, and their ids."""
    rng = random.Random(seed)
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    for key, value in ((semconv.SERVICE_NAME, "engine"), (semconv.SERVICE_INSTANCE, "engine-1"), (semconv.FEATURE, "chat")):
        resource.resource.attributes.add(key=key).value.string_value = value
    scope = resource.scope_spans.add()
    for at in range(count):
        span = scope.spans.add(trace_id=rng.randbytes(16), span_id=rng.randbytes(8), name="decode")
        span.start_time_unix_nano = start_ns + at
        span.end_time_unix_nano = start_ns + at + 5_000
        span.attributes.add(key=semconv.KIND).value.string_value = semconv.Kind.ENGINE_PHASE.value
        span.attributes.add(key=semconv.TENANT).value.string_value = f"tenant-{at % 3}"
        span.attributes.add(key=semconv.ATTEMPT).value.int_value = 2
    return Batch(request.SerializeToString(), [span.span_id.hex() for span in scope.spans])


def delivery(sequence: int, *, client: str = "sender", items: int = 1, project: str = "acme") -> dict[str, str]:
    """The headers of a numbered payload."""
    return {
        semconv.HEADER_PROJECT: project,
        semconv.HEADER_CLIENT: client,
        semconv.HEADER_SEQUENCE: str(sequence),
        semconv.HEADER_ITEMS: str(items),
        semconv.HEADER_TOTAL: str(sequence * items),
    }


def evictions(steps: Iterable[int | None], schema: Mapping[str, pa.DataType] | None = None) -> pa.Table:
    """Rows of the table ``evictions``, or of something much like it."""
    rows = [
        {
            "project": "acme",
            "engine": "e",
            "at_ns": 1_000 + (step or 0),
            "step": step,
            "victim": "a",
            "culprit": "b",
            "tokens": 16,
        }
        for step in steps
    ]
    kinds: dict[str, pa.DataType] = {
        "project": pa.string(),
        "engine": pa.string(),
        "at_ns": pa.int64(),
        "step": pa.int64(),
        "victim": pa.string(),
        "culprit": pa.string(),
        "tokens": pa.uint32(),
    }
    return pa.Table.from_pylist(rows, schema=pa.schema(kinds | dict(schema or {})))


def ipc(table: pa.Table, compression: Literal["lz4", "zstd"] | None = None) -> bytes:
    """A table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def record(sequence: int, payload: bytes, *, stream: str = "spans", client: str = "sender", items: int = 1) -> Record:
    """A record of the log."""
    return Record(
        "acme", client, stream, sequence, items, items * sequence, 1_790_000_000_000_000_000 + sequence * 1_000_000, payload
    )


def sentence(answer: httpx.Response) -> str:
    """Why a payload was refused: what OTLP's paths answer is a ``google.rpc.Status``."""
    if answer.headers["content-type"] == PROTOBUF:
        return str(Status.FromString(answer.content).message)
    said = answer.json()
    return str(said.get("message") or said["error"])


class Running:
    """A collector process."""

    def __init__(self, data: Path, *options: str) -> None:
        self.data = data
        command = [
            sys.executable,
            "-m",
            "costspan.cli",
            "collector",
            "--data",
            str(data),
            "--port",
            "0",
            "--store-port",
            "0",
            "--keep",
            "rows=forever",  # what tests send is from when they were written
            "--keep",
            "signals=forever",
            "--keep",
            "rollups=forever",
            *options,
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr
        self._stderr: IO[str] = self.process.stderr
        lines: list[str] = []
        for line in self._stderr:
            lines.append(line)
            if ready := _READY.match(line):
                self.url, self.store, self.grpc = ready[1], ready[2], f"127.0.0.1:{ready[3]}"
                return
        raise AssertionError("".join(lines))

    def post(self, path: str, body: bytes, kind: str = PROTOBUF, headers: Mapping[str, str] | None = None) -> httpx.Response:
        return httpx.post(
            self.url + path, content=body, headers={"content-type": kind, **(headers or {})}, timeout=20, trust_env=False
        )

    def health(self) -> dict[str, Any]:
        state: dict[str, Any] = httpx.get(self.url + "/health", timeout=20, trust_env=False).json()
        return state

    def client(self, key: str = "") -> Client:
        return clickhouse_connect.get_client(dsn=self.store, password=key)

    def drained(self) -> None:
        """Wait until everything taken is in the store."""
        wait_until(lambda: self.health()["pending_bytes"] == 0)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self._wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self._wait()

    def _wait(self) -> int:
        status = self.process.wait(timeout=40)
        self._stderr.close()
        return status


def audited(store: str, project: str = "p") -> subprocess.CompletedProcess[str]:
    """What ``costspan audit`` says of a project."""
    command = [sys.executable, "-m", "costspan.cli", "audit", "--store", store, "--project", project]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def wait_until(true: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def get(url: str) -> tuple[int, Message, bytes]:
    """What curl would get."""
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()
