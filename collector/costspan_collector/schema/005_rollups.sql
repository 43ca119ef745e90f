-- What outlives the rows. A day that is over is closed: what its rows add up to is written here (see rollups.py). A row here says
-- how many rows it stands for, and of two with the same key the one that stands for more is kept: so a day can be closed again,
-- when rows of it came late or a crash came between, and nothing counts twice. Read them through the views *_hourly.

-- How many rows of a day each sender's streams had. A day is closed once it is here.
CREATE TABLE IF NOT EXISTS closed_days
(
    stream   LowCardinality(String),                     -- the table that the rows are in
    day      Date,
    project  LowCardinality(String),
    client   LowCardinality(String),                     -- the sender: an engine, a process, a host's sidecar
    rows     UInt64
)
ENGINE = ReplacingMergeTree(rows)
PARTITION BY toStartOfMonth(day)
ORDER BY (stream, day, project, client)
SETTINGS default_compression_codec = 'ZSTD(3)', fsync_after_insert = 1, fsync_part_directory = 1;

-- Engine requests by the hour in which they were enqueued. The sketches are right to 1 %.
CREATE TABLE IF NOT EXISTS closed_requests
(
    project           LowCardinality(String),
    day               Date,
    hour              DateTime('UTC'),
    tenant            LowCardinality(String),
    feature           LowCardinality(String),
    model             LowCardinality(String),
    outcome           LowCardinality(String),
    requests          UInt64,
    prompt_tokens     UInt64,
    cached_tokens     UInt64,
    output_tokens     UInt64,
    delivered_tokens  UInt64,
    cost_ns           Int64,
    ttft              AggregateFunction(quantilesDD(0.01, 0.5, 0.99), Float64),  -- ns until the first token, where there was one
    e2e               AggregateFunction(quantilesDD(0.01, 0.5, 0.99), Float64)   -- ns until the last byte
)
ENGINE = ReplacingMergeTree(requests)
PARTITION BY toStartOfMonth(day)
ORDER BY (project, hour, tenant, feature, model, outcome)
SETTINGS default_compression_codec = 'ZSTD(3)', fsync_after_insert = 1, fsync_part_directory = 1;

-- Model calls as their clients measured them, by the hour in which they began.
CREATE TABLE IF NOT EXISTS closed_calls
(
    project           LowCardinality(String),
    day               Date,
    hour              DateTime('UTC'),
    tenant            LowCardinality(String),
    feature           LowCardinality(String),
    model             LowCardinality(String),
    outcome           LowCardinality(String),
    calls             UInt64,
    input_tokens      UInt64,
    cached_tokens     UInt64,
    output_tokens     UInt64,
    delivered_tokens  UInt64,
    ttft              AggregateFunction(quantilesDD(0.01, 0.5, 0.99), Float64),
    e2e               AggregateFunction(quantilesDD(0.01, 0.5, 0.99), Float64)
)
ENGINE = ReplacingMergeTree(calls)
PARTITION BY toStartOfMonth(day)
ORDER BY (project, hour, tenant, feature, model, outcome)
SETTINGS default_compression_codec = 'ZSTD(3)', fsync_after_insert = 1, fsync_part_directory = 1;
