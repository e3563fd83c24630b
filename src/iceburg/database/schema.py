"""The target's schema: numbered SQL files, applied once each, checked at every start.

The files lie in ``schema/``; ``{data}`` and ``{state}`` in them stand for the quoted names of the two schemas. What was
applied is recorded with a checksum in ``schema_version`` in the state schema.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from typing import Final, LiteralString

import psycopg
from psycopg import sql

from iceburg.errors import SchemaVersionError, TargetError, UsageError
from iceburg.mappings.json_value import is_usable_text

PLAN_TABLES: Final = (
    "conversations",
    "matrix_entities",
    "matrix_relationships",
    "embedding_collections",
    "embeddings",
    "telemetry",
)
_VERSION_TABLE: Final = "schema_version"
# An arbitrary number of our own: two commands that start at once apply the files one after the other.
_LOCK: Final = 0x1CEB_0001


@dataclass(frozen=True, slots=True)
class SchemaNames:
    """Names of the schemas of one target.

    Attributes
    ----------
    data
        Where the plan's tables live.
    state
        Where the migration's own tables live.
    prefix
        What the names of the schemas of SQLite files begin with.
    """

    data: str
    state: str
    prefix: str

    def format(self, statement: LiteralString, **names: sql.Composable) -> sql.Composed:
        """Put the schemas' quoted names, and `names`, into a statement."""
        # Where a statement has parameters, psycopg takes a percent sign in a name for one of them.
        percent = "%%" if "%s" in statement or "%(" in statement else "%"
        data, state = (sql.Identifier(name.replace("%", percent)) for name in (self.data, self.state))
        return sql.SQL(statement).format(data=data, state=state, **names)


def schema_names(schema: str | None) -> SchemaNames:
    """Return the names for ``--schema``; None stands for the default.

    Raises
    ------
    UsageError
        The name cannot be one of a schema of ours.
    """
    if schema is None or schema == "public":
        return SchemaNames("public", "iceburg_migration", "")
    size = len(schema.encode("utf-8", "surrogateescape"))
    if not 0 < size <= 40 or schema.startswith("pg_") or not is_usable_text(schema):
        raise UsageError(
            f"{schema!r} cannot be used as a schema.",
            where="--schema",
            hint="Give a name of 1 to 40 bytes, in UTF-8, that does not begin with pg_.",
        )
    if schema == "information_schema":
        raise UsageError("information_schema is PostgreSQL's own.", where="--schema", hint="Give another name.")
    return SchemaNames(schema, f"{schema}_migration", f"{schema}_")


@dataclass(frozen=True, slots=True)
class SchemaFile:
    """One numbered file."""

    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def tables(self, schema: str) -> list[str]:
        """Return the names of the tables that it makes in ``data`` or ``state``."""
        return re.findall(rf"^CREATE TABLE \{{{schema}\}}\.(\w+)", self.text, re.MULTILINE)


def schema_files() -> tuple[SchemaFile, ...]:
    """Return the files that this program has, by number."""
    folder = resources.files("iceburg.database") / "schema"
    files = [
        SchemaFile(int(entry.name[:4]), entry.name, entry.read_text("utf-8"))
        for entry in folder.iterdir()
        if entry.name.endswith(".sql")
    ]
    return tuple(sorted(files, key=lambda file: file.number))


def apply_schema(connection: psycopg.Connection, names: SchemaNames) -> None:
    """Create the schema, or bring an older one up to date.

    Raises
    ------
    TargetError
        Tables of these names exist and are not ours.
    SchemaVersionError
        The target is newer than this program, or was made by files that have changed since.
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        applied = _applied(connection, names)
        if applied is None:
            _refuse_foreign(connection, names)
            _create(connection, names)
            applied = {}
        _compare(applied, names, complete=False)
        for file in schema_files():
            if file.number not in applied:
                # Several statements in one text are never prepared, whatever the connection does with others.
                connection.execute(names.format(file.text), prepare=False)
                connection.execute(
                    names.format(
                        "INSERT INTO {state}.{table} (number, name, checksum) VALUES (%s, %s, %s)",
                        table=sql.Identifier(_VERSION_TABLE),
                    ),
                    (file.number, file.name, file.checksum),
                )


def check_schema(connection: psycopg.Connection, names: SchemaNames) -> None:
    """See that the target has exactly this program's schema.

    Raises
    ------
    SchemaVersionError
        It is missing, older, newer, or made by other files.
    """
    with connection.transaction():
        applied = _applied(connection, names)
    if applied is None:
        raise SchemaVersionError(
            "Nothing has been migrated here yet.",
            where=f"schema {names.state}",
            hint="Run `iceburg-db migrate` first; if you did, give the same --dsn and --schema.",
        )
    _compare(applied, names, complete=True)


def _applied(connection: psycopg.Connection, names: SchemaNames) -> dict[int, str] | None:
    found = connection.execute(
        "SELECT to_regclass(format('%%I.%%I', %s::text, %s::text))", (names.state, _VERSION_TABLE)
    ).fetchone()
    if found is None or found[0] is None:
        return None
    rows = connection.execute(
        names.format("SELECT number, checksum FROM {state}.{table}", table=sql.Identifier(_VERSION_TABLE))
    )
    return dict(rows.fetchall())


def _compare(applied: dict[int, str], names: SchemaNames, *, complete: bool) -> None:
    files = schema_files()
    newest, ours = max(applied, default=0), files[-1].number
    where = f"schema {names.state}"
    if newest > ours:
        raise SchemaVersionError(
            f"The target has schema version {newest}, this program knows versions up to {ours}.",
            where=where,
            hint="Use the newer iceburg-db that made it.",
        )
    if complete and newest < ours:
        raise SchemaVersionError(
            f"The target has schema version {newest}, this program needs {ours}.",
            where=where,
            hint="Run `iceburg-db migrate`, which brings it up to date.",
        )
    for file in files:
        if file.number in applied and applied[file.number] != file.checksum:
            raise SchemaVersionError(
                f"Schema file {file.name} is not the one that made this target.",
                where=where,
                hint="Use the iceburg-db that made it, or migrate into another --schema.",
            )


def _refuse_foreign(connection: psycopg.Connection, names: SchemaNames) -> None:
    rows = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(%s)) AND relname = ANY(%s)"
        " ORDER BY relname",
        (names.data, list(PLAN_TABLES)),
    ).fetchall()
    if rows:
        raise TargetError(
            f"There is already {', '.join(name for (name,) in rows)}, which iceburg-db did not make.",
            where=f"schema {names.data}",
            hint="Nothing was changed. Give another schema: `--schema NAME`, or another database.",
        )
    taken = connection.execute("SELECT to_regnamespace(quote_ident(%s))", (names.state,)).fetchone()
    if taken is not None and taken[0] is not None:
        raise TargetError(
            "This schema exists and is not one that iceburg-db made.",
            where=f"schema {names.state}",
            hint="Nothing was changed. Give another schema: `--schema NAME`, or another database.",
        )


def _create(connection: psycopg.Connection, names: SchemaNames) -> None:
    connection.execute(names.format("CREATE SCHEMA IF NOT EXISTS {data}"))
    connection.execute(names.format("CREATE SCHEMA {state}"))
    connection.execute(
        names.format(
            "CREATE TABLE {state}.{table} (number INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL,"
            " applied_at TIMESTAMPTZ NOT NULL DEFAULT now())",
            table=sql.Identifier(_VERSION_TABLE),
        )
    )
