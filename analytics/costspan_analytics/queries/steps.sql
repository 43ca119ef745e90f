-- Steps that ran, for one engine and a range of steps.
SELECT
    step, start_ns, duration_ns, participants, predicted_ns, fixed_ns, decode_seq_ns, decode_token_ns
FROM steps
WHERE project = {project:String} AND engine = {engine:String} AND step >= {first:Int64} AND step <= {last:Int64} AND participants > 0
ORDER BY step
