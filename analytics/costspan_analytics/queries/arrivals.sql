-- What each sender says it sent, what of it came, and the runs of its numbers that did not. What is left of a sender whose first
-- days have been dropped counts from where it begins.
WITH
    (SELECT min(toDate(received, 'UTC')) FROM deliveries WHERE project = {project:String}) AS oldest,
    (SELECT min(day) FROM closed_days WHERE project = {project:String} AND day < oldest) > toDate(0) AS dropped,
    payloads AS
    (
        SELECT
            client, stream, toInt64(sequence) AS number, toInt64(any(items)) AS held, toInt64(max(total)) AS so_far,
            count() AS times, toUnixTimestamp64Milli(min(received)) AS at_ms
        FROM deliveries
        WHERE project = {project:String} AND client != ''
        GROUP BY client, stream, number
    ),
    neighbours AS
    (
        SELECT
            *,
            dropped AND toDate(fromUnixTimestamp64Milli(at_ms, 'UTC')) = oldest AS cut,
            lagInFrame(number, 1, if(cut, number - 1, least(number - 1, 0))) OVER sent AS number_before,
            lagInFrame(so_far, 1, if(cut, so_far - held, 0)) OVER sent AS so_far_before,
            lagInFrame(at_ms, 1, toInt64(0)) OVER sent AS at_ms_before
        FROM payloads
        WINDOW sent AS (PARTITION BY client, stream ORDER BY number ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
    )
SELECT
    client,
    stream,
    sum(number - number_before) AS payloads_sent,
    count() AS payloads_arrived,
    sum(times) - count() AS payloads_twice,
    sum(so_far - so_far_before) AS items_sent,
    sum(held) AS items_arrived,
    min(at_ms) AS first_ms,
    max(at_ms) AS last_ms,
    maxIf(at_ms - at_ms_before, at_ms_before > 0) AS pause_ms,
    arraySort(groupArrayIf(
        (number_before + 1, number - 1, so_far - held - so_far_before, at_ms_before, at_ms), number > number_before + 1)) AS missing
FROM neighbours
GROUP BY client, stream
ORDER BY stream, client
