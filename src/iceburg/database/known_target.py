"""What PostgreSQL knows of the logs of an installation, where there is a PostgreSQL; none is made to find out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from iceburg.config import Settings
from iceburg.database.connection import Target, connect, resolve_target
from iceburg.database.embedded import EmbeddedServer, Progress
from iceburg.database.embedded_databases import database_name
from iceburg.database.positions import Position, find_position
from iceburg.database.schema import SchemaNames, check_schema
from iceburg.errors import TargetError


@dataclass(frozen=True, slots=True)
class KnownPositions:
    """The positions of an installation's sources.

    Attributes
    ----------
    target
        Where they were asked for, without secrets; None where the installation has no PostgreSQL that is known.
    problem
        Why they could not be asked for; None where they could, or where there is nothing to ask.
    by_source
        The positions, by the names of the sources that have one.
    """

    target: str | None = None
    problem: str | None = None
    by_source: Mapping[str, Position] = field(default_factory=dict)

    @property
    def asked(self) -> bool:
        """Whether PostgreSQL has answered."""
        return self.target is not None and self.problem is None


def find_positions(
    dsn: str | None,
    data_dir: Path,
    settings: Settings,
    names: SchemaNames,
    sources: Sequence[str],
    *,
    progress: Progress,
) -> KnownPositions:
    """Ask the PostgreSQL of an installation for the positions of sources.

    That is ``--dsn``, else DATABASE_URL, else the installation's database in the embedded server. A server that was
    made and does not run is started; where there is none, or no database of this installation in it, nothing is made.
    That PostgreSQL cannot be asked is part of the answer, not an error.

    Parameters
    ----------
    dsn, data_dir, settings, progress
        As for `resolve_target`.
    names, sources
        What to ask for.

    Raises
    ------
    UsageError
        The given DSN is empty.
    TargetError
        The connection string is malformed.
    """
    if dsn is not None or settings.database_url is not None:
        target: Target | None = resolve_target(dsn, data_dir, settings, progress=progress)
    else:
        try:
            target = _embedded_target(data_dir, settings, progress)
        except TargetError as error:
            return KnownPositions("embedded server", error.what)
    return KnownPositions() if target is None else _ask(target, names, sources)


def existing_target(dsn: str | None, data_dir: Path, settings: Settings, *, progress: Progress) -> Target:
    """Choose the PostgreSQL of an installation that was migrated, as `resolve_target` does; none is made.

    Raises
    ------
    UsageError
        The given DSN is empty.
    TargetError
        The connection string is malformed, the embedded server cannot be started, or it has no database of this
        installation.
    """
    if dsn is not None or settings.database_url is not None:
        return resolve_target(dsn, data_dir, settings, progress=progress)
    target = _embedded_target(data_dir, settings, progress)
    if target is None:
        raise TargetError(
            "The embedded server has no database of this installation.",
            where=str(data_dir),
            hint="Name the directory as it was migrated; `iceburg-db server status` lists those that were. If it was"
            " migrated to another PostgreSQL, give its --dsn.",
        )
    return target


def _embedded_target(data_dir: Path, settings: Settings, progress: Progress) -> Target | None:
    server = EmbeddedServer(settings.home, progress=progress)
    found = server.status()
    if found.version is None:
        return None
    if found.state != "ready":
        server.ensure_running()
        found = server.status()
    name = database_name(Path(os.path.realpath(data_dir)))
    for database in found.databases:
        if database.name == name:
            return Target(database.dsn, f"embedded server, {database.dsn}", embedded=True)
    return None


def _ask(target: Target, names: SchemaNames, sources: Sequence[str]) -> KnownPositions:
    try:
        with connect(target.dsn, autocommit=True) as connection:
            check_schema(connection, names)
            found = {source: find_position(connection, names, source) for source in sources}
    except TargetError as error:
        return KnownPositions(target.description, error.what)
    except psycopg.Error as error:
        return KnownPositions(target.description, error.diag.message_primary or str(error).strip())
    return KnownPositions(target.description, None, {name: at for name, at in found.items() if at is not None})
