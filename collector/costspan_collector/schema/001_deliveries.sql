-- One row per delivered payload: what each sender says it sent, beside what arrived. `total` is the sender's own
-- running count of items, this payload included, so a payload that never came leaves a gap with a name.
CREATE TABLE IF NOT EXISTS deliveries
(
    project   LowCardinality(String),
    client    LowCardinality(String),
    stream    LowCardinality(String),                    -- spans, or the name of a ledger table
    sequence  UInt64 CODEC(DoubleDelta, ZSTD(3)),
    items     UInt64 CODEC(T64, ZSTD(3)),
    total     UInt64 CODEC(Delta, ZSTD(3)),
    received  DateTime64(3) CODEC(Delta, ZSTD(3))
)
ENGINE = MergeTree
PARTITION BY toDate(received, 'UTC')
ORDER BY (project, client, stream, sequence)
SETTINGS default_compression_codec = 'ZSTD(3)', non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;
