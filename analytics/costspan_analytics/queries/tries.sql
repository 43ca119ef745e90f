-- Operations that took more than one try: their own spans (attempt 0), their attempts and model calls; and an hour on either side.
WITH named AS
(
    SELECT
        trace_id, span_id, kind, attributes['costspan.operation'] AS operation, attempt, model, provider, outcome,
        attributes['costspan.invalid'] AS invalid,
        attributes['costspan.replaces'] AS replaces,
        start_ns,
        start_ns + duration_ns AS end_ns
    FROM spans
    WHERE project = {project:String} AND kind IN ('generation', 'operation') AND attributes['costspan.operation'] != ''
        AND start_ns >= {since:Int64} - 3600000000000 AND start_ns - 3600000000000 < {until:Int64}
)
SELECT *
FROM named
WHERE operation IN (SELECT operation FROM named WHERE attempt > 1)
ORDER BY start_ns, attempt, span_id
