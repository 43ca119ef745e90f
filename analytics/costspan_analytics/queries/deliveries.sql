-- What each sender says it sent, beside what was acknowledged. A delivery that never came leaves total above items.
SELECT client, stream, max(total) AS sent, sum(items) AS accepted, count() AS payloads, max(sequence) AS last_sequence
FROM deliveries
WHERE project = {project:String} AND client != ''
GROUP BY client, stream
ORDER BY stream, client
