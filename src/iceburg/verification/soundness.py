"""Whether indexes hold what their tables do, as PostgreSQL's extension amcheck finds out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

import psycopg
from psycopg import sql

from iceburg.migration.worker import Context
from iceburg.verification.report import RecordDifference

_SCHEMA_OF_AMCHECK: Final[LiteralString] = """
SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'amcheck'
"""
_CAN_CREATE: Final[LiteralString] = """
SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'amcheck')
       AND (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
"""
_INDEXES: Final[LiteralString] = """
SELECT t.schema, c.relname, x.relname, i.indexrelid, a.amname FROM pg_index i
JOIN pg_class c ON c.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am a ON a.oid = x.relam
JOIN unnest(%s::text[], %s::text[]) AS t (schema, name)
     ON c.relnamespace = to_regnamespace(quote_ident(t.schema)) AND c.relname = t.name
WHERE i.indisvalid AND i.indisready AND a.amname IN ('btree', 'gin') AND x.relkind = 'i'
ORDER BY 1, 2, 3
"""
_HAS_FUNCTION: Final[LiteralString] = """
SELECT EXISTS (SELECT FROM pg_proc WHERE proname = %s AND pronamespace = to_regnamespace(quote_ident(%s)))
"""
# With every row of the table looked up in the index.
_CHECKS: Final[dict[str, LiteralString]] = {
    "btree": "SELECT {}.bt_index_check({}::oid::regclass, TRUE)",
    "gin": "SELECT {}.gin_index_check({}::oid::regclass)",
}
_FUNCTIONS: Final = {"btree": "bt_index_check", "gin": "gin_index_check"}


@dataclass(frozen=True, slots=True)
class SoundnessTask:
    """Check the indexes of tables, each given by its schema, its name, and what it is called in a report."""

    tables: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Soundness:
    """What was found.

    Attributes
    ----------
    checked
        How many indexes were looked through.
    differences
        Those that are not sound.
    why_not
        Why none was looked through; empty where they were.
    unsound
        Schema and name of the indexes that are not sound, and their place in the report.
    """

    checked: int = 0
    differences: tuple[RecordDifference, ...] = ()
    why_not: str = ""
    unsound: tuple[tuple[str, str, str], ...] = ()


def run_soundness(context: Context, task: SoundnessTask) -> Soundness:
    """Check indexes; the extension, where it has to be made, is gone again afterwards."""
    connection = context.connection
    context.stop_if_asked()
    with connection.transaction(force_rollback=True):
        schema = _amcheck(connection)
        if schema is None:
            return Soundness(why_not="needs the extension amcheck, or a superuser who can make it")
        checked, differences, unsound = 0, [], []
        for owner, place, name, number, method in _indexes(connection, schema, task.tables):
            context.stop_if_asked()
            try:
                with connection.transaction():
                    connection.execute(sql.SQL(_CHECKS[method]).format(sql.Identifier(schema), sql.Literal(number)))
            except psycopg.errors.InsufficientPrivilege:
                return Soundness(why_not="the role may not call amcheck's functions")
            except (psycopg.errors.InternalError_, psycopg.DatabaseError) as error:
                if not _says_damaged(error):
                    raise
                text = str(error.diag.message_primary)
                differences.append(RecordDifference(place, "", f"(index {name})", "sound", text, found_by="structure"))
                unsound.append((owner, name, place))
            checked += 1
        return Soundness(checked, tuple(differences), unsound=tuple(unsound))


def _amcheck(connection: psycopg.Connection) -> str | None:
    row = connection.execute(_SCHEMA_OF_AMCHECK).fetchone()
    if row is None:
        possible = connection.execute(_CAN_CREATE).fetchone()
        if possible is None or not possible[0]:
            return None
        connection.execute("CREATE EXTENSION amcheck")
        row = connection.execute(_SCHEMA_OF_AMCHECK).fetchone()
    return None if row is None else str(row[0])


def _indexes(
    connection: psycopg.Connection, schema: str, tables: Sequence[tuple[str, str, str]]
) -> Iterator[tuple[str, str, str, int, str]]:
    names = {(owner, table): place for owner, table, place in tables}
    methods = {
        method
        for method, function in _FUNCTIONS.items()
        if (row := connection.execute(_HAS_FUNCTION, (function, schema)).fetchone()) is not None and row[0]
    }
    rows = connection.execute(_INDEXES, ([t[0] for t in tables], [t[1] for t in tables])).fetchall()
    for owner, table, name, number, method in rows:
        if method in methods:
            yield owner, names[owner, table], name, number, method


def _says_damaged(error: psycopg.Error) -> bool:
    """Whether PostgreSQL speaks of corruption: classes XX of SQLSTATE, or a page that cannot be read."""
    return (error.sqlstate or "").startswith("XX")
