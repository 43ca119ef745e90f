"""Both laws on a real store: they hold on honest data, and each breaks when it is broken on purpose."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from costspan.clock import now_ns
from costspan.delivery import Delivery
from costspan.semconv import Waste
from costspan.tracing import make_provider
from costspan_analytics.audit import Audit, ledger_rows
from costspan_analytics.book import Book
from costspan_analytics.errors import AnalyticsError
from costspan_analytics.model_calls import ModelCalls
from costspan_analytics.parts import REQUEST, load_parts
from costspan_analytics.store import Store
from costspan_analytics.timeline import PHASES, Timeline
from costspan_analytics.tries import Tries
from costspan_hooks import wire
from costspan_hooks.records import SampleRecord, StepRecord
from tests.analytics.conftest import Sample
from tests.analytics.sample_store import fill, wait_stored

MICRODOLLAR = Decimal("0.000001")
NS = 1_000_000_000


def audited(store: Store) -> Audit:
    timeline = Timeline.load(store)
    return Audit.load(store, timeline, Book.load(store, timeline))


def test_both_laws_hold_on_honest_data(sample: Sample) -> None:
    found = audited(Store(sample.store, sample.truth.project))
    assert found.holds
    assert (found.time["requests"], found.time["aborted"]) == (sample.truth.requests, sample.truth.aborted)
    assert found.money["bill_usd"] == float(sample.truth.bill.quantize(MICRODOLLAR))
    assert found.money["posted_usd"] == pytest.approx(float(sample.truth.posted), abs=1e-6)
    assert {row["stream"] for row in found.rows} == {"attempts", "evictions", "gpu_samples", "steps"}


def test_phases_add_up_for_every_request(sample: Sample) -> None:
    requests = Timeline.load(Store(sample.store, sample.truth.project)).requests
    assert requests.height == sample.truth.requests
    assert requests.select((pl.sum_horizontal(PHASES) == pl.col("wall_ns")).all()).item()


def test_parts_add_up_to_what_each_request_cost(sample: Sample) -> None:
    store = Store(sample.store, sample.truth.project)
    timeline = Timeline.load(store)
    parts = load_parts(store, timeline, Tries.load(store, ModelCalls.load(store, timeline.attempts)))
    by_request: dict[str, int] = {}
    for part in parts:
        name = part.attempt["request_id"]
        by_request[name] = by_request.get(name, 0) + part.cost_ns
    assert by_request == dict(timeline.attempts.select("request_id", "cost_ns").iter_rows())
    tokens = {waste: sum(part.tokens for part in parts if part.category == waste) for waste in Waste}
    assert tokens[Waste.AFTER_ABORT] == sample.truth.after_abort_tokens
    assert sum(part.category == REQUEST for part in parts) > sample.truth.requests // 2


def test_the_time_law_breaks_when_a_phase_is_not_measured(sample: Sample) -> None:
    truth = fill(sample.collector, project="hole", hole_ns=200_000_000)
    found = audited(Store(sample.store, truth.project))
    assert not found.time["holds"]
    assert found.time["unaccounted_share_p99"] > 0.01
    assert found.money["holds"]
    assert not found.holds


def test_the_money_law_breaks_when_device_time_has_no_ledger(sample: Sample) -> None:
    truth = fill(sample.collector, project="unledgered", unledgered_ns=3_000_000_000)
    found = audited(Store(sample.store, truth.project))
    assert not found.money["holds"]
    assert found.money["unexplained_usd"] == pytest.approx(float(truth.bill - truth.posted), abs=1e-6)
    assert found.time["holds"]


def test_a_vendor_who_bills_more_than_was_used_is_seen(sample: Sample) -> None:
    truth = fill(sample.collector, project="padded", tickets=10)
    amount = Decimal("0.5")
    send(sample, "padded", "invoices", invoice("padded", "retrieval_queries", str(amount), (truth.since_ns, truth.until_ns)))
    money = audited(Store(sample.store, "padded")).money
    (line,) = (line for line in money["lines"] if line["sku"] == "retrieval_queries")
    assert line["unexplained_usd"] == pytest.approx(float(amount), abs=1e-6)
    assert not money["holds"]


def test_an_executor_that_reports_more_time_than_passed_is_seen(sample: Sample) -> None:
    fill(sample.collector, project="liar", tickets=10)
    origin = wire.Origin("liar", "liar-engine", "cpu-sample")
    send(sample, "liar", "steps", wire.steps(origin, [StepRecord(step=0, start_ns=now_ns(), host_gap_ns=-5, participants=1)]))
    money = audited(Store(sample.store, "liar")).money
    assert money["impossible_steps"] == 1
    assert not money["holds"]


def test_spans_that_were_dropped_before_they_were_sent_are_missed(sample: Sample) -> None:
    provider = make_provider(sample.collector, project="lossy", service="app", client="lossy-app")
    provider.get_tracer("test").start_span("kept").end()
    assert provider.force_flush()
    provider.shutdown()
    sender = Delivery(sample.collector, project="lossy", client="other-app", stream="spans")
    sender.lost(7)
    assert sender.send("/v1/traces", b"", "application/x-protobuf", 0)
    wait_stored(sample.collector)
    spans = audited(Store(sample.store, "lossy")).spans
    assert (spans["sent"], spans["stored"], spans["holds"]) == (8, 1, False)
    assert spans["gaps"] == [{"client": "other-app", "sent": 7, "stored": 0}]


def test_a_request_that_stayed_after_its_disconnect_was_seen_is_named(sample: Sample) -> None:
    timeline = Timeline.load(Store(sample.store, sample.truth.project))
    stayed = timeline.attempts.with_columns(last_step=pl.col("last_step") + 1, disconnect_step=pl.col("last_step"))
    store = Store(sample.store, sample.truth.project)
    found = Audit.load(store, Timeline(timeline.calls, stayed, timeline.segments), Book.load(store, timeline))
    assert not found.cancellation["holds"]
    assert len(found.cancellation["left_late"]) == found.cancellation["disconnects"] > 0


def test_a_price_that_changes_within_the_hour_holds_for_idle_time_as_for_the_bill(sample: Sample) -> None:
    hour, second, half = 3600 * NS, NS, 30 * 60 * NS
    start = now_ns() // hour * hour - hour
    idle = [StepRecord(step=-1, start_ns=start + at, idle_ns=second) for at in range(0, hour, second)]
    beats = [SampleRecord("h", "0", "cpu", "e", row.start_ns, row.start_ns + second, None, None, None, None) for row in idle]
    send(sample, "changes", "steps", wire.steps(wire.Origin("changes", "e", "cpu"), idle))
    send(sample, "changes", "gpu_samples", wire.gpu_samples("changes", beats))
    send(sample, "changes", "prices", prices("changes", (Decimal(4), 0), (Decimal(3), start + half)))
    money = audited(Store(sample.store, "changes")).money
    assert (money["bill_usd"], money["posted_usd"]) == (3.5, 3.5)


def test_engines_on_two_hosts_are_billed_each_and_a_hole_in_a_heartbeat_is_negative(sample: Sample) -> None:
    hour = 3600 * NS
    start = now_ns() // hour * hour - hour
    seconds = range(start, start + hour, NS)
    rows, beats = [], []
    for name in ("one", "two"):
        idle = [StepRecord(step=-1, start_ns=at, idle_ns=NS) for at in seconds]
        rows.append(wire.steps(wire.Origin("hosts", name, "cpu"), idle))
        beats += [SampleRecord(name, "0", "cpu", name, at, at + NS, None, None, None, None) for at in seconds]
    send(sample, "hosts", "prices", prices("hosts", (Decimal(4), 0)))
    send(sample, "hosts", "steps", pa.concat_tables(rows))
    send(sample, "hosts", "gpu_samples", wire.gpu_samples("hosts", beats[:-900]))
    money = audited(Store(sample.store, "hosts")).money
    assert (money["bill_usd"], money["posted_usd"], money["unexplained_usd"], money["holds"]) == (7, 8, -1, False)


def test_an_invoice_of_device_hours_takes_the_heartbeats_place_for_its_period(sample: Sample) -> None:
    hour = 3600 * NS
    start = now_ns() // hour * hour - 2 * hour
    beats = [
        SampleRecord("h", "0", "cpu", "e", start + at, start + at + NS, None, None, None, None) for at in range(0, 2 * hour, NS)
    ]
    send(sample, "leased", "gpu_samples", wire.gpu_samples("leased", beats))
    send(sample, "leased", "prices", prices("leased", (Decimal(4), 0)))
    bills = [invoice("leased", "gpu_hour.cpu", "10", (start, start + hour)), invoice("leased", "setup", "1", (start, start))]
    send(sample, "leased", "invoices", pa.concat_tables(bills))
    lines = {line["sku"]: (line["bill_usd"], line["source"]) for line in audited(Store(sample.store, "leased")).money["lines"]}
    assert lines == {"gpu_hour.cpu": (14.0, "invoice of Vendor, heartbeat"), "setup": (1.0, "invoice of Vendor")}


def test_an_invoice_in_another_currency_is_refused(sample: Sample) -> None:
    send(sample, "abroad", "invoices", invoice("abroad", "reranks", "10", (0, NS), currency="EUR"))
    with pytest.raises(AnalyticsError, match="Invoice reranks-1 of Vendor is in EUR: enter it in USD"):
        audited(Store(sample.store, "abroad"))


def test_rows_of_which_none_came_and_rows_of_another_sender_do_not_hide_what_is_missing() -> None:
    count = dict.fromkeys(("sent", "later", "stored"), pl.UInt64)
    sent = pl.DataFrame(
        {"client": ["a", "a", "b"], "stream": ["evictions", "steps", "steps"], "sent": [3, 10, 10], "later": [3, 10, 10]},
        schema_overrides=count,
    )
    stored = pl.DataFrame({"client": ["a", "b"], "stream": ["steps", "steps"], "stored": [9, 11]}, schema_overrides=count)
    assert ledger_rows(sent, stored) == [
        {"stream": "evictions", "sent": 3, "stored": 0, "holds": False},
        {"stream": "steps", "sent": 20, "stored": 20, "holds": False},
    ]


def prices(project: str, *rates: tuple[Decimal, int]) -> pa.Table:
    row: dict[str, Any] = {
        "project": project,
        "sku": "gpu_hour.cpu",
        "unit": "hour",
        "currency": "USD",
        "source": "",
        "version": "",
    }
    rows = [{**row, "rate": rate, "effective_from": datetime.fromtimestamp(at / NS, UTC)} for rate, at in rates]
    return pl.DataFrame(rows, schema_overrides={"rate": _MONEY, "effective_from": pl.Datetime("ms", "UTC")}).to_arrow(
        compat_level=pl.CompatLevel.oldest()
    )


def invoice(project: str, sku: str, amount: str, period: tuple[int, int], currency: str = "USD") -> pa.Table:
    row: dict[str, Any] = {
        "project": project,
        "invoice_id": f"{sku}-1",
        "vendor": "Vendor",
        "sku": sku,
        "start_ns": period[0],
        "end_ns": period[1],
        "quantity": Decimal(1),
        "amount": Decimal(amount),
        "currency": currency,
        "source": "test",
    }
    return pl.DataFrame([row], schema_overrides={"quantity": _MONEY, "amount": _MONEY}).to_arrow(
        compat_level=pl.CompatLevel.oldest()
    )


_MONEY = pl.Decimal(38, 12)


def send(sample: Sample, project: str, table: str, rows: pa.Table) -> None:
    sender = Delivery(sample.collector, project=project, client=f"test-{table}", stream=table)
    assert sender.send(f"/v1/ledger/{table}", wire.encode(rows), wire.MEDIA_TYPE, rows.num_rows)
    wait_stored(sample.collector)
