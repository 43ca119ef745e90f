-- Payloads of spans that came, and of which the store does not have as many rows as they held: payloads of a sender that came in
-- the same millisecond together. Of the last ones the rows may be on their way.
SELECT sent.client AS client, sent.first AS first, sent.last AS last, sent.held AS items, kept.rows AS stored
FROM
(
    SELECT client, received, min(sequence) AS first, max(sequence) AS last, sum(items) AS held
    FROM (SELECT DISTINCT client, sequence, items, received FROM deliveries WHERE project = {project:String} AND stream = 'spans' AND client != '' AND received < now64(3) - INTERVAL 5 SECOND)
    GROUP BY client, received
) AS sent
LEFT JOIN
(
    SELECT client, received, count() AS rows FROM spans WHERE project = {project:String} GROUP BY client, received
) AS kept ON sent.client = kept.client AND sent.received = kept.received
WHERE sent.held != kept.rows
ORDER BY client, first
LIMIT 1000
