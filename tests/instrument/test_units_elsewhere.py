"""The unit of work in threads, tasks and other processes."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import costspan
from costspan import semconv
from tests.instrument import handover_workers
from tests.instrument.handover_workers import work
from tests.receiver import Receiver, Span, read_baggage

Way = Callable[[], object]


def by_name(traced: Receiver, name: str, count: int) -> list[Span]:
    """Spans of a name, once so many have come: other processes send theirs when they will."""
    deadline = time.monotonic() + 20
    while True:
        found = [span for span in traced.spans() if span.name == name]
        if len(found) >= count or time.monotonic() > deadline:
            assert len(found) == count
            return found
        time.sleep(0.02)


def belong(traced: Receiver, count: int = 1) -> None:
    """Whether what was done elsewhere is under the unit and of its trace."""
    spans = by_name(traced, "elsewhere", count)
    (unit,) = by_name(traced, "unit ticket", 1)
    assert {span.attributes.get(semconv.UNIT) for span in spans} == {"T-1"}
    assert {span.attributes.get(semconv.UNIT_KIND) for span in spans} == {"ticket"}
    assert {span.attributes.get(semconv.TENANT) for span in spans} == {"acme"}
    assert {span.attributes.get(semconv.FEATURE) for span in spans} == {"triage"}
    assert {(span.trace_id, span.parent_id) for span in spans} == {(unit.trace_id, unit.span_id)}


def ticket() -> costspan.Unit:
    return costspan.unit("ticket", "T-1", tenant="acme", feature="triage")


def in_a_thread() -> None:
    thread = threading.Thread(target=costspan.bind(work))
    thread.start()
    thread.join()


def in_a_pool() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(costspan.bind(work), 5).result() == 5


def in_an_executor_of_a_loop() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().run_in_executor(None, costspan.bind(work))

    asyncio.run(main())


def in_a_thread_of_a_loop() -> None:
    asyncio.run(asyncio.to_thread(work))


def in_a_task() -> None:
    async def step() -> None:
        work()

    async def main() -> None:
        await asyncio.create_task(step())

    asyncio.run(main())


def in_a_callback() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(work)
        await asyncio.sleep(0.01)

    asyncio.run(main())


def in_a_loop_of_another_thread() -> None:
    @costspan.bind
    async def step() -> None:
        await asyncio.sleep(0)
        work()

    thread = threading.Thread(target=lambda: asyncio.run(step()))
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    "way",
    [
        in_a_thread,
        in_a_pool,
        in_an_executor_of_a_loop,
        in_a_thread_of_a_loop,
        in_a_task,
        in_a_callback,
        in_a_loop_of_another_thread,
    ],
)
def test_work_elsewhere_belongs_to_the_unit(traced: Receiver, way: Way) -> None:
    with ticket():
        way()
    belong(traced)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.TaskGroup is of 3.11")
def test_tasks_of_a_group_and_of_a_gather(traced: Receiver) -> None:
    async def step() -> None:
        await asyncio.sleep(0)
        work()

    async def main() -> None:
        async with ticket():
            async with asyncio.TaskGroup() as group:
                for _ in range(3):
                    group.create_task(step())
            await asyncio.gather(step(), step())

    asyncio.run(main())
    belong(traced, 5)


def test_a_task_that_outlives_the_block_stays_in_the_unit(traced: Receiver) -> None:
    async def main() -> None:
        with ticket():
            task = asyncio.create_task(step())
        await task

    async def step() -> None:
        await asyncio.sleep(0.01)
        work()

    asyncio.run(main())
    belong(traced)


def test_a_bound_function_runs_often_and_at_once(traced: Receiver) -> None:
    together = threading.Barrier(4)

    def step(number: int) -> int:
        together.wait(10)
        return work(number)

    with ticket():
        bound = costspan.bind(step)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(bound, range(8))) == list(range(8))
    belong(traced, 8)


def test_a_bound_function_changes_nothing_else(traced: Receiver) -> None:
    own: ContextVar[str] = ContextVar("own", default="default")

    def fail() -> None:
        raise KeyError(own.get())

    with ticket():
        own.set("of the unit")
        bound = costspan.bind(fail)
    own.set("of the caller")
    with pytest.raises(KeyError, match="of the caller"):
        bound()
    assert bound.__name__ == "fail"
    work()
    assert semconv.UNIT not in traced.span("elsewhere").attributes


def test_a_generator_is_not_bound(traced: Receiver) -> None:
    def numbers() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="runs wherever it is read"):
        costspan.bind(numbers)
    assert traced.spans() == []


def test_money_of_a_bound_thread_is_added_to_the_operation(traced: Receiver) -> None:
    @costspan.observe(name="outer")
    def outer() -> None:
        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(costspan.bind(costspan.cost), usd="0.1") for _ in range(30)]:
                future.result()

    outer()
    assert traced.span("outer").attributes[semconv.COST_USD] == "3.0"


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_pool_of_processes_takes_bound_functions(traced: Receiver, method: str) -> None:
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(1, context, initializer=handover_workers.begin, initargs=(traced.endpoint,))
    with ticket(), pool:
        assert list(pool.map(costspan.bind(work), range(2))) == [0, 1]
    belong(traced, 2)


def test_a_process_is_handed_them_in_its_environment(traced: Receiver) -> None:
    with ticket():
        handed = {name.upper(): value for name, value in costspan.outgoing().items()}
        command = [sys.executable, "-m", "tests.instrument.handover_workers", traced.endpoint]
        subprocess.run(command, env=os.environ | handed, cwd=Path(__file__).parents[2], check=True, timeout=60)
    belong(traced)


def test_a_message_carries_the_unit_to_whoever_takes_it(traced: Receiver) -> None:
    with ticket():
        message = json.dumps({"headers": costspan.outgoing()})
    headers = {key.title(): value for key, value in json.loads(message)["headers"].items()}
    with costspan.unit("batch", "B-1", tenant="nobody"), suppress(ZeroDivisionError), costspan.incoming(headers):
        work()
        raise ZeroDivisionError
    belong(traced)


def test_headers_that_say_nothing_change_nothing(traced: Receiver) -> None:
    for headers in ({}, {"host": "example"}, {"traceparent": "nonsense", "baggage": ";;;="}):
        with ticket(), costspan.incoming(headers):
            work()
    spans = by_name(traced, "elsewhere", 3)
    assert {span.attributes.get(semconv.UNIT) for span in spans} == {"T-1"}


def test_what_is_sent_says_whose_it_is_even_outside_of_any_unit(receiver: Receiver) -> None:
    costspan.init(project="p", endpoint=receiver.endpoint, tenant="acme", feature="nightly")
    try:
        headers = costspan.outgoing()
        assert read_baggage(headers["baggage"]) == {
            semconv.PROJECT: "p",
            semconv.TENANT: "acme",
            semconv.FEATURE: "nightly",
        }
        assert "traceparent" not in headers
    finally:
        costspan.shutdown(5)


def test_the_number_of_a_call_is_not_handed_on(traced: Receiver) -> None:
    with ticket(), costspan.operation("answer"):
        for _ in range(2):
            with costspan.generation(model="m", provider="p"):
                headers = costspan.outgoing()
    assert traced.spans()
    assert semconv.ATTEMPT not in read_baggage(headers["baggage"])


def test_the_apps_own_trace_goes_along(traced: Receiver) -> None:
    tracer = TracerProvider().get_tracer("app")
    with tracer.start_as_current_span("own") as own, ticket():
        headers = costspan.outgoing()
    with costspan.incoming(headers):
        continued = trace.get_current_span().get_span_context()
    assert continued.trace_id == own.get_span_context().trace_id == int(traced.span("unit ticket").trace_id, 16)
