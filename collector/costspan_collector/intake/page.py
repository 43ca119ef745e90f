"""What a page says of an answer: the beacon of ``instrument/browser/costspan.js``, and the span that becomes of it.

A page's key is there for everybody to read, so a beacon is believed within narrow bounds: it says when an answer came into view
and how it ended, and neither whose it was nor what it cost. Who sends the same beacon again sends the same bytes again.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from costspan.clock import now_ns
from costspan.semconv import (
    ABORTED,
    HTTP_STATUS,
    KIND,
    OUTCOME,
    PAGE_FIRST,
    PAGE_HEADERS,
    PAGE_LAST,
    PAGE_SHOWN,
    PAGE_START,
    PAGE_STOP,
    SERVICE_NAME,
    Kind,
    Outcome,
)
from costspan_collector.errors import RefusedError

MEDIA_TYPE = "text/plain"
"""What a browser may send to another origin without asking first."""
MOST_BYTES = 4096

_NS_PER_S = 1_000_000_000
_NS_PER_DAY = 86_400 * _NS_PER_S
_MOST_PAST_NS, _MOST_AHEAD_NS, _MOST_LENGTH_NS = 7 * _NS_PER_DAY, _NS_PER_DAY, _NS_PER_DAY
_MOST_SHOWN = 10_000_000


def _moment(text: Any) -> int:
    """A stamp, which comes as text: JavaScript's numbers do not hold nanoseconds."""
    if not (isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 19):
        raise ValueError("a moment is nanoseconds since the Unix epoch, as text")
    return int(text)


_Stamp = Annotated[int, BeforeValidator(_moment)]
_Name = Annotated[str, StringConstraints(pattern=r"^[ -~]{0,256}$")]
_TraceId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
_SpanId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]


class Beacon(BaseModel):
    """One answer, as its page saw it. Stamps are nanoseconds since the Unix epoch by the page's clock, None for never.

    Attributes:
        v: Version of the format.
        key: The key that was made for pages; "" at a collector without keys.
        project: The project it is for; "" for the key's.
        trace: Id of the trace, that of the request to the app.
        span: Id of the page's span, which is the parent of the app's.
        parent: Id of the span that the page itself had, "" for none.
        start: When the request was made.
        headers: When the response began.
        first: When the first tokens came into view.
        last: When the last did.
        stop: When the person left.
        end: When there was nothing more to come.
        shown: How many tokens came into view.
        status: The response's HTTP status, 0 for none.
        outcome: How it ended.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    v: Literal[1]
    key: _Name = ""
    project: _Name = ""
    trace: _TraceId
    span: _SpanId
    parent: _SpanId | Literal[""] = ""
    start: _Stamp
    headers: _Stamp | None = None
    first: _Stamp | None = None
    last: _Stamp | None = None
    stop: _Stamp | None = None
    end: _Stamp
    shown: Annotated[int, Field(ge=0, le=_MOST_SHOWN)]
    status: Annotated[int, Field(ge=0, le=599)] = 0
    outcome: Annotated[Outcome, Field(strict=False)]

    @classmethod
    def read(cls, body: bytes) -> Beacon:
        """Read one.

        Raises:
            RefusedError: 400, it is none, or says what cannot be.
        """
        try:
            beacon = cls.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise RefusedError(400, f"the body is not a beacon of costspan.js: {where or 'it'}: {first['msg']}") from error
        if wrong := beacon.contradiction(now_ns()):
            raise RefusedError(400, f"the beacon cannot be right: {wrong}")
        return beacon

    def contradiction(self, at_ns: int) -> str:
        """What cannot be so, "" when all of it can.

        Args:
            at_ns: The time now.
        """
        stamps = [stamp for stamp in (self.start, self.headers, self.first, self.last, self.end) if stamp is not None]
        is_left, is_shown = self.outcome in ABORTED, self.shown > 0
        possible = {
            "an id has only zeros": int(self.trace, 16) and int(self.span, 16),
            "its stamps are not in the order start, headers, first, last, end, with stop between the outer two": (
                stamps == sorted(stamps) and self.start <= (self.stop or self.start) <= self.end
            ),
            "it began more than seven days before now, or more than one after: the clock of the page's machine is wrong": (
                -_MOST_PAST_NS <= self.start - at_ns <= _MOST_AHEAD_NS
            ),
            "it lasted longer than a day": self.end - self.start <= _MOST_LENGTH_NS,
            "what was shown has a first and a last moment, and what was not has none": (
                is_shown is (self.first is not None) is (self.last is not None)
            ),
            f"an answer has a stop exactly when its outcome is {', '.join(ABORTED)}": is_left is (self.stop is not None),
            "what was left before anything was shown is abandoned, and after that cancelled": (
                self.outcome is not (Outcome.ABANDONED if is_shown else Outcome.CANCELLED)
            ),
        }
        return next((sentence for sentence, is_so in possible.items() if not is_so), "")

    def payload(self) -> bytes:
        """The OTLP request that it becomes: the same bytes for the same beacon."""
        request = ExportTraceServiceRequest()
        resource = request.resource_spans.add()
        resource.resource.attributes.add(key=SERVICE_NAME).value.string_value = "browser"
        scope = resource.scope_spans.add()
        scope.scope.name = "costspan.page"
        span = scope.spans.add(
            trace_id=bytes.fromhex(self.trace),
            span_id=bytes.fromhex(self.span),
            parent_span_id=bytes.fromhex(self.parent),
            name=Kind.PAGE,
            kind=Span.SPAN_KIND_CLIENT,
            start_time_unix_nano=self.start,
            end_time_unix_nano=self.end,
        )
        if self.outcome is Outcome.ERROR:
            span.status.code = Status.STATUS_CODE_ERROR
        for key, name in ((KIND, Kind.PAGE), (OUTCOME, self.outcome)):
            span.attributes.add(key=key).value.string_value = name
        for key, number in self._numbers().items():
            span.attributes.add(key=key).value.int_value = number
        return request.SerializeToString(deterministic=True)

    def _numbers(self) -> dict[str, int]:
        stamps = {
            PAGE_START: self.start,
            PAGE_HEADERS: self.headers,
            PAGE_FIRST: self.first,
            PAGE_LAST: self.last,
            PAGE_STOP: self.stop,
            HTTP_STATUS: self.status or None,
        }
        return {PAGE_SHOWN: self.shown, **{key: number for key, number in stamps.items() if number is not None}}
