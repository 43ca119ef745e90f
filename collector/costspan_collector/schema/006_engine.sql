-- What the bundled engine tells since it speculates, mixes experts, serves adapters and knows priorities. A payload of an engine
-- that does not tell may leave out a column that has a DEFAULT: it gets the default, which is the type's own zero.
--
-- In a decode segment `phases.tokens` are the tokens made, and `phases.waste_ns` is what rejected drafts cost (rejected_draft).

ALTER TABLE attempts
    ADD COLUMN IF NOT EXISTS adapter LowCardinality(String) DEFAULT '',        -- the LoRA adapter, '' for the model itself
    ADD COLUMN IF NOT EXISTS latency_class LowCardinality(String) DEFAULT '',  -- interactive, batch
    ADD COLUMN IF NOT EXISTS priority Int64 DEFAULT 0,                         -- within its class; the lower, the earlier
    ADD COLUMN IF NOT EXISTS block_ns Int64 DEFAULT 0,                         -- KV blocks times the nanoseconds it held them
    ADD COLUMN IF NOT EXISTS drafted_tokens UInt32 DEFAULT 0,                  -- guessed and computed
    ADD COLUMN IF NOT EXISTS accepted_tokens UInt32 DEFAULT 0;                 -- of these, what it would have said

ALTER TABLE steps
    ADD COLUMN IF NOT EXISTS drafted_tokens UInt32 DEFAULT 0,
    ADD COLUMN IF NOT EXISTS expert_tokens Array(UInt32) DEFAULT [],           -- tokens routed to each expert, over all layers
    ADD COLUMN IF NOT EXISTS expert_skew Float64 DEFAULT 0;                    -- the busiest expert's load over the mean; 1 is even
