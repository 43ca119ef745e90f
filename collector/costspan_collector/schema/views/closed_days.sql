-- How many rows of a day each sender's streams have now.
CREATE OR REPLACE VIEW live_days AS
SELECT 'spans' AS stream, toDate(fromUnixTimestamp64Nano(start_ns, 'UTC')) AS day, project, client, count() AS rows
FROM spans
GROUP BY day, project, client
UNION ALL
SELECT 'attempts', toDate(fromUnixTimestamp64Nano(enqueued_ns, 'UTC')) AS day, project, engine, count()
FROM attempts
GROUP BY day, project, engine
UNION ALL
SELECT 'steps', toDate(fromUnixTimestamp64Nano(start_ns, 'UTC')) AS day, project, engine, count()
FROM steps
GROUP BY day, project, engine
UNION ALL
SELECT 'evictions', toDate(fromUnixTimestamp64Nano(at_ns, 'UTC')) AS day, project, engine, count()
FROM evictions
GROUP BY day, project, engine
UNION ALL
SELECT 'gpu_samples', toDate(fromUnixTimestamp64Nano(start_ns, 'UTC')) AS day, project, client, count()
FROM gpu_samples
GROUP BY day, project, client
UNION ALL
SELECT 'metrics', toDate(fromUnixTimestamp64Nano(at_ns, 'UTC')) AS day, project, client, count()
FROM metrics
GROUP BY day, project, client
UNION ALL
SELECT 'logs', toDate(fromUnixTimestamp64Nano(at_ns, 'UTC')) AS day, project, client, count()
FROM logs
GROUP BY day, project, client;
