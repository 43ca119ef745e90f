-- Model calls by the hour, from the spans.
CREATE OR REPLACE VIEW live_calls AS
SELECT
    project,
    toDate(fromUnixTimestamp64Nano(start_ns, 'UTC')) AS day,
    toStartOfHour(fromUnixTimestamp64Nano(start_ns, 'UTC')) AS hour,
    tenant, feature, model, outcome,
    count() AS calls,
    sum(input_tokens) AS input_tokens,
    sum(cached_tokens) AS cached_tokens,
    sum(output_tokens) AS output_tokens,
    sum(delivered_tokens) AS delivered_tokens,
    quantilesDDStateIf(0.01, 0.5, 0.99)(toFloat64(call_first_ns - call_start_ns), call_first_ns > 0) AS ttft,
    quantilesDDState(0.01, 0.5, 0.99)(toFloat64(duration_ns)) AS e2e
FROM calls
GROUP BY project, day, hour, tenant, feature, model, outcome;

-- The same for as long as anything is kept: closed days from where they were closed, all others from the rows.
CREATE OR REPLACE VIEW calls_hourly AS
SELECT * FROM closed_calls FINAL
UNION ALL
SELECT * FROM live_calls WHERE day NOT IN (SELECT day FROM closed_days WHERE stream = 'spans');
