-- The client's side, read out of spans. Plain views: nothing stored twice. Who names no tenant is `unknown`, as in the engine's
-- ledger, so that both sides of such a request meet.

-- One model call as its client measured it.
CREATE OR REPLACE VIEW calls AS
SELECT
    project, trace_id, span_id, parent_span_id, service, client, if(tenant = '', 'unknown', tenant) AS tenant, feature, unit,
    attempt,
    attributes['costspan.operation'] AS operation,
    attributes['costspan.invalid'] AS invalid,
    model, outcome, start_ns, duration_ns, input_tokens, output_tokens, cached_tokens,
    toInt64OrZero(attributes['costspan.call.start_ns']) AS call_start_ns,
    toInt64OrZero(attributes['costspan.call.sent_ns']) AS call_sent_ns,
    toInt64OrZero(attributes['costspan.call.headers_ns']) AS call_headers_ns,
    toInt64OrZero(attributes['costspan.call.first_ns']) AS call_first_ns,
    toInt64OrZero(attributes['costspan.call.last_ns']) AS call_last_ns,
    toInt64OrZero(attributes['costspan.call.end_ns']) AS call_end_ns,
    toInt64OrZero(attributes['costspan.call.abort_ns']) AS call_abort_ns,
    toUInt32OrZero(attributes['costspan.call.delivered_tokens']) AS delivered_tokens
FROM spans
WHERE kind = 'generation';

-- One outcome worked for: its last span decides how it ended (a unit may span traces and days). Ids are a tenant's own.
CREATE OR REPLACE VIEW units AS
SELECT
    project,
    unit,
    if(tenant = '', 'unknown', tenant) AS tenant,
    anyLast(feature) AS feature,
    argMax(attributes['costspan.unit.kind'], start_ns) AS unit_kind,
    argMax(attributes['costspan.unit.status'], start_ns) AS status,
    argMax(attributes['costspan.unit.value_usd'], start_ns) AS value_usd,
    min(start_ns) AS started_ns,
    max(start_ns + duration_ns) AS ended_ns
FROM spans
WHERE kind = 'unit'
GROUP BY project, tenant, unit;

-- What an operation used that the price book turns into money: one row per costspan.quantity.<sku>.
CREATE OR REPLACE VIEW usages AS
SELECT
    project, trace_id, span_id, if(tenant = '', 'unknown', tenant) AS tenant, feature, unit, attempt, kind, start_ns,
    substring(entry.1, length('costspan.quantity.') + 1) AS sku,
    toDecimal128OrZero(entry.2, 12) AS quantity
FROM spans
ARRAY JOIN CAST(mapFilter((key, value) -> startsWith(key, 'costspan.quantity.'), attributes), 'Array(Tuple(String, String))') AS entry;
