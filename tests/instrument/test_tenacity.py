"""tenacity's own retries, followed."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
import tenacity

import costspan
from costspan import semconv
from costspan._instrument import instrument, uninstrument
from tests.receiver import Receiver, Span

OWNERS = (tenacity.BaseRetrying, tenacity.Retrying, tenacity.AsyncRetrying, tenacity.AttemptManager, tenacity.RetryCallState)


class RefusedError(Exception):
    pass


@pytest.fixture
def instrumented(traced: Receiver) -> Iterator[Receiver]:
    before = [dict(vars(owner)) for owner in OWNERS]
    instrument("tenacity")
    instrument("tenacity")
    yield traced
    uninstrument("tenacity")
    uninstrument("tenacity")
    assert [dict(vars(owner)) for owner in OWNERS] == before


class Flaky:
    """Fails until it has been called so often."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def __call__(self) -> str:
        with costspan.generation(model="m", provider="p"):
            self.failures -= 1
            if self.failures >= 0:
                raise RefusedError
        return "answer"

    async def soon(self) -> str:
        await asyncio.sleep(0)
        return self()


def named(receiver: Receiver, name: str) -> list[Span]:
    return sorted((span for span in receiver.spans() if span.name == name), key=lambda span: span.start_ns)


def said(spans: list[Span], key: str) -> list[Any]:
    return [span.attributes.get(key) for span in spans]


def assert_tries(receiver: Receiver, operation: str | None, outcomes: list[str]) -> None:
    attempts, calls = named(receiver, "attempt"), named(receiver, "chat m")
    numbers = list(range(1, len(outcomes) + 1))
    assert said(attempts, semconv.OUTCOME) == said(calls, semconv.OUTCOME) == outcomes
    assert said(attempts, semconv.ATTEMPT) == said(calls, semconv.ATTEMPT) == numbers
    assert [span.parent_id for span in calls] == [span.span_id for span in attempts]
    first = attempts[0].span_id if operation is None else receiver.span(operation).span_id
    assert set(said(attempts, semconv.OPERATION)) == set(said(calls, semconv.OPERATION)) == {first}
    if operation is not None:
        assert {span.parent_id for span in attempts} == {first}


def test_a_retried_function(instrumented: Receiver) -> None:
    @tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(0.02))
    def ask(flaky: Flaky) -> str:
        return flaky()

    assert ask(Flaky(2)) == "answer"
    assert_tries(instrumented, "test_a_retried_function.<locals>.ask", ["error", "error", "ok"])
    attempts = named(instrumented, "attempt")
    waits = [after.start_ns - before.end_ns for before, after in pairwise(attempts)]
    assert min(waits) >= 20_000_000
    operation = instrumented.span("test_a_retried_function.<locals>.ask")
    assert operation.outcome == "ok"
    assert operation.end_ns - operation.start_ns >= 40_000_000


def test_a_retried_coroutine(instrumented: Receiver) -> None:
    @tenacity.retry(stop=tenacity.stop_after_attempt(2))
    async def ask(flaky: Flaky) -> str:
        return await flaky.soon()

    assert inspect.iscoroutinefunction(ask)
    with pytest.raises(tenacity.RetryError):
        asyncio.run(ask(Flaky(5)))
    assert_tries(instrumented, "test_a_retried_coroutine.<locals>.ask", ["error", "error"])
    assert instrumented.span("test_a_retried_coroutine.<locals>.ask").outcome == "error"


def test_a_callable_without_a_name(instrumented: Receiver) -> None:
    retrying = tenacity.Retrying(stop=tenacity.stop_after_attempt(2))
    assert retrying(functools.partial(Flaky(1))) == "answer"
    assert_tries(instrumented, "partial", ["error", "ok"])


@pytest.mark.parametrize("leaves", [False, True])
def test_retrying_as_a_loop(instrumented: Receiver, leaves: bool) -> None:
    @costspan.observe(name="answer")
    def answer(flaky: Flaky) -> str:
        said = ""
        for attempt in tenacity.Retrying(stop=tenacity.stop_after_attempt(3)):
            with attempt:
                said = flaky()
                if leaves:
                    return said
        return said

    assert answer(Flaky(2)) == "answer"
    assert_tries(instrumented, None, ["error", "error", "ok"])
    assert {span.parent_id for span in named(instrumented, "attempt")} == {instrumented.span("answer").span_id}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_retrying_as_an_async_loop(instrumented: Receiver, asynchronous: bool) -> None:
    async def answer(flaky: Flaky) -> None:
        async for attempt in tenacity.AsyncRetrying(stop=tenacity.stop_after_attempt(2), reraise=True):
            if asynchronous:
                async with attempt:
                    await flaky.soon()
            else:
                with attempt:
                    await flaky.soon()

    with pytest.raises(RefusedError):
        asyncio.run(answer(Flaky(2)))
    assert_tries(instrumented, None, ["error", "error"])


def test_a_result_that_was_turned_down_is_invalid(instrumented: Receiver) -> None:
    answers = iter(["", "an answer"])

    @tenacity.retry(retry=tenacity.retry_if_result(lambda text: not text))
    def ask() -> str:
        return next(answers)

    assert ask() == "an answer"
    attempts = named(instrumented, "attempt")
    assert said(attempts, semconv.OUTCOME) == ["ok", "ok"]
    assert said(attempts, semconv.INVALID) == ["its retry condition turned the result down", None]


def test_inside_an_operation_they_are_tries_of_that(instrumented: Receiver) -> None:
    @tenacity.retry(stop=tenacity.stop_after_attempt(2), reraise=True)
    def ask(flaky: Flaky) -> str:
        return flaky()

    with costspan.operation("answer"):
        with suppress(RefusedError):
            ask(Flaky(2))
        ask(Flaky(0))
    assert_tries(instrumented, "answer", ["error", "error", "ok"])


def test_inside_an_attempt_they_are_of_something_smaller(instrumented: Receiver) -> None:
    @tenacity.retry(stop=tenacity.stop_after_attempt(2))
    def inner(flaky: Flaky) -> str:
        return flaky()

    @tenacity.retry
    def outer() -> str:
        return inner(Flaky(1))

    assert outer() == "answer"
    around, *tries = named(instrumented, "attempt")
    (inside,) = (span for span in instrumented.spans() if span.name.endswith(".inner"))
    assert inside.parent_id == around.span_id
    assert said(tries, semconv.OPERATION) == [inside.span_id] * 2
    assert said(tries, semconv.ATTEMPT) == [1, 2]


def test_a_cancelled_task_is_no_error(instrumented: Receiver) -> None:
    @tenacity.retry
    async def ask() -> None:
        await asyncio.sleep(30)

    async def main() -> None:
        task = asyncio.create_task(ask())
        await asyncio.sleep(0.01)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert said(named(instrumented, "attempt"), semconv.OUTCOME) == ["cancelled"]


@pytest.mark.usefixtures("instrumented")
def test_what_the_app_sees_is_what_it_saw() -> None:
    seen: list[Any] = []

    def before(state: tenacity.RetryCallState) -> None:
        seen.append((state.fn, state.args, state.attempt_number))

    def ask(flaky: Flaky) -> str:
        return flaky()

    retried = tenacity.retry(before=before)(ask)
    flaky = Flaky(1)
    assert retried(flaky) == "answer"
    assert seen == [(ask, (flaky,), 1), (ask, (flaky,), 2)]
    assert retried.statistics["attempt_number"] == 2


def test_a_disabled_retry_is_none(instrumented: Receiver) -> None:
    @tenacity.retry(enabled=False)
    def ask(flaky: Flaky) -> str:
        return flaky()

    ask(Flaky(0))
    assert named(instrumented, "attempt") == []


def test_before_init_tenacity_works_as_ever() -> None:
    instrument("tenacity")
    try:
        assert tenacity.retry(Flaky(2).__call__)() == "answer"
    finally:
        uninstrument("tenacity")
