-- Money is Decimal, never float.

-- Effective-dated: the row with the latest effective_from not after the moment of use is the price.
CREATE TABLE IF NOT EXISTS prices
(
    project         LowCardinality(String),              -- '' = every project
    sku             LowCardinality(String),
    unit            LowCardinality(String),              -- what one is: hour, call, minute, token
    rate            Decimal(38, 12),
    currency        LowCardinality(String),
    effective_from  DateTime64(3),
    source          String,
    version         String
)
ENGINE = ReplacingMergeTree
ORDER BY (project, sku, effective_from, version)
SETTINGS default_compression_codec = 'ZSTD(3)', non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;

-- Every bill that is not device hours: a vendor's own count of what was used.
CREATE TABLE IF NOT EXISTS invoices
(
    project       LowCardinality(String),
    invoice_id    String,
    vendor        LowCardinality(String),
    sku           LowCardinality(String),
    start_ns      Int64,
    end_ns        Int64,
    quantity      Decimal(38, 12),
    amount        Decimal(38, 12),
    currency      LowCardinality(String),
    source        String
)
ENGINE = ReplacingMergeTree
ORDER BY (project, invoice_id, sku)
SETTINGS default_compression_codec = 'ZSTD(3)', non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;

-- The cost ledger, as a report closed it: every row keeps its price's source, version and rate.
CREATE TABLE IF NOT EXISTS postings
(
    project        LowCardinality(String),
    closing        LowCardinality(String),               -- the report that wrote the row
    at_ns          Int64,
    sku            LowCardinality(String),
    category       LowCardinality(String),               -- request, or a waste
    tenant         LowCardinality(String),
    feature        LowCardinality(String),
    unit           String,
    trace_id       String,
    source_id      String,                               -- the attempt, span or step range it comes from
    quantity       Decimal(38, 12),
    rate           Decimal(38, 12),
    amount         Decimal(38, 12),
    currency       LowCardinality(String),
    price_source   String,
    price_version  String
)
ENGINE = MergeTree
ORDER BY (project, closing, tenant, at_ns, source_id)
SETTINGS default_compression_codec = 'ZSTD(3)', non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;
