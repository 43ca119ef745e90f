-- A row of each span. An attribute becomes text: what is a list or a map in OTLP as JSON, what is nested deeper than that as
-- null, bytes in base64. `named` has the attributes under the names that they have today, `counts` what Langfuse writes as JSON
-- in one of them, likewise (costspan.semconv).
CREATE MATERIALIZED VIEW IF NOT EXISTS landing_spans TO spans AS
SELECT
    project,
    lower(hex(span.trace_id)) AS trace_id,
    lower(hex(span.span_id)) AS span_id,
    lower(hex(span.parent_span_id)) AS parent_span_id,
    span.name AS name,
    multiIf(
        known != '', known,
        input_said + output_said = 0, said,
        of_engine, 'engine_request',
        'generation') AS kind,
    transform(span.kind, [1, 2, 3, 4, 5], ['internal', 'server', 'client', 'producer', 'consumer'], '') AS span_kind,
    scope,
    resource['service.name'] AS service,
    resource['service.instance.id'] AS client,
    toInt64(span.start_time_unix_nano) AS start_ns,
    toInt64(span.end_time_unix_nano) - start_ns AS duration_ns,
    transform(span.status.code, [1, 2], ['ok', 'error'], 'unset') AS status,
    span.status.message AS status_message,
    multiIf(
        named['costspan.outcome'] != '', named['costspan.outcome'],
        kind IN ('', 'unit', 'review', 'engine_phase'), '',
        span.status.code = 2, transform(
            if(named['error.type'] != '', named['error.type'], `events.attributes`[-1]['exception.type']),
            ${ERRORS}, ${ERROR_MEANINGS}, 'error'),
        position(named['gen_ai.response.finish_reasons'], 'abort') > 0, 'cancelled',
        'ok') AS outcome,
    if(named['costspan.tenant'] != '', named['costspan.tenant'], resource['costspan.tenant']) AS tenant,
    if(named['costspan.feature'] != '', named['costspan.feature'], resource['costspan.feature']) AS feature,
    named['costspan.unit'] AS unit,
    toUInt16OrZero(named['costspan.attempt']) AS attempt,
    provider,
    if(named['gen_ai.response.model'] != '', named['gen_ai.response.model'], named['gen_ai.request.model']) AS model,
    cached_said + cached_beside AS cached_tokens,
    written_said + written_beside AS cache_write_tokens,
    reasoning_said + reasoning_beside AS reasoning_tokens,
    input_said + cached_beside + written_beside + if(
        cached_said + written_said > 0 AND (cached_said + written_said > input_said OR hasAny(input_apart, ['', provider])),
        cached_said + written_said, 0) AS input_tokens,
    output_said + reasoning_beside + if(
        reasoning_said > 0 AND (reasoning_said > output_said OR hasAny(output_apart, ['', provider])), reasoning_said, 0) AS output_tokens,
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
        *,
        named['costspan.kind'] AS said,
        transform(lower(if(said != '', said, named['gen_ai.operation.name'])), ${KINDS}, ${KIND_MEANINGS}, '') AS known,
        named['gen_ai.provider.name'] AS provider,
        CAST(if(details = '', ([], []), (
            arrayMap(pair -> transform(concat('${USAGE_PREFIX}', pair[1]), ${ALIASES}, ${MEANINGS}, ''), extractAllGroups(details, '"(\\w+)": *(\\d+)') AS pairs),
            arrayMap(pair -> pair[2], pairs))), 'Map(String, String)') AS counts,
        if(details = '', toUInt32OrZero(named['gen_ai.usage.input_tokens']), toUInt32OrZero(counts['gen_ai.usage.input_tokens'])) AS input_said,
        if(details = '', toUInt32OrZero(named['gen_ai.usage.output_tokens']), toUInt32OrZero(counts['gen_ai.usage.output_tokens'])) AS output_said,
        if(details = '', toUInt32OrZero(named['gen_ai.usage.cache_read.input_tokens']), toUInt32OrZero(counts['gen_ai.usage.cache_read.input_tokens'])) AS cached_said,
        if(details = '', toUInt32OrZero(named['gen_ai.usage.cache_creation.input_tokens']), toUInt32OrZero(counts['gen_ai.usage.cache_creation.input_tokens'])) AS written_said,
        if(details = '', toUInt32OrZero(named['gen_ai.usage.reasoning.output_tokens']), toUInt32OrZero(counts['gen_ai.usage.reasoning.output_tokens'])) AS reasoning_said,
        if(details = '', 0, toUInt32OrZero(counts['costspan.usage.cache_read_apart'])) AS cached_beside,
        if(details = '', 0, toUInt32OrZero(counts['costspan.usage.cache_write_apart'])) AS written_beside,
        if(details = '', 0, toUInt32OrZero(counts['costspan.usage.reasoning_apart'])) AS reasoning_beside
    FROM
    (
        SELECT
            *,
            arrayMap(${TEXT}, span.attributes.value) AS texts,
            CAST((arrayMap(key -> transform(key, ${ALIASES}, ${MEANINGS}, key), span.attributes.key), texts), 'Map(String, String)') AS named,
            named['${USAGE_DETAILS}'] AS details
        FROM
        (
            SELECT
                project, received, resource, scope_span.scope.name AS scope, arrayJoin(scope_span.spans) AS span,
                arrayExists(start -> startsWith(scope, start), ${ENGINE_SCOPES}) AS of_engine,
                arrayFilter((provider, start, count) -> startsWith(scope, start) AND count = 'gen_ai.usage.input_tokens',
                    ${APART_PROVIDERS}, ${APART_SCOPES}, ${APART_COUNTS}) AS input_apart,
                arrayFilter((provider, start, count) -> startsWith(scope, start) AND count = 'gen_ai.usage.output_tokens',
                    ${APART_PROVIDERS}, ${APART_SCOPES}, ${APART_COUNTS}) AS output_apart
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
    )
);
