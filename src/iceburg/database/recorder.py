"""Writing what a process measures into PostgreSQL: every ten seconds, and at the end.

What cannot be written stays in memory, where it adds up, and is written once PostgreSQL is back. A batch whose commit
may or may not have come through is written again under the same key, which changes nothing if it did.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, LiteralString

import psycopg

from iceburg.database.connection import connect
from iceburg.database.measurements import Batch, Measurements
from iceburg.database.schema import SchemaNames
from iceburg.errors import IceburgError

INTERVAL: Final = 10.0
"""Seconds that a batch is long."""

_STOPPING: Final = 3.0
_SUM_UP_EVERY: Final = 300.0
_INSERT: Final[LiteralString] = """
INSERT INTO {state}.measurements (started_at, process, operation, kind, side, seconds, calls, errors, behind,
    comparisons, mismatches, inconclusive, buckets, counts)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
"""
_INSERT_MISMATCH: Final[LiteralString] = """
INSERT INTO {state}.mismatches (seen_at, process, operation, arguments, embedded, postgres)
SELECT %(at)s, %(process)s, %(operation)s, %(arguments)s, %(embedded)s, %(postgres)s
WHERE NOT EXISTS (SELECT FROM {state}.mismatches
                  WHERE seen_at = %(at)s AND process = %(process)s AND operation = %(operation)s)
"""
_SAY_ALIVE: Final[LiteralString] = """
INSERT INTO {state}.layer_processes (process, host, pid, started_at, seen_at, mode)
VALUES (%s, %s, %s, %s, clock_timestamp(), %s)
ON CONFLICT (process) DO UPDATE SET seen_at = EXCLUDED.seen_at, mode = EXCLUDED.mode
"""
_SAY_ENDED: Final[LiteralString] = "DELETE FROM {state}.layer_processes WHERE process = %s"
_TRY_LOCK: Final[LiteralString] = "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))"
# Rows that are late, because PostgreSQL was away, are summed up by themselves.
_SUM_UP: Final[LiteralString] = """
WITH old AS (
    DELETE FROM {state}.measurements
    WHERE NOT summed AND started_at < date_bin('5 minutes', clock_timestamp() - interval '1 hour', 'epoch')
    RETURNING date_bin('5 minutes', started_at, 'epoch') AS bin, *
), totals AS (
    SELECT bin, operation, kind, side, sum(calls)::bigint AS calls, sum(errors)::bigint AS errors,
        sum(behind)::bigint AS behind, sum(comparisons)::bigint AS comparisons, sum(mismatches)::bigint AS mismatches,
        sum(inconclusive)::bigint AS inconclusive
    FROM old GROUP BY bin, operation, kind, side
), bins AS (
    SELECT bin, operation, kind, side, h.bucket, sum(h.n)::bigint AS n
    FROM old, unnest(buckets, counts) AS h (bucket, n) GROUP BY bin, operation, kind, side, h.bucket
), histograms AS (
    SELECT bin, operation, kind, side, array_agg(bucket ORDER BY bucket) AS buckets,
        array_agg(n ORDER BY bucket) AS counts
    FROM bins GROUP BY bin, operation, kind, side
)
INSERT INTO {state}.measurements (started_at, process, operation, kind, side, seconds, calls, errors, behind,
    comparisons, mismatches, inconclusive, buckets, counts, summed)
SELECT bin, 'summed ' || pg_current_xact_id()::text, operation, kind, side, 300, calls, errors, behind, comparisons,
    mismatches, inconclusive, coalesce(buckets, ARRAY[]::smallint[]), coalesce(counts, ARRAY[]::bigint[]), TRUE
FROM totals LEFT JOIN histograms USING (bin, operation, kind, side)
"""
_FORGET: Final[tuple[LiteralString, ...]] = (
    "DELETE FROM {state}.measurements WHERE started_at < clock_timestamp() - interval '14 days'",
    "DELETE FROM {state}.layer_processes WHERE seen_at < clock_timestamp() - interval '1 day'",
    "DELETE FROM {state}.mismatches WHERE mismatch_id <= (SELECT max(mismatch_id) - 1000 FROM {state}.mismatches)",
)
_log = logging.getLogger(__name__)


def process_name() -> str:
    """Return a name for this process that no other has, now or later."""
    return f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"


def write_batch(connection: psycopg.Connection, names: SchemaNames, process: str, batch: Batch) -> None:
    """Write what was measured, all of it or nothing; what is there of it already stays.

    Parameters
    ----------
    connection, names
        To the target, in autocommit mode.
    process
        Who has measured.
    batch
        What.
    """
    rows = [
        (
            batch.started_at,
            process,
            *key,
            batch.seconds,
            tally.calls,
            tally.errors,
            tally.behind,
            tally.comparisons,
            tally.mismatches,
            tally.inconclusive,
            list(tally.histogram),
            list(tally.histogram.values()),
        )
        for key, tally in batch.tallies.items()
    ]
    mismatches = [
        {
            "at": found.seen_at,
            "process": process,
            "operation": found.operation,
            "arguments": found.arguments,
            "embedded": found.embedded,
            "postgres": found.postgres,
        }
        for found in batch.differences
    ]
    with connection.transaction(), connection.cursor() as cursor:
        if rows:
            cursor.executemany(names.format(_INSERT), rows)
        if mismatches:
            cursor.executemany(names.format(_INSERT_MISMATCH), mismatches)


def sum_up(connection: psycopg.Connection, names: SchemaNames) -> None:
    """Add up what is older than an hour, and forget what is older than two weeks; nothing if another does so now."""
    with connection.transaction():
        row = connection.execute(_TRY_LOCK, (f"iceburg measurements {names.state}",)).fetchone()
        if row is None or not row[0]:
            return
        connection.execute(names.format(_SUM_UP))
        for statement in _FORGET:
            connection.execute(names.format(statement))


class Recorder:
    """Writes the measurements of this process in the background, from when it knows where to.

    Parameters
    ----------
    measurements
        What is measured.
    names
        Of the target's schemas.
    mode
        Says in which mode the process is.
    timeout
        Seconds to wait for a connection.
    """

    def __init__(
        self, measurements: Measurements, names: SchemaNames, mode: Callable[[], str], *, timeout: float
    ) -> None:
        self._measurements = measurements
        self._names = names
        self._mode = mode
        self._timeout = timeout
        self._process = 0
        self._in_doubt: Batch | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._summed_up = time.monotonic()

    def start(self, dsn: str) -> None:
        """Begin, in this process; nothing if that has begun."""
        if self._process == os.getpid():
            return
        self._process, self._name, self._started = os.getpid(), process_name(), datetime.now(UTC)
        self._in_doubt, self._stop = None, threading.Event()
        self._thread = threading.Thread(target=self._run, args=(dsn,), name="iceburg-recorder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what there is, unless that takes too long, and end."""
        self._stop.set()
        if self._thread is not None and self._process == os.getpid():
            self._thread.join(self._timeout + _STOPPING)
        self._process = 0

    def _run(self, dsn: str) -> None:
        stop = self._stop
        while not stop.wait(INTERVAL):
            self._try_to_write(dsn, ended=False)
        self._try_to_write(dsn, ended=True)

    def _try_to_write(self, dsn: str, *, ended: bool) -> None:
        try:
            self.write(dsn, ended=ended)
        except (psycopg.Error, IceburgError) as error:
            # It adds up, and is written when PostgreSQL is back.
            _log.debug("measurements were not written: %s", error)

    def write(self, dsn: str, *, ended: bool = False) -> None:
        """Write what was measured until now; `ended` says that nothing more comes."""
        with connect(dsn, autocommit=True, timeout=self._timeout) as connection:
            connection.execute("SET statement_timeout = '10s'; SET synchronous_commit = off")
            if self._in_doubt is not None:
                write_batch(connection, self._names, self._name, self._in_doubt)
            self._in_doubt = self._measurements.take()
            write_batch(connection, self._names, self._name, self._in_doubt)
            self._in_doubt = None
            if ended:
                connection.execute(self._names.format(_SAY_ENDED), (self._name,))
                return
            alive = self._name, socket.gethostname(), self._process, self._started, self._mode()
            connection.execute(self._names.format(_SAY_ALIVE), alive)
            if time.monotonic() - self._summed_up > _SUM_UP_EVERY:
                self._summed_up = time.monotonic()
                sum_up(connection, self._names)
