"""A SQLite file as the stores of the unified layer read it, opened so that nothing of it or beside it changes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias, cast

from iceburg.database.sqlite_session import SqliteSession, fetch_all
from iceburg.database.vector_functions import loading_vectors, prepare_vectors
from iceburg.records import Value
from iceburg.sources.sqlite import SqliteFile

Parameters: TypeAlias = "Sequence[Value] | Mapping[str, Value]"


class _SourceSession:
    """What the stores ask of a `SqliteSession`, as far as they only read."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def select(self, sql: str, parameters: Parameters = ()) -> list[tuple[Value, ...]]:
        """See `SqliteSession.select`."""
        return fetch_all(self._connection, sql, parameters)[1]

    def records(self, sql: str, parameters: Parameters = ()) -> list[dict[str, Value]]:
        """See `SqliteSession.records`."""
        names, rows = fetch_all(self._connection, sql, parameters)
        return [dict(zip(names, row, strict=True)) for row in rows]

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """See `SqliteSession.reading`."""
        self._connection.execute("BEGIN")
        try:
            yield self._connection
        finally:
            self._connection.execute("ROLLBACK")


@contextmanager
def source_session(file: SqliteFile, *, vectors: bool = False) -> Iterator[SqliteSession]:
    """Open a file for the stores of the unified layer; with `vectors`, for those that search embeddings."""
    with loading_vectors() if vectors else _nothing(), file.connect() as connection:
        if vectors:
            prepare_vectors(connection)
        yield cast(SqliteSession, _SourceSession(connection))


@contextmanager
def _nothing() -> Iterator[None]:
    yield
