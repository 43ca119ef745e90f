-- Model calls as their clients measured them, and an hour more on either side: a request that crosses the edge keeps both halves.
SELECT
    trace_id, span_id, client, tenant, feature, unit, unit_kind, attempt, operation, invalid, provider, model, outcome,
    input_tokens, output_tokens, cached_tokens, delivered_tokens,
    call_start_ns, call_sent_ns, call_headers_ns, call_first_ns, call_last_ns, call_end_ns, call_abort_ns
FROM calls
WHERE project = {project:String} AND call_start_ns >= {since:Int64} - 3600000000000 AND call_start_ns - 3600000000000 < {until:Int64}
ORDER BY call_start_ns, span_id
