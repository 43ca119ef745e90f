"""Payloads of spans that are made once and sent often: each time with other ids, times and names in their bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from costspan import semconv
from costspan_collector.wal.record import field as wire_field

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
Value = str | int | float

_NOW_NS = 1_790_000_000_000_000_000  # any time of today: OTLP's varints of it have nine bytes until 2262
UNIT, UNIT_DIGITS = "ticket-", 8
RESPONSE, RESPONSE_DIGITS = "chatcmpl-", 32
_VARINT_BYTES = 9
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_MS = 1_000_000


class Payload(NamedTuple):
    """One export.

    Attributes:
        body: An OTLP ``ExportTraceServiceRequest``.
        span_ids: The id of each of its spans, of shape (spans, 8).
        trace_ids: The id of each of its requests' traces, of shape (requests, 16).
    """

    body: bytes
    span_ids: Bytes
    trace_ids: Bytes

    @property
    def spans(self) -> int:
        """How many spans it has."""
        return len(self.span_ids)

    def ids(self) -> list[str]:
        """The ids of its spans, in hex as in the store."""
        return [row.tobytes().hex() for row in self.span_ids]


@dataclass
class Told:
    """A span, its times in nanoseconds since its request began.

    Attributes:
        parent: Which span of its request it is under.
        stamps: Attributes that are times.
    """

    name: str
    kind: int
    parent: int | None
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Value]
    stamps: Mapping[str, int] = field(default_factory=dict)
    error: str = ""


@dataclass
class _Slots:
    """Where in a payload's bytes something is written anew, and what of."""

    at: list[int] = field(default_factory=list)
    of: list[int] = field(default_factory=list)
    since_ns: list[int] = field(default_factory=list)

    def add(self, at: int, of: int, since_ns: int = 0) -> None:
        self.at.append(at)
        self.of.append(of)
        self.since_ns.append(since_ns)

    @cached_property
    def places(self) -> Integers:
        return np.array(self.at, np.int64)

    @cached_property
    def sources(self) -> Integers:
        return np.array(self.of, np.int64)

    @cached_property
    def offsets(self) -> Integers:
        return np.array(self.since_ns, np.int64)

    def write(self, body: bytearray, values: Bytes) -> None:
        """Write at each place the row of bytes that is its source's."""
        self.write_each(body, values[self.sources])

    def write_each(self, body: bytearray, values: Bytes) -> None:
        """Write a row of bytes at each place."""
        width = values.shape[1]
        windows: npt.NDArray[Any] = np.ndarray((len(body) - width + 1,), f"V{width}", body, strides=(1,))
        windows[self.places] = np.ascontiguousarray(values).view(windows.dtype)[:, 0]

    def times(self, began: Integers, pace: npt.NDArray[np.float64]) -> Integers:
        """The time at each place, when its request began and at the pace that it went."""
        return began[self.sources] + (self.offsets * pace[self.sources]).astype(np.int64)


class _Place(NamedTuple):
    """Which span of a payload one is: of which request, that request's first, and itself."""

    request: int
    first: int
    span: int


class Page:
    """A payload, and where in its bytes its ids, times and names are."""

    def __init__(self) -> None:
        self.spans = self.attributes = 0
        self._raw = bytearray()
        self._traces, self._ids, self._parents = _Slots(), _Slots(), _Slots()
        self._times, self._stamps, self._units, self._responses = _Slots(), _Slots(), _Slots(), _Slots()
        self._lasted_ns: list[int] = []

    @classmethod
    def of(cls, requests: list[list[Told]], number: int) -> Page:
        """The page of some requests: the clients' spans under one resource, the engine's under another."""
        page = cls()
        page._lasted_ns = [spans[0].end_ns for spans in requests]
        first = np.cumsum([0, *map(len, requests)]).tolist()
        sides = (
            ("app", f"app-{number % 16}", "costspan", slice(0, 1)),
            ("engine", f"engine-{number % 8}", "costspan.hooks", slice(1, None)),
        )
        for service, instance, scope, side in sides:
            told = [
                (_Place(request, first[request], first[request] + at), span)
                for request, spans in enumerate(requests)
                for at, span in list(enumerate(spans))[side]
            ]
            page._add({semconv.SERVICE_NAME: service, semconv.SERVICE_INSTANCE: instance}, scope, told)
        return page

    def _add(self, about: Mapping[str, str], scope: str, told: list[tuple[_Place, Told]]) -> None:
        resource = Resource(attributes=_attributes(about))
        spans = [_encoded(span) for _, span in told]
        inner = wire_field(1, InstrumentationScope(name=scope).SerializeToString())
        body = inner + b"".join(wire_field(2, raw) for raw in spans)
        self._raw += wire_field(1, wire_field(1, resource.SerializeToString()) + wire_field(2, body))
        at = len(self._raw) - len(body) + len(inner)
        for raw, (place, span) in zip(spans, told, strict=True):
            at += len(wire_field(2, raw))
            self._locate(raw, at - len(raw), place, span)

    def _locate(self, raw: bytes, at: int, place: _Place, span: Told) -> None:
        """Note where things are in an encoded span; ids come first in it, each after a tag and a length."""
        self.spans += 1
        self.attributes += len(span.attributes) + len(span.stamps)
        self._traces.add(at + 2, place.request)
        self._ids.add(at + 20, place.span)
        if span.parent is not None:
            self._parents.add(at + 30, place.first + span.parent)
        for tag, since_ns in ((b"\x39", span.start_ns), (b"\x41", span.end_ns)):
            value = tag + (_NOW_NS + since_ns).to_bytes(8, "little")
            self._times.add(at + raw.index(value) + 1, place.request, since_ns)
        for name, since_ns in span.stamps.items():
            self._stamps.add(at + _after(raw, name) - 1, place.request, since_ns)
        self._units.add(at + _after(raw, semconv.UNIT) + len(UNIT), place.request)
        if semconv.GEN_AI_RESPONSE_ID in span.attributes:
            self._responses.add(at + _after(raw, semconv.GEN_AI_RESPONSE_ID) + len(RESPONSE), place.request)

    def filled(self, rng: np.random.Generator, at_ns: int) -> Payload:
        """The page with ids, times and names of its own."""
        body = bytearray(self._raw)
        requests = len(self._lasted_ns)
        traces, ids = _random(rng, requests, 16), _random(rng, self.spans, 8)
        self._traces.write(body, traces)
        self._ids.write(body, ids)
        self._parents.write(body, ids)
        pace = rng.lognormal(0.0, 0.1, requests)
        began = at_ns - rng.integers(1_000 * _MS, size=requests) - (np.array(self._lasted_ns) * pace).astype(np.int64)
        self._times.write_each(body, _fixed(self._times.times(began, pace)))
        self._stamps.write_each(body, _varints(self._stamps.times(began, pace)))
        self._units.write(body, _digits(rng.integers(10**UNIT_DIGITS, size=requests), UNIT_DIGITS))
        self._responses.write(body, _HEX[_random(rng, requests, RESPONSE_DIGITS) & 15])
        return Payload(bytes(body), ids, traces)


def _encoded(span: Told) -> bytes:
    made = Span(
        trace_id=bytes(16),
        span_id=bytes(8),
        parent_span_id=b"" if span.parent is None else bytes(8),
        name=span.name,
        kind=Span.SpanKind.ValueType(span.kind),
        start_time_unix_nano=_NOW_NS + span.start_ns,
        end_time_unix_nano=_NOW_NS + span.end_ns,
        attributes=_attributes({**span.attributes, **{name: _NOW_NS + at for name, at in span.stamps.items()}}),
    )
    if span.error:
        made.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message=span.error))
    return made.SerializeToString()


def _attributes(values: Mapping[str, Any]) -> Iterator[KeyValue]:
    for key, value in values.items():
        attribute = KeyValue(key=key)
        if isinstance(value, str):
            attribute.value.string_value = value
        elif isinstance(value, int):
            attribute.value.int_value = value
        else:
            attribute.value.double_value = value
        yield attribute


def _after(raw: bytes, name: str) -> int:
    """Where an attribute's short text begins: after its key, and two tags and lengths. A number begins one byte before."""
    key = wire_field(1, name.encode())
    return raw.index(key) + len(key) + 4


def _random(rng: np.random.Generator, rows: int, width: int) -> Bytes:
    return np.frombuffer(rng.bytes(rows * width), np.uint8).reshape(rows, width)


def _fixed(values: Integers) -> Bytes:
    return values.astype("<i8").view(np.uint8).reshape(-1, 8)


def _varints(values: Integers) -> Bytes:
    sevens = np.empty((len(values), _VARINT_BYTES), np.uint8)
    for place in range(_VARINT_BYTES):
        sevens[:, place] = (values >> (7 * place)).astype(np.uint8) | 0x80
    sevens[:, -1] &= 0x7F
    return sevens


def _digits(values: Integers, count: int) -> Bytes:
    return (values[:, None] // 10 ** np.arange(count - 1, -1, -1) % 10 + ord("0")).astype(np.uint8)
