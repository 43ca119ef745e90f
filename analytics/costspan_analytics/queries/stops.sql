-- The spans of the traces in which a page or an endpoint says that its client left: what either saw of the answer, and what of
-- the app stands between them and the model calls.
SELECT
    trace_id, span_id, parent_span_id, kind, client, outcome,
    start_ns + duration_ns AS end_ns,
    toInt64OrZero(attributes[if(kind = 'page', 'costspan.page.start_ns', 'costspan.endpoint.received_ns')]) AS began_ns,
    toInt64OrZero(attributes[if(kind = 'page', 'costspan.page.first_ns', 'costspan.endpoint.first_ns')]) AS first_ns,
    toInt64OrZero(attributes[if(kind = 'page', 'costspan.page.stop_ns', 'costspan.endpoint.disconnect_ns')]) AS stop_ns,
    toInt64OrZero(attributes['costspan.page.shown_tokens']) AS shown_tokens
FROM spans
WHERE project = {project:String} AND kind NOT IN ('engine_request', 'engine_phase')
    AND start_ns >= {since:Int64} - 3600000000000 AND start_ns - 3600000000000 < {until:Int64}
    AND trace_id IN (
        SELECT trace_id
        FROM spans
        WHERE project = {project:String} AND kind IN ('page', 'endpoint')
            AND (attributes['costspan.page.stop_ns'] != '' OR attributes['costspan.endpoint.disconnect_ns'] != '')
            AND start_ns >= {since:Int64} - 3600000000000 AND start_ns - 3600000000000 < {until:Int64}
    )
ORDER BY start_ns, span_id, received
