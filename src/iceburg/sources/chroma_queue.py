"""Replaying a collection's queue (``embeddings_queue``) over its index and its tables.

The state keeps positions, not vectors: what a batch needs of the queue is fetched with the batch.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from iceburg.sources.chroma_catalogue import TOPIC, columns

ADD, UPDATE, UPSERT, DELETE = range(4)
#: Positions asked for in one statement; SQLite before 3.32 takes 999 parameters.
_PARAMETERS = 900


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the queue, without its vector and metadata."""

    seq: int
    operation: int
    id: str
    has_vector: bool


@dataclass(slots=True)
class VectorPositions:
    """Where in the queue the vectors of a collection are.

    Attributes
    ----------
    pending
        Id to position, for vectors that the index has not taken in: they are the record's vector.
    removed
        Ids whose row in the index is no longer theirs.
    settled
        Id to positions, newest first, for vectors that the index has taken in. The first is the record's vector if
        `certain` has the id; else the index tells which of them is.
    certain
        Ids of `settled` whose newest row must have set the vector of a record that exists.
    doubtful
        Positions of ADDs that did nothing if the id was there before, which the queue does not tell.
    """

    pending: dict[str, int] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    settled: dict[str, tuple[int, ...]] = field(default_factory=dict)
    certain: set[str] = field(default_factory=set)
    doubtful: set[int] = field(default_factory=set)


def read_operations(connection: sqlite3.Connection, collection: str) -> Iterator[Operation]:
    """Yield the collection's rows of the queue in order."""
    if not columns(connection, "embeddings_queue"):
        return
    rows = connection.execute(
        "SELECT seq_id, operation, id, vector IS NOT NULL FROM embeddings_queue WHERE topic = ? ORDER BY seq_id",
        (TOPIC + collection,),
    )
    for seq, operation, identity, has_vector in rows:
        yield Operation(seq, operation, identity, bool(has_vector))


def ids_queued_after(connection: sqlite3.Connection, collection: str, position: int) -> list[str]:
    """Return the records of a collection that the queue's operations after a position name, each once."""
    if not columns(connection, "embeddings_queue"):
        return []
    rows = connection.execute(
        "SELECT DISTINCT id FROM embeddings_queue WHERE seq_id > ? AND topic = ?", (position, TOPIC + collection)
    )
    return [identity for (identity,) in rows]


def last_queued(connection: sqlite3.Connection, collection: str) -> int:
    """Return the last position that the queue has of a collection, 0 where it has none."""
    if not columns(connection, "embeddings_queue"):
        return 0
    (last,) = connection.execute(
        "SELECT coalesce(max(seq_id), 0) FROM embeddings_queue WHERE topic = ?", (TOPIC + collection,)
    ).fetchone()
    return int(last)


def locate_vectors(
    operations: Iterable[Operation], taken_in: int, in_index: Container[str] | None, *, complete: bool
) -> VectorPositions:
    """Replay the operations and say where each id's vector is.

    Parameters
    ----------
    operations
        All of the collection's, in order.
    taken_in
        Last position that the index holds.
    in_index
        Ids that the index has; None where it cannot be known. Then an operation counts that needs the id to be there,
        or not to be there, and the tables tell which ones did nothing.
    complete
        Whether the queue has every operation since the collection was made.
    """
    found = VectorPositions()
    ids = _Ids()
    for op in operations:
        if op.seq > taken_in:
            _apply(found, ids, op, in_index)
        elif op.operation == DELETE:
            found.settled.pop(op.id, None)
            found.certain.discard(op.id)
            ids.proved.discard(op.id)
            ids.assumed.discard(op.id)
            ids.absent.add(op.id)
        elif op.has_vector:
            _settle(found, ids, op, known_absent=op.id in ids.absent or (complete and op.id not in ids.proved))
            if op.id in ids.proved:
                ids.absent.discard(op.id)
    return found


@dataclass(slots=True)
class _Ids:
    """What the queue proves of ids before the operation at hand.

    Attributes
    ----------
    proved, absent
        Those that were there, or not, as far as operations go that the index has taken in.
    assumed
        Those of which the last vector is an UPDATE's that did nothing if the id was not there.
    """

    proved: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    assumed: set[str] = field(default_factory=set)


def _settle(found: VectorPositions, ids: _Ids, op: Operation, *, known_absent: bool) -> None:
    proved, earlier = ids.proved, found.settled.get(op.id, ())
    if op.operation == UPSERT or (op.operation == UPDATE and op.id in proved) or (op.operation == ADD and known_absent):
        found.settled[op.id] = (op.seq,)
        found.certain.add(op.id)
        proved.add(op.id)
        ids.assumed.discard(op.id)
    elif op.operation == UPDATE and not known_absent:
        # Without a later ADD the record must have been there, since the tables still have it.
        if not earlier:
            ids.assumed.add(op.id)
        found.settled[op.id] = (op.seq, *earlier)
        found.certain.add(op.id)
    elif op.operation == ADD and op.id not in proved:
        # It did nothing if the id was there before.
        found.settled[op.id] = (op.seq, *earlier)
        found.certain.discard(op.id)
        found.doubtful.add(op.seq)
        ids.assumed.discard(op.id)


def _apply(found: VectorPositions, ids: _Ids, op: Operation, in_index: Container[str] | None) -> None:
    if op.operation == DELETE:
        found.pending.pop(op.id, None)
        found.settled.pop(op.id, None)
        found.certain.discard(op.id)
        found.removed.add(op.id)
        ids.assumed.discard(op.id)
        return
    if not op.has_vector:
        return
    if op.id in ids.assumed:
        if in_index is None and op.operation == ADD:
            _doubt(found, op)
            ids.assumed.discard(op.id)
            return
        if in_index is not None and op.id not in in_index:
            # What updated it did nothing.
            found.settled.pop(op.id, None)
            found.certain.discard(op.id)
        if in_index is not None or op.operation == UPSERT:
            ids.assumed.discard(op.id)
    present = op.id in found.pending or op.id in found.settled
    if in_index is None and not present and op.id not in found.removed:
        found.pending[op.id] = op.seq
        if op.operation == ADD:
            found.doubtful.add(op.seq)
        elif op.operation == UPDATE:
            ids.assumed.add(op.id)
        return
    present = present or (in_index is not None and op.id in in_index and op.id not in found.removed)
    if op.operation == UPSERT or (op.operation == ADD) != present:
        found.pending[op.id] = op.seq


def _doubt(found: VectorPositions, add: Operation) -> None:
    """Take an ADD after an UPDATE: one of them did nothing, and if it was the ADD, the other has set the vector."""
    updated = found.pending.get(add.id)
    if updated is not None:
        found.settled[add.id] = (updated, *found.settled.get(add.id, ()))
        found.certain.add(add.id)
    found.pending[add.id] = add.seq
    found.doubtful.add(add.seq)


def fetch_vectors(connection: sqlite3.Connection, positions: Iterable[int]) -> dict[int, bytes]:
    """Read the vectors at positions of the queue as little-endian float32; those that are not vectors are left out."""
    vectors: dict[int, bytes] = {}
    for seq, vector, encoding in _fetch(connection, "vector, encoding", positions):
        if not isinstance(vector, bytes) or len(vector) % 4:
            continue
        if encoding == "INT32":
            vectors[seq] = np.frombuffer(vector, "<i4").astype("<f4").tobytes()
        else:
            vectors[seq] = vector
    return vectors


def fetch_metadata(connection: sqlite3.Connection, positions: Iterable[int]) -> dict[int, str]:
    """Read the metadata JSON at positions of the queue; those that have none are left out."""
    return {seq: text for seq, text in _fetch(connection, "metadata", positions) if isinstance(text, str)}


def _fetch(connection: sqlite3.Connection, what: str, positions: Iterable[int]) -> Iterator[tuple[Any, ...]]:
    wanted = sorted(set(positions))
    for start in range(0, len(wanted), _PARAMETERS):
        part = wanted[start : start + _PARAMETERS]
        marks = ",".join("?" * len(part))
        yield from connection.execute(
            f"SELECT seq_id, {what} FROM embeddings_queue WHERE seq_id IN ({marks})",  # noqa: S608
            part,
        )
