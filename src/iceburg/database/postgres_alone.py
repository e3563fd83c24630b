"""PostgreSQL where nothing is kept in step with it: what an installation's target needs, made ready on first use."""

from __future__ import annotations

import tempfile
from pathlib import Path

import psycopg

from iceburg.config import Settings
from iceburg.database.bootstrap import ensure_target
from iceburg.database.handover import Handover
from iceburg.database.layout import Layout
from iceburg.database.postgres_adapter import PostgresAdapter
from iceburg.database.postgres_session import PostgresSession
from iceburg.database.schema import SchemaNames, schema_names
from iceburg.database.sqlite_adapter import SqliteAdapter


def open_alone(
    dsn: str, settings: Settings, layout: Layout, embedded: SqliteAdapter, handover: Handover
) -> tuple[PostgresSession, PostgresAdapter]:
    """Return PostgreSQL alone, with everything there that the four stores need.

    Parameters
    ----------
    dsn
        Connection string.
    settings
        Time limits and connections.
    layout, embedded
        The installation, and its files.
    handover
        Says whether the installation is finalized: then its files are not touched, nor made.

    Raises
    ------
    TargetError
        PostgreSQL cannot be reached, or belongs to another installation.
    """
    names = schema_names(settings.schema_name)
    session = PostgresSession(
        dsn,
        names,
        pool_min=settings.pool_min,
        pool_max=settings.pool_max,
        timeout=settings.connect_timeout,
    )
    try:
        with session.connection() as connection:
            if handover.is_over():
                _ensure_without_files(connection, names, layout)
            else:
                _make_files(embedded)
                ensure_target(connection, names, layout)
        session.renew()
    except BaseException:
        session.close()
        raise
    return session, PostgresAdapter(session, layout)


def _make_files(files: SqliteAdapter) -> None:
    """Make the files that are not there: what PostgreSQL is to hold is read from their tables."""
    for file in files.sessions.values():
        file.connection()


def _ensure_without_files(connection: psycopg.Connection, names: SchemaNames, layout: Layout) -> None:
    with tempfile.TemporaryDirectory(prefix="iceburg-") as folder:
        # What the target lacks of the four stores is made like the tables of new files.
        empty = Layout.of(Path(folder), Path(folder) / layout.conversations.name)
        with SqliteAdapter(empty) as files:
            _make_files(files)
            ensure_target(connection, names, layout, empty)
