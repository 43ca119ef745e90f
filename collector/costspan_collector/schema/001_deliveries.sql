-- One row per delivered payload: what each sender says it sent, beside what arrived. `total` is the sender's own
-- running count of items, this payload included, so a payload that never came leaves a gap with a name.
CREATE TABLE IF NOT EXISTS deliveries
(
    project   LowCardinality(String),
    client    LowCardinality(String),
    stream    LowCardinality(String),                    -- spans, or the name of a ledger table
    sequence  UInt64,
    items     UInt64,
    total     UInt64,
    received  DateTime64(3)
)
ENGINE = MergeTree
ORDER BY (project, client, stream, sequence)
SETTINGS non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;
