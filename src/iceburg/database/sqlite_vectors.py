"""The embeddings in SQLite: a table for each collection, searched with the functions of sqlite-vec.

A search goes over all vectors of the collection: it is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from iceburg.database.arguments import LONGEST, limited
from iceburg.database.conversion import Columns
from iceburg.database.embedding_records import (
    agree,
    check_collection,
    check_count,
    check_records,
    check_vector,
    holds,
    to_embedding_record,
    to_hit,
)
from iceburg.database.nearest import Candidate, nearest
from iceburg.database.protocol import Collection, Distance, EmbeddingRecord, Hit, Metadata, Vector, Where
from iceburg.database.sqlite_session import SqliteSession
from iceburg.database.vector_functions import loading_vectors, prepare_vectors
from iceburg.database.vector_tables import (
    VECTORS_SCHEMA,
    ensure_collection,
    find_collection,
    insert_records,
    matching_rows,
    near_rows,
    refuse_known,
)
from iceburg.database.where import parse_filters
from iceburg.errors import UsageError

__all__ = ["VECTORS_SCHEMA", "SqliteVectors", "loading_vectors", "prepare_vectors"]


class SqliteVectors:
    """The collections in one SQLite file; see `iceburg.database.protocol.EmbeddingStore`.

    Parameters
    ----------
    session
        Of the file, made with `VECTORS_SCHEMA`, `prepare_vectors` and, as ``opening``, `loading_vectors`.
    """

    def __init__(self, session: SqliteSession) -> None:
        self.session = session

    def collections(self) -> list[Collection]:
        """Return the collections, by name."""
        rows = self.session.select("SELECT name, dimension, distance FROM collections ORDER BY name")
        return [Collection(*row) for row in rows]  # type: ignore[arg-type]

    def create(self, name: str, distance: Distance = "cosine", dimension: int | None = None) -> Collection:
        """Return the collection of a name, made if it is not there."""
        check_collection(name, distance, dimension)
        with self.session.reading() as connection:
            there = find_collection(connection, name)
        if there is None or (there[0].dimension is None and dimension is not None):
            with self.session.writing() as connection:
                there = ensure_collection(connection, name, distance, dimension)
        agree(there[0], distance, dimension)
        return there[0]

    def add(
        self,
        collection: str,
        ids: Sequence[str],
        vectors: Sequence[Vector],
        documents: Sequence[str | None] | None = None,
        metadatas: Sequence[Metadata | None] | None = None,
    ) -> None:
        """Add records, all or none; the collection is made on first use."""
        self._write(collection, ids, vectors, documents, metadatas, replace=False)

    def upsert(
        self,
        collection: str,
        ids: Sequence[str],
        vectors: Sequence[Vector],
        documents: Sequence[str | None] | None = None,
        metadatas: Sequence[Metadata | None] | None = None,
    ) -> None:
        """Add records or replace those of the same ids, all or none."""
        self._write(collection, ids, vectors, documents, metadatas, replace=True)

    def _write(
        self,
        name: str,
        ids: Sequence[str],
        vectors: Sequence[Vector],
        documents: Sequence[str | None] | None,
        metadatas: Sequence[Metadata | None] | None,
        *,
        replace: bool,
    ) -> None:
        check_collection(name, "cosine", None)
        # Before the write lock is taken: only the dimension may have to be looked at again.
        records = check_records(name, None, ids, vectors, documents, metadatas)
        if not records:
            return
        dimension = len(vectors[0])
        with self.session.writing() as connection:
            described, table = ensure_collection(connection, name, None, dimension)
            if described.dimension != dimension:
                what = f"the vectors have {dimension} dimensions, not {described.dimension}"
                raise UsageError(what, where=f"collection {name!r}")
            if not replace:
                refuse_known(connection, name, table, [record.id for record in records])
            insert_records(connection, table, ((r, "index") for r in records), replace=replace)

    def get(
        self,
        collection: str,
        ids: Sequence[str] | None = None,
        where: Where | None = None,
        where_document: Where | None = None,
        limit: int | None = None,
    ) -> list[EmbeddingRecord]:
        """Return records, in the order in which they were first added."""
        found = parse_filters(where, where_document)
        most = LONGEST if limit is None else limited(limit)
        records: list[EmbeddingRecord] = []
        with self.session.reading() as connection:
            there = find_collection(connection, collection)
            if there is not None and most:
                for row in matching_rows(connection, there[1], ids, found, most):
                    records.append(to_embedding_record(row))
                    if len(records) == most:
                        break
        return records

    def delete(
        self,
        collection: str,
        ids: Sequence[str] | None = None,
        where: Where | None = None,
        where_document: Where | None = None,
    ) -> int:
        """Delete the records that all given conditions hold for; return how many."""
        found = parse_filters(where, where_document)
        if ids is None and found is None:
            hint = "Give ids, where or where_document."
            raise UsageError("nothing says what to delete", where=f"collection {collection!r}", hint=hint)
        with self.session.writing() as connection:
            there = find_collection(connection, collection)
            if there is None:
                return 0
            rows = [(row["row_id"],) for row in matching_rows(connection, there[1], ids, found)]
            connection.executemany(f"DELETE FROM {there[1]} WHERE row_id = ?", rows)  # noqa: S608
        return len(rows)

    def count(self, collection: str) -> int:
        """Return the number of records."""
        with self.session.reading() as connection:
            there = find_collection(connection, collection)
            if there is None:
                return 0
            ((count,),) = connection.execute(f"SELECT count(*) FROM {there[1]}")  # noqa: S608
        return int(count)

    def query(
        self,
        collection: str,
        vector: Vector,
        k: int = 8,
        where: Where | None = None,
        where_document: Where | None = None,
    ) -> list[Hit]:
        """Return the `k` nearest records, exactly: nearest first, equal ones by id."""
        check_count(k)
        found = parse_filters(where, where_document)
        with self.session.reading() as connection:
            there = find_collection(connection, collection)
            sought = check_vector(vector, None if there is None else there[0].dimension, f"collection {collection!r}")
            if there is None:
                return []
            described, table = there

            def fetch(limit: int | None) -> Iterable[Candidate[Columns]]:
                rows = matching_rows(connection, table, None, found)
                if limit is not None:
                    rows = iter(near_rows(connection, table, described.distance, sought, found, limit))
                return (
                    Candidate(str(row["record_id"]), row["vector"], row)
                    for row in rows
                    if isinstance(row["vector"], bytes)
                )

            hits = nearest(described.distance, sought, k, fetch, lambda candidate: holds(found, candidate.payload))
        return [to_hit(candidate.payload, distance) for candidate, distance in hits]
