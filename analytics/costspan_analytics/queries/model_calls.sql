-- Model calls with their usage, of whichever instrumentation. A call that several report is here as often as they do,
-- costspan's own first: it knows whose it was.
SELECT
    trace_id, span_id, if(tenant = '', 'unknown', tenant) AS tenant, feature, unit, start_ns,
    if(provider = '', 'unknown', provider) AS provider, model,
    attributes['gen_ai.request.model'] AS asked_model,
    attributes['gen_ai.response.id'] AS answer_id,
    attributes['costspan.unit.kind'] AS unit_kind,
    input_tokens, cached_tokens, cache_write_tokens, output_tokens
FROM spans
WHERE project = {project:String} AND kind = 'generation' AND input_tokens + output_tokens > 0
    AND start_ns >= {since:Int64} - 3600000000000 AND start_ns - 3600000000000 < {until:Int64}
ORDER BY attributes['costspan.attempt'] = '', start_ns, span_id
