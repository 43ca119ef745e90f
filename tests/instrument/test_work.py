"""Units, operations and model calls, as a collector sees them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context

import costspan
from costspan import semconv
from costspan._propagation import carry, outgoing_headers
from costspan.clock import now_ns
from tests.receiver import Receiver, Span, read_baggage


def stamps(span: Span, *keys: str) -> list[int]:
    return [int(span.attributes[key]) for key in keys]


def test_everything_inside_a_unit_inherits_it(traced: Receiver) -> None:
    @costspan.observe(name="work")
    def work() -> None: ...

    with costspan.unit("ticket", "T-1", tenant="acme", feature="search", value_usd="12.50") as ticket:
        work()
        with costspan.unit("document", "D-1"):
            work()
        ticket.review(minutes=2.5)
        ticket.resolve()
    work()

    spans = traced.spans()
    works = [span for span in spans if span.name == "work"]
    assert [span.attributes.get(semconv.UNIT) for span in works] == ["T-1", "D-1", None]
    assert [span.attributes.get(semconv.TENANT) for span in works] == ["acme", "acme", None]
    assert [span.attributes.get(semconv.FEATURE) for span in works] == ["search", "search", None]
    outer = traced.span("unit ticket")
    assert outer.start_ns <= int(outer.attributes.pop(semconv.UNIT_STATUS_AT)) <= outer.end_ns
    assert outer.attributes == {
        semconv.KIND: "unit",
        semconv.OUTCOME: "ok",
        semconv.TENANT: "acme",
        semconv.FEATURE: "search",
        semconv.UNIT: "T-1",
        semconv.UNIT_KIND: "ticket",
        semconv.UNIT_STATUS: "resolved",
        semconv.UNIT_VALUE_USD: "12.50",
    }
    review = traced.span("review")
    assert review.parent_id == outer.span_id
    assert review.attributes[semconv.KIND] == "review"
    assert review.attributes[semconv.QUANTITY_PREFIX + semconv.SKU_REVIEW_MINUTES] == "2.5"


def test_a_unit_can_be_rejected_or_stay_open(traced: Receiver) -> None:
    with costspan.unit("ticket", "T-1") as ticket:
        ticket.reject("wrong language")
    with suppress(ZeroDivisionError), costspan.unit("document", "D-1"):
        raise ZeroDivisionError
    rejected, open_ = traced.spans()
    assert rejected.attributes[semconv.UNIT_STATUS] == "rejected"
    assert rejected.attributes[semconv.UNIT_REASON] == "wrong language"
    assert (open_.attributes[semconv.UNIT_STATUS], open_.outcome) == ("open", "error")


def test_tasks_keep_their_units_apart(traced: Receiver) -> None:
    async def work(tenant: str) -> None:
        with costspan.unit("ticket", tenant, tenant=tenant):
            await asyncio.sleep(0)
            with costspan.generation(model="m", provider="p") as call:
                await asyncio.sleep(0)
                assert read_baggage(call.headers()["baggage"])[semconv.TENANT] == tenant

    async def main() -> None:
        await asyncio.gather(*(work(f"t{number}") for number in range(5)))

    asyncio.run(main())
    calls = [span for span in traced.spans() if span.name == "chat m"]
    assert {span.attributes[semconv.TENANT] for span in calls} == {f"t{number}" for number in range(5)}


def test_generations_of_an_operation_are_numbered(traced: Receiver) -> None:
    with costspan.operation("answer"):
        for _ in range(2):
            with costspan.generation(model="m", provider="p"):
                pass
        with suppress(TimeoutError), costspan.generation(model="other", provider="q") as call:
            assert read_baggage(call.headers()["baggage"])[semconv.ATTEMPT] == "3"
            raise TimeoutError
    with costspan.generation(model="m", provider="p"):
        pass

    operation = traced.span("answer")
    assert operation.attributes[semconv.OPERATION] == operation.span_id
    calls = [span for span in traced.spans() if span.name.startswith("chat")]
    assert [span.attributes[semconv.ATTEMPT] for span in calls] == [1, 2, 3, 1]
    assert [span.attributes.get(semconv.OPERATION) for span in calls] == [operation.span_id] * 3 + [None]


def test_a_streamed_call_is_measured(traced: Receiver) -> None:
    began = now_ns()
    with costspan.generation(model="m", provider="p") as call:
        headers = call.headers()
        call.sent()
        call.answered()
        chunks = ["", "to", "be", "or not"]
        assert list(call.meter(chunks, tokens=lambda chunk: len(chunk.split()))) == chunks
        call.usage(input_tokens=10, output_tokens=4, cached_tokens=3)
    span = traced.span("chat m")
    order = stamps(
        span,
        semconv.CALL_START,
        semconv.CALL_SENT,
        semconv.CALL_HEADERS,
        semconv.CALL_FIRST,
        semconv.CALL_LAST,
        semconv.CALL_END,
    )
    assert order == sorted(order)
    assert began <= order[0]
    assert (span.start_ns, span.end_ns) == (order[0], order[-1])
    assert semconv.CALL_ABORT not in span.attributes
    assert span.attributes[semconv.CALL_DELIVERED] == 4
    assert span.attributes[semconv.GEN_AI_OPERATION] == "chat"
    assert span.attributes[semconv.GEN_AI_PROVIDER] == "p"
    assert span.attributes[semconv.GEN_AI_REQUEST_MODEL] == "m"
    assert span.attributes[semconv.GEN_AI_INPUT_TOKENS] == 10
    assert span.attributes[semconv.GEN_AI_OUTPUT_TOKENS] == 4
    assert span.attributes[semconv.GEN_AI_CACHE_READ_TOKENS] == 3
    assert headers["traceparent"].split("-")[1:3] == [span.trace_id, span.span_id]
    assert span.outcome == "ok"


def test_a_call_answered_in_one_piece(traced: Receiver) -> None:
    with costspan.generation(model="m", provider="p") as call:
        call.usage(input_tokens=10, output_tokens=4)
        call.invalid("not JSON")
    span = traced.span("chat m")
    assert span.attributes[semconv.CALL_DELIVERED] == 4
    assert span.attributes[semconv.CALL_LAST] == span.end_ns
    assert span.attributes[semconv.INVALID] == "not JSON"
    assert span.outcome == "ok"


def forever() -> Iterator[str]:
    while True:
        yield "token"


@pytest.mark.parametrize(("read", "outcome"), [(3, "cancelled"), (0, "abandoned")])
def test_stop_is_stamped_when_it_is_pressed(traced: Receiver, read: int, outcome: str) -> None:
    with costspan.generation(model="m", provider="p") as call:
        stream = call.meter(forever())
        for _ in range(read):
            next(stream)
        before = now_ns()
        call.abort()
        after = now_ns()
        stream.close()
    span = traced.span("chat m")
    assert before <= int(span.attributes[semconv.CALL_ABORT]) <= after
    assert span.attributes[semconv.CALL_DELIVERED] == read
    assert span.outcome == outcome
    assert span.status == 0


@pytest.mark.parametrize("asynchronous", [False, True])
def test_leaving_the_loop_is_an_abort_at_that_moment(traced: Receiver, asynchronous: bool) -> None:
    async def aforever() -> AsyncIterator[str]:
        for token in forever():
            yield token

    async def main() -> int:
        with costspan.generation(model="m", provider="p") as call:
            if asynchronous:
                async for _ in call.meter(aforever()):
                    break
            else:
                for _ in call.meter(forever()):
                    break
            return now_ns()

    left = asyncio.run(main())
    span = traced.span("chat m")
    assert int(span.attributes[semconv.CALL_LAST]) <= int(span.attributes[semconv.CALL_ABORT]) <= left
    assert span.outcome == "cancelled"


def test_an_unread_stream_was_abandoned(traced: Receiver) -> None:
    with costspan.generation(model="m", provider="p") as call:
        kept = call.meter(forever())
    assert kept is not None
    span = traced.span("chat m")
    assert (span.outcome, span.attributes[semconv.CALL_ABORT]) == ("abandoned", span.end_ns)


@pytest.mark.parametrize(("items", "outcome"), [(2, "cancelled"), (0, "abandoned")])
def test_a_task_cancelled_inside_the_meter(traced: Receiver, items: int, outcome: str) -> None:
    waiting = asyncio.Event()

    async def slow() -> AsyncIterator[str]:
        for _ in range(items):
            yield "token"
        waiting.set()
        await asyncio.sleep(60)

    async def consume() -> None:
        with costspan.generation(model="m", provider="p") as call:
            try:
                async for _ in call.meter(slow()):
                    pass
            finally:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.05)  # an app that is slow to clean up

    async def main() -> int:
        task = asyncio.create_task(consume())
        await waiting.wait()
        cancelled = now_ns()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return cancelled

    cancelled = asyncio.run(main())
    span = traced.span("chat m")
    assert span.outcome == outcome
    assert int(span.attributes[semconv.CALL_ABORT]) >= cancelled
    assert span.end_ns - int(span.attributes[semconv.CALL_ABORT]) >= 40_000_000


@pytest.mark.parametrize("items", [0, 2])
def test_a_timeout_stays_a_timeout(traced: Receiver, items: int) -> None:
    async def slow() -> AsyncIterator[str]:
        for _ in range(items):
            yield "token"
        await asyncio.sleep(60)

    async def consume() -> None:
        with costspan.generation(model="m", provider="p") as call:
            await asyncio.wait_for(read(call), 0.05)

    async def read(call: costspan.Generation) -> None:
        async for _ in call.meter(slow()):
            pass

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(consume())
    span = traced.span("chat m")
    assert span.outcome == "timeout"
    assert span.attributes[semconv.CALL_DELIVERED] == items
    assert int(span.attributes[semconv.CALL_ABORT]) <= span.end_ns


def test_an_error_of_the_stream_is_an_error(traced: Receiver) -> None:
    def broken() -> Iterator[str]:
        yield "token"
        raise ConnectionResetError("peer")

    with pytest.raises(ConnectionResetError), costspan.generation(model="m", provider="p") as call:
        list(call.meter(broken()))
    span = traced.span("chat m")
    assert (span.outcome, span.status) == ("error", 2)
    assert semconv.CALL_ABORT not in span.attributes


def test_an_error_of_the_consumer_is_an_error_and_the_stream_was_left(traced: Receiver) -> None:
    def consume() -> None:
        with costspan.generation(model="m", provider="p") as call:
            for _ in call.meter(forever()):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()
    span = traced.span("chat m")
    assert span.outcome == "error"
    assert semconv.CALL_ABORT in span.attributes


def test_a_stop_that_makes_the_client_library_raise_is_no_error(traced: Receiver) -> None:
    def stop() -> None:
        with costspan.generation(model="m", provider="p") as call:
            next(call.meter(forever()))
            call.abort()
            raise ConnectionError("closed under us")

    with pytest.raises(ConnectionError):
        stop()
    assert traced.span("chat m").outcome == "cancelled"


def test_a_stop_after_the_end_changes_nothing(traced: Receiver) -> None:
    with costspan.generation(model="m", provider="p") as call:
        list(call.meter("abc"))
        call.abort()
    span = traced.span("chat m")
    assert span.outcome == "ok"
    assert semconv.CALL_ABORT not in span.attributes


def test_a_generator_around_a_call_passes_the_disconnect_on(traced: Receiver) -> None:
    @costspan.observe(name="endpoint")
    def endpoint() -> Iterator[str]:
        with costspan.generation(model="m", provider="p") as call:
            yield from call.meter(forever())

    tokens = endpoint()
    assert [next(tokens), next(tokens)] == ["token", "token"]
    before = now_ns()
    tokens.close()  # type: ignore[attr-defined]  # a generator
    span = traced.span("chat m")
    assert span.outcome == traced.span("endpoint").outcome == "cancelled"
    assert span.parent_id == traced.span("endpoint").span_id
    assert int(span.attributes[semconv.CALL_ABORT]) >= before
    assert span.attributes[semconv.CALL_DELIVERED] == 2


def test_a_broken_token_counter_does_not_break_the_stream(
    traced: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("COSTSPAN_STRICT")
    with costspan.generation(model="m", provider="p") as call:
        assert list(call.meter([1, 2], tokens=lambda _: 1 // 0)) == [1, 2]
    assert traced.span("chat m").attributes[semconv.CALL_DELIVERED] == 0
    assert len(caplog.records) == 1


def test_describing_a_call_after_its_block_is_a_mistake(traced: Receiver) -> None:
    with costspan.generation(model="m", provider="p") as call:
        pass
    with pytest.raises(RuntimeError, match="after the block had ended"):
        call.invalid("late")
    assert traced.span("chat m").outcome == "ok"


def test_threads_do_not_share_a_unit(traced: Receiver) -> None:
    def work() -> None:
        costspan.observe(name="elsewhere")(lambda: None)()

    with costspan.unit("ticket", "T-1"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert semconv.UNIT not in traced.span("elsewhere").attributes


names = st.text(min_size=1, max_size=30).filter(lambda text: text.isprintable())


@given(names, names, names)
def test_who_travels_in_baggage(tenant: str, feature: str, unit: str) -> None:
    who = {semconv.TENANT: tenant, semconv.FEATURE: feature, semconv.UNIT: unit}
    header = outgoing_headers(carry(Context(), who), {semconv.PROJECT: "p"})["baggage"]
    assert header.isascii()
    said = {key: name.strip() for key, name in who.items() if name.strip()}
    assert read_baggage(header) == {semconv.PROJECT: "p", **said}
