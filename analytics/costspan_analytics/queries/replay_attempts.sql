-- Requests that were in an engine between two moments.
SELECT
    request_id, tenant, outcome, prompt_tokens, cached_tokens, evicted_tokens, output_tokens, cost_ns, drafted_tokens,
    latency_class, priority, prefix, enqueued_ns, first_token_ns, disconnect_ns, removed_ns, `phases.name`
FROM attempts
WHERE project = {project:String} AND engine = {engine:String} AND removed_ns > {first:Int64} AND enqueued_ns <= {last:Int64}
