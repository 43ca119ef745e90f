-- How far the cost model was off, relative to what was measured, on steps that its fit had not seen.
SELECT quantilesExact(0.5, 0.9, 0.99)(abs(duration_ns - predicted_ns) / duration_ns) AS quantiles, count() AS steps
FROM steps
WHERE project = {project:String} AND participants > 0 AND duration_ns > 0 AND start_ns >= {since:Int64} AND start_ns < {until:Int64}
