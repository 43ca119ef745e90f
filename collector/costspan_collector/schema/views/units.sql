-- One outcome worked for, one row: its stretches may lie in many traces, processes and days. Ids are a tenant's own, and a kind's.
-- Whoever resolved or rejected it last decides how it stands; a span that does not say when is taken to have done so at its end.
CREATE OR REPLACE VIEW units AS
SELECT
    project,
    unit,
    tenant,
    unit_kind,
    argMaxIf(feature, begun, feature != '') AS feature,
    if(countIf(decides) = 0, 'open', argMaxIf(said, decided, decides)) AS status,
    argMaxIf(reason, decided, decides) AS reason,
    argMaxIf(value, begun, value != '') AS value_usd,
    min(start_ns) AS started_ns,
    max(end_ns) AS ended_ns,
    maxIf(decided.1, decides) AS decided_ns
FROM
(
    SELECT
        project,
        unit,
        if(spans.tenant = '', 'unknown', spans.tenant) AS tenant,
        attributes['costspan.unit.kind'] AS unit_kind,
        feature,
        attributes['costspan.unit.status'] AS said,
        said NOT IN ('', 'open') AS decides,
        if(said = 'rejected', attributes['costspan.unit.reason'], '') AS reason,
        attributes['costspan.unit.value_usd'] AS value,
        start_ns,
        start_ns + duration_ns AS end_ns,
        (start_ns, span_id) AS begun,
        toInt64OrZero(attributes['costspan.unit.status_ns']) AS stamp,
        (if(stamp > 0, stamp, end_ns), span_id) AS decided
    FROM spans
    WHERE kind = 'unit' AND unit != ''
)
GROUP BY project, tenant, unit_kind, unit;
