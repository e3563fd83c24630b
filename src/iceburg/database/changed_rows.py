"""What a SQLite file's change log says has changed, and the rows as they are now; all in one read transaction."""

from __future__ import annotations

import pickle
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Final

from iceburg.database.catalogue import Dataset
from iceburg.database.change_log import Change
from iceburg.mappings.identity import key_text
from iceburg.mappings.mapping import Mapping
from iceburg.records import Value
from iceburg.sources.sqlite_fetch import Statement, fetch, text_encoding
from iceburg.sources.sqlite_keys import TABLE_ALIAS, Condition, bind, qualified
from iceburg.sources.sqlite_sql import quote

Record = tuple[Value, ...]
_BATCH: Final = 400
_WHOLE_BATCH: Final = 5_000
_ALL: Final = 1 << 62
_COUNTER: Final = "SELECT seq FROM sqlite_sequence WHERE name = ?"
# Rows beyond this go to a file: the read transaction has to end before PostgreSQL is written.
_IN_MEMORY: Final = 20_000


@dataclass(frozen=True, slots=True)
class TrackedTable:
    """A table whose changes are applied.

    Attributes
    ----------
    dataset
        In the target.
    mapping
        Of the dataset.
    rowid
        What asks for the rowid; None where there is none.
    key
        The primary key's columns that an entry has, with the collation of their index.
    """

    dataset: Dataset
    mapping: Mapping[Any]
    rowid: str | None
    key: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """The table's name in its file."""
        return str(self.dataset.definition["source_table"])

    @property
    def counts(self) -> bool:
        """Whether AUTOINCREMENT numbers its records, and gives no number twice."""
        return bool(self.dataset.definition["description"]["autoincrement"])

    @property
    def by_rowid(self) -> bool:
        """Whether its records are known by the rowid alone, which VACUUM may change."""
        return self.dataset.definition["description"]["integer_primary_key"] is None and not self.key


def tracked_table(dataset: Dataset) -> TrackedTable:
    """Say how the changes of a dataset's table are applied."""
    table = dataset.definition["description"]
    alias = table["integer_primary_key"]
    collations = {
        column["name"]: column["collation"]
        for index in table["indexes"]
        if index["origin"] == "pk"
        for column in index["columns"]
    }
    keyed = sorted((column for column in table["columns"] if column["primary_key"]), key=lambda c: c["primary_key"])
    key = () if alias is not None else tuple((c["name"], collations.get(c["name"], "BINARY")) for c in keyed)
    return TrackedTable(dataset, dataset.mapping(), alias or table["rowid"], key)


class Spool:
    """Records on their way, in memory or, when there are many, in a file; read once, in order."""

    def __init__(self) -> None:
        self._batches: list[tuple[str, list[Record]]] = []
        self._count = 0
        self._file: IO[bytes] | None = None

    def add(self, table: str, records: list[Record]) -> None:
        """Add records of a table."""
        self._count += len(records)
        if self._count > _IN_MEMORY and self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        if self._file is None:
            self._batches.append((table, records))
        else:
            pickle.dump((table, records), self._file, protocol=pickle.HIGHEST_PROTOCOL)

    def batches(self) -> Iterator[tuple[str, list[Record]]]:
        """Yield what was added."""
        yield from self._batches
        if self._file is not None:
            end = self._file.tell()
            self._file.seek(0)
            while self._file.tell() < end:
                yield pickle.load(self._file)  # noqa: S301 - written above, by this process, into an unnamed file

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()


@dataclass(slots=True)
class ChangedRows:
    """The records that some changes have left.

    Attributes
    ----------
    last
        The number of the last change.
    changes
        How many there were.
    whole
        Tables that were read whole.
    gone
        By table: records of which only what identifies them counts; they are not there any more.
    spool
        The records that are there.
    counters
        AUTOINCREMENT's counter of the tables of which records are gone: it may be above all that are there.
    """

    last: int
    changes: int = 0
    whole: set[str] = field(default_factory=set)
    gone: dict[str, list[Record]] = field(default_factory=dict)
    spool: Spool = field(default_factory=Spool)
    counters: dict[str, int] = field(default_factory=dict)


def read_changed(
    connection: sqlite3.Connection,
    tables: dict[str, TrackedTable],
    changes: Sequence[Change],
    last: int,
    anew: Sequence[str] = (),
) -> ChangedRows:
    """Read what the changed rows are now; within a read transaction that began before `changes` was read.

    Parameters
    ----------
    connection
        Of the file.
    tables
        By name.
    changes
        Those that are not applied yet.
    last
        The position if there are none.
    anew
        Tables to read whole in any case.
    """
    found = ChangedRows(last, whole={name for name in anew if name in tables})
    touched: dict[str, dict[Record, None]] = {}
    for change in changes:
        found.last, found.changes = change.seq, found.changes + 1
        if change.table not in tables:
            continue
        if change.op == "r":
            found.whole.add(change.table)
        elif change.op == "t":
            touched.setdefault(change.table, {})[change.key] = None
    encoding = text_encoding(connection)
    for name in sorted(found.whole):
        for records in _all_rows(connection, tables[name], encoding):
            found.spool.add(name, records)
    for name, keys in touched.items():
        if name in found.whole:
            continue
        there, gone = _current(connection, tables[name], list(keys), encoding)
        found.spool.add(name, there)
        found.gone[name] = gone
    losing = [name for name in tables if (name in found.whole or found.gone.get(name)) and tables[name].counts]
    for name in losing:
        row = connection.execute(_COUNTER, (name,)).fetchone()
        if row is not None and isinstance(row[0], int):
            found.counters[name] = row[0]
    return found


def read_current(
    connection: sqlite3.Connection, table: TrackedTable, changes: Sequence[Change]
) -> tuple[list[Record], list[Record]]:
    """Return the records of changes of one table: those that are there, and those that are not any more."""
    keys = list(dict.fromkeys(change.key for change in changes))
    return _current(connection, table, keys, text_encoding(connection))


class RowQuery:
    """Reads the row of one entry of a log: what `read_current` does, where nothing about it is unusual.

    Parameters
    ----------
    table
        Whose rows.
    encoding
        The file's, see `text_encoding`.
    """

    def __init__(self, table: TrackedTable, encoding: str) -> None:
        self._table = table
        self._at = 1 if len(table.key) == 1 else 0
        expression = qualified(table.rowid) if table.rowid is not None else ""
        if self._at:
            name, collation = table.key[0]
            expression = f"{qualified(name)} COLLATE {quote(collation)}"
        suited = len(table.key) < 2 and expression and encoding == "UTF-8"
        self._sql = f"SELECT {', '.join(_select(table))} {_source(table)} WHERE {expression} = ?" if suited else ""

    def read(self, connection: sqlite3.Connection, changes: Sequence[Change]) -> tuple[Record, bool] | None:
        """Return the record of changes and that it is there, or one that only identifies it and that it is not.

        None where they are of several records, or it takes `read_current` to tell.
        """
        key = changes[-1].key
        value = key[self._at]
        if not self._sql or value is None or (isinstance(value, str) and not value.isascii()):
            return None
        if any(other.key[self._at] != value or type(other.key[self._at]) is not type(value) for other in changes):
            return None
        try:
            rows: list[Record] = connection.execute(self._sql, (value,)).fetchall()
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) is not None:
                raise
            return None  # text that is not UTF-8
        mapping, shadow = self._table.mapping, _shadow(self._table, key)
        if not rows:
            return shadow, False
        # In a collation another key may be equal.
        same = len(rows) == 1 and key_text(mapping.key(rows[0])) == key_text(mapping.key(shadow))
        return (rows[0], True) if same else None


def _select(table: TrackedTable) -> list[str]:
    keys = [qualified(table.rowid)] if table.rowid is not None else [qualified(name) for name, _ in table.key]
    return keys + [qualified(name) for name in table.dataset.definition["columns"]]


def _source(table: TrackedTable) -> str:
    return f"FROM main.{quote(table.name)} AS {TABLE_ALIAS}"


def _all_rows(connection: sqlite3.Connection, table: TrackedTable, encoding: str) -> Iterator[list[Record]]:
    """Yield all rows of a table in batches, within the transaction."""
    if table.rowid is None:
        # By the key's own order; a table without rowid is rarely large.
        order = ", ".join(qualified(name) for name, _ in table.key)
        yield fetch(connection, _select(table), [Statement(_source(table), order)], _ALL, encoding, max_bytes=_ALL).rows
        return
    rowid, after = qualified(table.rowid), None
    while True:
        conditions: list[Condition] = [] if after is None else [(f"{rowid} > ?", (after,))]
        got = fetch(connection, _select(table), [Statement(_source(table), rowid, conditions)], _WHOLE_BATCH, encoding)
        if got.error is not None:
            raise got.error
        if got.rows:
            after = got.rows[-1][0]
            yield got.rows
        if got.finished:
            return


def _current(
    connection: sqlite3.Connection, table: TrackedTable, keys: list[Record], encoding: str
) -> tuple[list[Record], list[Record]]:
    """Return the rows that are there, and for the identities that are not a record that only identifies them."""
    mapping, there = table.mapping, dict[str, Record]()
    shadows = {key_text(mapping.key(record)): record for record in (_shadow(table, key) for key in keys)}
    for start in range(0, len(keys), _BATCH):
        for row in _rows_of(connection, table, keys[start : start + _BATCH], encoding):
            there[key_text(mapping.key(row))] = row
    return list(there.values()), [record for key, record in shadows.items() if key not in there]


def _shadow(table: TrackedTable, key: Record) -> Record:
    """Make a record of which only what identifies it counts."""
    definition = table.dataset.definition
    columns: list[str] = definition["columns"]
    values: list[Value] = [None] * len(columns)
    alias = definition["description"]["integer_primary_key"]
    if alias is not None:
        values[columns.index(alias)] = key[0]
    for (name, _), value in zip(table.key, key[1:], strict=False):
        values[columns.index(name)] = value
    reading: Record = (key[0],) if table.rowid is not None else tuple(key[1 : 1 + len(table.key)])
    return (*reading, *values)


def _rows_of(
    connection: sqlite3.Connection, table: TrackedTable, keys: list[Record], encoding: str
) -> Iterator[Record]:
    width = len(table.key)
    named = [key for key in keys if width and None not in key[1 : 1 + width]]
    if width == 1:
        name, collation = table.key[0]
        yield from _rows_in(connection, table, f"{qualified(name)} COLLATE {quote(collation)}", named, 1, encoding)
    else:
        for key in named:
            conditions: list[Condition] = []
            for (name, collation), value in zip(table.key, key[1:], strict=False):
                text, bound = bind(value, encoding)
                conditions.append((f"{qualified(name)} COLLATE {quote(collation)} = {text}", bound))
            yield from _fetched(connection, table, conditions, encoding)
    if table.rowid is not None:
        # With the rowid too: another record may have taken it, and a NULL in the key leaves nothing else.
        unnamed = [key for key in keys if not width or None in key[1 : 1 + width]]
        yield from _rows_in(connection, table, qualified(table.rowid), unnamed, 0, encoding)


def _rows_in(
    connection: sqlite3.Connection, table: TrackedTable, expression: str, keys: list[Record], at: int, encoding: str
) -> Iterator[Record]:
    if not keys:
        return
    texts, values = [], list[Value]()
    for key in keys:
        text, bound = bind(key[at], encoding)
        texts.append(text)
        values.extend(bound)
    yield from _fetched(connection, table, [(f"{expression} IN ({', '.join(texts)})", tuple(values))], encoding)


def _fetched(
    connection: sqlite3.Connection, table: TrackedTable, conditions: list[Condition], encoding: str
) -> Iterator[Record]:
    order = qualified(table.rowid) if table.rowid is not None else ", ".join(qualified(name) for name, _ in table.key)
    got = fetch(
        connection, _select(table), [Statement(_source(table), order, conditions)], _ALL, encoding, max_bytes=_ALL
    )
    if got.error is not None:
        raise got.error
    yield from got.rows
