"""The databases of the embedded server: one for each installation."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

# Any constant will do: it keeps two commands from creating the same database at once.
_ADVISORY_LOCK = 0x1CEB0961


@dataclass(frozen=True, slots=True)
class EmbeddedDatabase:
    """One database of the embedded server.

    Attributes
    ----------
    name
        Its name in PostgreSQL.
    installation
        Path of the data directory whose state it holds; None when it was not made by `EmbeddedServer.database_for`.
    size
        Bytes on disk.
    dsn
        How to connect, with no password in it.
    """

    name: str
    installation: str | None
    size: int
    dsn: str


def database_name(installation: Path) -> str:
    """Return the name of the database of an installation: readable, and different for different paths.

    Parameters
    ----------
    installation
        The data directory, symbolic links resolved.
    """
    readable = re.sub(r"[^a-z0-9]+", "_", installation.name.lower()).strip("_")[:32].rstrip("_") or "data"
    return f"iceburg_{readable}_{hashlib.sha256(os.fsencode(installation)).hexdigest()[:12]}"


def ensure_database(connection: psycopg.Connection, installation: Path) -> str:
    """Create the database of an installation unless it exists, and return its name.

    Parameters
    ----------
    connection
        An administrator's, in autocommit mode, to the database ``postgres``.
    installation
        The data directory, symbolic links resolved; it is recorded as the database's comment.
    """
    name = database_name(installation)
    path = _as_text(installation)
    connection.execute("SELECT pg_advisory_lock(%s)", (_ADVISORY_LOCK,))
    try:
        found = connection.execute(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", (name,)
        ).fetchone()
        if found is None:
            create = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'")
            connection.execute(create.format(sql.Identifier(name)))
        if found is None or found[0] != path:
            comment = sql.SQL("COMMENT ON DATABASE {} IS {}")
            connection.execute(comment.format(sql.Identifier(name), sql.Literal(path)))
    finally:
        connection.execute("SELECT pg_advisory_unlock(%s)", (_ADVISORY_LOCK,))
    return name


def list_databases(connection: psycopg.Connection) -> Iterator[tuple[str, str | None, int]]:
    """Yield the name, the installation and the size in bytes of each database that is not the server's own."""
    yield from connection.execute(
        """
        SELECT datname, shobj_description(oid, 'pg_database'), pg_database_size(oid)
          FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres' ORDER BY datname
        """
    )


def _as_text(path: Path) -> str:
    # PostgreSQL takes no bytes that are not UTF-8; the comment is for people only.
    return os.fsencode(path).decode("utf-8", "backslashreplace")
