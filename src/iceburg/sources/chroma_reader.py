"""Reading one collection: tables, queue and index put together, batch by batch."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iceburg.errors import SourceBusyError
from iceburg.records import Batch, ChromaRecord, Key, VectorOrigin
from iceburg.sources.chroma_catalogue import CollectionInfo, Segments, columns, max_sequence, segments_of
from iceburg.sources.chroma_database import ChromaDatabase
from iceburg.sources.chroma_index import HnswIndex, IndexDamagedError, signature
from iceburg.sources.chroma_labels import match_labels
from iceburg.sources.chroma_loss import Loss, losses_of_records
from iceburg.sources.chroma_queue import (
    Operation,
    VectorPositions,
    fetch_metadata,
    fetch_vectors,
    is_complete,
    locate_vectors,
    read_operations,
)
from iceburg.sources.chroma_tables import (
    DOCUMENT,
    PendingRecords,
    Row,
    fill_values,
    has_float,
    merge,
    parse_metadata,
    read_rows,
    replay_records,
    sharpen,
)

#: Bytes of vectors, and of text, that a batch may have; it then has fewer records than asked for.
BATCH_BYTES = 16 << 20
#: Two vectors are the same one if they differ by less than this part of the largest component.
_SAME = 1e-6
#: Times that a batch is read again because Chroma rewrote the index meanwhile.
_ATTEMPTS = 20

_Vector = tuple[bytes | None, VectorOrigin]


@dataclass(slots=True)
class _State:
    """What holds for the whole collection until the database or the index changes."""

    version: tuple[int, int]
    segments: Segments
    index: HnswIndex | None
    taken_in: int
    tables_at: int
    vectors: VectorPositions
    records: PendingRecords
    texts: dict[str, list[int]]
    by_order: dict[str, int]


class _IndexChangedError(Exception):
    """Chroma rewrote the index while a batch was read."""


class CollectionReader:
    """The records of one collection in order of row; see `iceburg.records.DatasetReader`.

    A batch may have fewer records than asked for, where vectors or documents are large.

    Parameters
    ----------
    directory
        The Chroma directory.
    database
        Its open database.
    store
        The store's name, for messages.
    collection
        What the catalogue says of the collection.
    """

    def __init__(self, directory: Path, database: ChromaDatabase, store: str, collection: CollectionInfo) -> None:
        self.collection = collection
        self._directory = directory
        self._database = database
        self._store = store
        self._state: _State | None = None

    @property
    def name(self) -> str:
        """Tenant, database and name of the collection."""
        return "/".join((self.collection.tenant, self.collection.database, self.collection.name))

    def count(self) -> int:
        """Return the number of records."""

        def work(connection: sqlite3.Connection) -> int:
            state = self._refresh(connection)
            segment = state.segments.metadata
            sql = "SELECT count(*) FROM embeddings WHERE segment_id = ?"
            stored = int(connection.execute(sql, (segment,)).fetchone()[0])
            return stored - len(state.records.removed) + len(state.records.created)

        return self._database.read(work)

    def batches(
        self, *, after: Key | None = None, upto: Key | None = None, size: int = 10_000
    ) -> Iterator[Batch[ChromaRecord]]:
        """Yield batches of the records with ``after < (row,) <= upto``, each from one snapshot of the database."""
        position = None if after is None else _row(after)
        last = None if upto is None else _row(upto)
        dimension = self.collection.dimension or 1
        size = max(1, min(size, BATCH_BYTES // (4 * dimension)))
        while True:
            records, position, done = self._read(position, last, size)
            if records:
                yield Batch(records, (records[-1].row,))
            if done:
                return

    def losses(self) -> list[Loss]:
        """List what is lost of this collection, by record id; this reads the whole collection."""
        found = losses_of_records(self.name, (r for batch in self.batches() for r in batch.records))
        state = self._database.read(self._refresh)
        problems = [] if state.index is None else state.index.problems
        damage = [Loss(kind, self.name, (), f"{state.segments.vector}: {detail}") for kind, detail in problems]
        return damage + found

    def _read(self, after: int | None, upto: int | None, size: int) -> tuple[list[ChromaRecord], int | None, bool]:
        def work(connection: sqlite3.Connection) -> tuple[list[ChromaRecord], int | None, bool]:
            return self._read_batch(connection, self._refresh(connection), after, upto, size)

        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(0.1)
            try:
                return self._database.read(work)
            except _IndexChangedError:
                continue
        raise SourceBusyError(
            "its index kept changing while it was read",
            where=f"{self._store}: {self.name}",
            hint="Run the command again when the application writes less.",
        )

    def _read_batch(
        self, connection: sqlite3.Connection, state: _State, after: int | None, upto: int | None, size: int
    ) -> tuple[list[ChromaRecord], int | None, bool]:
        segment = state.segments.metadata or ""
        fresh = read_rows(connection, segment, after, upto, size)
        rows = fill_values(connection, segment, fresh, BATCH_BYTES)
        done = len(fresh) < size and len(rows) == len(fresh)
        position = rows[-1].row if rows else after
        changes: dict[str, Sequence[int]] = {
            row.id: state.records.changed[row.row] for row in rows if row.row in state.records.changed
        }
        rows = [row for row in rows if row.row not in state.records.removed]
        if done:
            for row, positions in state.records.created:
                if (after is None or row.row > after) and (upto is None or row.row <= upto):
                    rows.append(Row(row.row, row.id, row.seq))
                    changes[row.id] = positions
        self._finish_values(connection, state, rows, changes)
        vectors = self._vectors(connection, state, rows)
        records = [_record(row, vector) for row, vector in zip(rows, vectors, strict=True)]
        return records, position, done

    def _finish_values(
        self, connection: sqlite3.Connection, state: _State, rows: list[Row], changes: dict[str, Sequence[int]]
    ) -> None:
        exact = {row.id: state.texts[row.id] for row in rows if row.id in state.texts and has_float(row.values)}
        wanted = [seq for positions in (*changes.values(), *exact.values()) for seq in positions]
        if not wanted:
            return
        texts = {seq: parse_metadata(text) for seq, text in fetch_metadata(connection, wanted).items()}
        for row in rows:
            if row.id in exact:
                sharpen(row.values, (texts[seq] for seq in exact[row.id] if seq in texts))
            for seq in changes.get(row.id, ()):
                merge(row.values, texts.get(seq, {}))

    def _vectors(self, connection: sqlite3.Connection, state: _State, rows: list[Row]) -> list[_Vector]:
        """Choose and read the vector of each row."""
        candidates = [self._candidates(state, row) for row in rows]
        queued = fetch_vectors(connection, (seq for positions, _ in candidates for seq in positions))
        queued = {seq: vector for seq, vector in queued.items() if self._fits(vector)}
        certain = [
            next((queued[s] for s in positions[:1] if sure and s in queued), None) for positions, sure in candidates
        ]
        indexed = self._indexed(state, rows, [vector is None for vector in certain])
        chosen: list[_Vector] = []
        for (positions, _), sure, stored in zip(candidates, certain, indexed, strict=True):
            maybe = [queued[seq] for seq in positions if seq in queued]
            if sure is not None:
                chosen.append((sure, "queue"))
            elif stored[0] is not None:
                same = next((v for v in maybe if _same(v, stored[0], direction=stored[1] == "direction")), None)
                chosen.append(stored if same is None else (same, "queue"))
            elif maybe:
                chosen.append((maybe[0], "queue"))
            else:
                chosen.append((None, "missing"))
        return chosen

    def _fits(self, vector: bytes) -> bool:
        return self.collection.dimension is None or len(vector) == 4 * self.collection.dimension

    def _candidates(self, state: _State, row: Row) -> tuple[tuple[int, ...], bool]:
        """Return positions of the queue that may hold a row's vector, newest first, and whether the first does."""
        pending = state.vectors.pending.get(row.id)
        if pending is not None:
            # Without the pickle nobody knows what the index had; the tables know what came to nothing.
            unproved = state.index is None or state.index.metadata is None
            if not (unproved and row.seq is not None and row.seq < pending <= state.tables_at):
                return (pending,), True
        positions = state.vectors.settled.get(row.id, ())
        if row.seq is not None:
            # An operation that touched the record has left its position in the tables; a later one did nothing.
            positions = tuple(seq for seq in positions if seq <= row.seq)
        sure = bool(positions) and (row.id in state.vectors.certain or positions[0] == row.seq)
        return positions, sure

    def _indexed(self, state: _State, rows: list[Row], wanted: list[bool]) -> list[_Vector]:
        """Read the vectors that the index has for the rows wanted."""
        found: list[_Vector] = [(None, "missing")] * len(rows)
        index = state.index
        if index is None or index.layout is None:
            return found
        labels = state.by_order or index.id_to_label
        places, label_list = [], []
        for place, row in enumerate(rows):
            if wanted[place] and row.id in labels and row.id not in state.vectors.removed:
                places.append(place)
                label_list.append(labels[row.id])
        at = index.rows_of(np.array(label_list, np.int64))
        have = np.flatnonzero(at >= 0)
        if not len(have):
            return found
        try:
            vectors, normed = index.vectors(at[have])
        except (IndexDamagedError, FileNotFoundError) as error:
            raise _IndexChangedError from error
        if signature(index.directory) != index.signature:
            raise _IndexChangedError
        lost = _unrecoverable(index, at[have])
        for number, (vector, known, gone) in enumerate(zip(vectors, normed.tolist(), lost.tolist(), strict=True)):
            place = places[int(have[number])]
            if not gone:
                found[place] = vector.tobytes(), _origin(index, known=known, by_order=bool(state.by_order))
        return found

    def _refresh(self, connection: sqlite3.Connection) -> _State:
        """Return the state that fits this snapshot, made anew if the database or the index changed."""
        version = self._database.version(connection)
        state = self._state
        if (
            state is not None
            and state.version == version
            and (state.index is None or signature(state.index.directory) == state.index.signature)
        ):
            return state
        segments = segments_of(connection, self.collection.id)
        index = self._open_index(segments, None if state is None else state.index)
        self._state = self._build(connection, version, segments, index)
        return self._state

    def _open_index(self, segments: Segments, old: HnswIndex | None) -> HnswIndex | None:
        if segments.vector is None or not _is_plain(segments.vector):
            return None
        directory = self._directory / segments.vector
        if not directory.is_dir():
            return None
        if old is not None and old.directory == directory and signature(directory) == old.signature:
            return old
        return HnswIndex(directory, self.collection.dimension, self.collection.distance == "cosine")

    def _build(
        self, connection: sqlite3.Connection, version: tuple[int, int], segments: Segments, index: HnswIndex | None
    ) -> _State:
        metadata = None if index is None else index.metadata
        labels = None if metadata is None else metadata.id_to_label
        taken_in = max_sequence(connection, segments.vector)
        if taken_in is None:
            # 0.4 keeps it in the pickle alone.
            taken_in = 0 if metadata is None else metadata.max_seq_id or 0
        tables_at = max_sequence(connection, segments.metadata) or 0
        operations = list(read_operations(connection, self.collection.id))
        vectors = locate_vectors(operations, taken_in, labels, complete=is_complete(connection))
        records = replay_records(connection, segments.metadata or "", operations, tables_at)
        texts = _texts(operations, tables_at) if self._rounds_floats(connection) else {}
        by_order: dict[str, int] = {}
        if index is not None and metadata is None and index.layout is not None:
            by_order = match_labels(connection, segments.metadata or "", index, taken_in)
        return _State(version, segments, index, taken_in, tables_at, vectors, records, texts, by_order)

    def _rounds_floats(self, connection: sqlite3.Connection) -> bool:
        """Tell whether 1.x has written to the store: it rounds floats in the tables."""
        if not columns(connection, "max_seq_id"):
            return False
        sql = "SELECT 1 FROM max_seq_id WHERE typeof(seq_id) = 'integer' LIMIT 1"
        return connection.execute(sql).fetchone() is not None


def _texts(operations: list[Operation], upto: int) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for op in operations:
        if op.seq <= upto:
            found.setdefault(op.id, []).append(op.seq)
    return found


def _record(row: Row, vector: _Vector) -> ChromaRecord:
    document = row.values.pop(DOCUMENT, None)
    text = document if isinstance(document, str) else None
    if document is not None and text is None:
        row.values[DOCUMENT] = document
    return ChromaRecord(row.row, row.id, text, row.values or None, vector[0], vector[1])


def _origin(index: HnswIndex, *, known: bool, by_order: bool) -> VectorOrigin:
    if by_order:
        return "label-order"
    if not index.cosine:
        return "index"
    return "index-norm" if known else "direction"


def _unrecoverable(index: HnswIndex, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which cosine rows were divided by a norm that is not finite, so that nothing of them is left."""
    lost = np.zeros(len(rows), np.bool_)
    if index.norms is not None:
        known = rows < len(index.norms)
        lost[known] = ~np.isfinite(index.norms[rows[known]])
    return lost


def _same(vector: bytes, stored: bytes, *, direction: bool) -> bool:
    one, two = np.frombuffer(vector, "<f4").astype(np.float64), np.frombuffer(stored, "<f4").astype(np.float64)
    if len(one) != len(two):
        return False
    if direction:
        size = np.linalg.norm(one)
        one = one / size if size else one
    return bool(np.array_equal(one, two) or np.all(np.abs(one - two) <= _SAME * np.max(np.abs(one), initial=0)))


def _row(key: Key) -> int:
    (value,) = key
    if not isinstance(value, int):
        raise TypeError(f"the key of a Chroma record is one row number, not {key!r}")
    return value


def _is_plain(name: str) -> bool:
    """Refuse a segment id that would name a place outside the store."""
    return bool(name) and Path(name).name == name and name not in {".", ".."} and "\0" not in name
