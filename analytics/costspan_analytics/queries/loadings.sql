-- When engines were loading.
SELECT engine, device_kind, started_ns, ready_ns
FROM engines
WHERE project = {project:String}
ORDER BY started_ns, engine
