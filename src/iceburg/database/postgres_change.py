"""A write to PostgreSQL where it is alone: a transaction, one at a time for a dataset, durable or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, LiteralString, TypeAlias, TypeVar

import psycopg
from psycopg import sql

from iceburg.database.catalogue import Catalogue
from iceburg.database.indexes import INDEXES, drop_limiting_indexes, index_statement
from iceburg.database.postgres_failures import StaleError
from iceburg.database.record_writer import RecordWriter
from iceburg.database.schema import SchemaNames
from iceburg.errors import TargetError
from iceburg.mappings.identity import key_text

if TYPE_CHECKING:
    from iceburg.database.postgres_answer import Bound
    from iceburg.database.postgres_datasets import PostgresDatasets

T = TypeVar("T")
Parameters: TypeAlias = Sequence[Any] | Mapping[str, Any] | None

# An arbitrary number of our own; with that of the dataset it makes a lock.
WRITERS_LOCK: Final = 0x1CEB0003
"""The lock of those who write to a dataset; its second number is the dataset's."""
# Writers go one after the other, as they do in SQLite: two that write the same record would meet in its key.
_BEGIN: Final[LiteralString] = """
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL synchronous_commit = on;
SELECT pg_advisory_xact_lock({lock}, {dataset}); SELECT FROM {state}.datasets WHERE dataset_id = {dataset} FOR KEY SHARE
"""
_REFUSED: Final[LiteralString] = """
SELECT reason FROM {state}.quarantine WHERE dataset_id = %s AND record_key = ANY(%s) LIMIT 1
"""

# Numbers of rows are not used again: the source's sequence is kept up to those that were deleted.
NEXT_NUMBER: Final[LiteralString] = """
SELECT 1 + greatest(0,
    (SELECT max(t.row_id) FROM {table} AS t WHERE {owned}),
    (SELECT max(substring(record_key FROM '^\\[([0-9]+)\\]$')::bigint) FROM {state}.quarantine
     WHERE dataset_id = {dataset}),
    (SELECT max((e.value ->> 'sequence')::bigint)
     FROM {state}.sources s, jsonb_array_elements(s.description -> 'tables') e
     WHERE s.source_id = {source} AND e.value ->> 'name' = {name}))
"""


def of_dataset(names: SchemaNames, bound: Bound, statement: LiteralString) -> sql.Composed:
    """Put into a statement what stands in braces there.

    ``{state}``, ``{table}``, ``{source}``, ``{dataset}`` and ``{name}`` (of the source's table) are the dataset's;
    ``{owned}`` is the condition that a row of ``t`` is.
    """
    dataset = bound.dataset
    return names.format(
        statement,
        table=sql.Identifier(dataset.target_schema, dataset.target_table),
        dataset=sql.Literal(dataset.dataset_id),
        source=sql.Literal(dataset.source_id),
        name=sql.Literal(dataset.definition.get("source_table")),
        owned=bound.owned,
    )


class Change:
    """A transaction on a dataset; in this thread, reads of the session are part of it.

    Attributes
    ----------
    connection
        In the transaction.
    bound
        The dataset.
    """

    def __init__(self, session: PostgresDatasets, bound: Bound, connection: psycopg.Connection[Any]) -> None:
        self._session = session
        self._loosened = False
        self.connection = connection
        self.bound = bound

    def run(self, statement: LiteralString, parameters: Parameters = None) -> psycopg.Cursor[Any]:
        """Run a statement; for what stands in braces see `of_dataset`."""
        return self.connection.execute(of_dataset(self._session.names, self.bound, statement), parameters)

    def fetch(self, statement: LiteralString, parameters: Parameters = None) -> tuple[Any, ...] | None:
        """Run a query as `run` does; return its first row."""
        row: tuple[Any, ...] | None = self.run(statement, parameters).fetchone()
        return row

    def number(self, statement: LiteralString, parameters: Parameters = None) -> int:
        """Run a query as `run` does; return its one number."""
        row = self.fetch(statement, parameters)
        assert row is not None  # noqa: S101 - no aggregate is without a row
        return int(row[0])

    def next_number(self) -> int:
        """Return the number for the next row of a table that numbers its rows: greater than any that it has given."""
        return self.number(NEXT_NUMBER)

    def note_number(self, number: int) -> None:
        """See that the number of a row that is removed is not given again."""
        dataset = self.bound.dataset
        Catalogue(self.connection, self._session.names).note_number(
            dataset.source_id, dataset.definition["source_table"], number
        )

    def write(self, records: Sequence[Any], gone: Sequence[Any] = (), *, new: bool = False) -> None:
        """Write records over what is there, or `new` ones beside it, and remove those of `gone`.

        Raises
        ------
        TargetError
            PostgreSQL cannot hold one of them.
        """
        writer = RecordWriter(self.connection, self._session.names, self.bound.dataset)
        if new:
            writer.append(records)
        else:
            writer.write(records, gone)
        refused = self._refused(records)
        if refused is not None and self._make_room():
            writer.write(records)
            refused = self._refused(records)
        if refused is not None:
            raise TargetError(
                f"PostgreSQL cannot hold it: {refused}", where=self.bound.dataset.name, hint="Nothing was written."
            )

    def _refused(self, records: Sequence[Any]) -> str | None:
        if not records:
            return None
        mapping = self.bound.mapping
        keys = [key_text(mapping.key(record)) for record in records]
        statement = self._session.names.format(_REFUSED)
        found = self.connection.execute(statement, (self.bound.dataset.dataset_id, keys)).fetchone()
        return None if found is None else str(found[0])

    def _make_room(self) -> bool:
        """Have indexes that may have no room for a long value replaced by their fallbacks; return whether any was."""
        dataset, names = self.bound.dataset, self._session.names
        if self._loosened or not drop_limiting_indexes(self.connection, names, dataset):
            return False
        for plan in INDEXES:
            if plan.table == dataset.target_table and plan.fallbacks:
                self.connection.execute(index_statement(names, plan, plan.fallbacks[-1]))
        self._loosened = True
        return True


def run_change(session: PostgresDatasets, bound: Bound, work: Callable[[Change], T]) -> T:
    """Do work in a transaction of its own; it is durable on return.

    Raises
    ------
    TargetError
        PostgreSQL cannot do it; nothing was written, unless the connection ended at the very commit.
    StaleError
        The dataset is gone.
    """
    number = sql.Literal(bound.dataset.dataset_id)
    begin = session.names.format(_BEGIN, lock=sql.Literal(WRITERS_LOCK), dataset=number)
    with session.connection() as connection:
        try:
            cursor = connection.execute(begin, prepare=False)
            while cursor.nextset():
                pass
            if not cursor.rowcount:
                raise StaleError
            with session.pinned(connection):
                result = work(Change(session, bound, connection))
        except BaseException as error:
            with contextlib.suppress(psycopg.OperationalError):  # it is the connection that has ended
                connection.execute("ROLLBACK", prepare=False)
            if isinstance(error, psycopg.DataError | psycopg.IntegrityError):
                raise TargetError(
                    f"PostgreSQL refuses it: {error.diag.message_primary or error}",
                    where=bound.dataset.name,
                    hint="Nothing was written.",
                ) from error
            raise
        try:
            connection.execute("COMMIT", prepare=False)
        except psycopg.OperationalError as error:
            raise unknown_outcome(error, session.description) from error
    return result


def unknown_outcome(error: psycopg.Error, where: str) -> TargetError:
    """Make the error of a commit of which it is not known whether it was one."""
    return TargetError(
        f"The connection ended while it was being committed, so that it may or may not be written: {error}",
        where=where,
        hint="Look before you write it again.",
    )
