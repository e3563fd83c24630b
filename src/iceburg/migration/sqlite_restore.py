"""A SQLite file made anew from the target: its tables as they were declared, its rows, its indexes, and the rest.

Statements that make tables, indexes, views and triggers are SQLite's own text of them, run again. Virtual tables are
entered in ``sqlite_master`` as they stand there, beside the tables that their modules keep, so that a module that is
not here is not needed and nothing of it is run. Triggers come last and never see a row.

Rejected: loading into tables that have their indexes already, which takes twice the time; and a file that goes on where
a killed run stopped, which would be of two states of the target.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from iceburg.errors import SourceError
from iceburg.mappings.json_value import is_usable_text
from iceburg.migration.output import create
from iceburg.records import Value
from iceburg.sources.sqlite_keys import bind
from iceburg.sources.sqlite_sql import is_utf8, quote, tokens

Description = dict[str, Any]
Record = tuple[Value, ...]
_ENCODINGS: Final = {"UTF-8": "UTF-8", "UTF-16le": "UTF-16le", "UTF-16be": "UTF-16be"}
_MASTER: Final = "INSERT INTO sqlite_master (type, name, tbl_name, rootpage, sql) VALUES ('table', ?, ?, 0, {})"
_LISTED: Final = 5
_SEQUENCE: Final = "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)"


class UnmakeableError(SourceError):
    """A file that this SQLite cannot make as it was."""


class TableWriter:
    """Writes the records of one table.

    Parameters
    ----------
    connection
        In autocommit mode for `write`, in a transaction for `put`.
    encoding
        Of the database, as SQLite calls it.
    definition
        Of the dataset.
    keep_rowids
        Whether every record has the rowid that it is to have, or NULL for the next one; else only those of which it is
        a part.

    Attributes
    ----------
    refused
        How many records the table does not take.
    examples
        What SQLite says of some of them.
    """

    def __init__(
        self, connection: sqlite3.Connection, encoding: str, definition: dict[str, Any], *, keep_rowids: bool = False
    ) -> None:
        self.refused = 0
        self.examples: list[str] = []
        self._connection = connection
        self._encoding = encoding
        description = definition["description"]
        width = int(definition["key_width"])
        chosen = [(width + i, c["name"]) for i, c in enumerate(description["columns"]) if not c["generated"]]
        is_matrix = definition["mapping"] in ("entities", "relationships")
        # A table without a key of its own is read by its rowid, which is then a part of the record. Of the Matrix store
        # it is NULL, and so given by SQLite, but for the records that nothing else identifies.
        if description["integer_primary_key"] is None and description["rowid"] is not None:
            by_rowid = definition["mapping"] == "table" and not definition["key"]
            if by_rowid or is_matrix or keep_rowids:
                chosen.insert(0, (0, description["rowid"]))
        self._positions = [position for position, _ in chosen]
        names = ", ".join(quote(name) for _, name in chosen)
        self._head = f"INSERT INTO {quote(definition['source_table'])} ({names})"
        self._plain = f"{self._head} VALUES ({', '.join('?' * len(chosen))})"

    def write(self, records: Sequence[Record]) -> None:
        """Write records, in one transaction; one that the table does not take costs no other."""
        rows = self._rows(records)
        self._connection.execute("BEGIN")
        try:
            self._write(rows)
        except sqlite3.IntegrityError:
            self._connection.execute("ROLLBACK")
            self._connection.execute("BEGIN")
            for row in rows:
                try:
                    self._write([row])
                except sqlite3.IntegrityError as error:
                    self.refused += 1
                    if len(self.examples) < _LISTED:
                        self.examples.append(f"{error} ({', '.join(repr(value)[:40] for value in row[:3])}, ...)")
        self._connection.execute("COMMIT")

    def put(self, records: Sequence[Record]) -> None:
        """Write records within a transaction of the caller.

        Raises
        ------
        sqlite3.IntegrityError
            The table does not take one of them.
        """
        self._write(self._rows(records))

    def _rows(self, records: Sequence[Record]) -> list[Record]:
        return [tuple([record[i] for i in self._positions]) for record in records]

    def _write(self, rows: Sequence[Record]) -> None:
        ordinary: list[Record] = []
        for row in rows:
            if all(type(v) is not str or v.isascii() or is_utf8(v) for v in row):
                ordinary.append(row)
                continue
            self._connection.executemany(self._plain, ordinary)
            ordinary.clear()
            # Texts that are not UTF-8, which no binding takes.
            written = [bind(value, self._encoding) for value in row]
            values = [value for _, bound in written for value in bound]
            self._connection.execute(f"{self._head} VALUES ({', '.join(text for text, _ in written)})", values)
        self._connection.executemany(self._plain, ordinary)


class SqliteRestore:
    """Makes one file; a context manager that gives up its connection.

    Parameters
    ----------
    path
        Where; the file is made.
    name
        What messages call it.
    description
        `iceburg.sources.sqlite_schema.DatabaseDescription` as the catalogue keeps it; what an older version did not
        keep is taken to be SQLite's default.

    Attributes
    ----------
    notes
        What could not be made as it was.
    """

    def __init__(self, path: Path, name: str, description: Description) -> None:
        self.notes: list[str] = []
        self._name = name
        self._description = description
        self._objects: list[dict[str, Any]] = description.get("schema_sql") or []
        self._encoding = _ENCODINGS.get(description.get("encoding", "UTF-8"), "UTF-8")
        create(path)
        self._connection = sqlite3.connect(path, isolation_level=None)
        with self._explained(""):
            self._set_up()

    def __enter__(self) -> SqliteRestore:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()

    def _set_up(self) -> None:
        connection, description = self._connection, self._description
        connection.execute(f"PRAGMA page_size = {int(description.get('page_size', 4096))}")
        connection.execute(f"PRAGMA encoding = '{self._encoding}'")
        connection.execute(f"PRAGMA auto_vacuum = {int(description.get('auto_vacuum', 0))}")
        # The file counts once it is finished and on disk; until then nothing of it has to survive.
        connection.execute("PRAGMA journal_mode = MEMORY")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA cache_size = -65536")
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("PRAGMA trusted_schema = OFF")

    @property
    def tables(self) -> list[str]:
        """Names of the tables that hold rows."""
        return [item["name"] for item in self._objects if item["type"] == "table" and not _is_virtual(item)]

    def make_tables(self) -> None:
        """Make the tables, without indexes of their own beside those of their constraints.

        Raises
        ------
        UnmakeableError
            One cannot be made by this SQLite.
        """
        for item in self._objects:
            if item["type"] == "table" and not _is_virtual(item):
                with self._explained(item["name"]):
                    self._run(item)

    def writer(self, definition: dict[str, Any]) -> TableWriter:
        """Return what writes the records of a dataset's table."""
        return TableWriter(self._connection, self._encoding, definition)

    def finish(self) -> None:
        """Make the rest: indexes, views, triggers, virtual tables, counters; then close the file.

        Raises
        ------
        UnmakeableError
            The file cannot be finished.
        """
        connection, description = self._connection, self._description
        with self._explained(""):
            self._set_sequences()
            for item in self._objects:
                if item["type"] != "table":
                    self._make(item)
            if description.get("analysed"):
                connection.execute("ANALYZE")
            virtual = [item for item in self._objects if _is_virtual(item)]
            if virtual:
                self._enter(virtual)
            connection.execute(f"PRAGMA user_version = {int(description.get('user_version', 0))}")
            connection.execute(f"PRAGMA application_id = {int(description.get('application_id', 0))}")
            connection.execute("PRAGMA locking_mode = NORMAL")
            mode = "WAL" if description.get("journal_mode") == "wal" else "DELETE"
            connection.execute(f"PRAGMA journal_mode = {mode}").fetchone()
            # The lock of the exclusive mode is given back by the next read.
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            connection.close()

    def _set_sequences(self) -> None:
        """Set the counters of AUTOINCREMENT to what they were, or to the highest rowid given since."""
        connection = self._connection
        highest = {entry["table"]: entry["highest"] for entry in self._description.get("sequences") or ()}
        for table in self._description.get("tables") or ():
            if not table["autoincrement"]:
                continue
            name, kept = table["name"], table["sequence"]
            select = f"SELECT max({quote(table['integer_primary_key'])}) FROM {quote(name)}"  # noqa: S608
            (now,) = connection.execute(select).fetchone()
            # Writing the rows has raised the counter to the highest rowid, where UPDATE does not raise it.
            value = kept if name in highest and highest[name] == now else max(kept or 0, now or 0) or kept
            connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (name,))
            if value is not None:
                connection.execute(_SEQUENCE, (name, value))

    def _make(self, item: dict[str, Any]) -> None:
        try:
            self._run(item)
        except sqlite3.Error as error:
            if is_disk_error(error):
                raise
            self.notes.append(f"{item['type']} {item['name']} is not made: {error}; its SQL is {item['sql']}")

    def _run(self, item: dict[str, Any]) -> None:
        statement = str(item["sql"])
        if tokens(statement)[:1] != ["CREATE"]:
            raise UnmakeableError(f"{statement[:80]!r} makes no {item['type']}", where=f"{self._name}, {item['name']}")
        if is_usable_text(statement):
            self._connection.execute(statement)
        else:
            self._run_bytes(item)

    def _run_bytes(self, item: dict[str, Any]) -> None:
        """Make an object whose text is not UTF-8: with other text in those places, then with its own."""
        self._connection.execute("".join("?" if "\udc80" <= c <= "\udcff" else c for c in item["sql"]))
        text, bound = bind(item["sql"], self._encoding)
        update = f"UPDATE sqlite_master SET sql = {text} WHERE type = ? AND name = ?"  # noqa: S608
        with self._schema_writable():
            self._connection.execute(update, (*bound, item["type"], item["name"]))

    def _enter(self, virtual: Sequence[dict[str, Any]]) -> None:
        with self._schema_writable():
            for item in virtual:
                text, bound = bind(item["sql"], self._encoding)
                self._connection.execute(_MASTER.format(text), (item["name"], item["name"], *bound))

    @contextmanager
    def _schema_writable(self) -> Iterator[None]:
        connection = self._connection
        connection.execute("PRAGMA writable_schema = ON")
        yield
        connection.execute("PRAGMA writable_schema = RESET")

    @contextmanager
    def _explained(self, table: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if is_disk_error(error):
                raise
            where = f"{self._name}, table {table}" if table else self._name
            raise UnmakeableError(f"SQLite cannot make it: {error}", where=where) from error


def is_disk_error(error: sqlite3.Error) -> bool:
    """Whether an error says that the file cannot be written."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def is_empty(description: Description) -> bool:
    """Whether the file had no bytes at all, and nothing has come into it."""
    return bool(description.get("empty_file")) and not description.get("schema_sql")


def _is_virtual(item: dict[str, Any]) -> bool:
    return item["type"] == "table" and [t.upper() for t in tokens(item["sql"])[1:2]] == ["VIRTUAL"]
