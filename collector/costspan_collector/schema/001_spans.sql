-- Any OTLP span. `landing` has the shape of a log record (envelope); the view beside it flattens a record into rows.
-- All *_ns columns are nanoseconds since the Unix epoch, or durations in nanoseconds.

CREATE TABLE IF NOT EXISTS spans
(
    project          LowCardinality(String),
    trace_id         String CODEC(ZSTD(1)),
    span_id          String CODEC(ZSTD(1)),
    parent_span_id   String CODEC(ZSTD(1)),
    name             LowCardinality(String),
    kind             LowCardinality(String),             -- costspan.kind, '' for a foreign span
    service          LowCardinality(String),
    client           LowCardinality(String),             -- service.instance.id: the sender
    start_ns         Int64 CODEC(Delta, ZSTD(1)),
    duration_ns      Int64 CODEC(T64, ZSTD(1)),
    status           LowCardinality(String),             -- unset, ok, error
    outcome          LowCardinality(String),
    tenant           LowCardinality(String),
    feature          LowCardinality(String),
    unit             String CODEC(ZSTD(1)),
    attempt          UInt16,
    model            LowCardinality(String),
    input_tokens     UInt32,
    output_tokens    UInt32,
    cached_tokens    UInt32,
    attributes       Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    received         DateTime64(3) CODEC(Delta, ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toDate(fromUnixTimestamp64Nano(start_ns))
ORDER BY (project, kind, start_ns, span_id)
SETTINGS non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;

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
