CREATE MATERIALIZED VIEW IF NOT EXISTS landing_logs_deliveries TO deliveries AS
SELECT project, client, stream, sequence, items, total, fromUnixTimestamp64Nano(received) AS received
FROM landing_logs
WHERE client != '';
