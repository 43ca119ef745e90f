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
