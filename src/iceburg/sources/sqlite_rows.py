"""The rows of one SQLite table, in key order, from any position."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING

from iceburg.errors import SourceError
from iceburg.records import Batch, Key, encode_key
from iceburg.sources.sqlite_fetch import Fetched, Row, Statement, fetch, lenient_text, text_encoding
from iceburg.sources.sqlite_keys import RENAME_HINT, TABLE_ALIAS, beyond, qualified, reading_key, within
from iceburg.sources.sqlite_schema import Table
from iceburg.sources.sqlite_sql import is_utf8, quote

if TYPE_CHECKING:
    from iceburg.sources.sqlite import SqliteFile

# Rowids closer together than this are not worth dividing.
_PARTITION_ROWIDS = 10_000


class TableReader:
    """Reads one table; a `records.DatasetReader` of tuples, safe to use from several threads.

    Each record is a tuple: first the `key_width` values of the reading key, then every column in table order, generated
    ones included. The reading key is the rowid where it can be asked for, else the primary key in the order of its
    index.

    A batch may be shorter than asked for (it ends after about 16 MiB of TEXT and BLOB values); only the end of the
    iteration is the end of the table.

    Attributes
    ----------
    table
        The table's description.
    columns
        Names of the columns that follow the key in a record.
    key_width
        Number of leading key values in a record.
    """

    def __init__(self, file: SqliteFile, table: Table) -> None:
        self.table = table
        self.columns = tuple(column.name for column in table.columns)
        self._file = file
        self._where = f"{file.name}, table {table.name}"
        self._refuse_unspeakable_names()
        self._key = reading_key(table, self._where)
        self.key_width = len(self._key)
        self._by_rowid = self._key[0].is_rowid
        # Without it a scan in rowid order may go through a narrower index and sort.
        self._from = f"main.{quote(table.name)} AS {TABLE_ALIAS}{' NOT INDEXED' if self._by_rowid else ''}"

    @property
    def name(self) -> str:
        """The table's name."""
        return self.table.name

    def count(self) -> int:
        """Return the number of rows."""
        sql = f"SELECT count(*) FROM main.{quote(self.name)}"  # noqa: S608 (a quoted name)
        return int(self._file.run(lambda connection: connection.execute(sql).fetchone()[0], table=self.name))

    def key_range(self) -> tuple[Key, Key] | None:
        """Return the first and the last reading key; None for an empty table."""

        def read(connection: sqlite3.Connection) -> list[Row]:
            encoding = text_encoding(connection)
            columns = [key.name for key in self._key]
            found: list[Row] = []
            connection.execute("BEGIN")
            for backwards in (False, True):
                order = ", ".join(key.order(backwards=backwards) for key in self._key)
                found += fetch(connection, columns, [Statement(f"FROM {self._from}", order)], 1, encoding).rows
            return found

        found = self._file.run(read, table=self.name)
        return (found[0], found[1]) if found else None

    def partitions(self, n: int) -> list[tuple[Key | None, Key | None]]:
        """Divide the whole key space into at most `n` ranges ``(after, upto)`` for one call of `batches` each.

        The first range has no beginning and the last no end. Only tables read by rowid are divided, into ranges of
        equal width, and only where the width is worth it.
        """
        found = self.key_range() if self._by_rowid and n > 1 else None
        if found is None:
            return [(None, None)]
        (low,), (high,) = found
        if not isinstance(low, int) or not isinstance(high, int) or high - low < _PARTITION_ROWIDS:
            return [(None, None)]
        cuts: list[Key] = [(low + (high - low) * part // n,) for part in range(1, n)]
        return list(zip([None, *cuts], [*cuts, None], strict=True))

    def batches(self, *, after: Key | None = None, upto: Key | None = None, size: int = 10_000) -> Iterator[Batch[Row]]:
        """Yield batches of the rows with ``after < key <= upto``; each is one short read transaction.

        Raises
        ------
        SourceError
            The rest of the table cannot be read; the rows before the damage have been yielded.
        SourceBusyError
            The file stayed locked for longer than the file's busy timeout.
        """
        for bound in (after, upto):
            if bound is not None and len(bound) != self.key_width:
                raise ValueError(f"a key of {self.name} has {self.key_width} values, not {len(bound)}")
        if size < 1:
            raise ValueError("a batch has at least one record")
        self._refuse_null_keys()
        if self._file.pacing is not None:
            size = min(size, self._file.pacing.batch)
        while True:
            fetched = self._read(after, upto, size)
            if fetched.rows:
                after = fetched.rows[-1][: self.key_width]
                yield Batch(fetched.rows, after)
            if fetched.error is not None:
                raise self._broken(fetched.error, after) from fetched.error
            if fetched.finished:
                return
            del fetched  # while the next batch is read, this one need not be there any more

    def _read(self, after: Key | None, upto: Key | None, size: int) -> Fetched:
        columns = [key.name for key in self._key] + [qualified(name) for name in self.columns]

        def read(connection: sqlite3.Connection) -> Fetched:
            encoding = text_encoding(connection)
            connection.execute("BEGIN")
            self._refuse_other_columns(connection)
            statements = self._statements(after, upto, encoding)
            flag = within(self._key, upto, encoding) if upto is not None and self.key_width > 1 else None
            return fetch(connection, columns, statements, size, encoding, flag)

        return self._file.run(read, table=self.name)

    def _statements(self, after: Key | None, upto: Key | None, encoding: str) -> list[Statement]:
        """Write the queries that one after the other give the rows after `after` in key order.

        A compound key takes one for each length of prefix that a row can share with `after`, longest first: each is a
        single seek in the index, whatever the directions of its columns, where a comparison of row values works only if
        all directions are the same.
        """
        order = ", ".join(key.order() for key in self._key)
        ends = (
            [self._key[0].compare(f"{self._key[0].before}=", upto[0], encoding)] if upto and self.key_width == 1 else []
        )
        if after is None:
            return [Statement(f"FROM {self._from}", order, ends)]
        return [
            Statement(f"FROM {self._from}", order, [*beyond(self._key[: shared + 1], after, encoding), *ends])
            for shared in reversed(range(self.key_width))
        ]

    def _refuse_unspeakable_names(self) -> None:
        for name in (self.table.name, *self.columns):
            if not is_utf8(name):
                raise SourceError(
                    f"the name {name!r} is not UTF-8, so no query can name it",
                    where=self._where.encode("utf-8", "backslashreplace").decode(),
                    hint="Rename it in a copy and migrate that.",
                )

    def _refuse_other_columns(self, connection: sqlite3.Connection) -> None:
        """Refuse a table that was altered since it was described, rather than leave a new column out."""
        connection.text_factory = lenient_text
        query = "SELECT sql FROM main.sqlite_master WHERE type = 'table' AND name = ?"
        if connection.execute(query, (self.name,)).fetchone() != (self.table.sql,):
            raise SourceError(
                "the table was altered, renamed or dropped since the migration looked at it",
                where=self._where,
                hint="Run again: a new run begins with the tables as they are then.",
            )

    def _refuse_null_keys(self) -> None:
        """Refuse a table whose rows the primary key does not tell apart, rather than lose some of them.

        Outside of WITHOUT ROWID tables SQLite takes NULL into a primary key, any number of times.
        """
        nullable = {column.name for column in self.table.columns if not column.not_null}
        names = [name for name in self.table.primary_key if name in nullable]
        if self._by_rowid or self.table.without_rowid or not names:
            return
        condition = " OR ".join(f"{qualified(name)} IS NULL" for name in names)
        sql = f"SELECT count(*) FROM {self._from} WHERE {condition}"  # noqa: S608 (quoted names)
        count = self._file.run(lambda connection: connection.execute(sql).fetchone()[0], table=self.name)
        if count:
            raise SourceError(
                f"{count} rows have NULL in their primary key, and columns named rowid, _rowid_ and oid hide the "
                "rowid: nothing tells these rows apart",
                where=self._where,
                hint=RENAME_HINT,
            )

    def _broken(self, error: sqlite3.Error, after: Key | None) -> SourceError:
        known = self._file.explain(error, self._where)
        position = f"after key {encode_key(after)}" if after is not None else "before the first row"
        return SourceError(f"{known.what}, {position}", where=self._where, hint=known.hint)
