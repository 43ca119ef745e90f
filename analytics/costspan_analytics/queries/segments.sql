-- The phases of those requests, one row a segment, in time order.
SELECT
    engine, request_id, tenant,
    `phases.name` AS phase, `phases.start_ns` AS start_ns, `phases.duration_ns` AS duration_ns,
    `phases.step_first` AS step_first, `phases.step_last` AS step_last,
    `phases.tokens` AS tokens, `phases.context` AS context, `phases.cost_ns` AS cost_ns,
    `phases.solo_ns` AS solo_ns, `phases.interference_ns` AS interference_ns,
    `phases.deviation_ns` AS deviation_ns, `phases.host_gap_ns` AS host_gap_ns,
    `phases.waste` AS waste, `phases.waste_ns` AS waste_ns, `phases.culprit` AS culprit
FROM attempts
ARRAY JOIN phases
WHERE project = {project:String} AND removed_ns >= {since:Int64} - 3600000000000 AND received_ns - 3600000000000 < {until:Int64}
ORDER BY engine, request_id, start_ns
