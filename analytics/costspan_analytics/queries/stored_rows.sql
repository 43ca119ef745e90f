-- Rows of the engines' ledgers that are in their tables, by sender.
SELECT 'attempts' AS stream, engine AS client, count() AS stored FROM attempts WHERE project = {project:String} GROUP BY engine
UNION ALL
SELECT 'engines', engine, count() FROM engines WHERE project = {project:String} GROUP BY engine
UNION ALL
SELECT 'steps', engine, count() FROM steps WHERE project = {project:String} GROUP BY engine
UNION ALL
SELECT 'evictions', engine, count() FROM evictions WHERE project = {project:String} GROUP BY engine
UNION ALL
SELECT 'gpu_samples', client, count() FROM gpu_samples WHERE project = {project:String} GROUP BY client
