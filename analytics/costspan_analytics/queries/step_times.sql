-- When some steps began and how long they took.
SELECT step, start_ns, duration_ns
FROM steps
WHERE project = {project:String} AND engine = {engine:String} AND participants > 0 AND has({steps:Array(Int64)}, step)
    AND step >= {first:Int64} AND step <= {last:Int64}
ORDER BY step
