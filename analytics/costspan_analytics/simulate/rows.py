"""A simulated scenario's rows, put into a store the way that a collector puts those of real engines there."""

from __future__ import annotations

import atexit
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from decimal import Decimal
from functools import cache
from pathlib import Path

import pyarrow as pa
from clickhouse_connect.driver.client import Client
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from costspan.semconv import SERVICE_INSTANCE, SERVICE_NAME, SKU_GPU_HOUR
from costspan_analytics.book import CURRENCY
from costspan_analytics.errors import AnalyticsError
from costspan_analytics.store import Store
from costspan_collector.store.clickhouse import apply_schema, connect_embedded, own
from costspan_collector.store.sinks import LedgerSink, SignalSink
from costspan_collector.store.tables import SPANS, arrow_schema
from costspan_collector.wal.record import Record, encode
from costspan_engine.simulate.life import Life
from costspan_engine.simulate.scenario import Scenario
from costspan_engine.simulate.world import EPOCH_NS, Ids, Kept, Played, Show, play
from costspan_hooks import wire
from costspan_hooks.records import AttemptRecord, EngineRecord, EvictionRecord, SampleRecord, StepRecord
from costspan_hooks.spans import PhaseSpans

BEAT_NS = 1_000_000_000
_SPANS_IN_ONE = 20_000
_HOST = "simulated"
_STORE = "store"
"""Where a collector looks for it in its data folder."""


@contextmanager
def scratch(kept: Path | None = None) -> Iterator[Client]:
    """An embedded store in a folder that is gone afterwards, or in one that is kept; this process may have no other open.

    Raises:
        StartError: The folder to be kept cannot be written, or another process owns it.
        AnalyticsError: There is a store in it.
    """
    with tempfile.TemporaryDirectory(prefix="costspan-") as folder:
        data = (kept or Path(folder)).absolute()
        if (data / _STORE).exists():
            raise AnalyticsError(f"{kept} holds a store: give another folder with --out, or remove it.")
        lock = own(data)
        try:
            client = _connect(data / _STORE)
            try:
                apply_schema(client)
                yield client
            finally:
                client.close()
        finally:
            os.close(lock)


def _connect(store: Path) -> Client:
    """Open a store; chDB keeps a cache of schemas where it was first opened, for as long as the process lives."""
    before = Path.cwd()
    os.chdir(_cache())
    try:
        return connect_embedded(store)
    finally:
        os.chdir(before)


@cache
def _cache() -> str:
    folder = tempfile.TemporaryDirectory(prefix="costspan-cache-")
    atexit.register(folder.cleanup)
    return folder.name


def simulate(client: Client, scenario: Scenario, project: str, show: Show = lambda _: None) -> Store:
    """Play a scenario and store what it left.

    Args:
        client: An embedded store's, with the schema.
        scenario: What to play.
        project: Under whose name its rows go.
        show: Told now and then which share is played.

    Raises:
        CostspanEngineError: The scenario asks for what cannot be.
    """
    played = play(scenario, show)
    intake = _Intake(client, project)
    intake.spans("callers", played.spans)
    for life in played.lives:
        _store_engine(intake, life, played, scenario.seed)
    intake.rows("prices", _HOST, _prices(project, scenario, played))
    intake.rows("gpu_samples", _HOST, wire.gpu_samples(project, list(_heartbeats(played))))
    return Store(client, project)


class _Intake:
    """Writes payloads as the collector's writer does, numbered by sender and stream."""

    def __init__(self, client: Client, project: str) -> None:
        self._client, self.project = client, project

    def rows(self, table: str, sender: str, rows: pa.Table) -> None:
        """A ledger table's."""
        if not rows.num_rows:
            return
        body = pa.BufferOutputStream()
        with pa.ipc.new_stream(body, rows.schema) as writer:
            writer.write_table(rows)
        payload = body.getvalue().to_pybytes()
        record = Record(self.project, sender, table, 1, rows.num_rows, rows.num_rows, EPOCH_NS, payload)
        sink = LedgerSink(table, arrow_schema(self._client, table))
        sink.insert(self._client, encode(record), f"{self.project}/{table}/{sender}")

    def spans(self, sender: str, spans: Sequence[ReadableSpan]) -> None:
        """A sender's spans."""
        total = 0
        for number, first in enumerate(range(0, len(spans), _SPANS_IN_ONE), start=1):
            some = spans[first : first + _SPANS_IN_ONE]
            total += len(some)
            payload = encode_spans(some).SerializeToString()
            record = Record(self.project, sender, SPANS, number, len(some), total, EPOCH_NS, payload)
            SignalSink(SPANS).insert(self._client, encode(record), f"{self.project}/{SPANS}/{sender}/{number}")


def _store_engine(intake: _Intake, life: Life, played: Played, seed: int) -> None:
    """What an engine's recorder would have shipped."""
    origin = wire.Origin(intake.project, life.name, life.gpu)
    written = {call.request_id: call.written() for call, served in played.calls.items() if served is life}
    spans: list[ReadableSpan] = []
    resource = Resource({SERVICE_NAME: "costspan-engine", SERVICE_INSTANCE: life.name})
    provider = TracerProvider(
        id_generator=Ids(zlib.crc32(f"{seed}/{life.name}".encode())), resource=resource, shutdown_on_exit=False
    )
    provider.add_span_processor(Kept(spans))
    phases = PhaseSpans(provider)
    attempts = [record for record in life.records if isinstance(record, AttemptRecord)]
    delivered = [phases.emit(record, *written[record.request.request_id]) for record in attempts]
    intake.spans(life.name, spans)
    tables: dict[str, pa.Table] = {
        "attempts": wire.attempts(origin, delivered),
        "steps": wire.steps(origin, [record for record in life.records if isinstance(record, StepRecord)]),
        "evictions": wire.evictions(origin, [record for record in life.records if isinstance(record, EvictionRecord)]),
        "engines": wire.engines(origin, [record for record in life.records if isinstance(record, EngineRecord)]),
    }
    for table, rows in tables.items():
        intake.rows(table, life.name, rows)


def _heartbeats(played: Played) -> Iterator[SampleRecord]:
    for device in played.devices:
        for since_ns in range(device.since_ns, played.end_ns, BEAT_NS):
            until_ns = min(since_ns + BEAT_NS, played.end_ns)
            yield SampleRecord(_HOST, str(device.number), device.gpu, _HOST, since_ns, until_ns, None, None, None, None)


def _prices(project: str, scenario: Scenario, played: Played) -> pa.Table:
    skus = [f"{SKU_GPU_HOUR}.{gpu}" for gpu in sorted({device.gpu for device in played.devices})]
    columns: dict[str, tuple[pa.DataType, object]] = {
        "project": (pa.string(), project),
        "unit": (pa.string(), "hour"),
        "rate": (pa.decimal128(38, 12), Decimal(str(scenario.engine.gpu_usd_per_hour))),
        "currency": (pa.string(), CURRENCY),
        "effective_from": (pa.timestamp("ms", tz="UTC"), datetime.fromtimestamp(0, timezone.utc)),
        "source": (pa.string(), f"scenario {scenario.name}"),
        "version": (pa.string(), ""),
    }
    same = {name: pa.array([value] * len(skus), kind) for name, (kind, value) in columns.items()}
    return pa.table({"sku": pa.array(skus, pa.string()), **same})
