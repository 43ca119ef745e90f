-- Who has anything in the store.
SELECT project FROM spans GROUP BY project
UNION DISTINCT
SELECT project FROM steps GROUP BY project
ORDER BY project
