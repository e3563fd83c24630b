"""Descriptions of a SQLite database and its tables, and how they are read from an open connection."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from iceburg.errors import SourceError
from iceburg.sources.sqlite_sql import is_utf8, quote, table_options

OUR_PREFIX = "_iceburg_"
"""Tables and triggers of this name are the change log's, not the application's."""

_ROWID_ALIASES = ("rowid", "_rowid_", "oid")


@dataclass(frozen=True, slots=True)
class Column:
    """One column, generated ones included.

    Attributes
    ----------
    declared_type
        The type as written; empty where none is.
    default
        The default as SQL text; None where there is none.
    primary_key
        Its position in the primary key from 1; 0 where it is not part of it.
    collation
        In capitals; ``BINARY`` where none is named.
    """

    name: str
    declared_type: str
    not_null: bool
    default: str | None
    primary_key: int
    generated: Literal["", "virtual", "stored"]
    collation: str


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key, in the words of ``PRAGMA foreign_key_list``.

    ``parent_columns`` are the parent's primary key where the declaration names none, and empty only where the parent
    does not exist or has no primary key.
    """

    columns: tuple[str, ...]
    parent_table: str
    parent_columns: tuple[str, ...]
    on_update: str
    on_delete: str


@dataclass(frozen=True, slots=True)
class IndexColumn:
    """One key column of an index; ``name`` is None where it is an expression."""

    name: str | None
    descending: bool
    collation: str


@dataclass(frozen=True, slots=True)
class Index:
    """An index; ``origin`` is ``c`` (CREATE INDEX), ``u`` (UNIQUE) or ``pk``; ``sql`` is None for the last two."""

    name: str
    unique: bool
    origin: Literal["c", "u", "pk"]
    partial: bool
    columns: tuple[IndexColumn, ...]
    sql: str | None


@dataclass(frozen=True, slots=True)
class Table:
    """One table that holds rows of its own.

    Attributes
    ----------
    sql
        Its CREATE TABLE statement.
    kind
        ``shadow`` where it is the storage of a virtual table that this SQLite knows; read like any other.
    sequence
        Its row in ``sqlite_sequence``: the highest rowid that AUTOINCREMENT has given; None where there is none.
    rowid
        The name among ``rowid``, ``_rowid_`` and ``oid`` that asks for the rowid; None where the table has none
        (WITHOUT ROWID) or columns have taken all three names.
    integer_primary_key
        The column that is the rowid; None where there is none.
    triggers
        (name, SQL) of each of its triggers.
    """

    name: str
    sql: str
    kind: Literal["table", "shadow"]
    columns: tuple[Column, ...]
    without_rowid: bool
    strict: bool
    autoincrement: bool
    sequence: int | None
    rowid: str | None
    integer_primary_key: str | None
    foreign_keys: tuple[ForeignKey, ...]
    indexes: tuple[Index, ...]
    triggers: tuple[tuple[str, str], ...]

    @property
    def primary_key(self) -> tuple[str, ...]:
        """Names of the primary key's columns, in key order; empty where there is no primary key."""
        keyed = sorted((column for column in self.columns if column.primary_key), key=lambda c: c.primary_key)
        return tuple(column.name for column in keyed)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A view or virtual table: it has no rows of its own, and is named and left out."""

    name: str
    kind: Literal["view", "virtual table"]
    why: str


@dataclass(frozen=True, slots=True)
class SchemaObject:
    """One row of ``sqlite_master`` that has SQL text; run in order, they make the schema again."""

    type: str
    name: str
    table: str
    sql: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """A row of ``sqlite_sequence``, or its absence: what AUTOINCREMENT knows of a table.

    Attributes
    ----------
    table
        The table's name.
    value
        The highest rowid that it has given; None where there is no such row.
    highest
        The highest rowid in the table; None where the table is empty, or damaged. It is above `value` where a rowid
        was changed by UPDATE, or where the row was deleted to begin again.
    """

    table: str
    value: int | None
    highest: int | None


@dataclass(frozen=True, slots=True)
class DatabaseDescription:
    """What a SQLite database consists of.

    Attributes
    ----------
    encoding
        ``UTF-8``, ``UTF-16le`` or ``UTF-16be``.
    journal_mode
        As the header records it: ``wal``, or ``delete`` for each of the rollback modes, which it does not tell apart.
    auto_vacuum
        0 none, 1 full, 2 incremental.
    schema_sql
        Every object in the order of ``sqlite_master``, internal ones and the change log's left out.
    sequences
        Of each table with AUTOINCREMENT.
    analysed
        Whether ANALYZE has left its statistics.
    empty_file
        Whether the file has no bytes at all, not even a header.
    """

    tables: tuple[Table, ...]
    skipped: tuple[Skipped, ...]
    encoding: str
    journal_mode: Literal["wal", "delete"]
    user_version: int
    application_id: int
    page_size: int
    auto_vacuum: int
    schema_sql: tuple[SchemaObject, ...]
    sequences: tuple[Sequence, ...] = ()
    analysed: bool = False
    empty_file: bool = False

    def table(self, name: str) -> Table:
        """Return the table of this name; names are compared as SQLite does, ASCII letters in either case.

        Raises
        ------
        KeyError
            There is no such table.
        """
        for table in self.tables:
            if _fold(table.name) == _fold(name):
                return table
        raise KeyError(name)


def describe(
    connection: sqlite3.Connection, journal_mode: Literal["wal", "delete"], where: str = "", *, empty_file: bool = False
) -> DatabaseDescription:
    """Read the description of the database that the connection has open, within its read transaction.

    Raises
    ------
    SourceError
        The name of a table or index is not UTF-8.
    """
    master = [
        SchemaObject(*row)
        for row in connection.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY sqlite_master.rowid"
        )
        if row[3] is not None and not _internal(row[1]) and not _internal(row[2])
    ]
    # Views and virtual tables have no pages of their own.
    virtual = {
        _fold(name)
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND NOT rootpage")
    }
    for item in master:
        if not is_utf8(item.name):
            raise SourceError(
                f"the name of the {item.type} {item.name!r} is not UTF-8, so no query can name it",
                where=where,
                hint="Rename it in a copy and migrate that.",
            )
    tables, skipped = [], []
    shadows = _shadow_tables(connection)
    sequences = _sequences(connection)
    for item in master:
        if item.type == "view":
            skipped.append(Skipped(item.name, "view", "a view has no rows of its own"))
        elif item.type == "table" and _fold(item.name) in virtual:
            skipped.append(Skipped(item.name, "virtual table", "its rows are in the tables that its module keeps"))
        elif item.type == "table":
            kind: Literal["table", "shadow"] = "shadow" if _fold(item.name) in shadows else "table"
            tables.append(_table(connection, item, kind, master, sequences))
    return DatabaseDescription(
        tables=tuple(tables),
        skipped=tuple(skipped),
        encoding=connection.execute("PRAGMA encoding").fetchone()[0],
        journal_mode=journal_mode,
        user_version=connection.execute("PRAGMA user_version").fetchone()[0],
        application_id=connection.execute("PRAGMA application_id").fetchone()[0],
        page_size=connection.execute("PRAGMA page_size").fetchone()[0],
        auto_vacuum=connection.execute("PRAGMA auto_vacuum").fetchone()[0],
        schema_sql=tuple(master),
        sequences=tuple(_sequence(connection, table) for table in tables if table.autoincrement),
        analysed=bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_stat1'").fetchone()),
        empty_file=empty_file,
    )


def _fold(name: str) -> str:
    # SQLite folds the case of ASCII letters only.
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in name)


def _internal(name: str) -> bool:
    return _fold(name).startswith(("sqlite_", OUR_PREFIX))


def _shadow_tables(connection: sqlite3.Connection) -> set[str]:
    if sqlite3.sqlite_version_info < (3, 37):  # PRAGMA table_list does not exist; they are read all the same
        return set()
    return {_fold(row[1]) for row in connection.execute("PRAGMA main.table_list") if row[2] == "shadow"}


def _sequences(connection: sqlite3.Connection) -> dict[str, int]:
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'").fetchone():
        return {}
    rows = connection.execute("SELECT name, seq FROM sqlite_sequence WHERE typeof(seq) = 'integer' ORDER BY seq")
    return {_fold(str(name)): seq for name, seq in rows}


def _sequence(connection: sqlite3.Connection, table: Table) -> Sequence:
    highest = f"SELECT max({quote(str(table.integer_primary_key))}) FROM main.{quote(table.name)}"  # noqa: S608
    try:
        return Sequence(table.name, table.sequence, connection.execute(highest).fetchone()[0])
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        return Sequence(table.name, table.sequence, None)  # who reads the rows will say where the damage is


def _table(
    connection: sqlite3.Connection,
    item: SchemaObject,
    kind: Literal["table", "shadow"],
    master: list[SchemaObject],
    sequences: dict[str, int],
) -> Table:
    options = table_options(item.sql)
    columns = _columns(connection, item.name, options.collations)
    indexes = _indexes(connection, item.name, columns, master)
    taken = {_fold(column.name) for column in columns}
    keyed = [column for column in columns if column.primary_key]
    # INTEGER PRIMARY KEY DESC and the like do not name the rowid; SQLite then keeps an index for the key.
    aliases = (
        not options.without_rowid
        and len(keyed) == 1
        and keyed[0].declared_type.upper() == "INTEGER"
        and not any(index.origin == "pk" for index in indexes)
    )
    integer_primary_key = keyed[0].name if aliases else None
    if integer_primary_key is not None:
        indexes = tuple(_name_rowid(index, integer_primary_key) for index in indexes)
    free = [alias for alias in _ROWID_ALIASES if alias not in taken]
    return Table(
        name=item.name,
        sql=item.sql,
        kind=kind,
        columns=columns,
        without_rowid=options.without_rowid,
        strict=options.strict,
        autoincrement=options.autoincrement and integer_primary_key is not None,
        sequence=sequences.get(_fold(item.name)),
        rowid=free[0] if free and not options.without_rowid else None,
        integer_primary_key=integer_primary_key,
        foreign_keys=_foreign_keys(connection, item.name),
        indexes=indexes,
        triggers=tuple(
            (other.name, other.sql)
            for other in master
            if other.type == "trigger" and _fold(other.table) == _fold(item.name)
        ),
    )


def _columns(connection: sqlite3.Connection, table: str, collations: tuple[str, ...]) -> tuple[Column, ...]:
    generated: dict[int, Literal["", "virtual", "stored"]] = {0: "", 2: "virtual", 3: "stored"}
    rows = connection.execute(f"PRAGMA main.table_xinfo({quote(table)})").fetchall()
    return tuple(
        Column(
            name=name,
            declared_type=declared_type or "",
            not_null=bool(not_null),
            default=default,
            primary_key=key,
            generated=generated[hidden],
            collation=collations[number] if number < len(collations) else "BINARY",
        )
        for number, name, declared_type, not_null, default, key, hidden in rows
        if hidden in generated
    )


def _indexes(
    connection: sqlite3.Connection, table: str, columns: tuple[Column, ...], master: list[SchemaObject]
) -> tuple[Index, ...]:
    sql = {_fold(item.name): item.sql for item in master if item.type == "index"}
    found = []
    # The pragma lists the newest index first.
    for _, name, unique, origin, partial in reversed(
        connection.execute(f"PRAGMA main.index_list({quote(table)})").fetchall()
    ):
        if _fold(name).startswith(OUR_PREFIX):
            continue
        keys = connection.execute(f"PRAGMA main.index_xinfo({quote(name)})").fetchall()
        found.append(
            Index(
                name=name,
                unique=bool(unique),
                origin=origin,
                partial=bool(partial),
                columns=tuple(
                    # -1 is the rowid, which the caller names; -2 is an expression.
                    IndexColumn(_ROWID if cid == -1 else column, bool(descending), collation.upper())
                    for _, cid, column, descending, collation, key in keys
                    if key
                ),
                sql=sql.get(_fold(name)),
            )
        )
    return tuple(found)


# Cannot be a column's name: SQL text ends at a NUL.
_ROWID = "\0rowid"


def _name_rowid(index: Index, column: str) -> Index:
    columns = tuple(
        IndexColumn(column if key.name == _ROWID else key.name, key.descending, key.collation) for key in index.columns
    )
    return Index(index.name, index.unique, index.origin, index.partial, columns, index.sql)


def _foreign_keys(connection: sqlite3.Connection, table: str) -> tuple[ForeignKey, ...]:
    grouped: dict[int, list[tuple[str, str, str | None, str, str]]] = defaultdict(list)
    for number, _, parent, child, to, on_update, on_delete, _ in connection.execute(
        f"PRAGMA main.foreign_key_list({quote(table)})"
    ):
        grouped[number].append((parent, child, to, on_update, on_delete))
    found = []
    # The pragma numbers the last declared one 0.
    for number in sorted(grouped, reverse=True):
        parent, _, _, on_update, on_delete = grouped[number][0]
        named = tuple(to for _, _, to, _, _ in grouped[number] if to is not None)
        found.append(
            ForeignKey(
                columns=tuple(child for _, child, _, _, _ in grouped[number]),
                parent_table=parent,
                parent_columns=named or _primary_key(connection, parent),
                on_update=on_update,
                on_delete=on_delete,
            )
        )
    return tuple(found)


def _primary_key(connection: sqlite3.Connection, table: str) -> tuple[str, ...]:
    rows = connection.execute(f"PRAGMA main.table_xinfo({quote(table)})").fetchall()
    return tuple(row[1] for row in sorted(rows, key=lambda row: row[5]) if row[5])
