"""Connections to PostgreSQL: which server, how, and what a failure means for the user."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from iceburg.config import Settings, mask_dsn
from iceburg.database.embedded import EmbeddedServer, Progress
from iceburg.database.preflight import ServerFacts, check_server
from iceburg.errors import TargetError

__all__ = ["ServerFacts", "Target", "check_server", "connect", "explain_failure", "resolve_target"]

_FORMS = "Give it as postgresql://user:password@host:5432/database or as `host=... port=... user=... dbname=...`."

# A program that reads and writes exact values must not depend on what a role or database has set as its taste.
_SESSION = """
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
    TargetError
        The connection string is malformed, or the embedded server cannot be started.
    """
    given = dsn
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
    options = _parse(dsn)
    try:
        connection = psycopg.connect(
            dsn,
            autocommit=True,
            connect_timeout=max(1, round(timeout)),
            client_encoding="UTF8",
            application_name=str(options.get("application_name") or "iceburg-db"),
            keepalives=1,
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=6,
        )
    except psycopg.Error as error:
        raise explain_failure(str(error), dsn) from None
    connection.execute(_SESSION)
    connection.autocommit = autocommit
    return connection


def _parse(dsn: str) -> Mapping[str, object]:
    try:
        options = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        # libpq quotes the piece that it does not understand, which may be a piece of the password.
        reason = re.sub(r'".*"', '"..."', str(error).strip(), flags=re.DOTALL)
        raise TargetError(f"The connection string is malformed: {reason}.", hint=_FORMS) from None
    if not re.fullmatch(r"[0-9,]*", str(options.get("port") or "")):
        raise TargetError(
            "The connection string is malformed: its port is not a number.",
            hint=f"{_FORMS} In a URL, write @ / : ? % # of a password as %40 %2F %3A %3F %25 %23.",
        )
    return options


@dataclass(frozen=True, slots=True)
class _Cause:
    pattern: str
    what: str
    hint: str


# What libpq and the server say, the particular before the general. Placeholders are filled from the connection string.
_CAUSES = (
    _Cause(
        r"could not translate host name|Name or service not known|nodename nor servname",
        "The host {host} is not known.",
        "Check the host's name in the connection string.",
    ),
    _Cause(
        r"no pg_hba\.conf entry.*(no encryption|SSL off)",
        "The server does not accept user {user} on database {database} from here without encryption.",
        "Add sslmode=require to the connection string. If that is refused too, the server's pg_hba.conf needs an entry "
        "for this host, user and database.",
    ),
    _Cause(
        r"no pg_hba\.conf entry|pg_hba\.conf rejects",
        "The server does not accept user {user} on database {database} from this host.",
        "Ask its administrator for an entry in pg_hba.conf for this host, user and database.",
    ),
    _Cause(
        r"server does not support SSL",
        "The connection string demands SSL, and the server does not offer it.",
        "Remove sslmode from the connection string, or turn on ssl in the server.",
    ),
    _Cause(
        r"certificate|SSL error",
        "The SSL connection to {host} failed: {reason}",
        "Check sslmode, sslrootcert and sslcert in the connection string.",
    ),
    _Cause(
        r"no password supplied",
        "The server wants a password for user {user}, and none was given.",
        "Put it into the connection string, the variable PGPASSWORD or the file ~/.pgpass.",
    ),
    _Cause(
        r"(password|SCRAM|Peer|Ident|LDAP|PAM|GSSAPI|RADIUS) authentication failed",
        "The server refuses user {user}: wrong password, or no such role.",
        "Check user and password in the connection string.{override}",
    ),
    _Cause(
        r'database ".*" does not exist',
        "The database {database} does not exist on the server.",
        "Create it with `createdb --encoding=UTF8 --template=template0 {database}`, or name another one.",
    ),
    _Cause(
        r'role ".*" does not exist',
        "The role {user} does not exist on the server.",
        "Name an existing user in the connection string, or create it with `createuser --pwprompt {user}`.",
    ),
    _Cause(
        r"is not permitted to log in",
        "The role {user} may not log in.",
        "Ask an administrator to run: ALTER ROLE {user} LOGIN;",
    ),
    _Cause(
        r"permission denied for database",
        "The role {user} may not connect to the database {database}.",
        "Ask an administrator to run: GRANT CONNECT ON DATABASE {database} TO {user};",
    ),
    _Cause(
        r"too many (clients|connections)|connection slots",
        "The server has no free connection.",
        "Close other connections, lower --jobs and ICEBURG_POOL_MAX, or raise max_connections in the server.",
    ),
    _Cause(
        r"system is (starting up|shutting down|in recovery)|not yet accepting connections",
        "The server is starting or stopping and takes no connections yet.",
        "Wait until it is ready, and run the command again: it goes on from where it was.",
    ),
    _Cause(
        r"invalid response to SSL|expected authentication request|server closed the connection unexpectedly",
        "What answers at {host} port {port} does not behave like PostgreSQL.",
        "Check host and port in the connection string.",
    ),
    _Cause(
        r"refused|No such file or directory|No route|unreachable|timeout|timed out|Permission denied|could not connect",
        "No PostgreSQL can be reached at {host} port {port}: {reason}",
        "Check that the server runs, that host and port are right, and that no firewall is between.",
    ),
)


def explain_failure(text: str, dsn: str) -> TargetError:
    """Turn what libpq says of a failed connection into what the user can do about it.

    Parameters
    ----------
    text
        The message of libpq, which includes the server's.
    dsn
        The connection string that was used.
    """
    options = conninfo_to_dict(dsn)
    host = options.get("host") or options.get("hostaddr") or os.environ.get("PGHOST") or "the local socket"
    override = ""
    if "passfile" in options and "password" not in options and os.environ.get("PGPASSWORD"):
        override = " The variable PGPASSWORD is set and wins over the password file of the connection string: unset it."
    facts = {
        "host": host,
        "port": options.get("port") or os.environ.get("PGPORT") or "5432",
        "user": options.get("user") or os.environ.get("PGUSER") or "(the system user)",
        "database": options.get("dbname") or options.get("user") or "(that of the user's name)",
        "reason": text.strip().splitlines()[-1].strip() if text.strip() else "no reason given",
        "override": override,
    }
    for cause in _CAUSES:
        if re.search(cause.pattern, text, re.IGNORECASE | re.DOTALL):
            return TargetError(cause.what.format(**facts), where=mask_dsn(dsn), hint=cause.hint.format(**facts))
    return TargetError(
        f"The connection failed: {text.strip()}", where=mask_dsn(dsn), hint="Check the connection string."
    )
