-- Device time that was ours, clipped to the window.
SELECT
    host, device, device_kind, client,
    greatest(start_ns, {since:Int64}) AS start_ns, least(end_ns, {until:Int64}) AS end_ns
FROM gpu_samples
WHERE project = {project:String} AND end_ns > {since:Int64} AND start_ns < {until:Int64}
ORDER BY host, device, client, start_ns
