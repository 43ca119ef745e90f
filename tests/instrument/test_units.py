"""A unit of work over stretches, statuses, reviews and money of the app's own."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Context, Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.baggage import get_all, set_baggage
from opentelemetry.context import Context as Carrier

import costspan
from costspan import semconv
from costspan._propagation import carry, outgoing_headers
from costspan.clock import now_ns
from tests.receiver import Receiver, read_baggage


@costspan.observe
def work() -> None: ...


def test_a_status_outside_of_any_block_is_a_span_of_its_own(traced: Receiver) -> None:
    before = now_ns()
    costspan.unit("ticket", 17, tenant="acme", value_usd="3").resolve()
    span = traced.span("unit ticket")
    assert before <= int(span.attributes.pop(semconv.UNIT_STATUS_AT)) <= span.end_ns
    assert span.attributes == {
        semconv.KIND: "unit",
        semconv.OUTCOME: "ok",
        semconv.TENANT: "acme",
        semconv.UNIT: "17",
        semconv.UNIT_KIND: "ticket",
        semconv.UNIT_STATUS: "resolved",
        semconv.UNIT_VALUE_USD: "3",
    }


def test_a_status_after_the_block_is_recorded_too(traced: Receiver) -> None:
    with costspan.unit("ticket", "T-1", tenant="acme") as ticket:
        work()
    ticket.reject("wrong language")
    stretch, late = (span for span in traced.spans() if span.name == "unit ticket")
    assert stretch.attributes[semconv.UNIT_STATUS] == "open"
    assert late.attributes[semconv.UNIT_STATUS] == "rejected"
    assert late.attributes[semconv.UNIT_REASON] == "wrong language"
    assert late.attributes[semconv.UNIT] == stretch.attributes[semconv.UNIT]
    assert late.attributes[semconv.TENANT] == "acme"


def test_a_unit_works_with_async_with_and_again_and_again(traced: Receiver) -> None:
    ticket = costspan.unit("ticket", "T-1")

    async def stretch() -> None:
        async with ticket as same:
            assert same is ticket
            await asyncio.sleep(0)
            work()

    async def main() -> None:
        await asyncio.gather(*(stretch() for _ in range(3)))
        await stretch()

    asyncio.run(main())
    spans = traced.spans()
    stretches = {span.span_id: span for span in spans if span.name == "unit ticket"}
    assert len(stretches) == 4
    assert sorted(span.parent_id for span in spans if span.name == "work") == sorted(stretches)
    assert all(span.outcome == "ok" for span in stretches.values())


def test_a_thread_that_inherits_nothing_may_say_how_it_ended(traced: Receiver) -> None:
    with costspan.unit("ticket", "T-1") as ticket:
        thread = threading.Thread(target=ticket.resolve)
        thread.start()
        thread.join()
    assert traced.span("unit ticket").attributes[semconv.UNIT_STATUS] == "resolved"


def test_no_status_is_lost_that_comes_while_a_stretch_ends(traced: Receiver) -> None:
    rounds = 60
    with ThreadPoolExecutor(2) as pool:
        for number in range(rounds):
            ticket, both = costspan.unit("ticket", number), threading.Barrier(2)

            def leave(ticket: costspan.Unit = ticket, both: threading.Barrier = both) -> None:
                with ticket:
                    both.wait()

            def resolve(ticket: costspan.Unit = ticket, both: threading.Barrier = both) -> None:
                both.wait()
                ticket.resolve()

            left, resolved = pool.submit(leave), pool.submit(resolve)
            left.result()
            resolved.result()
    said = {span.attributes[semconv.UNIT] for span in traced.spans() if span.attributes[semconv.UNIT_STATUS] == "resolved"}
    assert said == {str(number) for number in range(rounds)}


def test_a_review_at_a_rate_is_money_of_the_app(traced: Receiver) -> None:
    with costspan.unit("ticket", "T-1", tenant="acme") as ticket, localcontext(Context(prec=3)):
        ticket.review(minutes="12.5", rate=95)
    review = traced.span("review")
    assert review.attributes[semconv.COST_USD] == str(Decimal("19.791666666667"))
    assert review.attributes[semconv.CAPTURED_PREFIX + "minutes"] == "12.5"
    assert review.attributes[semconv.CAPTURED_PREFIX + "rate"] == "95"
    assert not any(key.startswith(semconv.QUANTITY_PREFIX) for key in review.attributes)


def test_a_review_of_another_day_belongs_to_its_unit(traced: Receiver) -> None:
    costspan.unit("ticket", "T-1", tenant="acme").review(minutes=3)
    review = traced.span("review")
    assert review.attributes[semconv.UNIT] == "T-1"
    assert review.attributes[semconv.UNIT_KIND] == "ticket"
    assert review.attributes[semconv.QUANTITY_PREFIX + semconv.SKU_REVIEW_MINUTES] == "3"


@pytest.mark.parametrize("wrong", ["a while", float("nan"), "1e999999"])
def test_a_review_of_no_length_is_refused_with_a_sentence(traced: Receiver, wrong: float | str) -> None:
    with costspan.unit("ticket", "T-1") as ticket, pytest.raises((ValueError, ArithmeticError)):
        ticket.review(minutes=wrong, rate=60)
    assert [span.name for span in traced.spans()] == ["unit ticket"]


@pytest.mark.parametrize("name", [("", "T-1"), ("ticket", " ")])
def test_a_unit_without_a_name_says_so_and_goes_on(
    traced: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: tuple[str, str]
) -> None:
    monkeypatch.delenv("COSTSPAN_STRICT")
    monkeypatch.setattr("costspan._trouble._told", set(), raising=False)
    with costspan.unit("ticket", "T-1"), costspan.unit(*name) as nameless:
        work()
        nameless.resolve()
    assert traced.span("work").attributes[semconv.UNIT] == "T-1"
    assert traced.span("unit ticket").attributes[semconv.UNIT_STATUS] == "open"
    assert all("needs a kind and an id" in str(record.exc_info) for record in caplog.records)


def test_a_reason_may_be_anything_that_is_written(traced: Receiver) -> None:
    costspan.unit("tick\ud83det", "T-1").reject("half \ud83d")
    span = traced.span("unit tick?et")
    assert span.attributes[semconv.UNIT_REASON] == "half ?"
    assert span.attributes[semconv.UNIT_KIND] == "tick?et"


def test_an_id_may_be_anything_that_names(traced: Receiver) -> None:
    given = (17, uuid.UUID(int=5), " T-1 ", "naïve ☃", "half \ud83d")
    for name in given:
        with costspan.unit("ticket", name):
            work()
    named = [span.attributes[semconv.UNIT] for span in traced.spans() if span.name == "work"]
    assert named == ["17", str(given[1]), "T-1", "naïve ☃", "half ?"]


def test_money_of_another_kind_is_told_apart(traced: Receiver) -> None:
    @costspan.observe(kind=costspan.Kind.AGENT)
    def agent() -> None:
        costspan.cost(usd="0.10")
        costspan.cost(usd="0.02", kind="retrieval", vector_queries=3)
        costspan.cost(usd="0.01", kind="egress")

    with costspan.unit("ticket", "T-1"):
        agent()
    kinds = {span.attributes[semconv.KIND]: span for span in traced.spans() if semconv.COST_USD in span.attributes}
    assert {kind: span.attributes[semconv.COST_USD] for kind, span in kinds.items()} == {
        "agent": "0.10",
        "retrieval": "0.02",
        "egress": "0.01",
    }
    retrieval = kinds["retrieval"]
    assert retrieval.attributes[semconv.QUANTITY_PREFIX + "vector_queries"] == "3"
    assert retrieval.parent_id == kinds["agent"].span_id
    assert retrieval.attributes[semconv.UNIT] == "T-1"


def test_before_init_nothing_happens() -> None:
    ticket = costspan.unit("ticket", "T-1")
    with ticket as same:
        assert same is ticket
        ticket.review(minutes="nonsense")
        ticket.resolve()
        costspan.cost(usd="nonsense", kind="retrieval")
        assert costspan.outgoing() == {}
        assert costspan.bind(work) is work
        with costspan.incoming({"traceparent": "nonsense"}):
            pass


long_names = st.text(st.characters(exclude_categories=()), min_size=900, max_size=3_000)


@given(long_names, long_names)
def test_a_long_name_is_cut_the_same_everywhere_and_stays_apart(one: str, other: str) -> None:
    def cut(name: str) -> str:
        try:
            carried = carry(Carrier(), {semconv.UNIT: name})
        except ValueError as error:  # what strictness makes of the report
            return str(error)
        return str(get_all(carried).get(semconv.UNIT, ""))

    assert cut(one) == cut(one)
    same = one.strip().encode(errors="replace") == other.strip().encode(errors="replace")
    assert same or cut(one) != cut(other)


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.delenv("COSTSPAN_STRICT")


def test_who_it_is_for_always_fits_and_the_rest_as_far_as_it_does(
    lenient: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    lenient()
    context = Carrier()
    for number in range(200):
        context = set_baggage(f"foreign-{number}", "x" * 100, context)
    context = set_baggage("huge", "x" * 5_000, context)
    context = set_baggage("half", "\ud83d", context)
    long = {key: f"{key} ☃ " * 300 for key in (semconv.TENANT, semconv.FEATURE, semconv.UNIT, semconv.UNIT_KIND)}
    header = outgoing_headers(carry(context, long), {semconv.PROJECT: "p" * 5_000})["baggage"]
    assert len(header) <= 8_192
    assert header.count(",") < 64
    read = read_baggage(header)
    assert {semconv.PROJECT, *long} <= read.keys()
    assert any(key.startswith("foreign-") for key in read)
    assert "huge" not in read
    assert not [record for record in caplog.records if "opentelemetry" in record.name]
