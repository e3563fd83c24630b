"""Taking the collections of existing Chroma directories into ``vectors.db``, once, and checking what was taken.

The directories are read by the migration's reader and never written to. Each collection is copied and compared in one
transaction, and notes where it came from: a second call finds it and does nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from iceburg.database.embedding_records import NewRecord
from iceburg.database.sqlite_session import fetch_all
from iceburg.database.sqlite_vectors import SqliteVectors
from iceburg.database.vector_tables import find_collection, insert_records, make_collection
from iceburg.errors import IceburgError, SourceError
from iceburg.records import Store, Value, VectorOrigin
from iceburg.sources.chroma import ChromaStore, CollectionInfo, CollectionReader, OrphanReader
from iceburg.sources.sqlite_sql import quote

_BATCH: Final = 1_000
_ADOPTED: Final = "SELECT 1 FROM collections WHERE adopted_from = ?"
_HINT: Final = "Nothing of it was copied; try again when the application does not write to it."
_USUAL: Final = ("default_tenant", "default_database")
_FIELDS: Final = ("id", "document", "metadata", "vector", "vector's origin")


@dataclass(frozen=True, slots=True)
class Adopted:
    """A collection that was taken over.

    Attributes
    ----------
    store, name
        The directory, and what the collection is called there.
    collection
        What it is called in ``vectors.db``: the same, unless that name was taken.
    records
        How many it has.
    without_vector
        How many of them had lost their vector: they can be read, but are near to nothing.
    """

    store: str
    name: str
    collection: str
    records: int
    without_vector: int


@dataclass(frozen=True, slots=True)
class NotAdopted:
    """A collection, or a directory, that was not taken over.

    Attributes
    ----------
    store, name
        The directory and the collection; None for all of the directory.
    problem
        Why; None where it was taken over before.
    """

    store: str
    name: str | None
    problem: IceburgError | None


def adopt_collections(vectors: SqliteVectors, store: Store) -> Iterator[Adopted | NotAdopted]:
    """Copy the collections of a Chroma directory that were not copied before; say of each what became of it.

    One that differs from its copy, perhaps because the application is writing to it, is not copied: nothing is left of
    that copy. The others are.
    """
    try:
        with ChromaStore(store.path, store.name) as directory:
            # The application's own keep their names where another tenant has collections of the same names.
            for info in sorted(directory.collections(), key=lambda info: (info.tenant, info.database) != _USUAL):
                try:
                    found = _adopt(vectors, store, info, directory.reader(info))
                except IceburgError as error:
                    yield NotAdopted(store.name, info.name, error)
                else:
                    yield NotAdopted(store.name, info.name, None) if found is None else found
    except IceburgError as error:
        yield NotAdopted(store.name, None, error)


def adopt_chroma(vectors: SqliteVectors, store: Store) -> list[Adopted]:
    """Copy what of a Chroma directory was not copied before, as `adopt_collections` does; return what was now.

    Raises
    ------
    SourceError
        The directory, or one of its collections, could not be copied. What could was copied first.
    """
    found = list(adopt_collections(vectors, store))
    for one in found:
        if isinstance(one, NotAdopted) and one.problem is not None:
            raise one.problem
    return [one for one in found if isinstance(one, Adopted)]


def _adopt(
    vectors: SqliteVectors, store: Store, info: CollectionInfo, reader: CollectionReader | OrphanReader
) -> Adopted | None:
    origin = f"{store.name}/{info.id}"
    if _is_adopted(vectors, origin):
        return None
    with vectors.session.writing() as connection:
        if connection.execute(_ADOPTED, (origin,)).fetchone() is not None:
            return None
        name = _free_name(connection, store, info)
        table = make_collection(connection, name, info.distance, info.dimension, origin)
        count = missing = 0
        dimension = info.dimension
        for records in _batches(reader):
            for record, _ in records:
                count += 1
                missing += record.vector is None
                if dimension is None and record.vector is not None:
                    dimension = len(record.vector) // 4
            try:
                insert_records(connection, table, records)
            except sqlite3.IntegrityError as error:
                raise SourceError(f"an id occurs twice in it ({error})", where=_where(store, info)) from error
        connection.execute("UPDATE collections SET dimension = ? WHERE table_name = ?", (dimension, table))
        _compare(connection, table, reader, _where(store, info))
    return Adopted(store.name, info.name, name, count, missing)


def _is_adopted(vectors: SqliteVectors, origin: str) -> bool:
    return bool(vectors.session.select(_ADOPTED, (origin,)))


def _where(store: Store, info: CollectionInfo) -> str:
    return f"{store.name}, collection {info.name!r}"


def _free_name(connection: sqlite3.Connection, store: Store, info: CollectionInfo) -> str:
    longer = f"{info.name}@{store.name}"
    for name in (info.name, longer, f"{longer}/{info.tenant}/{info.database}"):
        if find_collection(connection, name) is None:
            return name
    return f"{longer}/{info.id}"


def _batches(reader: CollectionReader | OrphanReader) -> Iterator[list[tuple[NewRecord, VectorOrigin]]]:
    for batch in reader.batches(size=_BATCH):
        yield [
            (
                NewRecord(
                    record.id,
                    record.document,
                    None if record.metadata is None else json.dumps(record.metadata),
                    record.vector,
                ),
                record.origin,
            )
            for record in batch.records
        ]


def _compare(connection: sqlite3.Connection, table: str, reader: CollectionReader | OrphanReader, where: str) -> None:
    """Read the collection again, and its copy, record by record."""
    wanted = ((r.id, r.document, r.metadata, r.vector, origin) for batch in _batches(reader) for r, origin in batch)
    for expected, row in zip_longest(wanted, _copied(connection, table)):
        if expected is None or row is None:
            raise SourceError(
                f"it has {'more' if row is None else 'fewer'} records than its copy", where=where, hint=_HINT
            )
        for field, a, b in zip(_FIELDS, expected, row, strict=True):
            if type(a) is not type(b) or a != b:
                raise SourceError(
                    f"the {field} is not what was copied", where=f"{where}, id {expected[0]!r}", hint=_HINT
                )


def _copied(connection: sqlite3.Connection, table: str) -> Iterator[tuple[Value, ...]]:
    last: Value = 0
    select = f"SELECT row_id, record_id, document, metadata, vector, vector_origin FROM {quote(table)}"  # noqa: S608
    while True:
        rows = fetch_all(connection, f"{select} WHERE row_id > ? ORDER BY row_id LIMIT {_BATCH}", (last,))[1]
        if not rows:
            return
        last = rows[-1][0]
        yield from (row[1:] for row in rows)
