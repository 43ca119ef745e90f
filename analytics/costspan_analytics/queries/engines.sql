-- What an engine was, one row for each of its lives.
SELECT
    engine, device_kind, started_ns, ready_ns, parameters, resident_parameters, bytes_per_parameter, kv_bytes_per_token,
    flops_per_pair, flops_per_s, bytes_per_s, scheduler, policy, max_num_seqs, max_batched_tokens, kv_blocks, block_size,
    prefix_cache, tenant_max_seqs, draft_tokens, max_context, prefix_grain
FROM engines
WHERE project = {project:String} AND engine = {engine:String}
ORDER BY started_ns
