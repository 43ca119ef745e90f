-- What each step did and took, without whose it was: how fast an engine is, apart from its load.
SELECT
    engine, step, start_ns, duration_ns, regime,
    prefill_tokens + drafted_tokens AS prefill_tokens, prefill_pairs, decode_seqs + padding AS decode_seqs, decode_tokens,
    fixed_ns, prefill_token_ns, prefill_pair_ns, decode_seq_ns, decode_token_ns
FROM steps
WHERE project = {project:String} AND participants > 0 AND duration_ns > 0 AND start_ns >= {since:Int64} AND start_ns < {until:Int64}
ORDER BY engine, step
