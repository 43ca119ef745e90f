-- A row of each data point. The types of metric are brought into one shape first; what a type has not is zero or empty.
CREATE MATERIALIZED VIEW IF NOT EXISTS landing_metrics_rows TO metrics AS
SELECT
    project,
    name,
    unit,
    type,
    transform(temporality, [1, 2], ['delta', 'cumulative'], '') AS temporality,
    monotonic,
    scope,
    resource['service.name'] AS service,
    resource['service.instance.id'] AS client,
    resource,
    CAST((point.1.key, arrayMap(${TEXT}, point.1.value)), 'Map(String, String)') AS attributes,
    toInt64(point.2) AS start_ns,
    toInt64(point.3) AS at_ns,
    point.4 AS flags,
    point.5 AS value,
    point.6 AS count,
    point.7 AS sum,
    point.8 AS min,
    point.9 AS max,
    point.10 AS bucket_counts,
    point.11 AS bucket_bounds,
    point.12.1 AS scale,
    point.12.2 AS zero_count,
    point.12.3 AS zero_threshold,
    point.12.4 AS positive_offset,
    point.12.5 AS positive_counts,
    point.12.6 AS negative_offset,
    point.12.7 AS negative_counts,
    point.13.1 AS `quantiles.quantile`,
    point.13.2 AS `quantiles.value`,
    fromUnixTimestamp64Nano(received) AS received
FROM
(
    SELECT project, received, resource, scope, name, unit, typed.1 AS type, typed.2 AS temporality, typed.3 AS monotonic,
        arrayJoin(typed.4) AS point
    FROM
    (
        WITH
            CAST((0, 0, 0, 0, [], 0, []), 'Tuple(Int32, UInt64, Float64, Int32, Array(UInt64), Int32, Array(UInt64))') AS no_scale,
            CAST(([], []), 'Tuple(Array(Float64), Array(Float64))') AS no_quantiles,
            CAST([], 'Array(UInt64)') AS no_counts,
            CAST([], 'Array(Float64)') AS no_bounds,
            CAST(NULL, 'Nullable(Float64)') AS none
        SELECT project, received, resource, scope, metric.name AS name, metric.unit AS unit,
            arrayJoin(arrayFilter(typed -> notEmpty(typed.4), [
                ('gauge', toInt32(0), false, arrayMap(p -> (p.attributes, p.start_time_unix_nano, p.time_unix_nano, p.flags,
                    p.as_double + p.as_int, toUInt64(0), none, none, none, no_counts, no_bounds, no_scale, no_quantiles),
                    metric.gauge.data_points)),
                ('sum', metric.sum.aggregation_temporality, metric.sum.is_monotonic, arrayMap(p -> (
                    p.attributes, p.start_time_unix_nano, p.time_unix_nano, p.flags,
                    p.as_double + p.as_int, toUInt64(0), none, none, none, no_counts, no_bounds, no_scale, no_quantiles),
                    metric.sum.data_points)),
                ('histogram', metric.histogram.aggregation_temporality, false, arrayMap(p -> (
                    p.attributes, p.start_time_unix_nano, p.time_unix_nano, p.flags,
                    0., p.count, p.sum, p.min, p.max, p.bucket_counts, p.explicit_bounds, no_scale, no_quantiles),
                    metric.histogram.data_points)),
                ('exponential_histogram', metric.exponential_histogram.aggregation_temporality, false, arrayMap(p -> (
                    p.attributes, p.start_time_unix_nano, p.time_unix_nano, p.flags,
                    0., p.count, p.sum, p.min, p.max, no_counts, no_bounds,
                    (p.scale, p.zero_count, p.zero_threshold, p.positive.offset, p.positive.bucket_counts,
                        p.negative.offset, p.negative.bucket_counts), no_quantiles),
                    metric.exponential_histogram.data_points)),
                ('summary', toInt32(0), false, arrayMap(p -> (p.attributes, p.start_time_unix_nano, p.time_unix_nano, p.flags,
                    0., p.count, toNullable(p.sum), none, none, no_counts, no_bounds, no_scale,
                    (p.quantile_values.quantile, p.quantile_values.value)),
                    metric.summary.data_points))
            ])) AS typed
        FROM
        (
            SELECT project, received, resource, scope_metric.scope.name AS scope, arrayJoin(scope_metric.metrics) AS metric
            FROM
            (
                SELECT
                    project,
                    received,
                    CAST((resource_metric.resource.attributes.key, arrayMap(${TEXT}, resource_metric.resource.attributes.value)), 'Map(String, String)') AS resource,
                    arrayJoin(resource_metric.scope_metrics) AS scope_metric
                FROM
                (
                    SELECT project, received, arrayJoin(request.resource_metrics) AS resource_metric FROM landing_metrics
                )
            )
        )
    )
);
