"""Takes what people and models wrote out of a payload, before it comes anywhere near the disk.

Attributes of :data:`costspan.semconv.CONTENT` are dropped, or where a project keeps them, redacted and put beside the spans:
as ``contents`` of the request (see ``schema/landing.proto``), from which they go to a table of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from ahocorasick_rs import MATCHKIND_LEFTMOST_FIRST, BytesAhoCorasick
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from costspan.semconv import CONTENT, CONTENT_EVENTS, EVENT_NAME
from costspan_collector.wal.record import field

Keep: TypeAlias = Callable[[str], str]
"""Makes text fit to be kept."""

_CONTENTS = 1000  # the field's number in landing.proto
_NAMES = frozenset(name for name in CONTENT if not name.endswith("."))
_FAMILIES = tuple(name for name in CONTENT if name.endswith("."))
_EVENTS = frozenset(CONTENT_EVENTS)

# Parts of all the names above, at least one of each; where a name ends, here |, follows the tag of the value. The search takes
# ten bytes a nanosecond as long as the parts have four bytes or more, and begin with what is rare where there is no content.
_PARTS = (
    "messages structi finitio gument rgs| esult ext| ery| cument ecords xplana rompt mpletion put| ctions. ction_c hoice lue| "
    "lues| gfuse. ata| beddin nts| nse| ing| oal| ams| bject| lls| tools ters| uts| r.mess m.mess t.mess l.mess etails"
)
_SEARCH = BytesAhoCorasick([part.replace("|", "\x12").encode() for part in _PARTS.split()], matchkind=MATCHKIND_LEFTMOST_FIRST)


def part_spans(body: bytes, keep: Keep | None) -> bytes:
    """A trace request as the log may hold it.

    Args:
        body: An ``ExportTraceServiceRequest``, well formed.
        keep: Makes text fit to be kept; None where none is.

    Returns:
        The very same bytes when there is no content in them.
    """
    if not may_hold_content(body):
        return body
    request = ExportTraceServiceRequest.FromString(body)
    contents: list[Span] = []
    for resource in request.resource_spans:
        _take(resource.resource.attributes)
        for scope in resource.scope_spans:
            _take(scope.scope.attributes)
            for span in scope.spans:
                texts = _part_span(span)
                if texts and keep:
                    contents.append(_beside(span.trace_id, span.span_id, span.start_time_unix_nano, texts, keep))
    return request.SerializeToString() + _encoded(contents)


def part_logs(body: bytes, keep: Keep | None) -> bytes:
    """A logs request as the log may hold it; see :func:`part_spans`.

    What a log record says is content too. Of an event that is about content it goes beside, of others it stays in its place.
    """
    request = ExportLogsServiceRequest.FromString(body)
    contents: list[Span] = []
    for resource in request.resource_logs:
        _take(resource.resource.attributes)
        for scope in resource.scope_logs:
            _take(scope.scope.attributes)
            for entry in scope.log_records:
                texts = _part_entry(entry)
                _part_body(entry, keep)
                if texts and keep:
                    at_ns = entry.time_unix_nano or entry.observed_time_unix_nano
                    contents.append(_beside(entry.trace_id, entry.span_id, at_ns, texts, keep))
    return request.SerializeToString() + _encoded(contents)


def contents_without(request: Message, is_stored: Callable[[str, str, int, str], bool]) -> bytes:
    """What lies beside a request, less the texts that are stored.

    Args:
        request: The request, with what is not OTLP's as unknown fields.
        is_stored: Says it of a text by its trace id and span id in hex, its time in nanoseconds and its name.

    Returns:
        It as fields of the request, "" when nothing is left.
    """
    left: list[Span] = []
    fields: Any = UnknownFieldSet(request)  # typed without its iterator
    for each in fields:
        if each.field_number == _CONTENTS:
            content = Span.FromString(each.data)
            of = content.trace_id.hex(), content.span_id.hex(), content.start_time_unix_nano
            texts = [text for text in content.attributes if not is_stored(*of, text.key)]
            del content.attributes[:]
            content.attributes.extend(texts)
            left += [content] if texts else []
    return _encoded(left)


def may_hold_content(body: bytes) -> bool:
    """Whether a payload may have an attribute that is content: false only when it has none."""
    return bool(_SEARCH.find_matches_as_indexes(body))


@lru_cache(maxsize=4096)
def is_content(name: str) -> bool:
    """Whether an attribute of this name is content."""
    return name in _NAMES or name.startswith(_FAMILIES)


def _part_span(span: Span) -> list[KeyValue]:
    texts = _take(span.attributes)
    for event in span.events:
        texts += _take(event.attributes, f"{event.name}.", everything=event.name in _EVENTS)
    for link in span.links:
        texts += _take(link.attributes)
    return texts


def _part_entry(entry: LogRecord) -> list[KeyValue]:
    name = entry.event_name or next((each.value.string_value for each in entry.attributes if each.key == EVENT_NAME), "")
    texts = _take(entry.attributes, f"{name}." if name else "")
    if name in _EVENTS and entry.HasField("body"):
        texts.append(KeyValue(key=f"{name}.body", value=entry.body))
        entry.ClearField("body")
    return texts


def _part_body(entry: LogRecord, keep: Keep | None) -> None:
    if keep and entry.HasField("body"):
        entry.body.CopyFrom(AnyValue(string_value=keep(_text(entry.body))))
    else:
        entry.ClearField("body")


def _take(attributes: Any, prefix: str = "", *, everything: bool = False) -> list[KeyValue]:
    """Take content out of a list of attributes; what was taken is named with the prefix."""
    if not any(everything or is_content(each.key) for each in attributes):
        return []
    before = list(attributes)
    del attributes[:]
    attributes.extend(each for each in before if not (everything or is_content(each.key)))
    return [KeyValue(key=prefix + each.key, value=each.value) for each in before if everything or is_content(each.key)]


def _beside(trace_id: bytes, span_id: bytes, start_ns: int, texts: Iterable[KeyValue], keep: Keep) -> Span:
    kept = [KeyValue(key=each.key, value=AnyValue(string_value=keep(_text(each.value)))) for each in texts]
    return Span(trace_id=trace_id, span_id=span_id, start_time_unix_nano=start_ns, attributes=kept)


def _encoded(contents: Sequence[Span]) -> bytes:
    return b"".join(field(_CONTENTS, each.SerializeToString()) for each in contents)


def _text(value: AnyValue) -> str:
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _plain(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [_plain(each) for each in value.array_value.values]
        case "kvlist_value":
            return {each.key: _plain(each.value) for each in value.kvlist_value.values}
        case "bytes_value":
            return value.bytes_value.hex()
        case kind:
            return getattr(value, kind)
