"""The window: what the layer's processes and probes have measured since some time, by operation and side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString

import psycopg
from psycopg.rows import class_row

from iceburg.database.measurements import Kind, Side, histogram_of, quantile
from iceburg.database.schema import SchemaNames

# In one snapshot: sums of a step, operation, kind and side, and one row for each of their buckets.
_SUMS: Final[LiteralString] = """
WITH found AS (
    SELECT {step} AS at, operation, kind, side, calls, errors, behind, comparisons, mismatches, inconclusive, buckets,
        counts
    FROM {state}.measurements WHERE started_at >= %(since)s AND started_at < %(until)s
), bins AS (
    SELECT at, operation, kind, side, h.bucket, sum(h.n)::bigint AS n
    FROM found, unnest(buckets, counts) AS h (bucket, n) GROUP BY at, operation, kind, side, h.bucket
), histograms AS (
    SELECT at, operation, kind, side, array_agg(bucket::integer) AS buckets, array_agg(n) AS counts
    FROM bins GROUP BY at, operation, kind, side
), totals AS (
    SELECT at, operation, kind, side, sum(calls)::bigint AS calls, sum(errors)::bigint AS errors,
        sum(behind)::bigint AS behind, sum(comparisons)::bigint AS comparisons, sum(mismatches)::bigint AS mismatches,
        sum(inconclusive)::bigint AS inconclusive
    FROM found GROUP BY at, operation, kind, side
)
SELECT t.at, t.operation, t.kind, t.side, t.calls, t.errors, t.behind, t.comparisons, t.mismatches, t.inconclusive,
    h.buckets, h.counts
FROM totals t LEFT JOIN histograms h USING (at, operation, kind, side) ORDER BY t.at, t.operation, t.kind, t.side
"""
_WHOLE: Final[LiteralString] = "%(since)s::timestamptz"
_STEPS: Final[LiteralString] = "date_bin(make_interval(secs => %(step)s), started_at, %(since)s)"
_NOW: Final[LiteralString] = "SELECT clock_timestamp()"
_LAST_MISMATCHES: Final[LiteralString] = """
SELECT seen_at, process, operation, arguments, embedded, postgres FROM {state}.mismatches
ORDER BY mismatch_id DESC LIMIT %s
"""
_PROCESSES: Final[LiteralString] = """
SELECT process, host, pid, started_at, seen_at, extract(epoch FROM clock_timestamp() - seen_at)::float8
    AS silent_seconds, mode
FROM {state}.layer_processes ORDER BY started_at
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of one operation on one side.

    Attributes
    ----------
    at
        When the window, or the step of a series, begins (with a time zone).
    operation, kind, side
        Such as ``matrix.get``; ``call`` for what callers waited for, ``pair`` for a read that both sides were asked;
        ``embedded``, ``postgres``, or ``dual`` for a whole write to both.
    calls, errors
        Calls, and those of them that failed.
    behind
        Reads that PostgreSQL could not answer because it was not in step; no calls, nor errors.
    p50, p95
        Seconds, within 2.5 %; None where there was no call.
    """

    at: datetime
    operation: str
    kind: Kind
    side: Side
    calls: int
    errors: int
    behind: int
    p50: float | None
    p95: float | None


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Reads of one operation that both sides were asked.

    Attributes
    ----------
    at, operation
        As of `Figures`.
    comparisons, mismatches
        Compared at one position, and of these different.
    inconclusive
        Not compared, because something was written meanwhile or PostgreSQL was not in step.
    """

    at: datetime
    operation: str
    comparisons: int
    mismatches: int
    inconclusive: int


@dataclass(frozen=True, slots=True)
class Window:
    """A window.

    Attributes
    ----------
    since, until
        From when to when (with a time zone), by the server's clock.
    figures, comparisons
        By operation; of a series, by step first.
    """

    since: datetime
    until: datetime
    figures: tuple[Figures, ...]
    comparisons: tuple[Comparisons, ...]

    @property
    def compared(self) -> int:
        """Number of comparisons."""
        return sum(found.comparisons for found in self.comparisons)

    @property
    def mismatches(self) -> int:
        """Number of comparisons that differed."""
        return sum(found.mismatches for found in self.comparisons)

    @property
    def inconclusive(self) -> int:
        """Number of comparisons that came to nothing."""
        return sum(found.inconclusive for found in self.comparisons)

    def find(self, operation: str, kind: Kind, side: Side) -> Figures | None:
        """Return the figures of an operation on a side; of a series, those of its first step."""
        for found in self.figures:
            if (found.operation, found.kind, found.side) == (operation, kind, side):
                return found
        return None

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations there are figures of."""
        return tuple(sorted({found.operation for found in self.figures}))


@dataclass(frozen=True, slots=True)
class SeenMismatch:
    """A read that the sides answered differently: when, in which process, what was asked, both answers shortened."""

    seen_at: datetime
    process: str
    operation: str
    arguments: str
    embedded: str
    postgres: str


@dataclass(frozen=True, slots=True)
class LayerProcess:
    """A process of the unified layer, as it last said how it is.

    Attributes
    ----------
    process, host, pid, started_at
        Which.
    seen_at, silent_seconds
        When it said so, and how long ago that is by the server's clock.
    mode
        ``embedded``, ``dual`` or ``postgres``.
    """

    process: str
    host: str
    pid: int
    started_at: datetime
    seen_at: datetime
    silent_seconds: float
    mode: str


def server_time(connection: psycopg.Connection) -> datetime:
    """Return the time by the server's clock."""
    row = connection.execute(_NOW).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM has a row
    found: datetime = row[0]
    return found


def read_window(
    connection: psycopg.Connection, names: SchemaNames, since: datetime, until: datetime | None = None
) -> Window:
    """Return what was measured from a time on, added up.

    Parameters
    ----------
    connection, names
        To the target, whose schema is this program's.
    since, until
        With a time zone; `until` is now if not given. What is older than an hour is known by five minutes.
    """
    return _read(connection, names, since, until, None)


def read_series(
    connection: psycopg.Connection, names: SchemaNames, since: datetime, until: datetime | None = None, *, step: float
) -> Window:
    """Return what was measured from a time on, by steps of so many seconds; steps without measurements are left out."""
    return _read(connection, names, since, until, step)


def last_mismatches(connection: psycopg.Connection, names: SchemaNames, limit: int = 20) -> tuple[SeenMismatch, ...]:
    """Return the last reads that differed, the newest first."""
    with connection.cursor(row_factory=class_row(SeenMismatch)) as cursor:
        return tuple(cursor.execute(names.format(_LAST_MISMATCHES), (limit,)).fetchall())


def layer_processes(connection: psycopg.Connection, names: SchemaNames) -> tuple[LayerProcess, ...]:
    """Return the processes of the layer that have not said that they end; one that is long silent was killed."""
    with connection.cursor(row_factory=class_row(LayerProcess)) as cursor:
        return tuple(cursor.execute(names.format(_PROCESSES)).fetchall())


def _read(
    connection: psycopg.Connection, names: SchemaNames, since: datetime, until: datetime | None, step: float | None
) -> Window:
    until = until or server_time(connection)
    statement = names.format(_SUMS, step=psycopg.sql.SQL(_WHOLE if step is None else _STEPS))
    rows = connection.execute(statement, {"since": since, "until": until, "step": step}).fetchall()
    figures, compared = [], []
    for at, operation, kind, side, calls, errors, behind, *pairs, buckets, counts in rows:
        histogram = histogram_of(_zipped(buckets, counts))
        p50, p95 = quantile(histogram, 0.5), quantile(histogram, 0.95)
        if calls or behind:
            figures.append(Figures(at, operation, kind, side, calls, errors, behind, p50, p95))
        if any(pairs):
            compared.append(Comparisons(at, operation, *pairs))
    return Window(since, until, tuple(figures), tuple(compared))


def _zipped(buckets: list[int] | None, counts: list[int] | None) -> Iterable[tuple[int, int]]:
    return zip(buckets or (), counts or (), strict=True)
