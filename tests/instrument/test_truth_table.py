"""Every kind of callable × every way to end: how many spans, with which outcome, items and timestamps."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import sys
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from opentelemetry import trace

import costspan
from costspan import semconv
from costspan._observation import end_open
from costspan.clock import now_ns
from tests.receiver import Receiver, Span

ITEMS = 2
PAUSE_S = 0.001  # what a consumer does with each item, and a generator between two
FOREVER_S = 60


class BoomError(Exception):
    pass


class TimeoutException(Exception):  # noqa: N818  (httpx's name)
    pass


class PoolTimeout(TimeoutException):
    pass


# --- what is observed ------------------------------------------------------------------------------------------

observe = costspan.observe(name="work")


def worker(**members: Any) -> Any:
    return type("Worker", (), members)


def method(work: Any) -> Any:
    return worker(run=observe(work))().run


def class_method(work: Any) -> Any:
    return worker(run=classmethod(observe(work))).run


def class_method_inside(work: Any) -> Any:
    return worker(run=observe(classmethod(work))).run


def static_method(work: Any) -> Any:
    return worker(run=staticmethod(observe(work)))().run


def static_method_inside(work: Any) -> Any:
    return worker(run=observe(staticmethod(work)))().run


def bound_method(work: Any) -> Any:
    return observe(worker(run=work)().run)


def partial(work: Any) -> Any:
    return observe(functools.partial(work, "argument"))


def callable_object(work: Any) -> Any:
    return observe(worker(__call__=work)())


def returned(work: Any) -> Any:
    def work_later() -> Any:
        return work()

    return observe(work_later)


def observed_twice(work: Any) -> Any:
    return observe(costspan.observe(name="other", kind="tool")(work))


FORMS: dict[str, Callable[[Any], Callable[[], Any]]] = {
    "plain": observe,
    **{
        form.__name__: form
        for form in (
            *(method, class_method, class_method_inside, static_method, static_method_inside, bound_method),
            *(partial, callable_object, returned, observed_twice),
        )
    },
}


# --- how it ends -----------------------------------------------------------------------------------------------

RAISED: dict[str, tuple[BaseException | None, str]] = {
    "returns": (None, "ok"),
    "raises": (BoomError("raises"), "error"),
    "times_out": (TimeoutError(), "timeout"),
    "library_times_out": (PoolTimeout(), "timeout"),
    "is_cancelled": (asyncio.CancelledError(), "cancelled"),
    "is_interrupted": (KeyboardInterrupt(), "cancelled"),
    "exits": (SystemExit(), "cancelled"),
    "sees_the_process_exit": (None, "cancelled"),
}
STOPPED = {
    "task_cancelled": (asyncio.CancelledError, "cancelled"),
    "deadline_inside": (asyncio.TimeoutError, "timeout"),
    "deadline_around": (asyncio.TimeoutError, "cancelled"),
}
LEFT: dict[str, tuple[type[BaseException] | None, str]] = {
    "closed": (None, "cancelled"),
    "dropped": (None, "cancelled"),
    "thrown_into": (BoomError, "error"),
    "exit_meanwhile": (None, "cancelled"),
}


@dataclass(frozen=True)
class Row:
    """One callable and one end of it.

    Attributes:
        family: What it is underneath.
        form: How it is defined.
        end: How it ends.
        raises: What comes out of it.
        outcome: What its span says.
        items: How many items it delivers before; ``None`` if it is no generator.
    """

    family: str
    form: str
    end: str
    raises: type[BaseException] | None
    outcome: str
    items: int | None = None

    def __str__(self) -> str:
        after = "" if self.items is None else f"-after_{self.items}"
        return f"{self.family}-{self.form}-{self.end}{after}"


def rows() -> Iterator[Row]:
    families = ("function", "coroutine", "generator", "async_generator", "context_manager", "async_context_manager")
    for family, form in itertools.product(families, FORMS):
        managed, streamed, waits = (
            "manager" in family,
            "generator" in family,
            family not in {"function", "generator", "context_manager"},
        )
        if managed and form == "returned":
            continue  # what is observed is then the call that makes the context manager, and no block
        for items in (0, ITEMS) if streamed else (None,):
            for end, (error, outcome) in RAISED.items():
                yield Row(family, form, end, None if error is None else type(error), at(outcome, items), items)
            for end, (raises, outcome) in STOPPED.items() if waits else ():
                yield Row(family, form, end, raises, at(outcome, items), items)
        for end, (left, outcome) in LEFT.items() if streamed else ():
            yield Row(family, form, end, left, outcome, ITEMS)
    for family, end in itertools.product(("block", "async_block"), RAISED):
        error, outcome = RAISED[end]
        yield Row(family, "plain", end, None if error is None else type(error), outcome)
    for end, (raises, outcome) in STOPPED.items():
        yield Row("async_block", "plain", end, raises, outcome)


def at(outcome: str, items: int | None) -> str:
    """Who leaves before the first item has abandoned it."""
    return "abandoned" if outcome == "cancelled" and items == 0 else outcome


# --- the work, and who consumes it -----------------------------------------------------------------------------


@dataclass
class Run:
    """One run of a row."""

    row: Row
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    got: list[int] = field(default_factory=list)

    def finish(self) -> int:
        """How the work ends by itself."""
        if self.row.end == "sees_the_process_exit":
            end_open()
        error = RAISED.get(self.row.end, (None,))[0]
        if error is not None:
            raise error
        return 7

    async def finish_async(self) -> int:
        await asyncio.sleep(0)
        if self.row.end == "deadline_inside" and sys.version_info >= (3, 11):
            async with asyncio.timeout(PAUSE_S):
                await asyncio.sleep(FOREVER_S)
        if self.row.end == "deadline_inside":
            await asyncio.wait_for(asyncio.sleep(FOREVER_S), PAUSE_S)
        if self.row.end in STOPPED:
            self.waiting.set()
            await asyncio.sleep(FOREVER_S)
        return self.finish()

    def work(self) -> Any:
        """The function to observe."""

        def function(*_: object) -> int:
            return self.finish()

        async def coroutine(*_: object) -> int:
            return await self.finish_async()

        def generator(*_: object) -> Iterator[int]:
            for number in range(self.row.items or 0):
                time.sleep(PAUSE_S)
                yield number
            self.finish()

        async def async_generator(*_: object) -> AsyncIterator[int]:
            for number in range(self.row.items or 0):
                await asyncio.sleep(PAUSE_S)
                yield number
            await self.finish_async()

        @contextmanager
        def context_manager(*_: object) -> Iterator[int]:
            yield 7

        @asynccontextmanager
        async def async_context_manager(*_: object) -> AsyncIterator[int]:
            await asyncio.sleep(0)
            yield 7

        return locals()[self.row.family]

    def took(self, item: int) -> bool:
        """Spend time on an item; whether the consumer leaves now."""
        self.got.append(item)
        time.sleep(PAUSE_S)
        return self.row.end in LEFT and len(self.got) == ITEMS

    def consume(self, call: Callable[[], Any]) -> None:
        if self.row.family == "function":
            assert call() == 7
        elif self.row.family == "generator":
            stream = call()
            for item in stream:
                if self.took(item):
                    break
            leave(stream, self.row.end)
        else:
            with call() as entered:
                assert (entered or 7) == self.finish()

    async def consume_async(self, call: Callable[[], Any]) -> None:
        if self.row.family == "coroutine":
            assert await call() == 7
        elif self.row.family == "async_generator":
            stream = call()
            async for item in stream:
                if self.took(item):
                    break
            await leave_async(stream, self.row.end)
        else:
            async with call() as entered:
                assert (entered or 7) == await self.finish_async()

    async def consume_or_stop(self, call: Callable[[], Any]) -> None:
        if self.row.end == "deadline_around":
            await asyncio.wait_for(self.consume_async(call), 20 * PAUSE_S)
        elif self.row.end == "task_cancelled":
            task = asyncio.create_task(self.consume_async(call))
            await self.waiting.wait()
            task.cancel()
            await task
        else:
            await self.consume_async(call)


def leave(stream: Any, end: str) -> None:
    if end == "closed":
        stream.close()
    elif end == "thrown_into":
        stream.throw(BoomError(end))
    elif end == "exit_meanwhile":
        end_open()


async def leave_async(stream: Any, end: str) -> None:
    if end == "closed":
        await stream.aclose()
    elif end == "thrown_into":
        await stream.athrow(BoomError(end))
    elif end == "exit_meanwhile":
        end_open()


@pytest.fixture(scope="module")
def collector_of_all() -> Iterator[Receiver]:
    receiver = Receiver()
    costspan.init(project="tests", endpoint=receiver.endpoint, service="app")
    yield receiver
    costspan.shutdown(5)
    receiver.close()


@pytest.fixture
def collector(collector_of_all: Receiver) -> Receiver:
    """One for the whole table, emptied for each row."""
    assert costspan.flush(10)
    collector_of_all.requests.clear()
    return collector_of_all


@pytest.mark.parametrize("row", [*rows()], ids=str)
def test_truth_table(collector: Receiver, row: Row) -> None:
    run, began_ns = Run(row), now_ns()
    call = (lambda: costspan.observe(name="work")) if "block" in row.family else FORMS[row.form](run.work())
    consume = run.consume
    if row.family.startswith(("async", "coroutine")):
        consume = lambda call: asyncio.run(run.consume_or_stop(call))  # noqa: E731  (one or the other)
    if row.raises is None:
        consume(call)
    else:
        with pytest.raises(row.raises):
            consume(call)
    gc.collect(0)
    spans = collector.spans()
    assert [(span.name, span.outcome) for span in spans] == [("work", row.outcome)]
    status = (2, f"BoomError: {row.end}") if row.outcome == "error" else (0, "")
    assert (spans[0].status, spans[0].message) == status
    assert began_ns <= spans[0].start_ns <= spans[0].end_ns <= now_ns()
    assert run.got == list(range(row.items or 0))
    assert_delivered(spans[0], row.items)
    assert not trace.get_current_span().get_span_context().is_valid


def assert_delivered(span: Span, items: int | None) -> None:
    attributes = span.attributes
    assert attributes.get(semconv.ITEMS) == items
    if not items:
        assert not attributes.keys() & {semconv.ITEMS_FIRST, semconv.ITEMS_LAST, semconv.CONSUMER}
        return
    first_ns, last_ns, idle_ns = (int(attributes[key]) for key in (semconv.ITEMS_FIRST, semconv.ITEMS_LAST, semconv.CONSUMER))
    pause_ns = int(PAUSE_S * 1e9)
    assert span.start_ns + pause_ns <= first_ns
    assert first_ns + 2 * pause_ns * (items - 1) <= last_ns <= span.end_ns
    assert pause_ns * items <= idle_ns <= span.end_ns - span.start_ns - pause_ns * items


# --- what nobody began, and what nobody finished ------------------------------------------------------------------


@pytest.mark.parametrize("family", ["coroutine", "generator", "async_generator"])
@pytest.mark.parametrize("form", FORMS)
def test_what_was_never_begun(collector: Receiver, family: str, form: str) -> None:
    """Only a plain function has run by then, and has a span."""
    work = FORMS[form](Run(Row(family, form, "returns", None, "ok", ITEMS)).work())()
    if family == "coroutine":
        work.close()
    del work
    gc.collect(0)
    dropped = "cancelled" if family == "coroutine" else "abandoned"
    assert [span.outcome for span in collector.spans()] == ([dropped] if form == "returned" else [])


@pytest.mark.parametrize("family", ["coroutine", "generator", "async_generator"])
def test_what_was_never_begun_when_the_process_exits(collector: Receiver, family: str) -> None:
    work = FORMS["returned"](Run(Row(family, "returned", "returns", None, "ok", ITEMS)).work())()
    end_open()
    if family == "coroutine":
        work.close()
    del work
    gc.collect(0)
    dropped = "cancelled" if family == "coroutine" else "abandoned"
    assert [span.outcome for span in collector.spans()] == [dropped]


@pytest.mark.parametrize("form", FORMS)
def test_a_coroutine_dropped_in_the_middle(collector: Receiver, form: str) -> None:

    class Never:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def forever(*_: object) -> None:
        await Never()

    work = FORMS[form](forever)()
    work.send(None)
    del work
    gc.collect(0)
    assert [span.outcome for span in collector.spans()] == ["cancelled"]
