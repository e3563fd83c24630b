"""What a PostgreSQL must have before a migration may begin, and what to do about each thing that it lacks."""

from __future__ import annotations

import re
from dataclasses import dataclass

import psycopg
from psycopg import errors, sql
from psycopg.rows import class_row

from iceburg.errors import TargetError

MINIMUM_SERVER = 15
# halfvec, in which vectors of more than 2,000 dimensions are indexed, came with pgvector 0.7.0.
MINIMUM_VECTOR = (0, 7, 0)
# Any constant will do: it keeps two commands from creating the same extension at once.
_ADVISORY_LOCK = 0x1CEB0962

_FACTS = """
SELECT current_setting('server_version') AS version,
       current_setting('server_version_num')::int / 10000 AS major,
       current_database()::text AS database,
       current_user::text AS role,
       current_setting('server_encoding') AS encoding,
       pg_is_in_recovery() AS standby,
       current_setting('transaction_read_only') = 'on' AS read_only,
       has_database_privilege(current_database(), 'CREATE') AS may_create,
       (SELECT has_schema_privilege(oid, 'CREATE') AND has_schema_privilege(oid, 'USAGE')
          FROM pg_namespace WHERE nspname = %(schema)s) AS may_use_schema,
       (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS vector_installed,
       (SELECT default_version FROM pg_available_extensions WHERE name = 'vector') AS vector_available,
       (SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector') AS vector_schema,
       to_regtype('vector') IS NOT NULL AS vector_visible,
       (SELECT extversion FROM pg_extension WHERE extname = 'pg_trgm') AS trgm_installed,
       (SELECT default_version FROM pg_available_extensions WHERE name = 'pg_trgm') AS trgm_available
"""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says of itself.

    Attributes
    ----------
    version, major
        Such as ``16.4`` and 16.
    database, role
        Where and as whom the connection is.
    encoding
        Of the database.
    standby, read_only
        Whether it is a hot standby; whether transactions are read-only by default.
    may_create
        Whether the role may create schemas in the database.
    may_use_schema
        Whether the role may create tables in the target schema; None where the schema does not exist yet.
    vector_installed, vector_available
        Version of pgvector in the database, and of the one that could be created in it; None when there is none.
    vector_schema, vector_visible
        The schema of pgvector, and whether the search path leads to it.
    trgm_installed, trgm_available
        The same of pg_trgm, which searches by substring use when it is there.
    """

    version: str
    major: int
    database: str
    role: str
    encoding: str
    standby: bool
    read_only: bool
    may_create: bool
    may_use_schema: bool | None
    vector_installed: str | None
    vector_available: str | None
    vector_schema: str | None
    vector_visible: bool
    trgm_installed: str | None
    trgm_available: str | None


def check_server(connection: psycopg.Connection, *, schema: str = "public") -> ServerFacts:
    """See that a server can take a migration, and create the extensions pgvector and, if it can be, pg_trgm.

    Parameters
    ----------
    connection
        Outside a transaction, or in one that this function may end.
    schema
        Where the tables are to be.

    Returns
    -------
    ServerFacts
        After the extensions have been created.

    Raises
    ------
    TargetError
        It cannot; each reason has its own message, with the statement for an administrator where there is one.
    """
    facts = _gather(connection, schema)
    judge(facts, schema=schema)
    if facts.vector_installed is None and not _create_extension(connection, "vector"):
        raise TargetError(
            f"pgvector is not created here, and the role {facts.role} may not create it.",
            where=f"database {facts.database}",
            hint=f"Ask an administrator to run, in the database {facts.database}: CREATE EXTENSION vector;",
        )
    if facts.trgm_installed is None and facts.trgm_available is not None:
        _create_extension(connection, "pg_trgm")
    facts = _gather(connection, schema)
    if not facts.vector_visible:
        path = sql.SQL("ALTER ROLE {} IN DATABASE {} SET search_path = {}, public;").format(
            sql.Identifier(facts.role), sql.Identifier(facts.database), sql.SQL(facts.vector_schema or "public")
        )
        raise TargetError(
            f"pgvector is in the schema {facts.vector_schema}, which is not in the role's search path.",
            where=f"database {facts.database}",
            hint=f"Run: {path.as_string(connection)}",
        )
    return facts


def _gather(connection: psycopg.Connection, schema: str) -> ServerFacts:
    with connection.transaction(), connection.cursor(row_factory=class_row(ServerFacts)) as cursor:
        facts = cursor.execute(_FACTS, {"schema": schema}).fetchone()
    if facts is None:
        raise TargetError("The server did not answer the question what it is.")
    return facts


def _create_extension(connection: psycopg.Connection, name: str) -> bool:
    try:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_ADVISORY_LOCK,))
            connection.execute(sql.SQL("CREATE EXTENSION IF NOT EXISTS {}").format(sql.Identifier(name)))
    except errors.InsufficientPrivilege:
        return False
    return True


def judge(facts: ServerFacts, *, schema: str) -> None:
    """Raise for the first thing that rules a server out.

    Parameters
    ----------
    facts
        What the server says of itself.
    schema
        Where the tables are to be.

    Raises
    ------
    TargetError
        With what to do about it.
    """
    where = f"database {facts.database}"
    role, database = quote_name(facts.role), quote_name(facts.database)
    if facts.major < MINIMUM_SERVER:
        raise TargetError(
            f"The server is PostgreSQL {facts.version}, and version {MINIMUM_SERVER} or later is needed.",
            where=where,
            hint="Upgrade it, name another server with --dsn, or give no --dsn to use the embedded one.",
        )
    if facts.encoding != "UTF8":
        raise TargetError(
            f"The database's encoding is {facts.encoding}, and text of any script needs UTF8.",
            where=where,
            hint="Create another database: CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0;",
        )
    if facts.standby:
        raise TargetError(
            "The server is a hot standby, which cannot be written to.",
            where=where,
            hint="Name the primary server in the connection string; with several hosts, add "
            "target_session_attrs=read-write.",
        )
    if facts.read_only:
        raise TargetError(
            f"Transactions of the role {facts.role} are read-only here (default_transaction_read_only is on).",
            where=where,
            hint=f"Run: ALTER ROLE {role} IN DATABASE {database} SET default_transaction_read_only = off;",
        )
    if not facts.may_create:
        raise TargetError(
            f"The role {facts.role} may not create schemas in this database.",
            where=where,
            hint=f"Ask an administrator to run: GRANT CREATE ON DATABASE {database} TO {role};",
        )
    if facts.may_use_schema is False:
        raise TargetError(
            f"The role {facts.role} may not create tables in the schema {schema}.",
            where=where,
            hint="Ask an administrator to run, in this database: "
            f"GRANT USAGE, CREATE ON SCHEMA {quote_name(schema)} TO {role}; "
            "or put the tables into a schema of their own with --schema.",
        )
    _judge_vector(facts, where)


def _judge_vector(facts: ServerFacts, where: str) -> None:
    wanted = ".".join(map(str, MINIMUM_VECTOR))
    if facts.vector_installed is None and facts.vector_available is None:
        raise TargetError(
            "The server does not have pgvector.",
            where=where,
            hint=f"Install it on the server's machine, on Debian and Ubuntu: apt install "
            f"postgresql-{facts.major}-pgvector (elsewhere see https://github.com/pgvector/pgvector), or give no --dsn "
            "to use the embedded server, which has it. If this is the embedded server, what it was started from was "
            "removed: `iceburg-db server stop`, and run the command again.",
        )
    if facts.vector_installed is not None and _numbers(facts.vector_installed) < MINIMUM_VECTOR:
        newer = facts.vector_available is not None and _numbers(facts.vector_available) >= MINIMUM_VECTOR
        raise TargetError(
            f"pgvector is {facts.vector_installed} here, and {wanted} or later is needed (for halfvec, which indexes "
            "vectors of more than 2,000 dimensions).",
            where=where,
            hint="Ask an administrator to run, in this database: ALTER EXTENSION vector UPDATE;"
            if newer
            else f"Upgrade pgvector on the server (postgresql-{facts.major}-pgvector), then run, in this database: "
            "ALTER EXTENSION vector UPDATE;",
        )
    if facts.vector_installed is None and _numbers(facts.vector_available or "") < MINIMUM_VECTOR:
        raise TargetError(
            f"The server's pgvector is {facts.vector_available}, and {wanted} or later is needed (for halfvec, which "
            "indexes vectors of more than 2,000 dimensions).",
            where=where,
            hint=f"Upgrade pgvector on the server: postgresql-{facts.major}-pgvector.",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def quote_name(name: str) -> str:
    """Return a name as SQL needs it, for statements that a user is told to run."""
    return sql.Identifier(name).as_string(None)
