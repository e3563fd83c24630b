"""A SQLite file whose changes are logged, read while it is written to: its records together with its log."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from iceburg.database.catalogue import Dataset
from iceburg.database.change_log import Change, count_pending, log_state, pending
from iceburg.database.changed_rows import Record, TrackedTable, read_current, tracked_table
from iceburg.errors import SourceError
from iceburg.mappings.identity import key_text
from iceburg.mappings.mapping import Row
from iceburg.records import Value, decode_key
from iceburg.sources.sqlite import SqliteFile
from iceburg.sources.sqlite_sql import quote

# With more entries than this the two sides are too far apart to be compared record by record.
_MOST_ENTRIES: Final = 50_000


@dataclass(frozen=True, slots=True)
class FileMark:
    """Where a file is.

    Attributes
    ----------
    last
        The number of the last entry of its log.
    version
        What its structure is known by (``PRAGMA schema_version``).
    """

    last: int
    version: str


@dataclass(frozen=True, slots=True)
class Records:
    """Some records, in one snapshot.

    Attributes
    ----------
    mark
        Where the file was.
    there
        Those that are there, by `key_text`.
    gone
        Those that are not: of each a record of which only what identifies it counts.
    """

    mark: FileMark
    there: dict[str, Record]
    gone: dict[str, Record]


@dataclass(frozen=True, slots=True)
class Touched:
    """The records that entries of a log name: by `key_text`, and by the keys of their rows."""

    texts: frozenset[str] = frozenset()
    row_keys: frozenset[Row] = frozenset()

    def __contains__(self, identity: object) -> bool:
        return identity in (self.texts if isinstance(identity, str) else self.row_keys)


class LoggedTable:
    """A table as the log names its records.

    Parameters
    ----------
    dataset
        What it is in the target.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.tracked: TrackedTable = tracked_table(dataset)
        self.name = self.tracked.name
        definition = dataset.definition
        columns = definition["description"]["columns"]
        keyed = sorted((column for column in columns if column["primary_key"]), key=lambda c: c["primary_key"])
        own = definition["key"] if definition["mapping"] == "table" else [column["name"] for column in keyed]
        self._identity: tuple[str, ...] = tuple(own)
        self._alias: str | None = definition["description"]["integer_primary_key"]

    @property
    def by_rowid(self) -> bool:
        """Whether its records are known by a rowid that VACUUM may change."""
        return not self._identity and self._alias is None

    def entry(self, text: str) -> Change:
        """Return the entry that the log would have of the record of a `key_text`."""
        key = decode_key(text)
        named = dict(zip(self._identity, key, strict=False))
        # Where the key has a NULL, or the table none that can serve, the rowid tells the records apart.
        rowid: Value = key[len(self._identity)] if len(key) > len(self._identity) else None
        if self._alias is not None and self._alias in named:
            rowid = named[self._alias]
        return Change(0, self.name, "t", (rowid, *(named.get(name) for name, _ in self.tracked.key)))

    def text(self, record: Record) -> str:
        """Return the `key_text` of a record."""
        return key_text(self.tracked.mapping.key(record))


class LoggedFile:
    """Reads one file; each method in a short read transaction of its own.

    Parameters
    ----------
    file
        The file.
    log_id
        The log that it must have.
    """

    def __init__(self, file: SqliteFile, log_id: str) -> None:
        self._file = file
        self._log_id = log_id

    def mark(self) -> FileMark:
        """Say where the file is.

        Raises
        ------
        SourceError
            It has another log by now, or none.
        """
        return self._file.run(self._mark)

    def _mark(self, connection: sqlite3.Connection) -> FileMark:
        if not connection.in_transaction:
            connection.execute("BEGIN")
        state = log_state(connection)
        if state is None or state.log_id != self._log_id:
            raise SourceError(
                "its change log was taken out or replaced while it was being compared",
                where=self._file.name,
                hint="Run `iceburg-db log status`, then `iceburg-db migrate`.",
            )
        return FileMark(state.last, str(connection.execute("PRAGMA schema_version").fetchone()[0]))

    def records(self, table: LoggedTable, texts: Sequence[str]) -> Records:
        """Read the records of some keys."""
        entries = [table.entry(text) for text in texts]
        wanted = set(texts)

        def read(connection: sqlite3.Connection) -> Records:
            mark = self._mark(connection)
            there, gone = read_current(connection, table.tracked, entries)
            # A key may find another record too: one whose key is the same in the collation of its column.
            found = {text: record for record in there if (text := table.text(record)) in wanted}
            return Records(mark, found, {table.text(record): record for record in gone})

        return self._file.run(read, table=table.name)

    def touched(self, table: LoggedTable, after: int, upto: int) -> Touched | None:
        """Return the records of a table that the entries ``after < seq <= upto`` name.

        None where these are too many, or where the whole table is concerned. Entries that were pruned are missing.
        """

        def read(connection: sqlite3.Connection) -> Touched | None:
            self._mark(connection)
            if count_pending(connection, after) > _MOST_ENTRIES:
                return None
            changes = [c for c in pending(connection, after) if c.seq <= upto and c.table == table.name]
            if any(change.op != "t" for change in changes):
                return None
            there, gone = read_current(connection, table.tracked, changes)
            records = there + gone
            keys = (table.tracked.mapping.row_key(record) for record in records)
            return Touched(frozenset(map(table.text, records)), frozenset(key for key in keys if key is not None))

        return self._file.run(read, table=table.name)

    def count(self, table: LoggedTable) -> tuple[FileMark, int]:
        """Count the rows of a table."""
        counting = f"SELECT count(*) FROM main.{quote(table.name)}"  # noqa: S608 (a quoted name)

        def read(connection: sqlite3.Connection) -> tuple[FileMark, int]:
            return self._mark(connection), int(connection.execute(counting).fetchone()[0])

        return self._file.run(read, table=table.name)
