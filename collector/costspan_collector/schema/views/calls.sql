-- One model call as its client measured it. Spans of other instrumentations have no such stamps: they are not here.
CREATE OR REPLACE VIEW calls AS
SELECT
    project, trace_id, span_id, parent_span_id, service, client, if(tenant = '', 'unknown', tenant) AS tenant, feature, unit,
    attempt,
    attributes['costspan.unit.kind'] AS unit_kind,
    attributes['costspan.operation'] AS operation,
    attributes['costspan.invalid'] AS invalid,
    provider, model, outcome, start_ns, duration_ns, input_tokens, output_tokens, cached_tokens,
    toInt64OrZero(attributes['costspan.call.start_ns']) AS call_start_ns,
    toInt64OrZero(attributes['costspan.call.sent_ns']) AS call_sent_ns,
    toInt64OrZero(attributes['costspan.call.headers_ns']) AS call_headers_ns,
    toInt64OrZero(attributes['costspan.call.first_ns']) AS call_first_ns,
    toInt64OrZero(attributes['costspan.call.last_ns']) AS call_last_ns,
    toInt64OrZero(attributes['costspan.call.end_ns']) AS call_end_ns,
    toInt64OrZero(attributes['costspan.call.abort_ns']) AS call_abort_ns,
    toUInt32OrZero(attributes['costspan.call.delivered_tokens']) AS delivered_tokens
FROM spans
WHERE kind = 'generation' AND attributes['costspan.call.start_ns'] != '';
