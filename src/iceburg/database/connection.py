"""Connections to PostgreSQL: which server, how, and what a failure means for the user."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg.conninfo import conninfo_to_dict

from iceburg.config import Settings, mask_dsn
from iceburg.database.connection_failures import explain_failure
from iceburg.database.embedded import EmbeddedServer, Progress
from iceburg.database.preflight import ServerFacts, check_server
from iceburg.errors import TargetError, UsageError

__all__ = [
    "ServerFacts",
    "Target",
    "check_server",
    "configure_session",
    "connect",
    "connection_options",
    "explain_failure",
    "resolve_target",
]

_FORMS = "Give it as postgresql://user:password@host:5432/database or as `host=... port=... user=... dbname=...`."

# A program that reads and writes exact values must not depend on what a role or database has set as its taste.
_SESSION: LiteralString = """
SET TIME ZONE 'UTC';
SET datestyle = 'ISO, YMD';
SET intervalstyle = 'postgres';
SET extra_float_digits = 1;
SET bytea_output = 'hex';
SET standard_conforming_strings = on;
SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0
"""


@dataclass(frozen=True, slots=True)
class Target:
    """The PostgreSQL that a command works on.

    Attributes
    ----------
    dsn
        How to connect; it may hold a password, and so is not in the representation.
    description
        For messages: where it is, without secrets.
    embedded
        Whether it is the embedded server.
    """

    dsn: str = field(repr=False)
    description: str
    embedded: bool


def resolve_target(dsn: str | None, data_dir: Path, settings: Settings, *, progress: Progress | None = None) -> Target:
    """Choose the PostgreSQL for a command: ``--dsn``, else DATABASE_URL, else the embedded server, which is started.

    Parameters
    ----------
    dsn
        The command's ``--dsn``.
    data_dir
        The installation, whose own database in the embedded server is used and created if there is none.
    settings
        From the environment.
    progress
        Told when starting the embedded server takes time.

    Raises
    ------
    UsageError
        The given DSN is empty.
    TargetError
        The connection string is malformed, or the embedded server cannot be started.
    """
    given = dsn
    if given is not None and not given.strip():
        # As from `--dsn "$UNSET"`: falling back to another server would surprise.
        raise UsageError("--dsn is empty.", hint=f"{_FORMS} Without --dsn the embedded server is used.")
    if given is None and settings.database_url is not None:
        given = settings.database_url.get_secret_value()
    if given is not None:
        _parse(given)
        return Target(given, mask_dsn(given), embedded=False)
    server = EmbeddedServer(settings.home) if progress is None else EmbeddedServer(settings.home, progress=progress)
    own = server.database_for(data_dir)
    return Target(own, f"embedded server, {own}", embedded=True)


def connect(dsn: str, *, autocommit: bool = False, timeout: float = 10.0) -> psycopg.Connection:
    """Connect, with every session setting on which the meaning of a value depends set to a known value.

    Parameters
    ----------
    dsn
        Connection string, URL or keywords.
    autocommit
        As in psycopg.
    timeout
        Seconds to wait for each host to answer.

    Raises
    ------
    TargetError
        No connection; the message says why and what to do, without a password.
    """
    options = connection_options(dsn, timeout=timeout)
    try:
        connection = psycopg.connect(dsn, autocommit=True, **options)
    except psycopg.Error as error:
        raise explain_failure(str(error), dsn) from None
    try:
        configure_session(connection)
        connection.autocommit = autocommit
    except psycopg.Error as error:
        connection.close()
        raise explain_failure(str(error), dsn) from None
    return connection


def connection_options(dsn: str, *, timeout: float = 10.0) -> dict[str, Any]:
    """Return the options that `connect` gives to psycopg beside the connection string; a pool takes them as ``kwargs``.

    Parameters
    ----------
    dsn
        Connection string.
    timeout
        Seconds to wait for each host to answer.

    Raises
    ------
    TargetError
        The connection string is malformed.
    """
    given = _parse(dsn)
    options: dict[str, Any] = {
        "connect_timeout": max(1, round(timeout)),
        "client_encoding": "UTF8",
        "application_name": given.get("application_name") or "iceburg-db",
        # A peer that has vanished is noticed within 90 seconds.
        "keepalives": 1,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 6,
    }
    if given.get("passfile") and not given.get("password"):
        # libpq prefers the variable PGPASSWORD to a password file; an empty password makes it look into the file.
        options["password"] = ""
    return options


def configure_session(connection: psycopg.Connection) -> None:
    """Set every session setting on which the meaning of a value depends; a pool takes this as ``configure``.

    Parameters
    ----------
    connection
        Outside a transaction; its autocommit mode is as before afterwards.
    """
    autocommit = connection.autocommit
    connection.autocommit = True
    connection.execute(_SESSION)
    connection.autocommit = autocommit


def _parse(dsn: str) -> Mapping[str, object]:
    try:
        options = conninfo_to_dict(dsn)
    except UnicodeError:
        raise TargetError("The connection string is malformed: it is not UTF-8.", hint=_FORMS) from None
    except psycopg.ProgrammingError as error:
        # libpq quotes the piece that it does not understand, which may be a piece of the password.
        reason = re.sub(r'".*"', '"..."', str(error).strip(), flags=re.DOTALL)
        hint = _FORMS
        if re.match(r"\s*postgres(ql)?\+\w+://", dsn):
            hint = "Write the scheme as postgresql://, without the name of a driver."
        raise TargetError(f"The connection string is malformed: {reason}.", hint=hint) from None
    if not re.fullmatch(r"[0-9,]*", str(options.get("port") or "")):
        raise TargetError(
            "The connection string is malformed: its port is not a number.",
            hint=f"{_FORMS} In a URL, write @ / : ? % # of a password as %40 %2F %3A %3F %25 %23.",
        )
    return options
