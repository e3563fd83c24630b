"""Whether indexes hold what their tables do, as PostgreSQL's extension amcheck finds out."""

from __future__ import annotations

from collections.abc import Sequence
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
# The largest first: what they cost to look through is about their size and that of their table.
_INDEXES: Final[LiteralString] = """
SELECT t.schema, c.relname, x.relname, i.indexrelid, a.amname FROM pg_index i
JOIN pg_class c ON c.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am a ON a.oid = x.relam
JOIN unnest(%s::text[], %s::text[]) AS t (schema, name)
     ON c.relnamespace = to_regnamespace(quote_ident(t.schema)) AND c.relname = t.name
WHERE i.indisvalid AND i.indisready AND a.amname IN ('btree', 'gin') AND x.relkind = 'i'
ORDER BY pg_relation_size(x.oid) + pg_relation_size(c.oid) DESC, 1, 2, 3
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
# What the extension's script says, for this session alone: several may look at once, and nothing of it stays.
_MAKE: Final[dict[str, LiteralString]] = {
    "btree": "CREATE FUNCTION pg_temp.bt_index_check(regclass, boolean) RETURNS void"
    " AS '$libdir/amcheck', 'bt_index_check' LANGUAGE C STRICT",
    "gin": "CREATE FUNCTION pg_temp.gin_index_check(regclass) RETURNS void"
    " AS '$libdir/amcheck', 'gin_index_check' LANGUAGE C STRICT",
}


@dataclass(frozen=True, slots=True)
class Index:
    """An index: its schema and name, what its table is called in a report, its number (OID) and its access method."""

    schema: str
    name: str
    place: str
    number: int
    method: str


@dataclass(frozen=True, slots=True)
class SoundnessTask:
    """Look through indexes."""

    indexes: tuple[Index, ...]


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


def plan_soundness(
    connection: psycopg.Connection, tables: Sequence[tuple[str, str, str]], jobs: int
) -> list[SoundnessTask]:
    """Divide the indexes of tables, each given by its schema, its name and its place in a report, between workers."""
    places = {(schema, table): place for schema, table, place in tables}
    rows = connection.execute(_INDEXES, ([t[0] for t in tables], [t[1] for t in tables])).fetchall()
    indexes = [
        Index(schema, name, places[schema, table], number, method) for schema, table, name, number, method in rows
    ]
    return [SoundnessTask(tuple(part)) for part in (indexes[start::jobs] for start in range(jobs)) if part]


def run_soundness(context: Context, task: SoundnessTask) -> Soundness:
    """Check indexes; functions that have to be made for that are gone again afterwards."""
    connection = context.connection
    context.stop_if_asked()
    with connection.transaction(force_rollback=True):
        schema, methods = _functions(connection)
        if not methods:
            return Soundness(why_not="needs the extension amcheck, or a superuser who can make it")
        checked, differences, unsound = 0, [], []
        for index in task.indexes:
            context.stop_if_asked()
            if index.method not in methods:
                continue
            check = sql.SQL(_CHECKS[index.method]).format(sql.Identifier(schema), sql.Literal(index.number))
            try:
                with connection.transaction():
                    connection.execute(check)
            except psycopg.errors.InsufficientPrivilege:
                return Soundness(why_not="the role may not call amcheck's functions")
            except psycopg.DatabaseError as error:
                if not _says_damaged(error):
                    raise
                text = str(error.diag.message_primary)
                what = f"(index {index.name})"
                differences.append(RecordDifference(index.place, "", what, "sound", text, found_by="structure"))
                unsound.append((index.schema, index.name, index.place))
            checked += 1
        return Soundness(checked, tuple(differences), unsound=tuple(unsound))


def _functions(connection: psycopg.Connection) -> tuple[str, frozenset[str]]:
    """Return the schema of amcheck's functions, made for this session if need be, and the methods that it has one for.

    A version of PostgreSQL before 18 has none for GIN.
    """
    row = connection.execute(_SCHEMA_OF_AMCHECK).fetchone()
    if row is not None:
        schema = str(row[0])
        found = {
            method
            for method, function in _FUNCTIONS.items()
            if connection.execute(_HAS_FUNCTION, (function, schema)).fetchone() == (True,)
        }
        return schema, frozenset(found)
    if connection.execute(_CAN_CREATE).fetchone() != (True,):
        return "", frozenset()
    made = set()
    for method, statement in _MAKE.items():
        try:
            with connection.transaction():
                connection.execute(statement)
        except (psycopg.errors.UndefinedFunction, psycopg.errors.UndefinedFile):
            continue
        made.add(method)
    return "pg_temp", frozenset(made)


def _says_damaged(error: psycopg.Error) -> bool:
    """Whether PostgreSQL speaks of corruption: classes XX of SQLSTATE, or a page that cannot be read."""
    return (error.sqlstate or "").startswith("XX")
