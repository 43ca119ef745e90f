-- What is under what, in the traces in which other spans may stand between a call and what answered it, or between a try of
-- something and what was used in it.
SELECT trace_id, span_id, parent_span_id
FROM spans
WHERE project = {project:String} AND parent_span_id != '' AND kind NOT IN ('engine_request', 'engine_phase')
    AND start_ns >= {since:Int64} - 3600000000000 AND start_ns - 3600000000000 < {until:Int64}
    AND trace_id IN (
        SELECT trace_id
        FROM spans
        WHERE project = {project:String}
            AND (kind = 'generation' AND attributes['costspan.call.start_ns'] = '' OR kind = 'operation' AND attempt > 0)
            AND start_ns >= {since:Int64} - 3600000000000 AND start_ns - 3600000000000 < {until:Int64}
    )
