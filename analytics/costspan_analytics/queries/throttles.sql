-- When an engine's devices had their clocks held down, and why: several reasons with commas between.
SELECT start_ns, end_ns, assumeNotNull(throttle) AS reason
FROM gpu_samples
WHERE project = {project:String} AND client = {engine:String} AND throttle != '' AND end_ns > {first:Int64} AND start_ns < {last:Int64}
ORDER BY start_ns
