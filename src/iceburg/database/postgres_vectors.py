"""The embeddings in PostgreSQL: the collections of the unified layer's ``vectors.db``.

A search is exact: it orders all vectors of a collection by their distance, which no approximate index answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, LiteralString, TypeVar

from iceburg.database.arguments import LONGEST, is_text, limited
from iceburg.database.embedding_records import (
    NewRecord,
    agree,
    check_collection,
    check_count,
    check_records,
    check_vector,
    holds,
    sought_ids,
    to_embedding_record,
    to_hit,
)
from iceburg.database.nearest import Candidate, Floats, nearest
from iceburg.database.postgres_answer import Answer, Bound, Columns
from iceburg.database.postgres_change import Change
from iceburg.database.postgres_collections import Place, PostgresCollections, next_number
from iceburg.database.postgres_failures import BehindError
from iceburg.database.postgres_nearness import NEAR, near_parameters
from iceburg.database.postgres_session import PostgresSession
from iceburg.database.protocol import Collection, Distance, EmbeddingRecord, Hit, Metadata, Vector, Where
from iceburg.database.where import Filter, parse_filters
from iceburg.database.where_postgres import compile_filter
from iceburg.errors import UsageError
from iceburg.mappings.json_value import usable_text

T = TypeVar("T")

# What a filter decides on.
_DECISIVE: Final = ("metadata", "document")
_COUNT: Final[LiteralString] = "SELECT count(*) FROM {table} AS t WHERE {owned}"
_BY_IDS: Final[LiteralString] = "t.record_id = ANY($1::text[])"
_SELECT: Final[LiteralString] = "SELECT {columns} FROM {table} AS t WHERE {owned} AND "
_OF_IDS: Final[LiteralString] = _SELECT + _BY_IDS + " AND "
_IN_ORDER: Final[LiteralString] = " ORDER BY t.row_id LIMIT $1::bigint"


class PostgresVectors:
    """A `iceburg.database.protocol.EmbeddingStore`.

    Parameters
    ----------
    session
        The target.
    store
        Name of the SQLite file that the collections are from, there or not.
    """

    def __init__(self, session: PostgresSession, store: str) -> None:
        self._session = session
        self._collections = PostgresCollections(session, store)
        # Collections that will not change, as long as the definitions are what they were.
        self._known: tuple[Bound | None, dict[str, Place]] = None, {}

    def collections(self) -> list[Collection]:
        """Return the collections, by name."""
        return self._collections.all()

    def _place(self, name: str) -> Place | None:
        if not is_text(name):
            return None
        bound = self._session.bound(self._collections.dataset)
        if self._known[0] is not bound:
            self._known = bound, {}
        known = self._known[1]
        if name in known:
            return known[name]
        found = self._collections.find(name)
        if found is not None:
            self._see_dataset(found.dataset)
            if found.collection.dimension is not None:
                known[name] = found
        return found

    def _see_dataset(self, dataset: str) -> None:
        try:
            self._session.bound(dataset)
        except BehindError:
            # Made by another process since the definitions were read.
            self._session.forget()
            self._session.bound(dataset)

    def create(self, name: str, distance: Distance = "cosine", dimension: int | None = None) -> Collection:
        """Return the collection of a name, made if it is not there."""
        check_collection(name, distance, dimension)
        place = self._place(name)
        if place is None or (place.collection.dimension is None and dimension is not None):
            place = self._change_collections(
                lambda change: self._collections.ensure(change, name, distance, dimension)[0]
            )
        agree(place.collection, distance, dimension)
        return place.collection

    def _change_collections(self, work: Callable[[Change], T]) -> T:
        try:
            return self._session.change(self._collections.dataset, work)
        finally:
            # What was made is not known yet; what was not made after all, is not to be known.
            self._session.forget()

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
        records = check_records(name, None, ids, vectors, documents, metadatas)
        if not records:
            return
        dimension = len(vectors[0])

        def begin(change: Change) -> bool:
            """Write to a collection that nobody else can write to yet; False if somebody was faster."""
            place, is_new = self._collections.ensure(change, name, None, dimension)
            if is_new:
                self._session.forget()
                bound = self._session.bound(place.dataset)
                self._put(Change(self._session, bound, change.connection), name, records, replace=replace)
            return is_new

        place = self._place(name)
        if place is None or place.collection.dimension is None:
            if self._change_collections(begin):
                return
            place = self._place(name)
        if place is None or place.collection.dimension != dimension:
            there = None if place is None else place.collection.dimension
            raise UsageError(f"the vectors have {dimension} dimensions, not {there}", where=f"collection {name!r}")
        self._session.change(place.dataset, lambda change: self._put(change, name, records, replace=replace))

    def _put(self, change: Change, name: str, records: Sequence[NewRecord], *, replace: bool) -> None:
        wanted = [record.id for record in records]
        there = {row["record_id"]: row["row_id"] for row in self._of_ids(change.bound.dataset.name, wanted)}
        if there and not replace:
            raise UsageError(
                "the id is there already",
                where=f"collection {name!r}, id {next(iter(there))!r}",
                hint="Nothing was added; use upsert to replace records.",
            )
        number = next_number(change)
        rows = []
        for record in records:
            row: Columns = {
                "row_id": there.get(record.id, number),
                "record_id": record.id,
                "document": record.document,
                "metadata": record.metadata,
                "vector": record.vector,
                "vector_origin": "index",
            }
            number += record.id not in there
            rows.append(change.bound.record(row))
        change.write(rows, new=not there)

    def _of_ids(self, dataset: str, ids: Sequence[str]) -> list[Columns]:
        """Return the records of some ids, of which several may have one substitute."""
        wanted = frozenset(ids)
        answer = self._session.find(dataset, _BY_IDS, ([usable_text(identity) for identity in wanted],))
        rows = [answer.columns(row) for row in answer.rows]
        return [row for row in rows if row["record_id"] in wanted]

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
        wanted = None if ids is None else sought_ids(ids)
        place = self._place(collection)
        if place is None or not most:
            return []
        return [to_embedding_record(row) for row in self._matching(place, wanted, found, most)]

    def _matching(self, place: Place, ids: Sequence[str] | None, found: Filter | None, most: int) -> list[Columns]:
        """Return the records that have one of some ids, and that a filter holds for, in order; at most so many."""
        if ids is not None:
            # Without an order: to go along the rows in theirs, looking for ids, would take the planner's fancy.
            wanted = frozenset(ids)
            answer = self._ask(place.dataset, _OF_IDS, "", [[usable_text(one) for one in wanted]], found)
            rows = [answer.columns(row) for row in answer.rows]
            held = [row for row in rows if row["record_id"] in wanted and holds(found, row)]
            return sorted(held, key=lambda row: row["row_id"])[:most]  # type: ignore[arg-type, return-value]
        limit: int | None = most
        while True:
            answer = self._ask(place.dataset, _SELECT, _IN_ORDER, [limit], found)
            rows = [answer.columns(row) for row in answer.rows]
            held = [row for row in rows if holds(found, row)]
            if len(held) >= most or limit is None or len(rows) < limit:
                return held[:most]
            # Some have passed that the filter does not hold for.
            limit = None

    def _ask(
        self,
        dataset: str,
        head: LiteralString,
        tail: LiteralString,
        parameters: Sequence[Any],
        found: Filter | None,
    ) -> Answer:
        """Return the rows that a filter may hold for, by a SELECT with the condition between `head` and `tail`."""
        condition = compile_filter(found, len(parameters) + 1)
        values = [*parameters, *condition.parameters]
        fields = () if found is None else _DECISIVE
        answer = self._session.find_by(dataset, head + condition.sql + tail, values, fields)
        if not answer.odd:
            return answer

        def exactly() -> Answer:
            """Let those pass of which PostgreSQL has substitutes."""
            odd = [row[0].hex() for row in self._session.find_odd(dataset, fields).rows]
            either: LiteralString = f"({condition.sql} OR t.id = ANY(${len(values) + 1}::text[]::uuid[]))"
            return self._session.find_by(dataset, head + either + tail, [*values, odd])

        return self._session.in_snapshot(exactly)

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
        wanted = None if ids is None else sought_ids(ids)
        place = self._place(collection)
        if place is None:
            return 0

        def work(change: Change) -> int:
            rows = self._matching(place, wanted, found, LONGEST)
            if rows:
                change.write((), [change.bound.record({"row_id": row["row_id"]}) for row in rows])
                change.note_number(max(row["row_id"] for row in rows))  # type: ignore[type-var, arg-type]
            return len(rows)

        return self._session.change(place.dataset, work)

    def count(self, collection: str) -> int:
        """Return the number of records."""
        place = self._place(collection)
        return 0 if place is None else int(self._session.rows(place.dataset, _COUNT)[0][0])

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
        place = self._place(collection)
        dimension = None if place is None else place.collection.dimension
        sought = check_vector(vector, dimension, f"collection {collection!r}")
        if place is None:
            return []
        distance = place.collection.distance

        def fetch(limit: int | None) -> Iterator[Candidate[Columns]]:
            return self._near(place.dataset, distance, sought, found, limit)

        hits = nearest(distance, sought, k, fetch, lambda candidate: holds(found, candidate.payload))
        return [to_hit(candidate.payload, found_at) for candidate, found_at in hits]

    def _near(
        self, dataset: str, distance: Distance, query: Floats, found: Filter | None, limit: int | None
    ) -> Iterator[Candidate[Columns]]:
        head, tail = NEAR[distance]
        answer = self._ask(dataset, head, tail, near_parameters(distance, query, limit), found)
        for row in answer.rows:
            columns = answer.columns(row)
            if isinstance(columns["vector"], bytes):
                yield Candidate(str(columns["record_id"]), columns["vector"], columns)
