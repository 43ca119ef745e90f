-- What each tenant did, and held of what the queue waited for, between one mark and the next: rows by mark, bound and tenant.
-- A step belongs to the first mark that is not before it. A step that was waited through is shared by what bound admission; by
-- cost where nothing did, or only the waiting tenant's own cap.
SELECT
    mark, bound, tenant,
    sum(prefill_ns) AS prefill, sum(compute_ns - prefill_ns) AS decode, sum(if(whole > 0, duration_ns * held / whole, 0)) AS waited
FROM
(
    SELECT
        step, bound, duration_ns, tenant, compute_ns, prefill_ns, held, whole, 1 AS one
    FROM
    (
        SELECT
            step, bound, duration_ns, tenants.name AS names, tenants.compute_ns AS computes, tenants.prefill_ns AS prefills,
            multiIf(
                bound = {token_budget:String}, arrayMap(each -> toFloat64(each), tenants.tokens),
                bound = {seq_slots:String}, arrayMap(each -> toFloat64(each), tenants.seqs),
                bound = {kv_blocks:String}, arrayMap(each -> toFloat64(each), tenants.blocks),
                tenants.cost_ns
            ) AS helds,
            arraySum(helds) AS whole
        FROM steps
        WHERE project = {project:String} AND engine = {engine:String} AND participants > 0
            AND step > {after:Int64} AND step <= {last:Int64}
    )
    ARRAY JOIN names AS tenant, computes AS compute_ns, prefills AS prefill_ns, helds AS held
) AS shares
ASOF INNER JOIN (SELECT arrayJoin({marks:Array(Int64)}) AS mark, 1 AS one) AS marks
    ON shares.one = marks.one AND shares.step <= marks.mark
GROUP BY mark, bound, tenant
ORDER BY mark, bound, tenant
