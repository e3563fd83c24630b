"""One state of the target, seen by several connections: nothing that is written meanwhile shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString

import psycopg
from psycopg import sql

# Nothing is written, so that a standby, or a server that is read-only or full, will do.
_ISOLATION: Final[LiteralString] = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
# A sequential scan that begins where another one is would give rows in another order each time.
_STEADY: Final[LiteralString] = "SET LOCAL synchronize_seqscans = off"
_EXPORT: Final[LiteralString] = "SELECT pg_export_snapshot(), now()"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state of the target.

    Attributes
    ----------
    name
        What other connections take it up by, as long as the transaction lives that exported it.
    taken_at
        When, by the server's clock.
    """

    name: str
    taken_at: datetime


@contextmanager
def taken(connection: psycopg.Connection) -> Iterator[Snapshot]:
    """Take a snapshot on a connection in autocommit mode, and keep it."""
    with connection.transaction():
        connection.execute(_ISOLATION)
        connection.execute(_STEADY)
        row = connection.execute(_EXPORT).fetchone()
        assert row is not None  # noqa: S101 - a SELECT without FROM has a row
        yield Snapshot(row[0], row[1])


@contextmanager
def seeing(connection: psycopg.Connection, snapshot: str) -> Iterator[None]:
    """See a snapshot that another connection keeps, on a connection in autocommit mode."""
    with connection.transaction():
        connection.execute(_ISOLATION)
        connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
        connection.execute(_STEADY)
        yield
