SELECT sku, unit, toString(rate) AS rate, currency, toUnixTimestamp64Milli(effective_from) * 1000000 AS from_ns, source, version
FROM prices FINAL
WHERE project IN ('', {project:String})
ORDER BY sku, project, from_ns, version
