-- From when to when an engine is replayed, so that the requests of a window meet what they met: from the last moment before the
-- window at which it was idle (no longer ago than `lead`) until the last of them has left.
SELECT
    greatest(
        {first:Int64} - {lead:Int64},
        (
            SELECT max(least(start_ns + idle_ns, {first:Int64})) FROM steps
            WHERE project = {project:String} AND engine = {engine:String} AND idle_ns > 0 AND start_ns <= {first:Int64}
        )
    ) AS first,
    (
        SELECT max(removed_ns) FROM attempts
        WHERE project = {project:String} AND engine = {engine:String} AND enqueued_ns >= {first:Int64} AND enqueued_ns < {last:Int64}
    ) AS last
