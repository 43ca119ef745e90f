-- The way of spans from the log into tables. `landing` stores nothing: the writer inserts a range of the log into it as it is
-- (see landing.proto), and the views beside it make rows of that. An attribute becomes text: what is a list or a map in OTLP
-- as JSON, what is nested deeper than that as null, bytes in base64.

CREATE TABLE IF NOT EXISTS landing
(
    project   String,
    client    String,
    stream    String,
    sequence  UInt64,
    items     UInt64,
    total     UInt64,
    received  Int64,
    request   Tuple(resource_spans Array(Tuple(
        resource    Tuple(attributes Array(Tuple(key String, value Tuple(string_value String)))),
        scope_spans Array(Tuple(spans Array(Tuple(
            trace_id              String,
            span_id               String,
            parent_span_id        String,
            name                  String,
            start_time_unix_nano  UInt64,
            end_time_unix_nano    UInt64,
            attributes            Array(Tuple(key String, value Tuple(
                kind          Enum8('none' = 0, 'string_value' = 1, 'bool_value' = 2, 'int_value' = 3, 'double_value' = 4, 'array_value' = 5, 'kvlist_value' = 6, 'bytes_value' = 7),
                string_value  String,
                bool_value    Bool,
                int_value     Int64,
                double_value  Float64,
                bytes_value   String,
                array_value   Tuple(values Array(Tuple(
                    kind Enum8('none' = 0, 'string_value' = 1, 'bool_value' = 2, 'int_value' = 3, 'double_value' = 4, 'array_value' = 5, 'kvlist_value' = 6, 'bytes_value' = 7),
                    string_value String, bool_value Bool, int_value Int64, double_value Float64, bytes_value String))),
                kvlist_value  Tuple(values Array(Tuple(key String, value Tuple(
                    kind Enum8('none' = 0, 'string_value' = 1, 'bool_value' = 2, 'int_value' = 3, 'double_value' = 4, 'array_value' = 5, 'kvlist_value' = 6, 'bytes_value' = 7),
                    string_value String, bool_value Bool, int_value Int64, double_value Float64, bytes_value String))))
            ))),
            status                Tuple(code Int32)
        ))))
    )))
)
ENGINE = Null;

CREATE MATERIALIZED VIEW IF NOT EXISTS landing_spans TO spans AS
SELECT
    project,
    lower(hex(span.trace_id)) AS trace_id,
    lower(hex(span.span_id)) AS span_id,
    lower(hex(span.parent_span_id)) AS parent_span_id,
    span.name AS name,
    attributes['costspan.kind'] AS kind,
    resource['service.name'] AS service,
    resource['service.instance.id'] AS client,
    toInt64(span.start_time_unix_nano) AS start_ns,
    toInt64(span.end_time_unix_nano) - start_ns AS duration_ns,
    transform(span.status.code, [1, 2], ['ok', 'error'], 'unset') AS status,
    attributes['costspan.outcome'] AS outcome,
    if(attributes['costspan.tenant'] != '', attributes['costspan.tenant'], resource['costspan.tenant']) AS tenant,
    if(attributes['costspan.feature'] != '', attributes['costspan.feature'], resource['costspan.feature']) AS feature,
    attributes['costspan.unit'] AS unit,
    toUInt16OrZero(attributes['costspan.attempt']) AS attempt,
    if(attributes['gen_ai.response.model'] != '', attributes['gen_ai.response.model'], attributes['gen_ai.request.model']) AS model,
    toUInt32OrZero(attributes['gen_ai.usage.input_tokens']) AS input_tokens,
    toUInt32OrZero(attributes['gen_ai.usage.output_tokens']) AS output_tokens,
    toUInt32OrZero(attributes['gen_ai.usage.cache_read.input_tokens']) AS cached_tokens,
    attributes,
    fromUnixTimestamp64Nano(received) AS received
FROM
(
    SELECT
        project,
        received,
        resource,
        span,
        CAST((
            span.attributes.key,
            arrayMap(v -> multiIf(
                v.kind = 'string_value', v.string_value,
                v.kind = 'int_value', toString(v.int_value),
                v.kind = 'double_value', toString(v.double_value),
                v.kind = 'bool_value', toString(v.bool_value),
                v.kind = 'bytes_value', base64Encode(v.bytes_value),
                v.kind = 'array_value', concat('[', arrayStringConcat(arrayMap(w -> multiIf(
                    w.kind = 'string_value', toJSONString(w.string_value),
                    w.kind = 'int_value', toString(w.int_value),
                    w.kind = 'double_value', toString(w.double_value),
                    w.kind = 'bool_value', toString(w.bool_value),
                    w.kind = 'bytes_value', toJSONString(base64Encode(w.bytes_value)),
                    'null'), v.array_value.values), ','), ']'),
                v.kind = 'kvlist_value', concat('{', arrayStringConcat(arrayMap(e -> concat(toJSONString(e.key), ':', multiIf(
                    e.value.kind = 'string_value', toJSONString(e.value.string_value),
                    e.value.kind = 'int_value', toString(e.value.int_value),
                    e.value.kind = 'double_value', toString(e.value.double_value),
                    e.value.kind = 'bool_value', toString(e.value.bool_value),
                    e.value.kind = 'bytes_value', toJSONString(base64Encode(e.value.bytes_value)),
                    'null')), v.kvlist_value.values), ','), '}'),
                ''), span.attributes.value)
        ), 'Map(String, String)') AS attributes
    FROM
    (
        SELECT
            project,
            received,
            CAST((resource_span.resource.attributes.key, resource_span.resource.attributes.value.string_value), 'Map(String, String)') AS resource,
            arrayJoin(arrayFlatten(resource_span.scope_spans.spans)) AS span
        FROM
        (
            SELECT project, received, arrayJoin(request.resource_spans) AS resource_span FROM landing
        )
    )
);

CREATE MATERIALIZED VIEW IF NOT EXISTS landing_deliveries TO deliveries AS
SELECT project, client, stream, sequence, items, total, fromUnixTimestamp64Nano(received) AS received
FROM landing
WHERE client != '';
