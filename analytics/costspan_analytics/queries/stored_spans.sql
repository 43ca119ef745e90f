SELECT client, count() AS stored, uniqExact(trace_id, span_id) AS distinct
FROM spans
WHERE project = {project:String}
GROUP BY client
