"""Iterators that tell a model call what passes through them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, TypeVar

from costspan._outcome import outcome_of
from costspan._trouble import report
from costspan.clock import now_ns
from costspan.semconv import ABORTED, Outcome

T = TypeVar("T")


class Reading:
    """What its client has seen of one response. Stamps are nanoseconds since the Unix epoch; 0 if never.

    Attributes:
        first_ns: First item that carried a token.
        last_ns: Last item, or the end of the stream.
        abort_ns: The client stopped waiting, by its own will, another's or a timeout.
        delivered: Tokens that the consumer got.
        failure: How reading ended, where it did not end well.
    """

    def __init__(self) -> None:
        self.first_ns = self.last_ns = self.abort_ns = 0
        self.delivered = 0
        self.failure = Outcome.OK
        self._streams = 0
        self._finished = 0

    @property
    def is_whole(self) -> bool:
        """Whether every stream was read to its end, and there was one."""
        return 0 < self._streams == self._finished

    @property
    def is_streamed(self) -> bool:
        """Whether the response is read item by item."""
        return self._streams > 0

    def opened(self) -> None:
        """A stream is about to be read."""
        self._streams += 1

    def took(self, tokens: int) -> None:
        """An item goes to the consumer."""
        self.last_ns = now_ns()
        if tokens > 0 and not self.first_ns:
            self.first_ns = self.last_ns
        self.delivered += tokens

    def finished(self) -> None:
        """A stream ended by itself."""
        self._finished += 1
        self.last_ns = now_ns()

    def failed(self, error: BaseException) -> None:
        """A stream raised, or the task that waits for it was cancelled."""
        self.failure = outcome_of(error)
        if self.failure in ABORTED:
            self.left()

    def left(self) -> None:
        """Nobody reads on; the first to say so is believed."""
        self.abort_ns = self.abort_ns or now_ns()


class _Meter(Generic[T]):
    # An object and not a generator: an abandoned async generator is closed by its event loop at some later time, an object is
    # finalized the moment its consumer leaves the loop, and that moment is what is being measured.
    def __init__(self, stream: Any, reading: Reading, tokens: Callable[[T], int] | None) -> None:
        self._stream = stream
        self._reading = reading
        self._tokens = tokens
        self._open = True
        reading.opened()

    def __del__(self) -> None:
        self._leave()

    def _deliver(self, item: T) -> T:
        try:
            count = 1 if self._tokens is None else self._tokens(item)
        except Exception as error:  # noqa: BLE001  (the app's stream goes on)
            report(error, "count the tokens of an item")
            count = 0
        self._reading.took(count)
        return item

    def _stop(self, error: BaseException) -> None:
        self._open = False
        if isinstance(error, (StopIteration, StopAsyncIteration)):
            self._reading.finished()
        else:
            self._reading.failed(error)

    def _leave(self) -> None:
        if self._open:
            self._open = False
            self._reading.left()


class Meter(_Meter[T], Iterator[T]):
    """An iterator over another's items."""

    def __next__(self) -> T:
        try:
            item: T = next(self._stream)
        except BaseException as error:
            self._stop(error)
            raise
        return self._deliver(item)

    def close(self) -> None:
        """Stop reading, and close the stream if it can be."""
        self._leave()
        close = getattr(self._stream, "close", None)
        if close is not None:
            close()


class AsyncMeter(_Meter[T], AsyncIterator[T]):
    """An async iterator over another's items."""

    async def __anext__(self) -> T:
        try:
            item: T = await anext(self._stream)
        except BaseException as error:
            self._stop(error)
            raise
        return self._deliver(item)

    async def aclose(self) -> None:
        """Stop reading, and close the stream if it can be."""
        self._leave()
        close = getattr(self._stream, "aclose", None)
        if close is not None:
            await close()
