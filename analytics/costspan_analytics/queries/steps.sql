-- Steps that ran, for one engine and a range of steps.
SELECT
    step, start_ns, duration_ns, host_gap_ns, bound, participants, predicted_ns,
    fixed_ns, decode_seq_ns, decode_token_ns,
    `tenants.name` AS names, `tenants.seqs` AS seqs, `tenants.tokens` AS tokens, `tenants.blocks` AS blocks,
    `tenants.compute_ns` AS compute_ns, `tenants.prefill_ns` AS prefill_ns, `tenants.cost_ns` AS cost_ns
FROM steps
WHERE project = {project:String} AND engine = {engine:String} AND step >= {first:Int64} AND step <= {last:Int64} AND participants > 0
ORDER BY step
