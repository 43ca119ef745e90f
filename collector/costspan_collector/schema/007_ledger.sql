-- What an engine is, so that its traffic can be replayed; and what its ledger knows since it counts padding and joules.

-- One row for each life of an engine. `scheduler` is '' where its rules are not known: then nothing of it can be replayed.
CREATE TABLE IF NOT EXISTS engines
(
    project             LowCardinality(String),
    engine              LowCardinality(String),
    device_kind         LowCardinality(String),
    started_ns          Int64,
    ready_ns            Int64,
    parameters          Int64,                            -- the model's shape: what its steps cost depends on it
    resident_parameters Int64,
    bytes_per_parameter Int64,
    kv_bytes_per_token  Int64,
    flops_per_pair      Int64,
    flops_per_s         Float64,                          -- the peaks of what it runs on
    bytes_per_s         Float64,
    scheduler           LowCardinality(String),           -- whose rules these are; 'costspan' for the bundled engine's
    policy              LowCardinality(String),
    max_num_seqs        UInt32,
    max_batched_tokens  UInt32,
    kv_blocks           UInt32,
    block_size          UInt32,
    prefix_cache        UInt32,                           -- 1 where prompts share what they begin with
    tenant_max_seqs     UInt32,
    draft_tokens        UInt32,
    max_context         UInt32,
    prefix_grain        UInt32                            -- tokens that each of attempts.prefix stands for
)
ENGINE = MergeTree
ORDER BY (project, engine, started_ns)
SETTINGS non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;

ALTER TABLE attempts
    ADD COLUMN IF NOT EXISTS prefix Array(UInt64) DEFAULT [],             -- hashes of its tokens up to each multiple of the grain
    ADD COLUMN IF NOT EXISTS energy_j Nullable(Float64) DEFAULT NULL;     -- its share, split as its cost is; NULL where not metered

ALTER TABLE steps
    ADD COLUMN IF NOT EXISTS prefill_pairs Float64 DEFAULT 0,             -- the features that T^ is linear in, beside prefill_tokens
    ADD COLUMN IF NOT EXISTS decode_seqs UInt16 DEFAULT 0,
    ADD COLUMN IF NOT EXISTS decode_tokens Int64 DEFAULT 0,
    ADD COLUMN IF NOT EXISTS padding UInt16 DEFAULT 0,                    -- rows computed for nobody
    ADD COLUMN IF NOT EXISTS padding_ns Int64 DEFAULT 0,                  -- their share of duration_ns; with the tenants' it sums to T
    ADD COLUMN IF NOT EXISTS energy_j Nullable(Float64) DEFAULT NULL;     -- of the step, gap and idle time of this row

ALTER TABLE gpu_samples
    ADD COLUMN IF NOT EXISTS memory_total_bytes Nullable(UInt64) DEFAULT NULL,
    ADD COLUMN IF NOT EXISTS sm_clock_mhz Nullable(UInt32) DEFAULT NULL,
    ADD COLUMN IF NOT EXISTS memory_clock_mhz Nullable(UInt32) DEFAULT NULL,
    ADD COLUMN IF NOT EXISTS temperature_c Nullable(UInt32) DEFAULT NULL,
    ADD COLUMN IF NOT EXISTS throttle Nullable(String) DEFAULT NULL;      -- why clocks were held down; '' when they were not
