-- Bytes on disk by table, compressed, of all projects.
SELECT table, sum(bytes_on_disk) AS bytes FROM system.parts WHERE active AND database = currentDatabase() GROUP BY table
