"""A store filled with a small, consistent workload, and the truth about it.

Three tenants work tickets on one engine (``sample_engine``) on a virtual clock that ends a minute ago. Everything goes the
way that real traffic goes: the ledger's rows as Arrow, spans as OTLP, to a real collector with the embedded store.
"""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, set_span_in_context

from costspan import semconv
from costspan.clock import now_ns
from costspan.delivery import Delivery
from costspan.semconv import Kind, Outcome
from costspan.tracing import make_provider
from costspan_hooks import Removal, RequestInfo, wire
from costspan_hooks.records import AttemptRecord, EvictionRecord, SampleRecord, Segment, StepRecord
from costspan_hooks.spans import PhaseSpans
from tests.analytics.sample_engine import MS, Ask, Engine

DEVICE_KIND = "cpu-sample"
GPU_HOURS = f"{semconv.SKU_GPU_HOUR}.{DEVICE_KIND}"
QUERIES = "retrieval_queries"
RATES = {GPU_HOURS: Decimal("32.00"), QUERIES: Decimal("0.0005"), semconv.SKU_REVIEW_MINUTES: Decimal("0.60")}
TENANTS = ("acme", "globex", "initech")
NS_PER_HOUR = Decimal(3_600_000_000_000)
ADAPTER = "support-lora"
WIRE_NS = MS // 2  # one way between client and server
CLIENT_NS = MS // 5  # the client's own work before sending and after the last byte
_START = 5_000 * MS  # of traffic, after the engine's boot
_LENGTH = 45_000 * MS  # from boot to the end of the window


@dataclass
class Truth:
    """What was really done, counted where it was done and not read from the store."""

    project: str
    since_ns: int
    until_ns: int
    requests: int = 0
    aborted: int = 0
    units: int = 0
    resolved: int = 0
    after_abort_tokens: int = 0
    retried: int = 0
    invalid: int = 0
    engine_ns: int = 0
    device_ns: int = 0
    quantities: dict[str, Decimal] = field(
        default_factory=lambda: dict.fromkeys((QUERIES, semconv.SKU_REVIEW_MINUTES), Decimal(0))
    )

    @property
    def bill(self) -> Decimal:
        """US dollars: device hours by heartbeat, and what the vendors counted."""
        return self.device_ns / NS_PER_HOUR * RATES[GPU_HOURS] + self._vendors

    @property
    def posted(self) -> Decimal:
        """US dollars: the engine's life, and what the app used."""
        return self.engine_ns / NS_PER_HOUR * RATES[GPU_HOURS] + self._vendors

    @property
    def _vendors(self) -> Decimal:
        return sum((quantity * RATES[sku] for sku, quantity in self.quantities.items()), Decimal(0))


@dataclass(frozen=True)
class Running:
    """A collector with its embedded store."""

    collector: str
    store: str


def fill(
    collector: str,
    *,
    project: str = "sample",
    tickets: int = 60,
    seed: int = 7,
    hole_ns: int = 0,
    unledgered_ns: int = 0,
) -> Truth:
    """Send a workload to a collector and wait until it is stored.

    Args:
        collector: Its base URL.
        project: Whose rows they are.
        tickets: Units of work.
        seed: Of every draw.
        hole_ns: Cut off one decode segment of every tenth engine request, so that the phases fall short of the wall time.
        unledgered_ns: Device time that the heartbeat reports and no engine does, so that the bill exceeds the postings.
    """
    until = now_ns() - 60_000 * MS
    traffic = Traffic(collector, project, until - _LENGTH, until, seed)
    truth = traffic.run(tickets)
    Ledger(collector, project, traffic).send(hole_ns, unledgered_ns)
    wait_stored(collector)
    return truth


class Traffic:
    """The app's side: tickets, their calls and their spans."""

    def __init__(self, collector: str, project: str, since_ns: int, until_ns: int, seed: int) -> None:
        self.truth = Truth(project, since_ns, until_ns)
        self.random = random.Random(seed)
        self.engine = Engine(since_ns, seed)
        self.provider = _provider(collector, project, "support-app", f"app-{uuid.uuid4().hex[:8]}")
        self.tracer = self.provider.get_tracer("sample")
        self.written: dict[str, tuple[int, int]] = {}  # by request: last byte handed to the socket, tokens in it

    def run(self, tickets: int) -> Truth:
        at = self.truth.since_ns + _START
        for number in range(tickets):
            Ticket(self, number, at).open()
            at += round(self.random.expovariate(1.0) * 330 * MS)
        self.engine.run(self.truth.until_ns)
        self.provider.shutdown()
        self.truth.units = tickets
        self.truth.engine_ns = self.engine.stop_ns - self.engine.boot_ns
        return self.truth


class Ticket:
    """One unit of work: a retrieval, a generation (asked again where it fails), sometimes a review."""

    def __init__(self, traffic: Traffic, number: int, at_ns: int) -> None:
        self.traffic, self.number, self.at_ns = traffic, number, at_ns
        self.tenant = TENANTS[2] if number % 7 == 3 else TENANTS[number % 2]
        long = self.tenant == TENANTS[2]
        self.prompt = 1500 if long else traffic.random.randint(60, 260)
        self.output = traffic.random.randint(8, 16) if long else traffic.random.randint(15, 70)
        self.attempt = 0
        self.who: dict[str, str | int] = {
            semconv.TENANT: self.tenant,
            semconv.FEATURE: "summary" if long else "answer",
            semconv.UNIT: f"T-{number:04d}",
        }

    def open(self) -> None:
        self.unit = self._start("unit ticket", Kind.UNIT, self.at_ns, {semconv.UNIT_KIND: "ticket"})
        if self.number % 5:
            self.unit.set_attribute(semconv.UNIT_VALUE_USD, "0.75")
        searched = self.at_ns + 4 * MS
        queries = 2 if self.tenant == "globex" else 1
        found = self._start("search", Kind.RETRIEVAL, self.at_ns, {semconv.QUANTITY_PREFIX + QUERIES: str(queries)}, self.unit)
        found.end(searched)
        self.traffic.truth.quantities[QUERIES] += queries
        self.operation = self._start("answer", Kind.OPERATION, searched, {}, self.unit)
        self.ask(searched)

    def ask(self, at_ns: int) -> None:
        self.attempt += 1
        self.start_ns = at_ns
        operation = f"{_span_id(self.operation)}"
        given: dict[str, str | int] = {
            semconv.OPERATION: operation,
            semconv.ATTEMPT: self.attempt,
            semconv.GEN_AI_REQUEST_MODEL: "tiny",
        }
        self.call = self._start("chat tiny", Kind.GENERATION, at_ns, given, self.operation)
        self.abort_ns = at_ns + 500 * MS if self._times_out else 0
        received = at_ns + CLIENT_NS + WIRE_NS
        info = RequestInfo(
            request_id=f"req-{self.number:04d}-{self.attempt}",
            tenant=self.tenant,
            feature=str(self.who[semconv.FEATURE]),
            unit=str(self.who[semconv.UNIT]),
            attempt=self.attempt,
            trace_id=f"{self.call.get_span_context().trace_id:032x}",
            parent_span_id=_span_id(self.call),
            model="tiny",
            prompt_tokens=self.prompt,
            received_ns=received,
            enqueued_ns=received + MS // 5,
            has_server=True,
            adapter=ADAPTER if self._speculates else "",
        )
        ask = Ask(info, self.output, self.on_token, self.on_end)
        ask.disconnect_ns = self.abort_ns + WIRE_NS if self.abort_ns else 0
        if self.number > 5 and self.tenant == "acme":
            evicted = self.number % 12 == 6  # the long prompts of the third tenant pushed it out
            ask.cached, ask.evicted, ask.evicted_by = (0, 48, TENANTS[2]) if evicted else (32, 0, "")
        ask.drafts = 3 if self._speculates else 0
        if self.number == 16:
            ask.preempt_at, ask.preempted_by = 10, TENANTS[2]
        self.traffic.engine.submit(ask)

    @property
    def _times_out(self) -> bool:
        return self.number % 15 == 4 and self.attempt == 1

    @property
    def _speculates(self) -> bool:
        return self.number % 4 == 1 and not self._times_out and not self._stops_after

    @property
    def _stops_after(self) -> int:
        """The token after which the user has seen enough; 0 for never."""
        return 9 if self.number % 9 == 8 else 0

    def on_token(self, ask: Ask) -> None:
        """The user reads along, and may press stop a moment after a token is on the screen."""
        if not self.abort_ns and self._stops_after == len(ask.tokens_ns):
            self.abort_ns = ask.tokens_ns[-1] + WIRE_NS + 30 * MS
            ask.disconnect_ns = self.abort_ns + WIRE_NS

    def on_end(self, ask: Ask, removal: Removal) -> None:
        sent = removal.at_ns + MS // 4
        self.traffic.written[ask.info.request_id] = (sent, len(ask.tokens_ns))
        if self.abort_ns and sent + WIRE_NS <= self.abort_ns:
            self.abort_ns = 0  # the answer was whole before the user would have left
        read = [at + WIRE_NS for at in ask.tokens_ns if not self.abort_ns or at + WIRE_NS <= self.abort_ns]
        if self.abort_ns:
            outcome = Outcome.TIMEOUT if self._times_out else Outcome.CANCELLED if read else Outcome.ABANDONED
            end = self.abort_ns
        else:
            outcome, end = Outcome.OK, sent + WIRE_NS + CLIENT_NS
        invalid = outcome is Outcome.OK and self.number % 11 == 2 and self.attempt == 1
        self._end_call(outcome, read, sent, end, invalid=invalid)
        self._count(ask, outcome, invalid=invalid)
        if outcome is Outcome.TIMEOUT or invalid:
            self.ask(end + 20 * MS)
        else:
            self._close(outcome, end)

    def _end_call(self, outcome: Outcome, read: list[int], sent: int, end: int, *, invalid: bool) -> None:
        stamps = {
            semconv.CALL_START: self.start_ns,
            semconv.CALL_SENT: self.start_ns + CLIENT_NS,
            semconv.CALL_FIRST: read[0] if read else 0,
            semconv.CALL_LAST: sent + WIRE_NS if outcome is Outcome.OK else read[-1] if read else 0,
            semconv.CALL_ABORT: 0 if outcome is Outcome.OK else self.abort_ns,
            semconv.CALL_END: end,
        }
        self.call.set_attributes({key: stamp for key, stamp in stamps.items() if stamp})
        self.call.set_attributes({semconv.OUTCOME: outcome.value, semconv.CALL_DELIVERED: len(read)})
        if outcome is Outcome.OK:
            self.call.set_attributes({semconv.GEN_AI_INPUT_TOKENS: self.prompt, semconv.GEN_AI_OUTPUT_TOKENS: len(read)})
        if invalid:
            self.call.set_attribute(semconv.INVALID, "no citation")
        self.call.end(end)

    def _count(self, ask: Ask, outcome: Outcome, *, invalid: bool) -> None:
        truth = self.traffic.truth
        truth.requests += 1
        truth.aborted += outcome is not Outcome.OK
        truth.retried += outcome is Outcome.TIMEOUT
        truth.invalid += invalid
        if self.abort_ns:
            truth.after_abort_tokens += sum(at > self.abort_ns for at in ask.tokens_ns)

    def _close(self, outcome: Outcome, end_ns: int) -> None:
        self.operation.end(end_ns)
        if outcome is Outcome.OK and self.number % 6 == 1:
            minutes = Decimal("0.1")
            self._start(
                "review", Kind.REVIEW, end_ns, {semconv.QUANTITY_PREFIX + semconv.SKU_REVIEW_MINUTES: str(minutes)}, self.unit
            ).end(end_ns + 30_000 * MS)
            self.traffic.truth.quantities[semconv.SKU_REVIEW_MINUTES] += minutes
        resolved = outcome is Outcome.OK and self.number % 13 != 5
        self.traffic.truth.resolved += resolved
        self.unit.set_attribute(
            semconv.UNIT_STATUS, "resolved" if resolved else "rejected" if outcome is Outcome.OK else "open"
        )
        self.unit.end(end_ns)

    def _start(
        self, name: str, kind: Kind, at_ns: int, attributes: dict[str, str] | dict[str, str | int], parent: Span | None = None
    ) -> Span:
        return self.traffic.tracer.start_span(
            name,
            context=set_span_in_context(parent) if parent else None,
            start_time=at_ns,
            attributes={semconv.KIND: kind.value, **self.who, **attributes},
        )


class Ledger:
    """The engine's side: what its recorder would ship, and the bills."""

    def __init__(self, collector: str, project: str, traffic: Traffic) -> None:
        self._collector, self._project, self._traffic = collector, project, traffic
        self._client = f"engine-{uuid.uuid4().hex[:8]}"
        self._truth = traffic.truth

    def send(self, hole_ns: int, unledgered_ns: int) -> None:
        engine, origin = self._traffic.engine, wire.Origin(self._project, self._client, DEVICE_KIND)
        attempts = [record for record in engine.records if isinstance(record, AttemptRecord)]
        if hole_ns:
            for record in attempts[::10]:
                _cut(record.segments, hole_ns)
        provider = _provider(self._collector, self._project, "costspan-engine", self._client)
        spans = PhaseSpans(provider)
        delivered = [spans.emit(record, *self._traffic.written[record.request.request_id]) for record in attempts]
        provider.shutdown()
        self._post("attempts", wire.attempts(origin, delivered))
        self._post("steps", wire.steps(origin, [record for record in engine.records if isinstance(record, StepRecord)]))
        evictions = [record for record in engine.records if isinstance(record, EvictionRecord)]
        self._post("evictions", wire.evictions(origin, evictions))
        self._post("gpu_samples", wire.gpu_samples(self._project, list(self._heartbeats(unledgered_ns))))
        self._post("prices", _money_table(self._project, self._prices()))
        self._post("invoices", _money_table(self._project, self._invoices()))

    def _heartbeats(self, unledgered_ns: int) -> Iterator[SampleRecord]:
        """One a second, from a little before the engine's first reading to a little after its last: another clock."""
        engine = self._traffic.engine
        at, end = engine.boot_ns - 3 * MS, engine.stop_ns + 2 * MS + unledgered_ns
        self._truth.device_ns = end - at
        while at < end:
            until = min(end, at + 1_000 * MS)
            yield SampleRecord("host-1", "0", DEVICE_KIND, self._client, at, until, None, None, None, None)
            at = until

    def _prices(self) -> list[dict[str, Any]]:
        units = {GPU_HOURS: "hour", QUERIES: "query", semconv.SKU_REVIEW_MINUTES: "minute"}
        return [
            {
                "sku": sku,
                "unit": units[sku],
                "rate": rate,
                "currency": "USD",
                "effective_from": datetime(2024, 1, 1, tzinfo=UTC),
                "source": "sample price list",
                "version": "2024-01",
            }
            for sku, rate in RATES.items()
        ]

    def _invoices(self) -> list[dict[str, Any]]:
        return [
            {
                "invoice_id": f"INV-{sku}",
                "vendor": vendor,
                "sku": sku,
                "start_ns": self._truth.since_ns,
                "end_ns": self._truth.until_ns,
                "quantity": self._truth.quantities[sku],
                "amount": self._truth.quantities[sku] * RATES[sku],
                "currency": "USD",
                "source": "the vendor's own meter",
            }
            for sku, vendor in ((QUERIES, "Fathom Search"), (semconv.SKU_REVIEW_MINUTES, "Reviewers Inc"))
        ]

    def _post(self, table: str, rows: pa.Table) -> None:
        sender = Delivery(self._collector, project=self._project, client=self._client, stream=table, patience_s=20)
        assert sender.send(f"/v1/ledger/{table}", wire.encode(rows), wire.MEDIA_TYPE, rows.num_rows), table


def _cut(segments: list[Segment], hole_ns: int) -> None:
    for at, segment in enumerate(segments):
        if segment.name is semconv.Phase.DECODE and segment.duration_ns > hole_ns:
            segments[at] = replace(segment, duration_ns=segment.duration_ns - hole_ns)
            return


def _money_table(project: str, rows: list[dict[str, Any]]) -> pa.Table:
    kinds: dict[type, pa.DataType] = {
        str: pa.string(),
        int: pa.int64(),
        Decimal: pa.decimal128(38, 12),
        datetime: pa.timestamp("ms", tz="UTC"),
    }
    rows = [{"project": project, **row} for row in rows]
    return pa.Table.from_pylist(rows, pa.schema({name: kinds[type(value)] for name, value in rows[0].items()}))


def _span_id(span: Span) -> str:
    return f"{span.get_span_context().span_id:016x}"


def _provider(collector: str, project: str, service: str, client: str) -> TracerProvider:
    return make_provider(collector, project=project, service=service, client=client)


def wait_stored(collector: str, patience_s: float = 30.0) -> None:
    """Wait until the collector has written everything that it took."""
    deadline = time.monotonic() + patience_s
    while (pending := _pending(collector)) != 0:
        assert time.monotonic() < deadline, f"{pending} payloads are still pending"
        time.sleep(0.05)


def _pending(collector: str) -> int | None:
    try:
        with urllib.request.urlopen(f"{collector}/health", timeout=5) as response:
            health = json.load(response)
            return int(health["pending_records"]) if health["ready"] else None
    except (urllib.error.URLError, OSError):
        return None


@contextmanager
def running(data: Path) -> Iterator[Running]:
    """A collector in a process of its own, over an embedded store in ``data``."""
    collector_port, store_port = free_port(), free_port()
    arguments = ["--data", str(data), "--port", str(collector_port), "--store", "embedded", "--store-port", str(store_port)]
    urls = Running(f"http://127.0.0.1:{collector_port}", f"http://127.0.0.1:{store_port}")
    with (data.parent / f"{data.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "costspan.cli", "collector", *arguments], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_stored(urls.collector)
        yield urls
    finally:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    """A port of the loopback address that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
