-- Metrics and logs of any OpenTelemetry SDK. All *_ns columns are nanoseconds since the Unix epoch. Rows of one payload and one
-- time come in one part, so whether they are there is found by (project, received, at_ns) after a crash.

-- One row per data point. `type` says which columns hold it: value (gauge, sum); count to bucket_bounds (histogram: its first bucket
-- ends at the first bound, its last begins at the last); count to max and scale to negative_counts (exponential histogram: bucket i
-- goes from base^(offset+i) to base^(offset+i+1), with base = 2^(2^-scale)); count, sum and quantiles (summary).
CREATE TABLE IF NOT EXISTS metrics
(
    project          LowCardinality(String),
    name             LowCardinality(String),
    unit             LowCardinality(String),
    type             LowCardinality(String),             -- gauge, sum, histogram, exponential_histogram, summary
    temporality      LowCardinality(String),             -- delta, cumulative, '' where there is none
    monotonic        Bool,
    scope            LowCardinality(String),
    service          LowCardinality(String),
    client           LowCardinality(String),             -- service.instance.id: the sender
    resource         Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    attributes       Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    start_ns         Int64 CODEC(DoubleDelta, ZSTD(1)),
    at_ns            Int64 CODEC(DoubleDelta, ZSTD(1)),
    flags            UInt32 CODEC(ZSTD(1)),              -- OTLP's: 1 where nothing was measured
    value            Float64 CODEC(ZSTD(1)),
    count            UInt64 CODEC(ZSTD(1)),
    sum              Nullable(Float64) CODEC(ZSTD(1)),
    min              Nullable(Float64) CODEC(ZSTD(1)),
    max              Nullable(Float64) CODEC(ZSTD(1)),
    bucket_counts    Array(UInt64) CODEC(ZSTD(1)),
    bucket_bounds    Array(Float64) CODEC(ZSTD(1)),
    scale            Int32 CODEC(ZSTD(1)),
    zero_count       UInt64 CODEC(ZSTD(1)),
    zero_threshold   Float64 CODEC(ZSTD(1)),
    positive_offset  Int32 CODEC(ZSTD(1)),
    positive_counts  Array(UInt64) CODEC(ZSTD(1)),
    negative_offset  Int32 CODEC(ZSTD(1)),
    negative_counts  Array(UInt64) CODEC(ZSTD(1)),
    quantiles        Nested(quantile Float64, value Float64) CODEC(ZSTD(1)),
    received         DateTime64(9) CODEC(ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toDate(fromUnixTimestamp64Nano(at_ns, 'UTC'))
ORDER BY (project, name, service, client, at_ns)
SETTINGS non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1,
    min_bytes_for_wide_part = 536870912;                 -- one file a part for long: a file for each column is as many fsyncs

CREATE TABLE IF NOT EXISTS logs
(
    project      LowCardinality(String),
    trace_id     String CODEC(ZSTD(1)),                  -- hex, '' outside of a trace
    span_id      String CODEC(ZSTD(1)),
    at_ns        Int64 CODEC(Delta, ZSTD(1)),            -- when it happened or, where that is not said, was observed
    observed_ns  Int64 CODEC(Delta, ZSTD(1)),
    severity     UInt8,                                  -- OTLP's number: 1 trace, 5 debug, 9 info, 13 warn, 17 error, 21 fatal
    level        LowCardinality(String),                 -- what the sender calls it
    event        LowCardinality(String),                 -- its name, '' for a line of text
    body         String CODEC(ZSTD(3)),                  -- '' unless the project keeps content
    scope        LowCardinality(String),
    service      LowCardinality(String),
    client       LowCardinality(String),                 -- service.instance.id: the sender
    resource     Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    attributes   Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    received     DateTime64(9) CODEC(ZSTD(1)),
    INDEX by_trace trace_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toDate(fromUnixTimestamp64Nano(at_ns, 'UTC'))
ORDER BY (project, service, at_ns)
SETTINGS non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1,
    min_bytes_for_wide_part = 536870912;

-- These store nothing, as `landing`.
CREATE TABLE IF NOT EXISTS landing_metrics
(
    project   String,
    client    String,
    stream    String,
    sequence  UInt64,
    items     UInt64,
    total     UInt64,
    received  Int64,
    request   Tuple(resource_metrics Array(Tuple(
        resource      Tuple(attributes Array(Tuple(key String, value ${VALUE}))),
        scope_metrics Array(Tuple(
            scope   Tuple(name String),
            metrics Array(Tuple(
                name  String,
                unit  String,
                gauge Tuple(data_points Array(Tuple(
                    attributes Array(Tuple(key String, value ${VALUE})), start_time_unix_nano UInt64, time_unix_nano UInt64,
                    flags UInt32, as_double Float64, as_int Int64))),
                sum Tuple(
                    data_points Array(Tuple(
                        attributes Array(Tuple(key String, value ${VALUE})), start_time_unix_nano UInt64, time_unix_nano UInt64,
                        flags UInt32, as_double Float64, as_int Int64)),
                    aggregation_temporality Int32,
                    is_monotonic Bool),
                histogram Tuple(
                    data_points Array(Tuple(
                        attributes Array(Tuple(key String, value ${VALUE})), start_time_unix_nano UInt64, time_unix_nano UInt64,
                        flags UInt32, count UInt64, sum Nullable(Float64), min Nullable(Float64), max Nullable(Float64),
                        bucket_counts Array(UInt64), explicit_bounds Array(Float64))),
                    aggregation_temporality Int32),
                exponential_histogram Tuple(
                    data_points Array(Tuple(
                        attributes Array(Tuple(key String, value ${VALUE})), start_time_unix_nano UInt64, time_unix_nano UInt64,
                        flags UInt32, count UInt64, sum Nullable(Float64), min Nullable(Float64), max Nullable(Float64),
                        scale Int32, zero_count UInt64, zero_threshold Float64,
                        positive Tuple(`offset` Int32, bucket_counts Array(UInt64)),
                        negative Tuple(`offset` Int32, bucket_counts Array(UInt64)))),
                    aggregation_temporality Int32),
                summary Tuple(data_points Array(Tuple(
                    attributes Array(Tuple(key String, value ${VALUE})), start_time_unix_nano UInt64, time_unix_nano UInt64,
                    flags UInt32, count UInt64, sum Float64, quantile_values Array(Tuple(quantile Float64, value Float64)))))
            ))
        ))
    )))
)
ENGINE = Null;

CREATE TABLE IF NOT EXISTS landing_logs
(
    project   String,
    client    String,
    stream    String,
    sequence  UInt64,
    items     UInt64,
    total     UInt64,
    received  Int64,
    request   Tuple(
        resource_logs Array(Tuple(
            resource   Tuple(attributes Array(Tuple(key String, value ${VALUE}))),
            scope_logs Array(Tuple(
                scope       Tuple(name String),
                log_records Array(Tuple(
                    time_unix_nano          UInt64,
                    observed_time_unix_nano UInt64,
                    severity_number         Int32,
                    severity_text           String,
                    body                    ${VALUE},
                    attributes              Array(Tuple(key String, value ${VALUE})),
                    trace_id                String,
                    span_id                 String,
                    event_name              String
                ))
            ))
        )),
        contents Array(Tuple(
            trace_id             String,
            span_id              String,
            start_time_unix_nano UInt64,
            attributes           Array(Tuple(key String, value Tuple(string_value String)))
        ))
    )
)
ENGINE = Null;
