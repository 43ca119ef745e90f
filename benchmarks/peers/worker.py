"""One subject in a process of its own, in its own environment: does what it is told on standard input, and answers in JSON.

Run by ``benchmarks/sdk.py`` as ``worker.py SUBJECT ENDPOINT``. It is told, as a JSON array a line:

- ``["measure", NAME, COUNT]``: run some work that often; answers nanoseconds by the clock, and by the processor until all of
  it is sent.
- ``["end", NAME]``: begin something and do not let it end by itself; answers when what there is to send is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import importlib.metadata
import inspect
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

STREAM = 500  # items
HELD_S = 0.05  # how long what is not let end is open; a span that is shorter does not cover it


def call() -> None:
    """Do nothing."""


async def coroutine() -> None:
    """Do nothing."""


def generator(count: int) -> Iterator[int]:
    """Yield."""
    yield from range(count)


async def async_generator(count: int) -> AsyncIterator[int]:
    """Yield."""
    for number in range(count):
        yield number


async def waiting() -> None:
    """Wait for long."""
    await asyncio.sleep(60)


async def trickle() -> AsyncIterator[int]:
    """Yield a little, then wait for long."""
    for number in range(3):
        yield number
    await asyncio.sleep(60)


class Worker:
    """A subject and the work that it observes.

    Args:
        subject: Module with ``DISTRIBUTION``, ``start``, which answers with a block in which the work is for somebody,
            ``observe`` and ``flush``; ``EXTRA`` has more to measure.
    """

    def __init__(self, subject: Any) -> None:
        self._flush: Callable[[], None] = subject.flush
        self._runner = asyncio.Runner()  # its context is today's: who the work is for is set
        work: tuple[Callable[..., Any], ...] = (call, coroutine, generator, async_generator, waiting, trickle)
        self._call, self._coroutine, self._generator, self._async_generator, self._waiting, self._trickle = (
            subject.observe(function) for function in work
        )
        self._work: dict[str, Callable[[int], object]] = {
            "call": self._calls,
            "coroutine": self._coroutines,
            "item": self._items,
            "async_item": self._async_items,
            **getattr(subject, "EXTRA", {}),
        }
        self._ends: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "coroutine cancelled": lambda: cancelled(self._waiting()),
            "generator left": self._leave,
            "async generator left": self._leave_async,
            "async generator cancelled": lambda: cancelled(exhausted(self._trickle())),
        }

    def measure(self, name: str, count: int) -> dict[str, int]:
        """Run some work ``count`` times."""
        self._flush()
        gc.collect()
        cpu_ns = time.process_time_ns()
        taken_ns = self._runner.run(timed(self._work[name], count))
        self._flush()
        return {"ns": taken_ns, "cpu_ns": time.process_time_ns() - cpu_ns}

    def end(self, name: str) -> dict[str, int]:
        """Begin something and do not let it end by itself."""
        self._runner.run(self._ends[name]())
        gc.collect()
        self._flush()
        return {}

    def _calls(self, count: int) -> None:
        for _ in range(count):
            self._call()

    async def _coroutines(self, count: int) -> None:
        for _ in range(count):
            await self._coroutine()

    def _items(self, count: int) -> None:
        for _ in range(count // STREAM):
            for _ in self._generator(STREAM):
                pass

    async def _async_items(self, count: int) -> None:
        for _ in range(count // STREAM):
            async for _ in self._async_generator(STREAM):
                pass

    async def _leave(self) -> None:
        for number in self._generator(10):
            if number == 2:
                time.sleep(HELD_S)  # noqa: ASYNC251  (nothing else runs)
                break

    async def _leave_async(self) -> None:
        async for number in self._async_generator(10):
            if number == 2:
                await asyncio.sleep(HELD_S)
                break
        gc.collect()
        await asyncio.sleep(HELD_S)  # the event loop closes what was dropped


async def timed(work: Callable[[int], object], count: int) -> int:
    """Nanoseconds that some work takes, that of the event loop around it left out."""
    began_ns = time.perf_counter_ns()
    if inspect.isawaitable(waiting := work(count)):
        await waiting
    return time.perf_counter_ns() - began_ns


async def exhausted(items: AsyncIterator[Any]) -> None:
    """Read to the end."""
    async for _ in items:
        pass


async def cancelled(work: Any) -> None:
    """Let it begin, and cancel it."""
    task = asyncio.ensure_future(work)
    await asyncio.sleep(HELD_S)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await asyncio.sleep(HELD_S)


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a subject prints is not an answer
    subject = importlib.import_module(f"subjects.{sys.argv[1]}")
    with subject.start(sys.argv[2]):
        worker = Worker(subject)
        commands: dict[str, Callable[..., dict[str, int]]] = {"measure": worker.measure, "end": worker.end}
        print(json.dumps({"version": importlib.metadata.version(subject.DISTRIBUTION)}), file=answers)
        for line in sys.stdin:
            command, *arguments = json.loads(line)
            try:
                answer: dict[str, Any] = commands[command](*arguments)
            except Exception as error:  # noqa: BLE001  (the subject's; the others go on)
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers)
    os._exit(0)  # some subjects wait at exit for a server that is gone


if __name__ == "__main__":
    main()
