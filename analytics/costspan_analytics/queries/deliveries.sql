-- What each sender says it has sent so far, in the last of its payloads that came.
SELECT client, stream, max(total) AS sent
FROM deliveries
WHERE project = {project:String} AND client != ''
GROUP BY client, stream
ORDER BY stream, client
