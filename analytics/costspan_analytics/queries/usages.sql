-- What operations used that the price book turns into money, and dollars that apps spent themselves.
SELECT trace_id, span_id, tenant, feature, unit, unit_kind, kind, start_ns, sku, toString(quantity) AS quantity
FROM usages
WHERE project = {project:String} AND start_ns >= {since:Int64} AND start_ns < {until:Int64}
ORDER BY start_ns, span_id, sku
