"""What comes back of a model call: read as the app reads it, and the call ended when the app has it or leaves it."""

from __future__ import annotations

import json
import weakref
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, TypeVar

from costspan._generation import Generation
from costspan._meter import AsyncLoops, AsyncMeter, Loops, Meter, Reading
from costspan._trouble import report
from costspan.integrations._api import Reader

M = TypeVar("M", bound="Meter[Any] | AsyncMeter[Any]")
_Hidden = Callable[[Any], bool]
_ITEMS = "_iterator"  # what a stream of Stainless's iterates over


def attend_stream(call: Generation, stream: Any, read: Reader, is_hidden: _Hidden | None = None) -> None:
    """Meter a client library's stream from within: to the app it stays the object that it is.

    Args:
        call: Whose answer it is. It ends with the stream, or when the app leaves it.
        stream: A stream of Stainless's, with its ``response``.
        read: Reads its items.
        is_hidden: Which items the app is not to see.
    """
    source = getattr(stream, _ITEMS)
    meter: Meter[Any] | AsyncMeter[Any]
    if hasattr(source, "__anext__"):
        items = source if is_hidden is None else _ashown(source, read, is_hidden)
        meter = AsyncMeter(items, call.reading, read, call.end)
        setattr(stream, _ITEMS, AsyncLoops(meter))
    else:
        items = source if is_hidden is None else _shown(source, read, is_hidden)
        meter = Meter(items, call.reading, read, call.end)
        setattr(stream, _ITEMS, Loops(meter))
    weak = weakref.ref(meter)

    def closed() -> None:
        meter = weak()
        if meter is not None:
            meter.closed()

    _tell_when_closed(stream.response, closed)


def accompany_stream(call: Generation, stream: Any, read: Reader) -> None:
    """The same in a call that the app opened, and ends. Where the app meters the stream itself, its own meter counts."""
    source = getattr(stream, _ITEMS)
    beside: Any = _abeside if hasattr(source, "__anext__") else _beside
    setattr(stream, _ITEMS, beside(call, source, _while_open(call, read)))


def attend_body(call: Generation, response: Any, read: Reader) -> None:
    """Meter an httpx response whose body the app has yet to read, by whatever method, and end the call with it."""
    _Body(call, response, read, call.end).attach(response)


def accompany_body(call: Generation, response: Any, read: Reader) -> None:
    """The same in a call that the app opened."""
    _Body(call, response, _while_open(call, read), lambda _error: None).attach(response)


def read_body(response: Any, read: Reader) -> None:
    """Read a body that has come as a whole."""
    with suppress(ValueError):  # what is no JSON says nothing
        read(_parsed(response.content))


class _Body:
    """The body of a response, as its raw bytes pass by."""

    def __init__(self, call: Generation, response: Any, read: Reader, ended: Callable[[BaseException | None], None]) -> None:
        self._call = call
        self._read = read
        self._ended = ended
        self._is_events = response.headers.get("content-type", "").startswith("text/event-stream")
        self._inflate = zlib.decompressobj(47) if response.headers.get("content-encoding") in {"gzip", "deflate"} else None
        self._reading = Reading()
        self._meter: weakref.ref[Any] | None = None  # it refers to the response, and that to this for as long as it lives
        self._rest = b""

    def attach(self, response: Any) -> None:
        """See to it that the response is read through this, once."""
        weak, kind = weakref.ref(response), type(response)

        def iter_raw(chunk_size: int | None = None) -> Meter[bytes]:
            return self._metered(Meter(kind.iter_raw(_bare(weak), chunk_size), self._begin(), self._feed, self._end))

        def aiter_raw(chunk_size: int | None = None) -> AsyncMeter[bytes]:
            return self._metered(AsyncMeter(kind.aiter_raw(_bare(weak), chunk_size), self._begin(), self._feed, self._end))

        response.iter_raw, response.aiter_raw = iter_raw, aiter_raw
        _tell_when_closed(response, self._closed)
        weakref.finalize(response, self._closed).atexit = False

    def _begin(self) -> Reading:
        # What comes in one piece has no first token, and what the app meters itself is counted already: of either, only whether
        # it is read to its end is told from here.
        if self._is_events and not self._call.reading.is_streamed:
            self._reading = self._call.reading
        return self._reading

    def _metered(self, meter: M) -> M:
        self._meter = weakref.ref(meter)
        return meter

    def _feed(self, raw: bytes) -> int:
        self._rest += raw if self._inflate is None else self._inflate.decompress(raw)
        if not self._is_events:
            return 0
        *lines, self._rest = self._rest.split(b"\n")
        return sum(self._read_line(line) for line in lines)

    def _read_line(self, line: bytes) -> int:
        if not line.startswith(b"data:"):
            return 0
        if line[5:].strip() == b"[DONE]":
            self._reading.finished()  # OpenAI's client reads no further
            return 0
        with suppress(ValueError):  # what is no JSON says nothing
            return self._read(_parsed(line[5:]))
        return 0

    def _closed(self) -> None:
        if self._meter is not None:
            meter = self._meter()
            if meter is not None:
                meter.closed()
        elif self._call.is_open:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        if not self._is_events and self._reading.is_whole:
            with suppress(ValueError):
                self._read(_parsed(self._rest))
        elif error is None and not self._reading.is_whole:
            self._call.reading.left()
        self._ended(error)


def _while_open(call: Generation, read: Reader) -> Reader:
    """A reader that stops with the call: what an app reads after its own block is nobody's."""
    return lambda item: read(item) if call.is_open else 0


def _bare(weak: weakref.ref[Any]) -> Any:
    """A response without our stand-ins for its methods: to read it twice is the library's to refuse."""
    response = weak()
    for name in ("iter_raw", "aiter_raw"):
        vars(response).pop(name, None)
    return response


def _parsed(data: bytes) -> Any:
    """JSON, with attributes like the client libraries' own objects."""
    return json.loads(data, object_hook=lambda found: SimpleNamespace(**found))


def _tell_when_closed(response: Any, closed: Callable[[], None]) -> None:
    # Whatever closes a stream, the library's own helpers included, closes the response that it is read from. The stand-ins do
    # not refer to it: nothing of ours may keep it alive. Where the garbage collector finds both, the reference is dead by the
    # time that the library closes the response, and what it reads from is closed instead.
    weak, kind, source = weakref.ref(response), type(response), response.stream

    def close() -> None:
        closed()
        response = weak()
        source.close() if response is None else kind.close(response)

    async def aclose() -> None:
        closed()
        response = weak()
        await (source.aclose() if response is None else kind.aclose(response))

    response.close, response.aclose = close, aclose


def _shown(source: Iterator[Any], read: Reader, is_hidden: _Hidden) -> Iterator[Any]:
    for item in source:
        if is_hidden(item):
            _note(read, item)
        else:
            yield item


async def _ashown(source: AsyncIterator[Any], read: Reader, is_hidden: _Hidden) -> AsyncIterator[Any]:
    async for item in source:
        if is_hidden(item):
            _note(read, item)
        else:
            yield item


def _beside(call: Generation, source: Iterator[Any], read: Reader) -> Iterator[Any]:
    # Which meter counts is known when the first item is asked for.
    if not call.reading.is_streamed:
        yield from call.meter(source, read)
        return
    for item in source:
        _note(read, item)
        yield item


async def _abeside(call: Generation, source: AsyncIterator[Any], read: Reader) -> AsyncIterator[Any]:
    metered = call.reading.is_streamed
    async for item in source if metered else call.meter(source, read):
        if metered:
            _note(read, item)
        yield item


def _note(read: Reader, item: Any) -> None:
    try:
        read(item)
    except Exception as error:  # noqa: BLE001  (the app's stream goes on)
        report(error, "read an item of an answer")
