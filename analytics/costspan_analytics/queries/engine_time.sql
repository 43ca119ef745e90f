-- What each engine did with its time, by the hour and never across a change of prices: the parts of the bill that no request pays.
SELECT
    engine, device_kind,
    min(start_ns) AS at_ns,
    sum(greatest(0, least(start_ns + idle_ns, {until:Int64}) - greatest(start_ns, {since:Int64}))) AS idle,
    sum(host_gap_ns) AS host_gap, sum(cold_start_ns) AS cold_start, sum(padding_ns) AS padding,
    countIf(idle_ns < 0 OR host_gap_ns < 0) AS impossible  -- an executor that reports more time than passed
FROM steps
WHERE project = {project:String} AND start_ns + idle_ns + duration_ns > {since:Int64} AND start_ns < {until:Int64}
GROUP BY engine, device_kind, intDiv(start_ns, 3600000000000), arrayCount(change -> change <= start_ns, {changes:Array(Int64)})
ORDER BY at_ns, engine
