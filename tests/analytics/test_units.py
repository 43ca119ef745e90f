"""What one unit of work cost, over stretches, traces, processes and tenants; and money that only the app knows."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider

import costspan
from costspan import semconv
from costspan.clock import now_ns
from costspan.semconv import Kind
from costspan.tracing import make_provider
from costspan_analytics import cli
from costspan_analytics.audit import Audit
from costspan_analytics.book import Book
from costspan_analytics.entries import invoices, prices
from costspan_analytics.errors import NotFoundError
from costspan_analytics.store import Store, Window
from costspan_analytics.summary import cost_summary, each_unit, units_summary
from costspan_analytics.timeline import Timeline
from tests.analytics.conftest import Sample
from tests.analytics.sample_store import wait_stored

SECOND = 1_000_000_000
DAY = 86_400 * SECOND


def load(sample: Sample, project: str) -> tuple[Store, Book]:
    store = Store(sample.store, project, Window())
    return store, Book.load(store, Timeline.load(store))


@dataclass
class Days:
    """The spans of apps on several days: every call is a process of its own."""

    sample: Sample
    project: str
    first_ns: int = field(default_factory=lambda: now_ns() - 10 * DAY)
    providers: list[TracerProvider] = field(default_factory=list)

    def span(self, name: str, kind: str, day: float, seconds: float, **attributes: str | int) -> None:
        provider = make_provider(self.sample.collector, project=self.project, service="app", client=uuid.uuid4().hex)
        self.providers.append(provider)
        start = self.first_ns + round(day * DAY)
        named = {"costspan." + key.replace("__", "."): value for key, value in attributes.items()}
        span = provider.get_tracer("days").start_span(name, start_time=start, attributes={semconv.KIND: kind, **named})
        span.end(start + round(seconds * SECOND))

    def at(self, day: float) -> int:
        return self.first_ns + round(day * DAY)

    def sent(self) -> None:
        for provider in self.providers:
            provider.shutdown()
        wait_stored(self.sample.collector)


@pytest.fixture
def days(sample: Sample) -> Iterator[Days]:
    made = Days(sample, f"days-{uuid.uuid4().hex[:8]}")
    yield made
    for provider in made.providers:
        provider.shutdown()


def stretch(days: Days, day: float, seconds: float = 60, *, tenant: str = "acme", **more: str | int) -> None:
    days.span("unit ticket", Kind.UNIT, day, seconds, tenant=tenant, unit="T-1", unit__kind="ticket", **more)


def test_the_stretches_of_a_unit_are_one_row(sample: Sample, days: Days) -> None:
    stretch(days, 0, unit__status="open", unit__value_usd="5", feature="triage")
    stretch(days, 3, unit__status="rejected", unit__reason="no source", unit__status_ns=days.at(3) + SECOND)
    stretch(days, 2, 2 * 86_400, unit__status="resolved", unit__status_ns=days.at(2) + SECOND)  # ends last, decided first
    stretch(days, 6, unit__status="open")  # looked at again
    for day, usd in ((0, "0.25"), (3, "1.50"), (6, "0.5")):
        days.span("fee", "retrieval", day, 1, tenant="acme", unit="T-1", unit__kind="ticket", cost_usd=usd)
    stretch(days, 1, tenant="birch", unit__status="resolved")
    days.sent()
    rows = {row["tenant"]: row for row in each_unit(*load(sample, days.project))}
    assert rows.keys() == {"acme", "birch"}
    row = rows["acme"]
    assert (row["status"], row["reason"], row["feature"]) == ("rejected", "no source", "triage")
    assert (row["cost_usd"], row["value_usd"], row["margin_usd"]) == (2.25, 5.0, -2.25)
    assert row["spent"] == {"retrieval": 2.25}
    assert row["took_ns"] == 3 * DAY + SECOND
    assert (rows["birch"]["status"], rows["birch"]["cost_usd"]) == ("resolved", 0.0)


def test_namesakes_of_two_kinds_and_two_tenants_stay_apart(sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    project = f"namesakes-{uuid.uuid4().hex[:8]}"
    costspan.init(project=project, endpoint=sample.collector, service="app")
    with costspan.unit("order", "17", tenant="acme", value_usd=10) as order:
        costspan.cost(usd="1")
        with costspan.unit("ticket", "17", value_usd=2) as ticket:
            costspan.cost(usd="0.25", kind="retrieval")
            ticket.resolve()
        order.resolve()
    with costspan.unit("ticket", "17", tenant="birch"):
        costspan.cost(usd="4")
    costspan.shutdown(10)
    wait_stored(sample.collector)
    store, book = load(sample, project)
    found = {(row["tenant"], row["unit_kind"]): row for row in each_unit(store, book)}
    assert {key: (row["cost_usd"], row["margin_usd"]) for key, row in found.items()} == {
        ("acme", "order"): (1.0, 9.0),
        ("acme", "ticket"): (0.25, 1.75),
        ("birch", "ticket"): (4.0, None),
    }
    by_unit = cost_summary(book, "unit")["rows"]
    assert [(row["tenant"], row["unit_kind"], row["unit"], row["usd"]) for row in by_unit] == [
        ("birch", "ticket", "17", 4.0),
        ("acme", "order", "17", 1.0),
        ("acme", "ticket", "17", 0.25),
    ]
    cli.cost(["--store", sample.store, "--project", project, "--by", "unit"])
    shown = capsys.readouterr().out
    assert "acme order 17" in shown
    assert "birch ticket 17" in shown


def test_money_of_the_app_is_posted_and_an_invoice_is_set_against_it(
    sample: Sample, capsys: pytest.CaptureFixture[str]
) -> None:
    project = f"money-{uuid.uuid4().hex[:8]}"
    where = ["--store", sample.store, "--project", project]

    @costspan.observe(kind=Kind.AGENT)
    def agent() -> None:
        costspan.cost(usd="0.10")
        costspan.cost(usd="0.02", kind="retrieval", vector_queries=3, rerank_calls=1)

    costspan.init(project=project, endpoint=sample.collector, service="app")
    with costspan.unit("ticket", "T-1", tenant="acme", value_usd="40") as ticket:
        agent()
        ticket.review(minutes=10, rate=90)
        ticket.review(minutes=2)
        ticket.resolve()
    costspan.shutdown(10)
    wait_stored(sample.collector)
    for sku, rate in (("vector_queries", "0.001"), ("rerank_calls", "0.002"), ("review_minutes", "0.50")):
        prices([sku, rate, *where, "--from", "2024-01-01"])
    invoices(["cost_usd.retrieval", "0.02", *where, "--id", "INV-1", "--since", "2024-01-01", "--until", "2124-01-01"])
    capsys.readouterr()

    store, book = load(sample, project)
    assert book.unpriced == []
    assert book.posted == Decimal("0.10") + Decimal("0.02") + Decimal("0.005") + 15 + 1
    assert {row["kind"]: row["usd"] for row in cost_summary(book, "kind")["rows"]} == {
        "review": 16.0,
        "agent": 0.1,
        "retrieval": 0.025,
    }
    (row,) = each_unit(store, book)
    assert row["spent"] == {"review": 16.0, "agent": 0.1, "retrieval": 0.025}
    assert (row["cost_usd"], row["waste_usd"], row["margin_usd"]) == (16.125, 0.0, 23.875)
    lines = {line.sku: line for line in book.lines}
    assert lines["cost_usd.retrieval"].unexplained == 0
    assert lines["cost_usd.agent"].unexplained == Decimal("-0.1")  # nobody has billed it yet
    assert Audit.load(store, Timeline.load(store), book)
    cli.units(["T-1", *where])
    shown = capsys.readouterr().out
    assert "review $16.00" in shown
    assert "resolved" in shown


def test_what_a_retried_task_spent_is_waste_of_its_unit(sample: Sample) -> None:
    from tests.instrument import celery_app

    project = f"tasks-{uuid.uuid4().hex[:8]}"
    costspan.init(project=project, endpoint=sample.collector, service="app")
    costspan.instrument("celery")
    celery_app.app.conf.task_always_eager = True
    with costspan.unit("ticket", "T-1", tenant="acme"):
        assert celery_app.flaky.delay().get() == 2
    celery_app.app.conf.task_always_eager = False
    costspan.uninstrument("celery")
    costspan.shutdown(10)
    wait_stored(sample.collector)
    prices(["pages", "0.10", "--store", sample.store, "--project", project, "--from", "2024-01-01"])
    (row,) = each_unit(*load(sample, project))
    assert (row["cost_usd"], row["retries_usd"], row["waste_usd"]) == (0.3, 0.2, 0.2)
    assert row["spent"] == {"operation": 0.1}


def test_units_asks_for_a_unit_that_is_there(sample: Sample) -> None:
    where = ["--store", sample.store, "--project", sample.truth.project]
    with pytest.raises(NotFoundError, match="T-none"):
        cli.units(["T-none", *where])


def test_what_a_unit_spent_and_wasted_is_what_it_cost(sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    cli.units(["--store", sample.store, "--project", sample.truth.project, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert len(found["each"]) == sample.truth.units
    for row in found["each"]:
        assert sum(row["spent"].values()) + row["waste_usd"] == pytest.approx(row["cost_usd"], abs=1e-5)
        assert row["retries_usd"] <= row["waste_usd"] + 1e-9
        assert {"generation", "retrieval", "review"} >= row["spent"].keys()
    assert any(row["retries_usd"] > 0 for row in found["each"])
    assert sum(row["cost_usd"] for row in found["each"]) == pytest.approx(
        sum(row["cost_usd"] for row in found["rows"]), abs=1e-4
    )


STATUSES = ("open", "resolved", "rejected")
stretches = st.lists(
    st.tuples(
        st.sampled_from(("acme", "birch")),
        st.integers(0, 5),  # began
        st.integers(0, 5),  # lasted
        st.sampled_from(STATUSES),
        st.integers(0, 10),  # decided, on whatever clock
        st.integers(-100, 10_000),  # cents
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stretches)
def test_any_interleaving_gives_the_last_status_and_the_sum(
    sample: Sample, worked: list[tuple[str, int, int, str, int, int]]
) -> None:
    days = Days(sample, f"any-{uuid.uuid4().hex[:8]}")
    provider = make_provider(sample.collector, project=days.project, service="app", client=uuid.uuid4().hex)
    tracer = provider.get_tracer("days")
    for number, (tenant, began, lasted, status, decided, cents) in enumerate(worked):
        start = days.first_ns + began * SECOND
        said: dict[str, str | int] = {
            semconv.KIND: "unit",
            semconv.TENANT: tenant,
            semconv.UNIT: "T-1",
            semconv.UNIT_KIND: "ticket",
            semconv.UNIT_STATUS: status,
            semconv.COST_USD: f"{Decimal(cents) / 100:f}",
        }
        if status != "open":
            said[semconv.UNIT_STATUS_AT] = days.first_ns + decided * SECOND + number  # no two at once
        tracer.start_span("unit ticket", start_time=start, attributes=said).end(start + lasted * SECOND)
    provider.shutdown()
    wait_stored(sample.collector)
    store, book = load(sample, days.project)
    found = {row["tenant"]: row for row in each_unit(store, book)}
    assert found.keys() == {tenant for tenant, *_ in worked}
    for tenant, row in found.items():
        own = [(number, each) for number, each in enumerate(worked) if each[0] == tenant]
        decisions = [(each[4], number, each[3]) for number, each in own if each[3] != "open"]
        assert row["status"] == (max(decisions)[2] if decisions else "open")
        assert row["cost_usd"] == pytest.approx(sum(each[5] for _, each in own) / 100, abs=1e-6)
    spent = sum(row["cost_usd"] for row in found.values()) + units_summary(store, book)["shared_usd"]
    assert spent == pytest.approx(float(book.posted), abs=1e-6)
