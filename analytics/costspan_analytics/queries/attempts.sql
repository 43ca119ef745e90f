-- Engine requests, and an hour more on either side, as in calls.sql.
SELECT
    engine, request_id, trace_id, span_id, parent_span_id, tenant, feature, unit, attempt, model, device_kind, outcome,
    prompt_tokens, cached_tokens, output_tokens, delivered_tokens, preemptions, evicted_tokens,
    adapter, block_ns, drafted_tokens, accepted_tokens, energy_j,
    received_ns, enqueued_ns, first_token_ns, disconnect_ns, disconnect_step, removed_ns, sent_ns, last_step, cost_ns
FROM attempts
WHERE project = {project:String} AND removed_ns >= {since:Int64} - 3600000000000 AND received_ns - 3600000000000 < {until:Int64}
ORDER BY removed_ns, engine, request_id
