"""Phase spans: one request span that continues the caller's trace, and a child for each stretch of its life."""

from __future__ import annotations

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import (
    INVALID_SPAN_ID,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)

from costspan import semconv
from costspan_hooks.records import AttemptRecord, Segment
from costspan_hooks.wire import Delivered


class PhaseSpans:
    """Turns finished attempts into spans. Times are the ledger's, so a span says what the row says."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("costspan.hooks")

    def emit(self, record: AttemptRecord, sent_ns: int, delivered_tokens: int) -> Delivered:
        """Emit an attempt's spans.

        Returns:
            The attempt with its request span's id.
        """
        request, removal = record.request, record.removal
        span = self._tracer.start_span(
            f"chat {request.model}",
            context=set_span_in_context(_caller(record)),
            kind=SpanKind.SERVER,
            start_time=request.received_ns,
            attributes=_request_attributes(record),
        )
        made = span.get_span_context()
        delivered = Delivered(record, format_trace_id(made.trace_id), format_span_id(made.span_id), sent_ns, delivered_tokens)
        for segment in delivered.phases():
            self._emit_phase(span, segment)
        if removal.disconnect_ns:
            self._emit_child(span, semconv.CANCELLATION_WASTE, removal.disconnect_ns, removal.at_ns, {})
        if removal.outcome is semconv.Outcome.ERROR:
            span.set_status(Status(StatusCode.ERROR, removal.finish_reason))
        span.end(max(sent_ns, removal.at_ns))
        return delivered

    def _emit_phase(self, parent: Span, segment: Segment) -> None:
        attributes: dict[str, str | int] = {semconv.PHASE: segment.name.value}
        if segment.tokens:
            attributes[semconv.ITEMS] = segment.tokens
        self._emit_child(parent, segment.name.value, segment.start_ns, segment.start_ns + segment.duration_ns, attributes)

    def _emit_child(self, parent: Span, name: str, start_ns: int, end_ns: int, attributes: dict[str, str | int]) -> None:
        self._tracer.start_span(
            name,
            context=set_span_in_context(parent),
            start_time=start_ns,
            attributes={semconv.KIND: semconv.Kind.ENGINE_PHASE.value, **attributes},
        ).end(end_ns)


def _caller(record: AttemptRecord) -> NonRecordingSpan:
    request = record.request
    return NonRecordingSpan(
        SpanContext(
            int(request.trace_id or "0", 16),
            int(request.parent_span_id, 16) if request.parent_span_id else INVALID_SPAN_ID,
            is_remote=True,
            trace_flags=TraceFlags(TraceFlags.SAMPLED),
        )
    )


def _request_attributes(record: AttemptRecord) -> dict[str, str | int]:
    request, removal = record.request, record.removal
    attributes: dict[str, str | int] = {
        semconv.KIND: semconv.Kind.ENGINE_REQUEST.value,
        semconv.TENANT: request.tenant,
        semconv.FEATURE: request.feature,
        semconv.UNIT: request.unit,
        semconv.ATTEMPT: request.attempt,
        semconv.OUTCOME: removal.outcome.value,
        semconv.GEN_AI_OPERATION: "chat",
        semconv.GEN_AI_REQUEST_MODEL: request.model,
        semconv.GEN_AI_INPUT_TOKENS: request.prompt_tokens,
        semconv.GEN_AI_OUTPUT_TOKENS: removal.output_tokens,
        semconv.GEN_AI_CACHE_READ_TOKENS: record.cached_tokens,
    }
    if request.adapter:
        attributes[semconv.ADAPTER] = request.adapter
    return attributes
