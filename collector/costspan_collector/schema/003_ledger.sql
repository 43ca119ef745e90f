-- The engine's ledger: what engines ship as Arrow to POST /v1/ledger/{table}. Column names and order are the contract.
-- A payload of an engine that does not tell may leave out a column that has a DEFAULT or can be NULL: it gets that.

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
SETTINGS default_compression_codec = 'ZSTD(3)', non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;

-- One row per engine request. `phases` are its segments in time order; a preempted request has several of a kind.
CREATE TABLE IF NOT EXISTS attempts
(
    project            LowCardinality(String),
    engine             LowCardinality(String),           -- service.instance.id of the engine process
    request_id         String,
    trace_id           String,
    span_id            String,                           -- the engine's request span
    parent_span_id     String,                           -- the client's call span, '' when the caller sent no traceparent
    tenant             LowCardinality(String),
    feature            LowCardinality(String),
    unit               String,
    attempt            UInt16,
    model              LowCardinality(String),
    device_kind        LowCardinality(String),
    outcome            LowCardinality(String),
    finish_reason      LowCardinality(String),
    prompt_tokens      UInt32,
    cached_tokens      UInt32,
    output_tokens      UInt32 CODEC(T64, ZSTD(3)),
    delivered_tokens   UInt32 CODEC(T64, ZSTD(3)),       -- written to the socket
    preemptions        UInt16,
    received_ns        Int64 CODEC(Delta, ZSTD(3)),      -- request read by the server
    enqueued_ns        Int64 CODEC(Delta, ZSTD(3)),      -- in the engine's inbox
    first_token_ns     Int64,                            -- end of the step that made it; 0 if none
    disconnect_ns      Int64,                            -- disconnect seen by the server; 0 if none
    disconnect_step    Int64,                            -- step in flight (or last run) at that moment; -1 if none
    removed_ns         Int64 CODEC(T64, ZSTD(3)),        -- out of the batch, blocks free
    sent_ns            Int64 CODEC(T64, ZSTD(3)),        -- last byte handed to the socket
    last_step          Int64 CODEC(DoubleDelta, ZSTD(3)),  -- last step it took part in; -1 if none
    cost_ns            Int64 CODEC(T64, ZSTD(3)),        -- its share of step time (docs/ledger.md), sums to the steps
    evicted_tokens     UInt32,                           -- recomputed because another's allocation evicted them
    adapter            LowCardinality(String) DEFAULT '',        -- the LoRA adapter, '' for the model itself
    latency_class      LowCardinality(String) DEFAULT '',        -- interactive, batch
    priority           Int64 DEFAULT 0,                          -- within its class; the lower, the earlier
    block_ns           Int64 DEFAULT 0 CODEC(T64, ZSTD(3)),      -- KV blocks times the nanoseconds it held them
    drafted_tokens     UInt32 DEFAULT 0,                         -- guessed and computed
    accepted_tokens    UInt32 DEFAULT 0,                         -- of these, what it would have said
    prefix             Array(UInt64) DEFAULT [],                 -- hashes of its tokens up to each multiple of the grain
    energy_j           Nullable(Float64) DEFAULT NULL,           -- its share, split as its cost is; NULL where not metered
    -- The phases: lists that are equally long in every row, as in a Nested, where a column cannot have a codec of its own.
    `phases.name`            Array(LowCardinality(String)),
    `phases.start_ns`        Array(Int64),
    `phases.duration_ns`     Array(Int64) CODEC(T64, ZSTD(3)),
    `phases.step_first`      Array(Int64) CODEC(T64, ZSTD(3)),   -- first and last step of the segment; -1 where none
    `phases.step_last`       Array(Int64) CODEC(T64, ZSTD(3)),
    `phases.tokens`          Array(UInt32) CODEC(T64, ZSTD(3)),  -- computed in the segment
    `phases.context`         Array(UInt32),                      -- tokens in the KV cache before step_first
    `phases.cost_ns`         Array(Int64),
    `phases.solo_ns`         Array(Float64),                     -- latency split (docs/ledger.md): sums to duration_ns
    `phases.interference_ns` Array(Float64),
    `phases.deviation_ns`    Array(Float64),
    `phases.host_gap_ns`     Array(Float64),
    `phases.waste`           Array(LowCardinality(String)),      -- why part of it is waste: recomputed_*, or ''
    `phases.waste_ns`        Array(Int64),                       -- that part of cost_ns
    `phases.culprit`         Array(LowCardinality(String))       -- the tenant that caused the waste, or ''
)
ENGINE = MergeTree
PARTITION BY toDate(fromUnixTimestamp64Nano(enqueued_ns, 'UTC'))
ORDER BY (project, tenant, enqueued_ns, request_id)
SETTINGS default_compression_codec = 'ZSTD(3)', non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;

-- One row per iteration of the batch; a row with no participants closes a stretch of idle time.
-- cold_start + idle + host_gap + duration over all rows is the engine's wall time.
CREATE TABLE IF NOT EXISTS steps
(
    project          LowCardinality(String),
    engine           LowCardinality(String),
    device_kind      LowCardinality(String),
    step             Int64 CODEC(DoubleDelta, ZSTD(3)),
    start_ns         Int64 CODEC(Delta, ZSTD(3)),
    duration_ns      Int64 CODEC(T64, ZSTD(3)),          -- T, measured by the executor
    host_gap_ns      Int64 CODEC(T64, ZSTD(3)),          -- before the step, with work waiting
    idle_ns          Int64 CODEC(T64, ZSTD(3)),          -- before the step, without work
    cold_start_ns    Int64 CODEC(T64, ZSTD(3)),          -- before the first step: loading until ready
    bound            LowCardinality(String),
    participants     UInt16,
    prefill_tokens   UInt32,
    predicted_ns     Float64 CODEC(Delta, ZSTD(3)),      -- the cost model's T^ and its coefficients at this step (docs/ledger.md)
    fixed_ns         Float64,                            -- a
    prefill_token_ns Float64,                            -- b
    prefill_pair_ns  Float64,                            -- d
    decode_seq_ns    Float64,                            -- e
    decode_token_ns  Float64,                            -- f
    regime           LowCardinality(String),
    drafted_tokens   UInt32 DEFAULT 0,
    expert_tokens    Array(UInt32) DEFAULT [],           -- tokens routed to each expert, over all layers
    expert_skew      Float64 DEFAULT 0,                  -- the busiest expert's load over the mean; 1 is even
    prefill_pairs    Float64 DEFAULT 0,                  -- the features that T^ is linear in, beside prefill_tokens
    decode_seqs      UInt16 DEFAULT 0,
    decode_tokens    Int64 DEFAULT 0 CODEC(DoubleDelta, ZSTD(3)),
    padding          UInt16 DEFAULT 0,                   -- rows computed for nobody
    padding_ns       Int64 DEFAULT 0,                    -- their share of duration_ns; with the tenants' it sums to T
    energy_j         Nullable(Float64) DEFAULT NULL,     -- of the step, gap and idle time of this row
    -- By tenant, lists likewise.
    `tenants.name`       Array(LowCardinality(String)),
    `tenants.seqs`       Array(UInt16),                  -- sequences holding a slot
    `tenants.tokens`     Array(UInt32),                  -- of the token budget, this step
    `tenants.blocks`     Array(UInt32),                  -- KV blocks held
    `tenants.compute_ns` Array(Float64) CODEC(Delta, ZSTD(3)),  -- sum of c over its participants (predicted)
    `tenants.prefill_ns` Array(Float64),                 -- the prefill part of compute_ns
    `tenants.cost_ns`    Array(Float64)                  -- sum of phi over its participants; sums to T over tenants
)
ENGINE = MergeTree
PARTITION BY toDate(fromUnixTimestamp64Nano(start_ns, 'UTC'))
ORDER BY (project, engine, step, start_ns)
SETTINGS default_compression_codec = 'ZSTD(3)', non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;

-- A cached block pushed out: whose it was, whose allocation did it.
CREATE TABLE IF NOT EXISTS evictions
(
    project   LowCardinality(String),
    engine    LowCardinality(String),
    at_ns     Int64 CODEC(Delta, ZSTD(3)),
    step      Int64 CODEC(Delta, ZSTD(3)),
    victim    LowCardinality(String),
    culprit   LowCardinality(String),
    tokens    UInt32
)
ENGINE = MergeTree
PARTITION BY toDate(fromUnixTimestamp64Nano(at_ns, 'UTC'))
ORDER BY (project, engine, at_ns)
SETTINGS default_compression_codec = 'ZSTD(3)', non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;

-- The heartbeat of a device. It knows nothing of steps: its hours are the bill.
CREATE TABLE IF NOT EXISTS gpu_samples
(
    project       LowCardinality(String),
    host          LowCardinality(String),
    device        LowCardinality(String),
    device_kind   LowCardinality(String),
    client        LowCardinality(String),                -- the process that took the sample
    start_ns      Int64 CODEC(Delta, ZSTD(3)),           -- the interval that this sample bills
    end_ns        Int64 CODEC(Delta, ZSTD(3)),
    utilization   Nullable(Float32),                     -- absent, never zero, where the device does not say
    memory_bytes  Nullable(UInt64),
    power_w       Nullable(Float32),
    energy_j      Nullable(Float64),
    memory_total_bytes  Nullable(UInt64) DEFAULT NULL,
    sm_clock_mhz        Nullable(UInt32) DEFAULT NULL,
    memory_clock_mhz    Nullable(UInt32) DEFAULT NULL,
    temperature_c       Nullable(UInt32) DEFAULT NULL,
    throttle            Nullable(String) DEFAULT NULL    -- why clocks were held down; '' when they were not
)
ENGINE = MergeTree
PARTITION BY toDate(fromUnixTimestamp64Nano(start_ns, 'UTC'))
ORDER BY (project, host, device, start_ns)
SETTINGS default_compression_codec = 'ZSTD(3)', non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;
