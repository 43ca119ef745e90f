-- A row of each span. An attribute becomes text: what is a list or a map in OTLP as JSON, what is nested deeper than that as
-- null, bytes in base64. `named` has the attributes under the names that they have today (costspan.semconv).
CREATE MATERIALIZED VIEW IF NOT EXISTS landing_spans TO spans AS
SELECT
    project,
    lower(hex(span.trace_id)) AS trace_id,
    lower(hex(span.span_id)) AS span_id,
    lower(hex(span.parent_span_id)) AS parent_span_id,
    span.name AS name,
    named['costspan.kind'] AS kind,
    transform(span.kind, [1, 2, 3, 4, 5], ['internal', 'server', 'client', 'producer', 'consumer'], '') AS span_kind,
    scope,
    resource['service.name'] AS service,
    resource['service.instance.id'] AS client,
    toInt64(span.start_time_unix_nano) AS start_ns,
    toInt64(span.end_time_unix_nano) - start_ns AS duration_ns,
    transform(span.status.code, [1, 2], ['ok', 'error'], 'unset') AS status,
    span.status.message AS status_message,
    named['costspan.outcome'] AS outcome,
    if(named['costspan.tenant'] != '', named['costspan.tenant'], resource['costspan.tenant']) AS tenant,
    if(named['costspan.feature'] != '', named['costspan.feature'], resource['costspan.feature']) AS feature,
    named['costspan.unit'] AS unit,
    toUInt16OrZero(named['costspan.attempt']) AS attempt,
    named['gen_ai.provider.name'] AS provider,
    if(named['gen_ai.response.model'] != '', named['gen_ai.response.model'], named['gen_ai.request.model']) AS model,
    toUInt32OrZero(named['gen_ai.usage.input_tokens']) AS input_tokens,
    toUInt32OrZero(named['gen_ai.usage.cache_read.input_tokens']) AS cached_tokens,
    toUInt32OrZero(named['gen_ai.usage.cache_creation.input_tokens']) AS cache_write_tokens,
    toUInt32OrZero(named['gen_ai.usage.output_tokens']) AS output_tokens,
    toUInt32OrZero(named['gen_ai.usage.reasoning.output_tokens']) AS reasoning_tokens,
    mapFilter((key, value) -> key NOT IN (${REPEATED}), CAST((span.attributes.key, texts), 'Map(String, String)')) AS attributes,
    span.events.time_unix_nano AS `events.at_ns`,
    span.events.name AS `events.name`,
    arrayMap(a -> CAST((a.key, arrayMap(${TEXT}, a.value)), 'Map(String, String)'), span.events.attributes) AS `events.attributes`,
    arrayMap(id -> lower(hex(id)), span.links.trace_id) AS `links.trace_id`,
    arrayMap(id -> lower(hex(id)), span.links.span_id) AS `links.span_id`,
    fromUnixTimestamp64Nano(received) AS received
FROM
(
    SELECT
        project,
        received,
        resource,
        scope,
        span,
        arrayMap(${TEXT}, span.attributes.value) AS texts,
        CAST((arrayMap(key -> transform(key, ${ALIASES}, ${MEANINGS}, key), span.attributes.key), texts), 'Map(String, String)') AS named
    FROM
    (
        SELECT project, received, resource, scope_span.scope.name AS scope, arrayJoin(scope_span.spans) AS span
        FROM
        (
            SELECT
                project,
                received,
                CAST((resource_span.resource.attributes.key, resource_span.resource.attributes.value.string_value), 'Map(String, String)') AS resource,
                arrayJoin(resource_span.scope_spans) AS scope_span
            FROM
            (
                SELECT project, received, arrayJoin(request.resource_spans) AS resource_span FROM landing
            )
        )
    )
);
