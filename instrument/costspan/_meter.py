"""Iterators that tell a model call what passes through them."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import FrameType
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

    __slots__ = ("_finished", "_streams", "abort_ns", "delivered", "failure", "first_ns", "last_ns")

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
        self.last_ns = at = now_ns()
        if tokens > 0:
            self.delivered += tokens
            if not self.first_ns:
                self.first_ns = at

    def finished(self) -> None:
        """A stream ended by itself, or said that it has."""
        self._finished = min(self._finished + 1, self._streams)
        self.last_ns = now_ns()

    def failed(self, error: BaseException) -> None:
        """A stream raised, or the task that waits for it was cancelled."""
        self.failure = outcome_of(error)
        if self.failure in ABORTED:
            self.left()

    def left(self) -> None:
        """Nobody reads on; the first to say so is believed."""
        self.abort_ns = self.abort_ns or now_ns()

    def resumed(self) -> None:
        """Somebody does read on, who had left."""
        self.abort_ns = 0


class _Meter(Generic[T]):
    # An object and not a generator: an abandoned async generator is closed by its event loop at some later time, an object is
    # finalized the moment its consumer leaves the loop, and that moment is what is being measured.
    def __init__(
        self,
        stream: Any,
        reading: Reading,
        tokens: Callable[[T], int] | None = None,
        ended: Callable[[BaseException | None], None] | None = None,
    ) -> None:
        self._stream = stream
        self._reading = reading
        self._tokens = tokens
        self._ended = ended
        self._open = True
        reading.opened()

    def __del__(self) -> None:
        self.leave()

    def leave(self) -> None:
        """Stop reading. The stream is left as it is; once it has ended, this does nothing."""
        if self._open:
            self._reading.left()
            self._end(None)

    def closed(self) -> None:
        """The stream was closed: by itself as it ends, or by a consumer who leaves it so."""
        if self._open and not self._is_reading():
            self.leave()

    def pause(self) -> None:
        """A loop over it was left; unless there is another, that was the abort."""
        if self._open:
            self._reading.left()

    def resume(self) -> None:
        """A loop over it begins."""
        if self._open:
            self._reading.resumed()

    def deliver(self, item: T) -> T:
        """An item goes to the consumer."""
        try:
            count = 1 if self._tokens is None else self._tokens(item)
        except Exception as error:  # noqa: BLE001  (the app's stream goes on)
            report(error, "count the tokens of an item")
            count = 0
        self._reading.took(count)
        return item

    def stop(self, error: BaseException) -> None:
        """The stream ended, with what an iterator raises then, or with an error."""
        if not self._open:
            return
        if isinstance(error, (StopIteration, StopAsyncIteration)):
            self._reading.finished()
            self._end(None)
        else:
            self._reading.failed(error)
            self._end(error)

    def _is_reading(self) -> bool:
        """Whether the caller was called, at whatever remove, by the stream while an item of it is being fetched."""
        frame: FrameType | None = sys._getframe()  # noqa: SLF001  (there is no other way)
        while frame is not None and not (frame.f_code in _FETCHING and frame.f_locals["self"] is self):
            frame = frame.f_back
        return frame is not None

    def _end(self, error: BaseException | None) -> None:
        self._open = False
        if self._ended is not None:
            self._ended(error)


class Meter(_Meter[T], Iterator[T]):
    """An iterator over another's items."""

    def __next__(self) -> T:
        try:
            item: T = next(self._stream)
        except BaseException as error:
            self.stop(error)
            raise
        return self.deliver(item)

    def close(self) -> None:
        """Stop reading, and close the stream if it can be."""
        self.leave()
        close = getattr(self._stream, "close", None)
        if close is not None:
            close()


class AsyncMeter(_Meter[T], AsyncIterator[T]):
    """An async iterator over another's items."""

    async def __anext__(self) -> T:
        try:
            item: T = await anext(self._stream)
        except BaseException as error:
            self.stop(error)
            raise
        return self.deliver(item)

    async def aclose(self) -> None:
        """Stop reading, and close the stream if it can be."""
        self.leave()
        close = getattr(self._stream, "aclose", None)
        if close is not None:
            await close()


_FETCHING = (Meter.__next__.__code__, AsyncMeter.__anext__.__code__)


class Loops(Generic[T]):
    """Stands for an iterator inside a client library's stream, whose owner may be kept long after its last loop was left.

    Each loop over it is an object of its own, which dies where the loop is left: that is the abort, unless another follows.
    """

    def __init__(self, meter: Meter[T]) -> None:
        self._meter = meter

    def __iter__(self) -> Iterator[T]:
        return _Loop(self._meter)

    def __next__(self) -> T:
        return next(self._meter)


class _Loop(Iterator[T]):
    def __init__(self, meter: Meter[T]) -> None:
        self._meter = meter
        meter.resume()

    def __next__(self) -> T:
        return next(self._meter)

    def __del__(self) -> None:
        self._meter.pause()


class AsyncLoops(Generic[T]):
    """The same for an async iterator."""

    def __init__(self, meter: AsyncMeter[T]) -> None:
        self._meter = meter

    def __aiter__(self) -> AsyncIterator[T]:
        return _AsyncLoop(self._meter)

    def __anext__(self) -> Coroutine[Any, Any, T]:
        return self._meter.__anext__()


class _AsyncLoop(AsyncIterator[T]):
    def __init__(self, meter: AsyncMeter[T]) -> None:
        self._meter = meter
        meter.resume()

    def __anext__(self) -> Coroutine[Any, Any, T]:
        return self._meter.__anext__()

    def __del__(self) -> None:
        self._meter.pause()
