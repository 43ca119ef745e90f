-- Steps of an engine between two moments, and at least its last 4096: its pace is learnt from them.
SELECT step, start_ns, duration_ns, host_gap_ns, participants, prefill_tokens, drafted_tokens, prefill_pairs, decode_seqs, decode_tokens, padding_ns
FROM steps
WHERE project = {project:String} AND engine = {engine:String} AND participants > 0 AND start_ns <= {last:Int64}
    AND (start_ns >= {first:Int64} OR step > (
        SELECT max(step) - 4096 FROM steps
        WHERE project = {project:String} AND engine = {engine:String} AND start_ns <= {last:Int64}
    ))
ORDER BY step
