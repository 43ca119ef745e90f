-- Requests that had left an engine before a moment, so many of the last ones that they come to `tokens`; in the order of leaving.
SELECT
    request_id, tenant, outcome, prompt_tokens, cached_tokens, evicted_tokens, output_tokens, cost_ns, drafted_tokens,
    latency_class, priority, prefix, enqueued_ns, first_token_ns, disconnect_ns, removed_ns, `phases.name`
FROM
(
    SELECT *, sum(prompt_tokens + output_tokens) OVER (ORDER BY removed_ns DESC ROWS UNBOUNDED PRECEDING) AS since
    FROM attempts
    WHERE project = {project:String} AND engine = {engine:String} AND removed_ns <= {first:Int64}
)
WHERE since <= {tokens:Int64}
ORDER BY removed_ns
