"""What has changed in a Chroma directory since a position in its queue, and the records as they are now.

The queue (`embeddings_queue`) is the directory's log. Where chromadb has pruned it beyond the position, the tables
tell: each record has the position of the last operation that touched it; those that are gone are the difference of ids.
A position is kept for each collection, because chromadb gives the numbers of a deleted collection's operations again.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from iceburg.errors import SourceBusyError, SourceError
from iceburg.records import ChromaRecord
from iceburg.sources.chroma import ChromaStore
from iceburg.sources.chroma_catalogue import (
    CollectionInfo,
    is_complete,
    max_sequence,
    read_collections,
    segments_of,
)
from iceburg.sources.chroma_queue import ids_queued_after, last_queued
from iceburg.sources.chroma_reader import CollectionReader
from iceburg.sources.chroma_tables import ids_touched_after
from iceburg.sources.chroma_vectors import IndexChangedError

_Result = TypeVar("_Result")
# As for the batches of a collection: while Chroma writes an index, vectors may be missing for a moment.
_ATTEMPTS = 20
_PAUSE = 0.2


@dataclass(frozen=True, slots=True)
class CollectionMark:
    """Where a collection is.

    Attributes
    ----------
    last
        Position of its last operation; 0 before the first.
    tables
        The last position that the tables have taken in. A record beyond it has no row yet, and may get another number
        than it was read with.
    """

    last: int
    tables: int

    @property
    def settled(self) -> int:
        """The position up to which nothing that was read can look different later."""
        return min(self.last, self.tables)


@dataclass(frozen=True, slots=True)
class CollectionChanges:
    """What has changed of one collection.

    Attributes
    ----------
    collection, mark
        The collection, and where it is now.
    records
        The records that were touched, as they are now.
    gone
        Ids that were touched and are not there.
    ids
        All ids that are there, where only these tell what is gone; None where `gone` tells it.
    whole
        Whether `records` are all that there are, because the position says nothing of this collection.
    total
        How many records there are, if that was asked for.
    """

    collection: CollectionInfo
    mark: CollectionMark
    records: tuple[ChromaRecord, ...] = ()
    gone: tuple[str, ...] = ()
    ids: frozenset[str] | None = None
    whole: bool = False
    total: int | None = None

    @property
    def count(self) -> int:
        """Number of records concerned, as far as it is known."""
        return len(self.records) + len(self.gone)


class TooManyError(Exception):
    """More records of a collection would have to be read than fit into one read: it has to be copied."""

    def __init__(self, collection: str) -> None:
        self.collection = collection
        super().__init__(collection)


def read_marks(store: ChromaStore) -> dict[str, CollectionMark]:
    """Return where each collection is, by its id; in one snapshot.

    Raises
    ------
    SourceError
        The directory is damaged: what is salvaged of it has no positions.
    """
    _require_whole(store)

    def work(connection: sqlite3.Connection) -> dict[str, CollectionMark]:
        return {found.id: _mark(connection, found.id) for found in read_collections(connection)}

    return store.in_snapshot(work)


def read_changes(
    store: ChromaStore, known: Mapping[str, CollectionMark], *, largest: int, count: bool = False
) -> list[CollectionChanges]:
    """Return the changes of all collections since their marks, in one snapshot.

    Parameters
    ----------
    store
        The directory.
    known
        Where each collection was, by its id; one that is not there is read whole.
    largest
        Records of one collection that are read at once.
    count
        Count all records, too.

    Raises
    ------
    TooManyError
        There are more.
    SourceError
        It is damaged, or its index kept changing.
    """
    _require_whole(store)
    readers: dict[str, CollectionReader] = {}

    def work(connection: sqlite3.Connection) -> list[CollectionChanges]:
        found = []
        for collection in read_collections(connection):
            reader = readers.get(collection.id)
            if reader is None or reader.collection != collection:
                opened = store.reader(collection)
                assert isinstance(opened, CollectionReader)  # noqa: S101 - an orphan is not in the catalogue
                reader = readers[collection.id] = opened
            changes = _changes(connection, reader, known.get(collection.id), largest)
            found.append(replace(changes, total=len(reader.ids(connection))) if count else changes)
        return found

    return _in_snapshot(store, work)


def _in_snapshot(store: ChromaStore, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
    """Run `work` on one snapshot; on another one where Chroma wrote an index meanwhile."""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE)
        try:
            return store.in_snapshot(work)
        except IndexChangedError:
            continue
    raise SourceBusyError(
        "its index kept changing while it was read",
        where=store.name,
        hint="Run the command again when the application writes less.",
    )


def read_mark(store: ChromaStore, collection: str) -> CollectionMark:
    """Return where a collection is, by its id; at 0 where it is gone."""
    return store.in_snapshot(lambda connection: _mark(connection, collection))


def read_touched(store: ChromaStore, collection: str, since: CollectionMark) -> frozenset[str] | None:
    """Return the ids that operations since a mark may have touched; None where the queue does not tell any more."""

    def work(connection: sqlite3.Connection) -> frozenset[str] | None:
        if _mark(connection, collection).last < since.last or _is_pruned(connection, collection, since.settled):
            return None
        return frozenset(ids_queued_after(connection, collection, since.settled))

    return store.in_snapshot(work)


def read_records(
    store: ChromaStore, reader: CollectionReader, ids: Collection[str]
) -> tuple[CollectionMark, list[ChromaRecord]]:
    """Return those of `ids` that are there, and where the collection is; in one snapshot.

    Raises
    ------
    SourceError
        Its index kept changing.
    """
    return _in_snapshot(
        store, lambda connection: (_mark(connection, reader.collection.id), reader.changed(connection, sorted(ids)))
    )


def read_ids(store: ChromaStore, reader: CollectionReader) -> tuple[CollectionMark, set[str]]:
    """Return the ids of all records, and where the collection is; in one snapshot."""
    return store.in_snapshot(lambda connection: (_mark(connection, reader.collection.id), reader.ids(connection)))


def _require_whole(store: ChromaStore) -> None:
    if not store.is_whole:
        raise SourceError("is damaged: what is written to it cannot be followed", where=store.name)


def _mark(connection: sqlite3.Connection, collection: str) -> CollectionMark:
    segments = segments_of(connection, collection)
    tables = max_sequence(connection, segments.metadata) or 0
    vector = max_sequence(connection, segments.vector) or 0
    return CollectionMark(max(last_queued(connection, collection), tables, vector), tables)


def _changes(
    connection: sqlite3.Connection, reader: CollectionReader, known: CollectionMark | None, largest: int
) -> CollectionChanges:
    collection = reader.collection
    mark = _mark(connection, collection.id)
    if known is None or mark.last < known.last:
        # New; or an older copy was put back.
        ids = reader.ids(connection)
        return CollectionChanges(collection, mark, _read(connection, reader, ids, largest), whole=True)
    if known == mark:
        return CollectionChanges(collection, mark)
    after = known.settled
    touched = set(ids_queued_after(connection, collection.id, after))
    pruned = _is_pruned(connection, collection.id, after)
    if pruned:
        touched.update(ids_touched_after(connection, segments_of(connection, collection.id).metadata or "", after))
    records = _read(connection, reader, touched, largest)
    gone = touched - {record.id for record in records}
    return CollectionChanges(
        collection,
        mark,
        records,
        tuple(gone),
        frozenset(reader.ids(connection)) if pruned else None,
    )


def _read(
    connection: sqlite3.Connection, reader: CollectionReader, ids: set[str], largest: int
) -> tuple[ChromaRecord, ...]:
    if len(ids) > largest:
        raise TooManyError(reader.collection.name)
    return tuple(reader.changed(connection, sorted(ids)))


def _is_pruned(connection: sqlite3.Connection, collection: str, after: int) -> bool:
    """Whether operations after a position may be gone from the queue."""
    return not is_complete(connection) and after + 1 < _pruned_before(connection, collection)


def _pruned_before(connection: sqlite3.Connection, collection: str) -> int:
    """Return the position before which operations of a collection may be gone from the queue."""
    segments = segments_of(connection, collection)
    taken_in = (max_sequence(connection, segments.vector), max_sequence(connection, segments.metadata))
    return min(position or 0 for position in taken_in)
