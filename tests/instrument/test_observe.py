"""What observing does to a callable, and what it leaves alone. How it ends is in test_truth_table.py."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import os
import subprocess
import sys
import types
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar, copy_context
from typing import Any

import pytest
from opentelemetry import trace

import costspan
from costspan import Kind, semconv
from costspan._observation import end_open
from tests.receiver import Receiver, read_spans


class BoomError(Exception):
    pass


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


def test_a_generator_returns_what_it_returned(traced: Receiver) -> None:
    @costspan.observe(name="work")
    def work() -> Generator[int, None, str]:
        yield 1
        return "done"

    def outer() -> Generator[int, None, None]:
        assert (yield from work()) == "done"

    assert list(outer()) == [1]
    assert traced.span("work").outcome == "ok"


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


def test_a_generators_context_survives_threads_that_take_turns(traced: Receiver) -> None:
    """As web frameworks run one: each step in a copy of the context."""

    @costspan.observe(name="inner")
    def inner() -> Iterator[None]:
        with costspan.unit("ticket", "T-1"):
            note()
            yield
            note()
        note()
        yield

    numbers = inner()
    for _ in range(2):
        copy_context().run(next, numbers)
    copy_context().run(list, numbers)
    spans = traced.spans()
    by_name = {span.name: span.span_id for span in spans}
    parents = [span.parent_id for span in spans if span.name == "note"]
    assert parents == [by_name["unit ticket"], by_name["unit ticket"], by_name["inner"]]


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


def test_a_loop_that_ends_closes_what_is_observed_in_silence(
    traced: Receiver, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = []

    async def work() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)

    async def main() -> None:
        for function in (work, costspan.observe(work)) * 8:  # in which order they are closed is chance
            kept.append(function())
            await anext(kept[-1])

    asyncio.run(main())
    kept.clear()
    gc.collect()
    assert [span.outcome for span in traced.spans()] == ["cancelled"] * 8
    assert (caplog.records, capsys.readouterr().err) == ([], "")


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


@pytest.mark.parametrize("wrong", [BoomError, 7, property(lambda self: self)], ids=lambda wrong: type(wrong).__name__)
def test_what_is_no_function_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"over a function or a method, not over (the class BoomError|a int|a property)"):
        costspan.observe(wrong)


def test_a_bad_amount_is_raised_under_strict_and_logged_once_otherwise(
    traced: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="give a finite number"):
        costspan.cost(usd="much")
    with pytest.raises(ValueError, match="between 1e-29 and 1e26"):
        costspan.cost(tokens=1e30)
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


# --- options -----------------------------------------------------------------------------------------------------


def test_only_the_arguments_that_are_allowed_are_captured(traced: Receiver) -> None:
    @costspan.observe(name="work", capture=["query", "top", "rest"])
    def work(query: object, /, key: str, top: int = 3, *more: str, rest: str = "none", **others: str) -> None: ...

    work("a" * 300, "secret", 5, "more", other="secret")
    work(["b"], key="secret", rest="some", query="of others")
    first, second = (
        {key: value for key, value in span.attributes.items() if key.startswith(semconv.CAPTURED_PREFIX)}
        for span in traced.spans()
    )
    query, top, rest = (semconv.CAPTURED_PREFIX + name for name in ("query", "top", "rest"))
    assert first == {query: "a" * 199 + "…", top: "5", rest: "none"}
    assert second == {query: "['b']", top: "3", rest: "some"}


def test_arguments_of_methods_and_partial_functions_are_captured(traced: Receiver) -> None:
    class Index:
        @costspan.observe(name="work", capture="query")
        def search(self, query: str, _secret: str) -> str:
            return query

    def search(_index: str, query: str, _secret: str) -> str:
        return query

    partial = costspan.observe(name="work", capture="query")(functools.partial(search, "docs", "q"))
    assert [Index().search("q", "secret"), partial("secret")] == ["q", "q"]
    assert [span.attributes[semconv.CAPTURED_PREFIX + "query"] for span in traced.spans()] == ["q", "q"]


def test_an_argument_that_the_function_does_not_have_is_refused() -> None:
    def work(query: str, *rest: str, **others: str) -> None: ...

    for name in ("queri", "rest", "others"):
        with pytest.raises(ValueError, match=f"cannot capture {name}: .*work has query"):
            costspan.observe(capture=["query", name])(work)
    with pytest.raises(ValueError, match="has no named arguments"):
        costspan.observe(capture=["query"])(lambda: None)


def test_an_argument_that_cannot_print_itself_stops_nothing(traced: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mute:
        def __str__(self) -> str:
            raise BoomError

    @costspan.observe(name="work", capture=["value"])
    def work(value: object) -> object:
        return value

    monkeypatch.delenv("COSTSPAN_STRICT")
    mute = Mute()
    assert work(mute) is mute
    assert traced.span("work").outcome == "ok"


def test_attributes_and_money_of_every_call(traced: Receiver) -> None:
    @costspan.observe(name="work", kind="tool", attributes={"app.index": "docs", "app.size": 3}, cost_usd="0.01")
    def work() -> None:
        costspan.cost(usd="0.002")
        costspan.annotate({"app.found": True}, documents=12, **{"app.size": 4})

    work()
    attributes = traced.span("work").attributes
    assert attributes[semconv.KIND] == "tool"
    assert attributes[semconv.COST_USD] == "0.012"
    assert {key: attributes[key] for key in ("app.index", "app.size", "app.found", "documents")} == {
        "app.index": "docs",
        "app.size": 4,
        "app.found": True,
        "documents": 12,
    }


def test_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="'rerunk' is not a kind: give one of generation, retrieval, rerank"):
        costspan.observe(kind="rerunk")
    with pytest.raises(ValueError, match="give a finite number"):
        costspan.observe(cost_usd="much")
    with pytest.raises(TypeError, match="attribute 'tags' is a list: give a text, a number or a truth value"):
        costspan.observe(attributes={"tags": ["a"]})  # type: ignore[dict-item]  # what is refused
    with pytest.raises(TypeError, match="'' names no attribute"):
        costspan.observe(attributes={"": "a"})


@pytest.mark.usefixtures("traced")
def test_annotating_nothing_is_raised_under_strict_and_logged_once_otherwise(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RuntimeError, match=r"call annotate\(\) inside of it"):
        costspan.annotate(documents=12)
    with pytest.raises(TypeError, match="attribute 'documents' is a set"), costspan.observe(name="work"):
        costspan.annotate(documents={12})  # type: ignore[arg-type]  # what is refused
    monkeypatch.delenv("COSTSPAN_STRICT")
    for _ in range(2):
        costspan.annotate(documents=12)
    assert [record.message for record in caplog.records] == ["costspan could not annotate a span, and goes on without"]


def test_before_init_nothing_is_said() -> None:
    costspan.annotate(documents={12})  # type: ignore[arg-type]  # what is refused later
    with costspan.observe(name="work", capture=[]):
        assert costspan.observe(counting)(3) is not None


# --- blocks ------------------------------------------------------------------------------------------------------


def test_a_block_is_current_inside_and_takes_the_options(traced: Receiver) -> None:
    @costspan.observe(name="step")
    def step() -> None: ...

    with costspan.observe(kind="rerank", quantities={"rerank_calls": 1}, attributes={"app.index": "docs"}):
        step()
    block = traced.span("rerank")
    assert traced.span("step").parent_id == block.span_id
    assert block.attributes[semconv.KIND] == "rerank"
    assert block.attributes[semconv.QUANTITY_PREFIX + "rerank_calls"] == "1"
    assert block.attributes["app.index"] == "docs"


def test_a_block_captures_no_arguments(traced: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="a block has no arguments"), costspan.observe(name="work", capture=["query"]):
        pass
    monkeypatch.delenv("COSTSPAN_STRICT")
    with costspan.observe(name="work", capture=["query"]):
        pass
    assert traced.span("work").outcome == "ok"


def test_tasks_may_share_one_block(traced: Receiver) -> None:
    block = costspan.observe(name="work")

    async def work(number: int) -> None:
        with costspan.unit("ticket", f"T-{number}"):
            async with block:
                await asyncio.sleep(0.001 * (3 - number))
                costspan.annotate(number=number)

    async def main() -> None:
        await asyncio.gather(*(work(number) for number in range(3)))

    asyncio.run(main())
    works = [span for span in traced.spans() if span.name == "work"]
    assert [(span.attributes["number"], span.attributes[semconv.UNIT]) for span in works] == [
        (2, "T-2"),
        (1, "T-1"),
        (0, "T-0"),
    ]
    assert works[0].end_ns <= works[1].end_ns <= works[2].end_ns


@contextmanager
def session(swallow: bool) -> Iterator[str]:
    note()
    try:
        yield "session"
    except BoomError:
        if not swallow:
            raise
    note()


@asynccontextmanager
async def async_session(swallow: bool) -> AsyncIterator[str]:
    with session(swallow) as entered:
        yield entered


@costspan.observe(name="note")
def note() -> None: ...


def enter(swallow: bool) -> None:
    with costspan.observe(name="work", capture=["swallow"])(session)(swallow) as entered:
        assert entered == "session"
        note()
        raise BoomError


def enter_async(swallow: bool) -> None:
    async def main() -> None:
        async with costspan.observe(name="work", capture=["swallow"])(async_session)(swallow) as entered:
            assert entered == "session"
            note()
            raise BoomError

    asyncio.run(main())


@pytest.mark.parametrize("within", [enter, enter_async])
def test_a_context_managers_span_is_that_of_its_block(traced: Receiver, within: Callable[[bool], None]) -> None:
    within(True)
    block = traced.span("work")
    notes = [span for span in traced.spans() if span.name == "note"]
    assert block.outcome == "ok"
    assert block.attributes[semconv.CAPTURED_PREFIX + "swallow"] == "True"
    assert [span.parent_id for span in notes] == [block.span_id] * 3
    assert not trace.get_current_span().get_span_context().is_valid
    with pytest.raises(BoomError):
        within(False)
    assert [span.outcome for span in traced.spans() if span.name == "work"] == ["ok", "error"]


def test_an_observed_context_manager_is_still_a_decorator(traced: Receiver) -> None:
    @costspan.observe(name="work")
    @contextmanager
    def manager() -> Iterator[None]:
        yield

    @manager()
    def inside() -> int:
        return 7

    assert [inside(), inside()] == [7, 7]
    assert [span.name for span in traced.spans()] == ["work", "work"]


# --- observing twice ---------------------------------------------------------------------------------------------


def test_what_is_observed_is_not_observed_twice(traced: Receiver) -> None:
    @costspan.observe(kind="retrieval", attributes={"app.index": "docs", "app.size": 3}, cost_usd=1, quantities={"queries": 1})
    def search(query: str) -> str:
        return query

    again = costspan.observe(name="other", attributes={"app.size": 4}, quantities={"queries": 2}, capture=["query"])(search)
    assert again("q") == "q"
    assert search("q") == "q"
    other, own = traced.spans()
    assert other.name == "other"
    assert own.name.endswith("search")
    expected = {semconv.KIND: "retrieval", semconv.OUTCOME: "ok", semconv.COST_USD: "1", "app.index": "docs"}
    queries = semconv.QUANTITY_PREFIX + "queries"
    query = semconv.CAPTURED_PREFIX + "query"
    assert other.attributes.items() >= {**expected, "app.size": 4, queries: "2", query: "q"}.items()
    assert own.attributes.items() >= {**expected, "app.size": 3, queries: "1"}.items()
    assert query not in own.attributes


def test_a_decorator_in_between_is_work_of_its_own(traced: Receiver) -> None:
    @costspan.observe(name="inner")
    def search() -> None: ...

    @functools.wraps(search)
    def cached() -> None:
        search()

    costspan.observe(name="outer")(cached)()
    inner, outer = traced.spans()
    assert (inner.name, outer.name) == ("inner", "outer")
    assert inner.parent_id == outer.span_id


# --- left alone --------------------------------------------------------------------------------------------------


def test_objects_and_partial_functions_keep_what_they_are() -> None:
    class Ranker:
        async def __call__(self, query: str) -> str:
            return query

    async def search(_index: str, query: str) -> str:
        return query

    ranker, docs = costspan.observe(Ranker()), costspan.observe(functools.partial(search, "docs"))
    assert inspect.iscoroutinefunction(ranker)
    assert inspect.iscoroutinefunction(docs)
    assert isinstance(docs, functools.partial)
    assert asyncio.run(ranker("q")) == asyncio.run(docs("q")) == "q"


def test_an_objects_span_is_named_after_its_class(traced: Receiver) -> None:
    class Ranker:
        def __call__(self) -> None: ...

    costspan.observe(Ranker())()
    assert [span.name.rpartition(".")[2] for span in traced.spans()] == ["Ranker"]


@pytest.mark.usefixtures("traced")
def test_a_generator_shares_its_consumers_variables() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="nobody")

    @costspan.observe
    def inner() -> Iterator[str]:
        yield variable.get()
        yield variable.get()
        variable.set("generator")
        yield ""

    numbers = inner()
    assert next(numbers) == "nobody"
    variable.set("consumer")
    assert next(numbers) == "consumer"
    next(numbers)
    assert variable.get() == "generator"


@pytest.mark.usefixtures("traced")
def test_an_async_generator_shares_its_consumers_variables() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="nobody")

    @costspan.observe
    async def inner() -> AsyncGenerator[str, None]:
        yield variable.get()
        yield variable.get()
        variable.set("generator")
        yield ""

    async def main() -> None:
        numbers = inner()
        assert await anext(numbers) == "nobody"
        variable.set("consumer")
        assert await anext(numbers) == "consumer"
        await anext(numbers)
        assert variable.get() == "generator"

    asyncio.run(main())


def test_what_a_plain_function_returns_keeps_its_kind_and_name(traced: Receiver) -> None:
    async def coroutine() -> int:
        return 7

    work = costspan.observe(lambda: coroutine())()  # noqa: PLW0108  (a plain function that returns a coroutine)
    assert inspect.iscoroutine(work)
    assert work.__qualname__.endswith("coroutine")
    assert asyncio.run(work) == 7
    numbers = costspan.observe(lambda: (number for number in range(3)))()
    assert inspect.isgenerator(numbers)
    assert list(numbers) == [0, 1, 2]
    assert [span.attributes.get(semconv.ITEMS) for span in traced.spans()] == [None, 3]


def test_an_old_coroutine_can_be_awaited(traced: Receiver) -> None:
    @costspan.observe(name="work")
    @types.coroutine
    def old() -> Generator[None, None, int]:
        yield
        return 7

    async def main() -> int:
        return await old()

    assert asyncio.run(main()) == 7
    assert traced.span("work").outcome == "ok"


def test_a_generator_that_fails_while_it_is_closed_has_failed(traced: Receiver) -> None:
    @costspan.observe(name="work")
    def work() -> Generator[int, None, None]:
        try:
            yield 1
        finally:
            raise BoomError("at the end")

    numbers = work()
    next(numbers)
    with pytest.raises(BoomError):
        numbers.close()
    assert traced.span("work").message == "BoomError: at the end"


def test_a_generator_may_refuse_to_be_closed_as_ever(traced: Receiver) -> None:
    @costspan.observe(name="work")
    def stubborn() -> Generator[int, None, None]:
        with suppress(GeneratorExit):
            yield 1
        yield 2

    numbers = stubborn()
    next(numbers)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        numbers.close()
    numbers.close()
    assert traced.span("work").outcome == "cancelled"


# --- the end of the process ----------------------------------------------------------------------------------------

EXITING = """
import asyncio, os, sys, threading, time
import costspan

costspan.init(project="tests", endpoint=sys.argv[1])

@costspan.observe
def numbers():
    yield 1
    yield 2

@costspan.observe
async def async_numbers():
    yield 1

@costspan.observe
def forever():
    time.sleep(60)

threading.Thread(target=forever, daemon=True).start()
kept, async_kept = numbers(), async_numbers()
next(kept)
asyncio.new_event_loop().run_until_complete(anext(async_kept))
while len(costspan._observation._open) < 3:
    time.sleep(0.001)
sys.exit(3)
"""


def test_what_is_open_when_the_process_exits_is_ended(receiver: Receiver) -> None:
    done = subprocess.run([sys.executable, "-c", EXITING, receiver.endpoint], check=False, timeout=30)
    assert done.returncode == 3
    spans = {span.name: span for request in receiver.accepted for span in read_spans(request.body)}
    assert {name: (span.outcome, span.attributes.get(semconv.ITEMS)) for name, span in spans.items()} == {
        "numbers": ("cancelled", 1),
        "async_numbers": ("cancelled", 1),
        "forever": ("cancelled", None),
    }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_parent_has_open_is_not_ended_by_its_child(traced: Receiver) -> None:
    with costspan.observe(name="work"):
        pid = os.fork()
        if pid == 0:
            end_open()
            costspan.flush(5)
            os._exit(0)
        os.waitpid(pid, 0)
        costspan.annotate(by="parent")
    assert traced.span("work").attributes["by"] == "parent"
