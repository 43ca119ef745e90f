-- A row of each text that content.py put beside the spans.
CREATE MATERIALIZED VIEW IF NOT EXISTS landing_payloads TO payloads AS
SELECT
    project,
    lower(hex(content.trace_id)) AS trace_id,
    lower(hex(content.span_id)) AS span_id,
    toInt64(content.start_time_unix_nano) AS start_ns,
    attribute.key AS name,
    attribute.value.string_value AS text,
    fromUnixTimestamp64Nano(received) AS received
FROM
(
    SELECT project, received, content, arrayJoin(content.attributes) AS attribute
    FROM
    (
        SELECT project, received, arrayJoin(request.contents) AS content FROM landing
    )
);
