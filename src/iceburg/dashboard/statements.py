"""The SQL of the dashboard. ``{state}`` stands for the quoted name of the migration's schema. Nothing here writes."""

from __future__ import annotations

from typing import Final, LiteralString

# What is asked changes nothing, and no question keeps the page, or the server, busy for long.
READ_ONLY: Final[LiteralString] = "SET default_transaction_read_only = on; SET statement_timeout = '15s'"

SELECT_SERVER: Final[LiteralString] = """
SELECT current_setting('server_version') AS version,
       (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS vector_version,
       current_database()::text AS database,
       pg_database_size(current_database()) AS size_bytes,
       pg_postmaster_start_time() AS started_at,
       current_setting('max_connections')::integer AS max_connections,
       (SELECT count(*) FROM pg_stat_activity
        WHERE coalesce(backend_type, 'client backend') = 'client backend' AND usename IS NOT NULL) AS connections,
       (SELECT extract(epoch FROM max(clock_timestamp() - xact_start))::float8 FROM pg_stat_activity
        WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
       ) AS longest_transaction,
       blks_hit::float8 / nullif(blks_hit + blks_read, 0) AS cache_hit_share,
       xact_rollback AS rollbacks, deadlocks
FROM pg_stat_database WHERE datname = current_database()
"""
# The kind and state of other roles' sessions are hidden from who may not see them.
SELECT_CONNECTIONS: Final[LiteralString] = """
SELECT coalesce(nullif(application_name, ''), 'without a name') AS application,
       coalesce(state, 'hidden') AS state, count(*) AS connections
FROM pg_stat_activity
WHERE datname = current_database() AND usename IS NOT NULL
  AND coalesce(backend_type, 'client backend') = 'client backend'
GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2
"""
SELECT_QUARANTINE_COUNTS: Final[LiteralString] = """
SELECT d.dataset_id, d.name AS dataset, q.reason, count(*) AS records
FROM {state}.quarantine q JOIN {state}.datasets d USING (dataset_id) GROUP BY 1, 2, 3 ORDER BY 2, 3
"""
SELECT_QUARANTINE_PAGE: Final[LiteralString] = """
SELECT q.dataset_id, d.name, q.record_key, q.reason, q.record
FROM {state}.quarantine q JOIN {state}.datasets d USING (dataset_id)
WHERE %(dataset)s::text IS NULL OR d.name = %(dataset)s
ORDER BY d.name, q.record_key, q.reason, q.ctid LIMIT %(limit)s OFFSET %(offset)s
"""
COUNT_QUARANTINE: Final[LiteralString] = """
SELECT count(*) FROM {state}.quarantine q JOIN {state}.datasets d USING (dataset_id)
WHERE %(dataset)s::text IS NULL OR d.name = %(dataset)s
"""
