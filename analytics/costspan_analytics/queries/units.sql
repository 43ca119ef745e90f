SELECT unit, tenant, feature, unit_kind, status, reason, value_usd, started_ns, ended_ns, decided_ns
FROM units
WHERE project = {project:String} AND started_ns >= {since:Int64} AND started_ns < {until:Int64}
ORDER BY started_ns, unit_kind, unit
