-- Engine requests by the hour, from the rows.
CREATE OR REPLACE VIEW live_requests AS
SELECT
    project,
    toDate(fromUnixTimestamp64Nano(enqueued_ns, 'UTC')) AS day,
    toStartOfHour(fromUnixTimestamp64Nano(enqueued_ns, 'UTC')) AS hour,
    tenant, feature, model, outcome,
    count() AS requests,
    sum(prompt_tokens) AS prompt_tokens,
    sum(cached_tokens) AS cached_tokens,
    sum(output_tokens) AS output_tokens,
    sum(delivered_tokens) AS delivered_tokens,
    sum(cost_ns) AS cost_ns,
    quantilesDDStateIf(0.01, 0.5, 0.99)(toFloat64(first_token_ns - received_ns), first_token_ns > 0) AS ttft,
    quantilesDDState(0.01, 0.5, 0.99)(toFloat64(greatest(sent_ns, removed_ns) - received_ns)) AS e2e
FROM attempts
GROUP BY project, day, hour, tenant, feature, model, outcome;

-- The same for as long as anything is kept: closed days from where they were closed, all others from the rows.
CREATE OR REPLACE VIEW requests_hourly AS
SELECT * FROM closed_requests FINAL
UNION ALL
SELECT * FROM live_requests WHERE day NOT IN (SELECT day FROM closed_days WHERE stream = 'attempts');
