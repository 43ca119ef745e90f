-- What an operation used that the price book turns into money: one row per costspan.quantity.<sku>. Dollars that the app knows
-- itself are a row likewise, of cost_usd.<kind>.
CREATE OR REPLACE VIEW usages AS
SELECT
    project, trace_id, span_id, if(tenant = '', 'unknown', tenant) AS tenant, feature, unit,
    attributes['costspan.unit.kind'] AS unit_kind,
    attempt,
    if(spans.kind = '', 'operation', spans.kind) AS kind,
    start_ns,
    entry.1 AS sku,
    toDecimal128OrZero(entry.2, 12) AS quantity
FROM spans
ARRAY JOIN arrayConcat(
    arrayMap(
        (key, value) -> (substring(key, length('costspan.quantity.') + 1), value),
        mapKeys(mapFilter((key, value) -> startsWith(key, 'costspan.quantity.'), attributes) AS used), mapValues(used)),
    if(attributes['costspan.cost_usd'] = '', [], [(concat('cost_usd.', if(spans.kind = '', 'operation', spans.kind)), attributes['costspan.cost_usd'])])
) AS entry;
