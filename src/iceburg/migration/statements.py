"""The SQL of the migration's ledger. ``{state}`` stands for the quoted name of its schema."""

from __future__ import annotations

from typing import Final, LiteralString

TRY_LOCK: Final[LiteralString] = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
RAISE_FENCE: Final[LiteralString] = "UPDATE {state}.installation SET fence = fence + 1 RETURNING fence"
# FOR SHARE makes the next run's RAISE_FENCE wait for the transaction that asks.
CHECK_FENCE: Final[LiteralString] = "SELECT 1 FROM {state}.installation WHERE fence = %s FOR SHARE"

INSERT_RUN: Final[LiteralString] = "INSERT INTO {state}.runs (command) VALUES (%s) RETURNING run_id"
ABANDON_RUNS: Final[LiteralString] = """
UPDATE {state}.runs SET status = 'abandoned', finished_at = now() WHERE command = %s AND status = 'running'
"""
FINISH_RUN: Final[LiteralString] = """
UPDATE {state}.runs SET status = %(status)s, report = %(report)s, finished_at = clock_timestamp()
WHERE run_id = %(run_id)s
"""
SELECT_RUNS: Final[LiteralString] = """
SELECT run_id, command, started_at, finished_at, status FROM {state}.runs ORDER BY run_id DESC LIMIT %s
"""

HAS_KEY: Final[LiteralString] = "SELECT 1 FROM pg_index WHERE indrelid = %s::text::regclass AND indisunique LIMIT 1"
SELECT_KEYLESS: Final[LiteralString] = """
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = ANY(%s)
AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'p') ORDER BY 1
"""

INSERT_STREAM: Final[LiteralString] = """
INSERT INTO {state}.streams (dataset_id, stream, after_key, upto_key) VALUES (%s, %s, %s, %s)
"""
SELECT_STREAMS: Final[LiteralString] = """
SELECT dataset_id, stream, after_key, upto_key, done, refreshing FROM {state}.streams
WHERE dataset_id = %s ORDER BY stream
"""
SET_STREAM_DONE: Final[LiteralString] = """
UPDATE {state}.streams SET done = TRUE, refreshing = FALSE
WHERE dataset_id = %(dataset_id)s AND stream = %(stream)s
"""
REOPEN_STREAMS: Final[LiteralString] = """
UPDATE {state}.streams SET done = FALSE, refreshing = TRUE WHERE dataset_id = %s
"""

MARK_STALE: Final[LiteralString] = "UPDATE {state}.datasets SET stale = %s WHERE dataset_id = ANY(%s)"
SELECT_STALE: Final[LiteralString] = "SELECT dataset_id FROM {state}.datasets WHERE source_id = %s AND stale"

SELECT_CHUNKS: Final[LiteralString] = """
SELECT chunk, last_key, rows, digest FROM {state}.chunks
WHERE dataset_id = %s AND stream = %s AND chunk > %s ORDER BY chunk LIMIT 1000
"""
SELECT_LAST_CHUNK: Final[LiteralString] = """
SELECT chunk, last_key, rows, digest FROM {state}.chunks
WHERE dataset_id = %s AND stream = %s ORDER BY chunk DESC LIMIT 1
"""
UPSERT_CHUNK: Final[LiteralString] = """
INSERT INTO {state}.chunks (dataset_id, stream, chunk, last_key, rows, bytes, digest)
VALUES (%(dataset_id)s, %(stream)s, %(chunk)s, %(last_key)s, %(rows)s, %(bytes)s, %(digest)s)
ON CONFLICT (dataset_id, stream, chunk)
DO UPDATE SET last_key = EXCLUDED.last_key, rows = EXCLUDED.rows, bytes = EXCLUDED.bytes, digest = EXCLUDED.digest
"""
# No digest is empty: each chunk of these datasets will be found changed.
FORGET_DIGESTS: Final[LiteralString] = """
UPDATE {state}.chunks c SET digest = '' FROM {state}.datasets d
WHERE d.dataset_id = c.dataset_id AND d.target_table = %s
"""
SUM_CHUNKS: Final[LiteralString] = """
SELECT dataset_id, sum(rows)::bigint, sum(bytes)::bigint FROM {state}.chunks GROUP BY dataset_id
"""
ADD_SECONDS: Final[LiteralString] = "UPDATE {state}.datasets SET seconds = seconds + %s WHERE dataset_id = %s"
RESET_SECONDS: Final[LiteralString] = "UPDATE {state}.datasets SET seconds = 0 WHERE dataset_id = ANY(%s)"
SET_BYTES: Final[LiteralString] = """
UPDATE {state}.datasets d SET bytes = coalesce((SELECT sum(bytes) FROM {state}.chunks c
WHERE c.dataset_id = d.dataset_id), 0) WHERE dataset_id = %s
"""

DELETE_UNSEEN_ORIGINALS: Final[LiteralString] = """
DELETE FROM {state}.originals o WHERE dataset_id = %s
AND NOT EXISTS (SELECT FROM pg_temp.iceburg_kept k WHERE k.record_key = o.record_key)
"""
DELETE_UNSEEN_QUARANTINE: Final[LiteralString] = """
DELETE FROM {state}.quarantine q WHERE dataset_id = %s
AND NOT EXISTS (SELECT FROM pg_temp.iceburg_kept k WHERE k.record_key = q.record_key)
"""
SELECT_QUARANTINE: Final[LiteralString] = """
SELECT record_key, record, reason FROM {state}.quarantine WHERE dataset_id = %s AND record_key = ANY(%s)
"""
COUNT_KEPT: Final[LiteralString] = """
SELECT d.dataset_id,
       (SELECT count(*) FROM {state}.originals o WHERE o.dataset_id = d.dataset_id),
       (SELECT count(*) FROM {state}.quarantine q WHERE q.dataset_id = d.dataset_id)
FROM {state}.datasets d
"""
SELECT_REASONS: Final[LiteralString] = """
SELECT d.name, k.kind, k.reason, count(*), (array_agg(k.record_key ORDER BY k.record_key))[1:5] FROM (
    SELECT dataset_id, 'preserved' AS kind, reason, record_key FROM {state}.originals
    UNION ALL SELECT dataset_id, 'quarantined', reason, record_key FROM {state}.quarantine
) k JOIN {state}.datasets d USING (dataset_id) GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
INSERT_VERIFICATION: Final[LiteralString] = """
INSERT INTO {state}.verifications
       (run_id, dataset, source_rows, target_rows, quarantined_rows, compared_rows, differences)
VALUES (%(run_id)s, %(dataset)s, %(source_rows)s, %(target_rows)s, %(quarantined_rows)s, %(compared_rows)s,
        %(differences)s)
"""
