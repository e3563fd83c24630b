"""The follower's heartbeat: one row in PostgreSQL that says who keeps the target in step, and how that goes."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString

import psycopg
from psycopg.rows import class_row

from iceburg.database.schema import SchemaNames

ALIVE: Final = 30.0
"""Seconds after which a follower or a process that says nothing is taken for dead; both speak every ten at least."""

TAKEN_IN: Final = 15.0
"""Seconds within which a follower that is alive has a store that has just been made: it looks every five."""

# The session holds it: it goes with the process, and with the server.
_TRY_LOCK: Final[LiteralString] = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
_BEAT: Final[LiteralString] = """
INSERT INTO {state}.follower AS f
       (host, process, started_at, seen_at, state, reason, applied, pending, lag_seconds, rate)
VALUES (%(host)s, %(process)s, %(started)s, clock_timestamp(), %(state)s, %(reason)s, %(applied)s, %(pending)s,
        %(lag)s, %(rate)s)
ON CONFLICT (only_row) DO UPDATE SET host = EXCLUDED.host, process = EXCLUDED.process,
    started_at = EXCLUDED.started_at, seen_at = EXCLUDED.seen_at, state = EXCLUDED.state, reason = EXCLUDED.reason,
    applied = EXCLUDED.applied, pending = EXCLUDED.pending, lag_seconds = EXCLUDED.lag_seconds, rate = EXCLUDED.rate
"""
_SELECT: Final[LiteralString] = """
SELECT host, process, started_at, seen_at, extract(epoch FROM clock_timestamp() - seen_at)::float8 AS silent_seconds,
       state, reason, applied, pending, lag_seconds, rate
FROM {state}.follower
"""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a follower last said.

    Attributes
    ----------
    host, process, started_at
        Who it is, and since when (with a time zone).
    seen_at, silent_seconds
        When it said so, and how long ago that is by the server's clock.
    state, reason
        What it does, and why not more.
    applied, pending
        Records that it has applied, and entries that it knows of and has not.
    lag_seconds, rate
        Age of the oldest of these; records a second.
    """

    host: str
    process: int
    started_at: datetime
    seen_at: datetime
    silent_seconds: float
    state: str
    reason: str
    applied: int
    pending: int
    lag_seconds: float
    rate: float

    @property
    def is_following(self) -> bool:
        """Whether it lives, and takes in what comes."""
        return self.silent_seconds <= ALIVE and self.state != "paused"


def try_to_become_follower(connection: psycopg.Connection, names: SchemaNames) -> bool:
    """Become the target's only follower, for as long as the session lasts; return whether there is no other."""
    row = connection.execute(_TRY_LOCK, (f"iceburg-db follow {names.state}",)).fetchone()
    return row is not None and bool(row[0])


def beat(
    connection: psycopg.Connection,
    names: SchemaNames,
    started: datetime,
    *,
    state: str,
    reason: str,
    applied: int,
    pending: int,
    lag: float,
    rate: float,
) -> None:
    """Say how this follower is."""
    connection.execute(
        names.format(_BEAT),
        {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": started,
            "state": state,
            "reason": reason,
            "applied": applied,
            "pending": pending,
            "lag": lag,
            "rate": rate,
        },
    )


def read_heartbeat(connection: psycopg.Connection, names: SchemaNames) -> Heartbeat | None:
    """Return what the last follower said; None if there never was one."""
    with connection.cursor(row_factory=class_row(Heartbeat)) as cursor:
        return cursor.execute(names.format(_SELECT)).fetchone()
