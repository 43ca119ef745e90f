"""Every kind of callable, every way to end: one span, ended once, with the right outcome."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import suppress
from typing import Any

import pytest
from opentelemetry import trace

import costspan
from costspan import Kind, semconv
from tests.receiver import Receiver


class BoomError(Exception):
    pass


class TimeoutException(Exception):  # noqa: N818  (httpx's name)
    pass


class PoolTimeout(TimeoutException):
    pass


ENDINGS = [
    (None, "ok"),
    (BoomError("bad"), "error"),
    (TimeoutError(), "timeout"),
    (PoolTimeout(), "timeout"),
    (asyncio.CancelledError(), "cancelled"),
    (KeyboardInterrupt(), "cancelled"),
]
endings = pytest.mark.parametrize(("error", "outcome"), ENDINGS, ids=lambda value: type(value).__name__)


def function(error: BaseException | None) -> None:
    @costspan.observe(name="work")
    def work() -> int:
        if error:
            raise error
        return 7

    assert work() == 7


def method(error: BaseException | None) -> None:
    class Worker:
        @costspan.observe(name="work")
        def work(self, number: int) -> int:
            if error:
                raise error
            return number

        @classmethod
        @costspan.observe(name="work")
        def unused(cls) -> None: ...

    assert Worker().work(7) == 7


def coroutine(error: BaseException | None) -> None:
    @costspan.observe(name="work")
    async def work() -> int:
        await asyncio.sleep(0)
        if error:
            raise error
        return 7

    assert asyncio.run(work()) == 7


def generator(error: BaseException | None) -> None:
    @costspan.observe(name="work")
    def work() -> Generator[int, None, str]:
        yield 1
        yield 2
        if error:
            raise error
        return "done"

    def outer() -> Generator[int, None, None]:
        assert (yield from work()) == "done"

    assert list(outer()) == [1, 2]


def async_generator(error: BaseException | None) -> None:
    @costspan.observe(name="work")
    async def work() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(0)
        yield 2
        if error:
            raise error

    async def main() -> None:
        assert [item async for item in work()] == [1, 2]

    asyncio.run(main())


@endings
@pytest.mark.parametrize("call", [function, method, coroutine, generator, async_generator])
def test_truth_table(
    traced: Receiver, call: Callable[[BaseException | None], None], error: BaseException | None, outcome: str
) -> None:
    if error is None:
        call(error)
    else:
        with pytest.raises(type(error)):
            call(error)
    span = traced.span("work")
    assert span.outcome == outcome
    assert span.status == (2 if outcome == "error" else 0)
    assert span.message == ("BoomError: bad" if outcome == "error" else "")
    assert span.attributes.get(semconv.ITEMS) == (2 if "generator" in call.__name__ else None)
    assert not trace.get_current_span().get_span_context().is_valid


@costspan.observe
def counting(end: int) -> Iterator[int]:
    yield from range(end)


@costspan.observe
async def async_counting(end: int) -> AsyncGenerator[int, None]:
    for number in range(end):
        yield number


def test_a_closed_generator_was_cancelled(traced: Receiver) -> None:
    numbers = counting(5)
    assert next(numbers) == 0
    assert inspect.isgenerator(numbers)
    numbers.close()
    numbers.close()
    assert traced.span("counting").outcome == "cancelled"
    assert traced.span("counting").attributes[semconv.ITEMS] == 1


def test_a_dropped_generator_was_cancelled(traced: Receiver) -> None:
    for number in counting(5):
        if number == 2:
            break
    gc.collect()
    assert traced.span("counting").outcome == "cancelled"
    assert traced.span("counting").attributes[semconv.ITEMS] == 3


def test_a_generator_that_never_began_has_no_span(traced: Receiver) -> None:
    counting(5)
    gc.collect()
    assert traced.spans() == []


@pytest.mark.parametrize("way", ["aclose", "dropped", "task"])
def test_a_left_async_generator_was_cancelled(traced: Receiver, way: str) -> None:
    async def main() -> None:
        numbers = async_counting(5)
        assert await anext(numbers) == 0
        if way == "aclose":
            await numbers.aclose()
        elif way == "dropped":
            del numbers
            gc.collect()
            await asyncio.sleep(0)
        else:
            await asyncio.create_task(numbers.aclose())

    asyncio.run(main())
    assert traced.span("async_counting").outcome == "cancelled"
    assert traced.span("async_counting").attributes[semconv.ITEMS] == 1


def test_a_cancelled_task_was_cancelled(traced: Receiver) -> None:
    @costspan.observe
    async def forever() -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(forever())
        await asyncio.sleep(0.01)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert [span.outcome for span in traced.spans()] == ["cancelled"]


def test_a_dropped_coroutine_was_cancelled(traced: Receiver) -> None:
    class Never:
        def __await__(self) -> Generator[None, None, None]:
            yield

    @costspan.observe
    async def forever() -> None:
        await Never()

    started = forever()
    started.send(None)
    del started
    gc.collect()
    assert [span.outcome for span in traced.spans()] == ["cancelled"]


def test_generators_pass_on_what_is_sent_and_thrown(traced: Receiver) -> None:
    @costspan.observe
    def echo() -> Generator[str, str, None]:
        heard = yield "ready"
        try:
            heard = yield heard
        except BoomError as error:
            heard = f"caught {error}"
        yield (yield heard)

    talk = echo()
    assert [next(talk), talk.send("a"), talk.throw(BoomError("x")), talk.send("b")] == ["ready", "a", "caught x", "b"]
    with pytest.raises(StopIteration):
        talk.send("")
    (span,) = traced.spans()
    assert (span.outcome, span.attributes[semconv.ITEMS]) == ("ok", 4)


def test_async_generators_pass_on_what_is_sent_and_thrown(traced: Receiver) -> None:
    @costspan.observe
    async def echo() -> AsyncGenerator[str, str]:
        heard = yield "ready"
        try:
            heard = yield heard
        except BoomError as error:
            heard = f"caught {error}"
        yield (yield heard)

    async def main() -> None:
        talk = echo()
        answers = [await anext(talk), await talk.asend("a"), await talk.athrow(BoomError("x")), await talk.asend("b")]
        assert answers == ["ready", "a", "caught x", "b"]
        with pytest.raises(StopAsyncIteration):
            await talk.asend("")

    asyncio.run(main())
    (span,) = traced.spans()
    assert (span.outcome, span.attributes[semconv.ITEMS]) == ("ok", 4)


def test_a_generators_context_stays_inside_it(traced: Receiver) -> None:
    @costspan.observe
    def inner() -> Iterator[str]:
        with costspan.unit("ticket", "T-1", tenant="acme"):
            for number in range(2):
                step(number)
                yield "item"

    @costspan.observe
    def step(_number: int) -> None: ...

    @costspan.observe
    def between() -> None: ...

    @costspan.observe
    def consume() -> None:
        for _ in inner():
            between()

    consume()
    by_name = {span.name.rpartition(".")[2]: span for span in traced.spans()}
    assert by_name["between"].parent_id == by_name["consume"].span_id
    assert semconv.UNIT not in by_name["between"].attributes
    assert by_name["step"].parent_id == by_name["unit ticket"].span_id
    assert by_name["unit ticket"].parent_id == by_name["inner"].span_id
    assert by_name["step"].attributes[semconv.UNIT] == "T-1"
    assert len({span.trace_id for span in by_name.values()}) == 1


def test_async_generators_in_parallel_keep_their_contexts_apart(traced: Receiver) -> None:
    @costspan.observe
    async def inner(tenant: str) -> AsyncIterator[str]:
        with costspan.unit("ticket", tenant, tenant=tenant):
            for _ in range(5):
                await asyncio.sleep(0)
                await step()
                yield tenant

    @costspan.observe(name="step")
    async def step() -> None:
        await asyncio.sleep(0)

    async def main() -> None:
        first, second = inner("a"), inner("b")
        for _ in range(5):
            assert {await anext(first), await anext(second)} == {"a", "b"}
            assert not trace.get_current_span().get_span_context().is_valid
        for numbers in (first, second):
            with pytest.raises(StopAsyncIteration):
                await anext(numbers)

    asyncio.run(main())
    spans = traced.spans()
    units = {span.attributes[semconv.UNIT]: span.span_id for span in spans if span.name == "unit ticket"}
    steps = [span for span in spans if span.name == "step"]
    assert len(steps) == 10
    assert all(span.parent_id == units[span.attributes[semconv.TENANT]] for span in steps)


def test_a_generator_finished_elsewhere_complains_to_nobody(traced: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    @costspan.observe
    async def inner() -> AsyncGenerator[int, None]:
        with costspan.unit("ticket", "T-1"):
            yield 1
            yield 2

    async def main() -> None:
        numbers = inner()
        await asyncio.create_task(anext(numbers))
        await asyncio.create_task(numbers.aclose())

    asyncio.run(main())
    assert [span.outcome for span in traced.spans()] == ["cancelled", "cancelled"]
    assert caplog.records == []


def test_the_kind_of_callable_and_its_name_are_kept() -> None:
    assert inspect.isgeneratorfunction(counting)
    assert inspect.isasyncgenfunction(async_counting)
    assert counting.__name__ == "counting"


def test_kind_name_and_quantities(traced: Receiver) -> None:
    @costspan.observe(name="rerank", kind=Kind.RERANK, quantities={"rerank_calls": 1, "rerank_documents": 0.5})
    def work() -> None:
        costspan.cost(rerank_calls=2, usd="0.000000000001")
        costspan.cost(usd=0.1)
        costspan.cost(usd=0.2)

    work()
    span = traced.span("rerank")
    assert span.attributes[semconv.KIND] == "rerank"
    assert span.attributes[semconv.QUANTITY_PREFIX + "rerank_calls"] == "3"
    assert span.attributes[semconv.QUANTITY_PREFIX + "rerank_documents"] == "0.5"
    assert span.attributes[semconv.COST_USD] == "0.300000000001"


def test_money_outside_any_operation_is_not_lost(traced: Receiver) -> None:
    costspan.cost(vector_queries=3)
    assert traced.span("cost").attributes[semconv.QUANTITY_PREFIX + "vector_queries"] == "3"


@pytest.mark.parametrize("wrong", [functools.partial(classmethod), functools.partial(staticmethod)])
def test_the_wrong_order_of_decorators_is_refused(wrong: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="directly over a function"):
        costspan.observe(wrong(lambda: None))


def test_a_bad_amount_is_raised_under_strict_and_logged_once_otherwise(
    traced: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="give a finite number"):
        costspan.cost(usd="much")
    monkeypatch.delenv("COSTSPAN_STRICT")
    for _ in range(3):
        costspan.cost(usd=float("nan"))
    assert [record.message for record in caplog.records] == ["costspan could not add a cost, and goes on without"]
    assert traced.spans() == []


def test_an_error_that_cannot_print_itself_still_ends_its_span(traced: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    @costspan.observe(name="work")
    def work() -> None:
        raise MuteError

    monkeypatch.delenv("COSTSPAN_STRICT")
    with pytest.raises(MuteError):
        work()
    assert traced.span("work").outcome == "error"
