"""A SQLite file of the installation, made what the target has of it: in one transaction of the file, or not at all.

That is safe where the target has everything that the file has: where the file's change log ends at the target's
position; where a file without a log holds what was migrated of it. A file that holds what the target has of it anyway
needs no such proof, nor does one without any record. Everything else is refused.

The file's own log notes what is written here, as it notes every write. The position is moved behind it in the
transaction of the target that begins before the file's and ends after it: between the two commits the log has entries
of rows that the target has already, and applying those again changes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import psycopg

from iceburg.database import change_log
from iceburg.database.catalogue import Catalogue, Dataset, Source
from iceburg.database.plan import describe_table
from iceburg.database.positions import Position, find_position, lock_position, move_position
from iceburg.database.schema import SchemaNames
from iceburg.database.sqlite_session import SqliteSession
from iceburg.errors import SourceError
from iceburg.migration.sqlite_restore import TableWriter
from iceburg.migration.table_difference import TableDifference, find_difference
from iceburg.migration.unchanged import holds_what_was_migrated
from iceburg.records import Store, Value
from iceburg.sources.access import OpenStores
from iceburg.sources.fingerprint import fingerprint
from iceburg.sources.sqlite_fetch import text_encoding
from iceburg.sources.sqlite_keys import bind
from iceburg.sources.sqlite_sql import quote

Record = tuple[Value, ...]
_COUNTER: Final = "UPDATE sqlite_sequence SET seq = ? WHERE name = ? AND seq < ?"
_NEW_COUNTER: Final = """
INSERT INTO sqlite_sequence (name, seq) SELECT ?1, ?2 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = ?1)
"""


class RefusedError(SourceError):
    """A store that cannot be brought up to date without the risk of losing something."""


@dataclass(slots=True)
class FileDifference:
    """What it would take to bring a file up to date.

    Attributes
    ----------
    store, source, datasets
        Which file.
    position
        Of the target in the file's log; None where there is none.
    log
        The state of the file's log; None where it has none.
    print
        The file's fingerprint when it was looked at.
    proven
        Whether the target is known to have everything that the file has.
    tables
        What differs, by the number of the dataset.
    missing
        The source tables that the file does not have.
    """

    store: Store
    source: Source
    datasets: tuple[Dataset, ...]
    position: Position | None
    log: change_log.LogState | None
    print: str
    proven: bool
    tables: dict[int, TableDifference] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many records differ."""
        return sum(table.count for table in self.tables.values())

    @property
    def differs(self) -> bool:
        """Whether there is anything to do to the file."""
        return bool(self.count or self.missing)

    def close(self) -> None:
        """Give the spools back."""
        for table in self.tables.values():
            table.close()


def examine_file(
    connection: psycopg.Connection,
    names: SchemaNames,
    store: Store,
    source: Source,
    datasets: tuple[Dataset, ...],
    advance: Callable[[str, int], None],
    stop_if_asked: Callable[[], None],
) -> FileDifference:
    """Compare a file with the target, and see whether it may be brought up to date; writes nothing.

    Raises
    ------
    RefusedError
        It may not.
    """
    position = find_position(connection, names, store.name)
    if not store.path.exists():
        raise RefusedError("it is not there", where=store.name)
    with OpenStores() as stores, connection.transaction():
        log = stores.sqlite(store)[0].run(change_log.log_state)
        found = FileDifference(store, source, datasets, position, log, fingerprint(store), False)
        found.proven = _is_proven(found)
        tables = {table.name: table for table in stores.sqlite(store)[1].tables}
        for dataset in datasets:
            name = dataset.definition["source_table"]
            table = tables.get(name)
            if table is not None and describe_table(table) != dataset.definition["description"]:
                raise RefusedError(f"its table {name} is not of the structure that PostgreSQL knows", where=store.name)
            reader = None if table is None else stores.reader(store, dataset.definition)
            if table is None:
                found.missing.append(name)
            found.tables[dataset.dataset_id] = find_difference(
                connection, names, dataset, reader, partial(advance, dataset.name), stop_if_asked
            )
        # Of a file without a record nothing can be lost.
        if found.differs and not found.proven and any(table.file_records for table in found.tables.values()):
            readers = [
                (d, stores.reader(store, d.definition)) for d in datasets if d.definition["source_table"] in tables
            ]
            if position is not None or not holds_what_was_migrated(connection, names, readers, stop_if_asked):
                raise RefusedError(_why_not(found), where=store.name)
    return found


def _is_proven(found: FileDifference) -> bool:
    position, log = found.position, found.log
    if position is not None:
        return log is not None and position.log_id == log.log_id and position.position == log.last
    return found.source.complete and found.source.fingerprint == found.print


def _why_not(found: FileDifference) -> str:
    position, log = found.position, found.log
    if position is None:
        return "it was changed since it was migrated, and nothing noted what was changed"
    if log is None or position.log_id != log.log_id:
        return "it is another file than the one whose changes PostgreSQL has, or its log was taken out"
    if position.position < log.last:
        return f"it has {log.last - position.position} changes in its log that PostgreSQL does not have"
    return f"its log ends at {log.last}, before {position.position}, where PostgreSQL is: it is an older copy"


def update_file(connection: psycopg.Connection, names: SchemaNames, found: FileDifference) -> None:
    """Bring an examined file up to date, and have the target know it; within a transaction of the caller.

    Raises
    ------
    RefusedError
        The file has changed since it was examined, or does not take what PostgreSQL has; it is as it was.
    """
    if lock_position(connection, names, found.source.source_id) != found.position:
        raise RefusedError("its changes were applied to PostgreSQL while it was compared", where=found.store.name)
    session = SqliteSession(found.store.path)
    try:
        if found.differs:
            _update(session, found)
        with session.reading() as file:
            log = change_log.log_state(file)
    finally:
        session.close()
    position = found.position
    if position is not None and log is not None and position.log_id == log.log_id:
        move_position(connection, names, position, log.last, structure=position.structure, redefined=False, applied=0)
    elif position is None:
        Catalogue(connection, names).update_source(
            found.source.source_id, fingerprint=fingerprint(found.store), complete=True, problem=None
        )


def _update(session: SqliteSession, found: FileDifference) -> None:
    try:
        with session.writing() as file:
            if change_log.log_state(file) != found.log or (found.log is None and _moved(found)):
                raise RefusedError("it was written to while it was compared", where=found.store.name)
            _make_tables(file, found)
            with _without_triggers(file, found), _checks_ignored(file):
                for dataset in found.datasets:
                    _write(file, dataset, found.tables[dataset.dataset_id])
                _raise_counters(file, found)
            if found.log is not None and found.missing:
                change_log.install(file, found.store.name, "")
    except RefusedError:
        raise
    except SourceError as error:
        raise RefusedError(error.what, where=found.store.name, hint=error.hint) from error


def _moved(found: FileDifference) -> bool:
    return fingerprint(found.store) != found.print


def _make_tables(file: sqlite3.Connection, found: FileDifference) -> None:
    """Make the tables that were made in the target, where it was alone, with everything that belongs to them."""
    for item in (found.source.description or {}).get("schema_sql") or ():
        if item["table"] in found.missing:
            file.execute(item["sql"])


@contextmanager
def _without_triggers(file: sqlite3.Connection, found: FileDifference) -> Iterator[None]:
    """Take the application's triggers away: what they would write is in the target, or is not to be written."""
    tables = {
        dataset.definition["source_table"] for dataset in found.datasets if found.tables[dataset.dataset_id].count
    }
    triggers = [
        (name, text)
        for name, table, text in file.execute(
            "SELECT name, tbl_name, sql FROM main.sqlite_master WHERE type = 'trigger'"
        )
        if table in tables and not name.lower().startswith("_iceburg_")
    ]
    for name, _ in triggers:
        file.execute(f"DROP TRIGGER main.{quote(name)}")
    yield
    for _, text in triggers:
        file.execute(text)


@contextmanager
def _checks_ignored(file: sqlite3.Connection) -> Iterator[None]:
    file.execute("PRAGMA ignore_check_constraints = ON")
    yield
    file.execute("PRAGMA ignore_check_constraints = OFF")


def _write(file: sqlite3.Connection, dataset: Dataset, difference: TableDifference) -> None:
    """Remove what is gone or other, then write: no value that moves from one record to another meets itself."""
    encoding = text_encoding(file)
    definition = dataset.definition
    for _, records in difference.to_remove.batches():
        for record in records:
            condition, values = _by_reading_key(definition, record, encoding)
            file.execute(f"DELETE FROM main.{quote(definition['source_table'])} WHERE {condition}", values)  # noqa: S608
    writer = TableWriter(file, encoding, definition, keep_rowids=True)
    for _, records in difference.to_write.batches():
        writer.put(records)


def _by_reading_key(definition: dict[str, Any], record: Record, encoding: str) -> tuple[str, list[Value]]:
    """Return the condition for the row that a record was read from."""
    description = definition["description"]
    rowid = description["integer_primary_key"] or description["rowid"]
    if rowid is not None:
        return f"{quote(rowid)} = ?", [record[0]]
    conditions, values = [], list[Value]()
    columns = [column for index in description["indexes"] if index["origin"] == "pk" for column in index["columns"]]
    for column, value in zip(columns, record, strict=False):
        text, bound = bind(value, encoding)
        conditions.append(f"{quote(column['name'])} COLLATE {quote(column['collation'])} = {text}")
        values.extend(bound)
    return " AND ".join(conditions), values


def _raise_counters(file: sqlite3.Connection, found: FileDifference) -> None:
    """See that AUTOINCREMENT gives no number that the target has given."""
    for table in (found.source.description or {}).get("tables") or ():
        if table["autoincrement"] and table["sequence"] is not None:
            file.execute(_COUNTER, (table["sequence"], table["name"], table["sequence"]))
            file.execute(_NEW_COUNTER, (table["name"], table["sequence"]))
