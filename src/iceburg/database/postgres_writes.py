"""Writes to PostgreSQL where it is alone: one record in the short way, or anything in a transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, LiteralString, TypeVar

import psycopg

from iceburg.database.postgres_answer import Columns
from iceburg.database.postgres_change import Change, of_dataset, run_change, unknown_outcome
from iceburg.database.postgres_datasets import ATTEMPTS, PostgresDatasets
from iceburg.database.postgres_failures import BehindError, StaleError
from iceburg.database.quick_write import QuickWrite
from iceburg.database.record_writer import RecordWriter
from iceburg.records import Value

T = TypeVar("T")


class PostgresWrites(PostgresDatasets):
    """The datasets of a target, and what writes to them."""

    def change(self, name: str, work: Callable[[Change], T]) -> T:
        """Write to a dataset, all or nothing; durable on return. For PostgreSQL alone; see `Change`.

        With an embedded side the change log writes.
        """
        for _ in range(ATTEMPTS):
            bound = self.bound(name)
            try:
                return self.again_if_lost(lambda: run_change(self, bound, work))  # noqa: B023 - called at once
            except StaleError:
                self.forget()
        raise BehindError("its definition changes again and again", where=name)

    def write_one(
        self, name: str, record: Any, next_number: LiteralString | None = None, number: int | None = None
    ) -> bool:
        """Write one record, durably, in the short way; return whether that was possible. `change` is the long one.

        Parameters
        ----------
        name
            The dataset.
        record
            The record.
        next_number, number
            Where records are numbered: a query for the number of the next one, and what that was believed to be. Where
            it is another, nothing is written.

        Raises
        ------
        TargetError
            PostgreSQL cannot do it now; nothing was written, unless the connection ended at the very commit.
        """
        bound = self.bound(name)
        quick = bound.quick
        if quick is None:
            query = None if next_number is None else of_dataset(self.names, bound, next_number)
            quick = bound.quick = QuickWrite(self.names, bound.dataset, query)
        return self.again_if_lost(lambda: self._write_one(quick, record, number))

    def _write_one(self, quick: QuickWrite, record: Any, number: int | None) -> bool:
        with self.connection() as connection:
            begun = quick.begin(connection, record, number)
            try:
                if begun is None or not begun.commit():
                    return False
            except psycopg.ProgrammingError:
                return False  # a table is gone, or another: the long way says so
            try:
                begun.end()
            except psycopg.OperationalError as error:
                raise unknown_outcome(error, self.description) from error
            return True

    def write(self, name: str, records: Sequence[Any], gone: Sequence[Any] = ()) -> None:
        """Write records to a dataset and remove others, as `change` does."""
        self.change(name, lambda change: change.write(records, gone))

    def writer(self, connection: psycopg.Connection[Any], name: str) -> RecordWriter:
        """Return a writer of a dataset, for a transaction of the caller."""
        return RecordWriter(connection, self.names, self.bound(name).dataset)

    def record(self, name: str, columns: Columns, reading_key: Sequence[Value] = ()) -> tuple[Value, ...]:
        """Make a source record of columns by name; those that are not given are NULL."""
        return self.bound(name).record(columns, reading_key)
