-- A row of each log record. Ids that are none are left out, as OTLP asks.
CREATE MATERIALIZED VIEW IF NOT EXISTS landing_logs_rows TO logs AS
SELECT
    project,
    if(length(entry.trace_id) = 16 AND entry.trace_id != unhex(repeat('00', 16)), lower(hex(entry.trace_id)), '') AS trace_id,
    if(length(entry.span_id) = 8 AND entry.span_id != unhex(repeat('00', 8)), lower(hex(entry.span_id)), '') AS span_id,
    toInt64(if(entry.time_unix_nano = 0, entry.observed_time_unix_nano, entry.time_unix_nano)) AS at_ns,
    toInt64(entry.observed_time_unix_nano) AS observed_ns,
    if(entry.severity_number BETWEEN 1 AND 24, toUInt8(entry.severity_number), 0) AS severity,
    entry.severity_text AS level,
    if(entry.event_name != '', entry.event_name, attributes['event.name']) AS event,
    arrayMap(${TEXT}, [entry.body])[1] AS body,
    scope,
    resource['service.name'] AS service,
    resource['service.instance.id'] AS client,
    resource,
    CAST((entry.attributes.key, arrayMap(${TEXT}, entry.attributes.value)), 'Map(String, String)') AS attributes,
    fromUnixTimestamp64Nano(received) AS received
FROM
(
    SELECT project, received, resource, scope_log.scope.name AS scope, arrayJoin(scope_log.log_records) AS entry
    FROM
    (
        SELECT
            project,
            received,
            CAST((resource_log.resource.attributes.key, arrayMap(${TEXT}, resource_log.resource.attributes.value)), 'Map(String, String)') AS resource,
            arrayJoin(resource_log.scope_logs) AS scope_log
        FROM
        (
            SELECT project, received, arrayJoin(request.resource_logs) AS resource_log FROM landing_logs
        )
    )
);
