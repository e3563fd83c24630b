"""The change log of a SQLite file: triggers that note the key of every row written, whoever writes it.

`_iceburg_changes(seq, tbl, op, k0 ... k7)` is in the file, so that a change and its entry commit at once; ``k0`` is the
rowid, the others are the columns of the primary key; what the row has become is read when the entry is applied.
``op`` is ``t`` (touched: written or deleted) or ``r`` (the whole table has to be read again).

INSERT OR REPLACE evicts rows that share a unique value with the new one, and fires no delete trigger for them unless
`recursive_triggers` is on. A trigger BEFORE the insert therefore notes all rows that share one; an entry too many does
no harm.

Source for what triggers see: https://www.sqlite.org/lang_createtrigger.html and lang_conflict.html.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from iceburg.database.sqlite_session import fetch_all
from iceburg.errors import SourceError
from iceburg.records import Value
from iceburg.sources.sqlite_schema import Index, Table, describe
from iceburg.sources.sqlite_sql import quote

MAX_KEY: Final = 7
_KEYS: Final = tuple(f"k{number}" for number in range(MAX_KEY + 1))
_TRIGGER: Final = "_iceburg_log_"
# Instructions of SQLite between two looks at the clock.
_STEPS: Final = 10_000

_CREATE: Final = f"""
CREATE TABLE IF NOT EXISTS _iceburg_changes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, tbl TEXT NOT NULL, op TEXT NOT NULL, {", ".join(_KEYS)});
CREATE TABLE IF NOT EXISTS _iceburg_log (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1), log_id TEXT NOT NULL, basis TEXT NOT NULL,
    armed_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP);
"""
_LAST: Final = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = '_iceburg_changes'), 0)"
_STATE: Final = f"SELECT log_id, basis, ({_LAST}) FROM _iceburg_log"  # noqa: S608
_PENDING: Final = "SELECT * FROM _iceburg_changes WHERE seq > ? ORDER BY seq LIMIT ?"
_NEXT: Final = """
SELECT l.log_id, c.* FROM _iceburg_log l JOIN _iceburg_changes c WHERE c.seq > ? ORDER BY c.seq LIMIT ?
"""
_PRUNE: Final = """
DELETE FROM _iceburg_changes WHERE seq IN (SELECT seq FROM _iceburg_changes WHERE seq <= ? ORDER BY seq LIMIT ?)
"""


@dataclass(frozen=True, slots=True)
class LogState:
    """Where a log stands.

    Attributes
    ----------
    log_id
        Names the log; a file that is armed anew gets another.
    basis
        The fingerprint of the file when it was armed.
    last
        The number of the last entry ever made; 0 before the first.
    """

    log_id: str
    basis: str
    last: int


@dataclass(frozen=True, slots=True)
class Change:
    """One entry; `op` is as in the log, or ``n``: nothing is to be done about it."""

    seq: int
    table: str
    op: str
    key: tuple[Value, ...]


def log_state(connection: sqlite3.Connection) -> LogState | None:
    """Return the state of a file's log; None where the file is not armed."""
    try:
        row = connection.execute(_STATE).fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise
    return None if row is None else LogState(row[0], row[1], row[2])


def pending(connection: sqlite3.Connection, after: int, limit: int | None = None) -> list[Change]:
    """Return the entries after a position, in order; at most `limit`."""
    found = fetch_all(connection, _PENDING, (after, -1 if limit is None else limit))[1]
    return [Change(int(seq or 0), str(table), str(op), tuple(key)) for seq, table, op, *key in found]


def pending_of(connection: sqlite3.Connection, log_id: str, after: int, limit: int) -> list[Change]:
    """Return the entries after a position, up to a number; none where the log is another."""
    found = fetch_all(connection, _NEXT, (after, limit))[1]
    return [
        Change(int(seq or 0), str(table), str(op), tuple(key)) for log, seq, table, op, *key in found if log == log_id
    ]


def count_pending(connection: sqlite3.Connection, after: int) -> int:
    """Return the number of entries after a position."""
    return int(connection.execute("SELECT count(*) FROM _iceburg_changes WHERE seq > ?", (after,)).fetchone()[0])


def prune(connection: sqlite3.Connection, through: int, limit: int) -> int:
    """Delete up to `limit` entries up to a position, within the caller's write transaction; return how many."""
    return connection.execute(_PRUNE, (through, limit)).rowcount


def table_names(connection: sqlite3.Connection, where: str) -> tuple[str, ...]:
    """Return the tables whose changes are logged."""
    return tuple(table.name for table in _tables(connection, where))


def tables_by_rowid(connection: sqlite3.Connection, where: str) -> tuple[str, ...]:
    """Return the tables whose records are known by a rowid that VACUUM may change."""
    tables = _tables(connection, where)
    return tuple(t.name for t in tables if t.integer_primary_key is None and not t.primary_key)


def count_rows(connection: sqlite3.Connection, tables: tuple[str, ...], limit: int) -> int:
    """Count rows of tables, no further than `limit`."""
    count = 0
    for name in tables:
        counting = f"SELECT count(*) FROM (SELECT 1 FROM main.{quote(name)} LIMIT ?)"  # noqa: S608
        count += connection.execute(counting, (limit - count,)).fetchone()[0]
        if count >= limit:
            break
    return count


def count_quickly(connection: sqlite3.Connection, tables: tuple[str, ...], seconds: float) -> dict[str, int]:
    """Count the rows of tables; those for which the time does not suffice are left out."""
    deadline, counts = time.monotonic() + seconds, dict[str, int]()
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
    try:
        for name in tables:
            counting = f"SELECT count(*) FROM main.{quote(name)}"  # noqa: S608 - a quoted name
            counts[name] = int(connection.execute(counting).fetchone()[0])
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
    finally:
        connection.set_progress_handler(None, 0)
    return counts


def structure_version(connection: sqlite3.Connection) -> str:
    """Return what the structure of the file is known by: it changes with every DDL statement, and with VACUUM."""
    return str(connection.execute("PRAGMA schema_version").fetchone()[0])


def sequences(connection: sqlite3.Connection) -> dict[str, int]:
    """Return SQLite's AUTOINCREMENT counters, by table."""
    found = connection.execute("SELECT 1 FROM main.sqlite_master WHERE name = 'sqlite_sequence'").fetchone()
    return {} if found is None else dict(connection.execute("SELECT name, seq FROM main.sqlite_sequence").fetchall())


def tables_to_be_read_whole(connection: sqlite3.Connection, after: int) -> set[str]:
    """Return the tables that are entered as to be read whole after a position."""
    rows = connection.execute("SELECT DISTINCT tbl FROM _iceburg_changes WHERE op = 'r' AND seq > ?", (after,))
    return {name for (name,) in rows}


def key_names(table: Table) -> tuple[str | None, ...]:
    """Return what an entry notes of a row: the name that asks for the rowid (None where there is none), key columns."""
    rowid = table.integer_primary_key or table.rowid
    columns = () if table.integer_primary_key is not None else table.primary_key
    return (rowid, *columns)


def install(connection: sqlite3.Connection, where: str, basis: str, *, resync: bool = False) -> tuple[str, ...]:
    """Arm a file, or bring the triggers of an armed one up to its tables; return the tables that were new to the log.

    Within the caller's write transaction. A table that is new to a log that was there already is entered as to be read
    whole, because rows may have been written before its triggers were there.

    Parameters
    ----------
    connection
        In a write transaction.
    where
        The file's name, for messages.
    basis
        The file's fingerprint before the transaction.
    resync
        Have all tables read whole.

    Raises
    ------
    SourceError
        A table cannot be logged; nothing was changed.
    """
    known = log_state(connection)
    tables = _tables(connection, where)
    for statement in _CREATE.split(";\n"):
        if statement.strip():
            connection.execute(statement)
    if known is None:
        connection.execute(
            "INSERT INTO _iceburg_log (only_row, log_id, basis) VALUES (1, ?, ?)", (uuid.uuid4().hex, basis)
        )
    present = _triggers(connection)
    wanted: dict[str, str] = {}
    fresh = []
    for number, table in enumerate(tables):
        own = dict(_trigger_statements(table, number, where))
        # By what a trigger says, not by its name: the numbers shift when a table is dropped.
        if not set(own.values()) <= set(present.values()):
            fresh.append(table.name)
        wanted |= own
    if present != wanted:
        for name in present:
            connection.execute(f"DROP TRIGGER {quote(name)}")
        for statement in wanted.values():
            connection.execute(statement)
    again = [table.name for table in tables] if resync else fresh if known is not None else []
    connection.executemany("INSERT INTO _iceburg_changes (tbl, op) VALUES (?, 'r')", ((name,) for name in again))
    return tuple(fresh)


def resync(connection: sqlite3.Connection, tables: Sequence[str]) -> None:
    """Enter tables as to be read whole, within the caller's write transaction."""
    connection.executemany("INSERT INTO _iceburg_changes (tbl, op) VALUES (?, 'r')", ((name,) for name in tables))


def remove(connection: sqlite3.Connection) -> bool:
    """Disarm a file, within the caller's write transaction: all of it goes; return whether it was armed."""
    armed = log_state(connection) is not None
    for name in _triggers(connection):
        connection.execute(f"DROP TRIGGER {quote(name)}")
    connection.execute("DROP TABLE IF EXISTS _iceburg_changes")
    connection.execute("DROP TABLE IF EXISTS _iceburg_log")
    return armed


def _triggers(connection: sqlite3.Connection) -> dict[str, str]:
    rows = connection.execute(
        "SELECT name, sql FROM main.sqlite_master WHERE type = 'trigger' AND name LIKE ? ESCAPE '\\' ORDER BY name",
        (_TRIGGER.replace("_", "\\_") + "%",),
    )
    return dict(rows.fetchall())


def _tables(connection: sqlite3.Connection, where: str) -> list[Table]:
    return [table for table in describe(connection, "delete", where).tables if table.kind == "table"]


def _trigger_statements(table: Table, number: int, where: str) -> Iterator[tuple[str, str]]:
    names = key_names(table)
    if len(names) > MAX_KEY + 1 or names == (None,):
        raise SourceError(
            f"its changes cannot be logged: {'no key can be named' if names == (None,) else 'its key is too wide'}",
            where=f"{where}, table {table.name}",
            hint=f"A key of up to {MAX_KEY} columns can be logged.",
        )
    after = (
        ("ai", "AFTER INSERT", ("NEW",)),
        ("au", "AFTER UPDATE", ("OLD", "NEW")),
        ("ad", "AFTER DELETE", ("OLD",)),
    )
    for suffix, event, rows in after:
        name = f"{_TRIGGER}{number}_{suffix}"
        body = " ".join(f"{_note(table, names, row, moved=len(rows) == 2 and row == 'OLD')};" for row in rows)
        yield name, f"CREATE TRIGGER {quote(name)} {event} ON {quote(table.name)} BEGIN {body} END"
    evicting = [index for index in table.indexes if index.unique and _can_evict(table, index)]
    for index in evicting:
        if any(column.name is None for column in index.columns):
            raise SourceError(
                f"its changes cannot be logged: unique index {index.name} is on an expression, and what INSERT OR "
                "REPLACE evicts through it cannot be told",
                where=f"{where}, table {table.name}",
                hint="Drop the index, or make it one on a generated column.",
            )
    if evicting or _rowid_evicts(table):
        conditions = [_shares(index) for index in evicting]
        if _rowid_evicts(table):
            conditions.append(f"{quote(str(names[0]))} = NEW.{quote(str(names[0]))}")
        for suffix, event in (("bi", "BEFORE INSERT"), ("bu", "BEFORE UPDATE")):
            name = f"{_TRIGGER}{number}_{suffix}"
            others = f" AND NOT ({_same(names, 'OLD.', '')})" if suffix == "bu" else ""
            statements = " ".join(f"{_note_sharing(table, names, condition + others)};" for condition in conditions)
            yield name, f"CREATE TRIGGER {quote(name)} {event} ON {quote(table.name)} BEGIN {statements} END"


def _rowid_evicts(table: Table) -> bool:
    """Whether a row may be evicted by its rowid while its identity is another: a key that is not the rowid."""
    return table.rowid is not None and table.integer_primary_key is None and bool(table.primary_key)


def _can_evict(table: Table, index: Index) -> bool:
    """Whether a row of another identity may share this index's values."""
    if index.origin != "pk":
        return True
    # What shares the primary key is the same record, but a rowid table's row then has another rowid.
    return not table.without_rowid


def _shares(index: Index) -> str:
    return " AND ".join(
        f"{quote(str(column.name))} COLLATE {quote(column.collation)} = NEW.{quote(str(column.name))}"
        for column in index.columns
    )


def _values(names: tuple[str | None, ...], prefix: str) -> str:
    return ", ".join("NULL" if name is None else f"{prefix}{quote(name)}" for name in names)


def _columns(names: tuple[str | None, ...]) -> str:
    return ", ".join(("tbl", "op", *_KEYS[: len(names)]))


def _same(names: tuple[str | None, ...], left: str, right: str) -> str:
    """Write the condition that two rows are noted by the same key, to the byte and the type."""
    return " AND ".join(
        f"{left}{quote(name)} IS {right}{quote(name)} COLLATE BINARY"
        f" AND typeof({left}{quote(name)}) = typeof({right}{quote(name)})"
        for name in names
        if name is not None
    )


def _note(table: Table, names: tuple[str | None, ...], row: str, *, moved: bool) -> str:
    note = (
        f"INSERT INTO _iceburg_changes ({_columns(names)})"
        f" SELECT {_literal(table.name)}, 't', {_values(names, f'{row}.')}"
    )
    return f"{note} WHERE NOT ({_same(names, 'OLD.', 'NEW.')})" if moved else note


def _note_sharing(table: Table, names: tuple[str | None, ...], condition: str) -> str:
    chosen = f"SELECT {_literal(table.name)}, 't', {_values(names, '')} FROM {quote(table.name)}"  # noqa: S608
    return f"INSERT INTO _iceburg_changes ({_columns(names)}) {chosen} WHERE {condition}"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
