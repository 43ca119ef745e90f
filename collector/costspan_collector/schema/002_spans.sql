-- Any OTLP span. All *_ns columns are nanoseconds since the Unix epoch, or durations in nanoseconds. Ids are hex.
--
-- Sorted by arrival: what is inserted later comes later, so that merging parts is copying them. Within a payload a trace's spans
-- lie together: half of what a span weighs is ids, and then most of them repeat the line before. A time is found by its index.

CREATE TABLE IF NOT EXISTS spans
(
    project             LowCardinality(String),
    trace_id            String CODEC(ZSTD(1)),
    span_id             String CODEC(ZSTD(1)),
    parent_span_id      String CODEC(ZSTD(1)),
    name                LowCardinality(String),
    kind                LowCardinality(String),          -- what it is of costspan.kind, '' for none of it
    span_kind           LowCardinality(String),          -- internal, server, client, producer, consumer
    scope               LowCardinality(String),          -- the instrumentation that made it
    service             LowCardinality(String),
    client              LowCardinality(String),          -- service.instance.id: the sender
    start_ns            Int64 CODEC(Delta, ZSTD(1)),
    duration_ns         Int64 CODEC(T64, ZSTD(1)),
    status              LowCardinality(String),          -- unset, ok, error
    status_message      String CODEC(ZSTD(1)),
    outcome             LowCardinality(String),
    tenant              LowCardinality(String),
    feature             LowCardinality(String),
    unit                String CODEC(ZSTD(1)),
    attempt             UInt16,
    provider            LowCardinality(String),
    model               LowCardinality(String),
    input_tokens        UInt32 CODEC(T64, ZSTD(1)),      -- all of them, those read from a cache and written to one included
    cached_tokens       UInt32 CODEC(T64, ZSTD(1)),      -- of these, read from a cache
    cache_write_tokens  UInt32 CODEC(T64, ZSTD(1)),      -- of these, written to one
    output_tokens       UInt32 CODEC(T64, ZSTD(1)),      -- all of them, reasoning included
    reasoning_tokens    UInt32 CODEC(T64, ZSTD(1)),
    attributes          Map(LowCardinality(String), String) CODEC(ZSTD(1)),  -- as they came, without those that a column repeats
    events              Nested(at_ns Int64, name LowCardinality(String), attributes Map(LowCardinality(String), String)) CODEC(ZSTD(1)),
    links               Nested(trace_id String, span_id String) CODEC(ZSTD(1)),
    received            DateTime64(3) CODEC(Delta, ZSTD(1)),
    INDEX by_trace trace_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_start start_ns TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toDate(fromUnixTimestamp64Nano(start_ns, 'UTC'))
ORDER BY (project, received, trace_id, start_ns)
SETTINGS non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1,
    min_bytes_for_wide_part = 536870912,                 -- one file a part for long: a file for each column is as many fsyncs
    merge_selector_base = 12;                            -- wide merges: each row is written again less often

-- Prompts, answers and other text that people wrote, of projects that ask for it to be kept. Apart from the spans, so that no
-- query meets it by chance and it can be dropped sooner.
CREATE TABLE IF NOT EXISTS payloads
(
    project   LowCardinality(String),
    trace_id  String CODEC(ZSTD(1)),
    span_id   String CODEC(ZSTD(1)),
    start_ns  Int64 CODEC(Delta, ZSTD(1)),
    name      LowCardinality(String),                    -- the attribute, or event.attribute
    text      String CODEC(ZSTD(3)),
    received  DateTime64(3) CODEC(ZSTD(1)),
    INDEX by_trace trace_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toDate(fromUnixTimestamp64Nano(start_ns, 'UTC'))
ORDER BY (project, intDiv(start_ns, 60000000000), trace_id, span_id)
SETTINGS non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;

-- Stores nothing: the writer inserts a range of the log into it as it is (see landing.proto), and views make rows of that.
CREATE TABLE IF NOT EXISTS landing
(
    project   String,
    client    String,
    stream    String,
    sequence  UInt64,
    items     UInt64,
    total     UInt64,
    received  Int64,
    request   Tuple(
    contents Array(Tuple(
        trace_id              String,
        span_id               String,
        start_time_unix_nano  UInt64,
        attributes            Array(Tuple(key String, value Tuple(string_value String)))
    )),
    resource_spans Array(Tuple(
        resource    Tuple(attributes Array(Tuple(key String, value Tuple(string_value String)))),
        scope_spans Array(Tuple(
            scope Tuple(name String),
            spans Array(Tuple(
                trace_id              String,
                span_id               String,
                parent_span_id        String,
                name                  String,
                kind                  Int32,
                start_time_unix_nano  UInt64,
                end_time_unix_nano    UInt64,
                attributes            Array(Tuple(key String, value ${VALUE})),
                events                Array(Tuple(time_unix_nano UInt64, name String, attributes Array(Tuple(key String, value ${VALUE})))),
                links                 Array(Tuple(trace_id String, span_id String)),
                status                Tuple(message String, code Int32)
            ))
        ))
    )))
)
ENGINE = Null;
