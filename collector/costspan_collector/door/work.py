"""Statements at work: each on a thread, its result coming through a pipe, so that neither side waits for the whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

from costspan_collector.embedded.engine import Done, Engine, Query
from costspan_collector.embedded.failure import Failure
from costspan_collector.embedded.statement import Insert

_TOO_MANY_SIMULTANEOUS_QUERIES = 202
_ASK_AGAIN_S = 0.2


class Work:
    """A statement that runs and answers.

    Args:
        engine: What runs it.
        query: The statement.
        pool: The threads.
    """

    def __init__(self, engine: Engine, query: Query, pool: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._query = query
        self._source, sink = os.pipe()
        self._format = ""
        self._ending = asyncio.get_running_loop().run_in_executor(pool, engine.run, query, sink, self._note)
        self._ending.add_done_callback(lambda ending: ending.cancelled() or ending.exception())  # seen, whoever waits for it
        self._reader: asyncio.StreamReader | None = None
        self._transport: asyncio.ReadTransport | None = None

    @property
    def format(self) -> str:
        """The format of its result, once that has begun."""
        return self._format

    async def read(self, most: int) -> bytes:
        """The next piece of its result; empty at the end."""
        if self._reader is None:
            reader = self._reader = asyncio.StreamReader()
            self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(self._source, "rb", 0)
            )
        return await self._reader.read(most)

    async def done(self) -> Done:
        """What it did, at its end.

        Raises:
            Failure: It did not come to it.
        """
        return await asyncio.shield(self._ending)

    async def end(self) -> None:
        """End it, wherever it is; it has ended when this returns."""
        if self._transport:
            self._transport.close()
        elif self._reader is None:
            os.close(self._source)
        while not self._ending.done():  # asked again: it may not have been running yet
            await asyncio.to_thread(self._engine.end, self._query)
            await asyncio.wait({self._ending}, timeout=_ASK_AGAIN_S)
        with contextlib.suppress(Failure):
            self._ending.result()

    def _note(self, fmt: str) -> None:
        self._format = fmt


class Works:
    """What is at work, and how much of it may be at once.

    Args:
        engine: What runs the statements.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._limits = engine.limits
        self._pool = ThreadPoolExecutor(self._limits.parallel, thread_name_prefix="costspan-door")
        self._running: Counter[str] = Counter()

    @contextlib.contextmanager
    def place(self, reader: str) -> Iterator[None]:
        """A place for one more.

        Args:
            reader: Id of the read key that asks, "" for who may do everything.

        Raises:
            Failure: All are taken, or all of a reader's.
        """
        if self._running.total() >= self._limits.parallel:
            raise _too_many(self._limits.parallel)
        if reader and self._running[reader] >= self._limits.parallel_of_reader:
            raise _too_many(self._limits.parallel_of_reader)
        self._running[reader] += 1
        try:
            yield
        finally:
            self._running[reader] -= 1
            self._running += Counter()  # forgets who has none

    def begin(self, query: Query) -> Work:
        """Start a statement that answers."""
        return Work(self._engine, query, self._pool)

    async def insert(self, query: Query, insert: Insert, data: AsyncIterator[bytes]) -> Done:
        """Insert data as they come.

        Raises:
            Failure: The engine does not take them; none are kept of a block that it refuses.
        """
        loop = asyncio.get_running_loop()

        async def piece() -> bytes | None:
            return await anext(data, None)

        def pieces() -> Iterator[bytes]:
            while (got := asyncio.run_coroutine_threadsafe(piece(), loop).result()) is not None:
                yield got

        return await loop.run_in_executor(self._pool, self._engine.insert, query, insert, pieces())


def _too_many(most: int) -> Failure:
    sentence = f"Too many simultaneous queries. Maximum: {most}"
    return Failure.of(_TOO_MANY_SIMULTANEOUS_QUERIES, "TOO_MANY_SIMULTANEOUS_QUERIES", sentence)
