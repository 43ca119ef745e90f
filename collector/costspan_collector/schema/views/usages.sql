-- What an operation used that the price book turns into money: one row per costspan.quantity.<sku>.
CREATE OR REPLACE VIEW usages AS
SELECT
    project, trace_id, span_id, if(tenant = '', 'unknown', tenant) AS tenant, feature, unit, attempt, kind, start_ns,
    substring(entry.1, length('costspan.quantity.') + 1) AS sku,
    toDecimal128OrZero(entry.2, 12) AS quantity
FROM spans
ARRAY JOIN CAST(mapFilter((key, value) -> startsWith(key, 'costspan.quantity.'), attributes), 'Array(Tuple(String, String))') AS entry;
