"""Reading one collection: tables, queue and index put together, batch by batch."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from iceburg.errors import SourceBusyError
from iceburg.records import Batch, ChromaRecord, Key
from iceburg.sources.chroma_catalogue import CollectionInfo
from iceburg.sources.chroma_database import ChromaDatabase
from iceburg.sources.chroma_loss import Loss, losses_of_records
from iceburg.sources.chroma_queue import fetch_metadata
from iceburg.sources.chroma_state import State, build_state
from iceburg.sources.chroma_tables import (
    DOCUMENT,
    Row,
    count_rows,
    fill_values,
    fill_values_of,
    has_float,
    merge,
    parse_metadata,
    read_rows,
    restore,
    rows_by_id,
    rows_of_segment,
    sharpen,
)
from iceburg.sources.chroma_vectors import IndexChangedError, Vector, read_vectors

#: Bytes of vectors, and of text, that a batch may have; it then has fewer records than asked for.
BATCH_BYTES = 8 << 20
#: Times that a batch is read again because Chroma rewrote the index meanwhile, and seconds between them. While Chroma
#: writes an index, its pickle can be cut or its directory gone for a moment.
_ATTEMPTS = 20
_PAUSE = 0.2


class CollectionReader:
    """The records of one collection in order of row; see `iceburg.records.DatasetReader`.

    A batch may have fewer records than asked for, where vectors or documents are large. Records that the tables have
    not taken in yet come last, under the numbers that Chroma will give them.

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
        self._state: State | None = None
        self._confirmed: object = None
        self._doubtful: dict[str, dict[str, None]] = {}

    @property
    def name(self) -> str:
        """Tenant, database and name of the collection."""
        return "/".join((self.collection.tenant, self.collection.database, self.collection.name))

    def count(self) -> int:
        """Return the number of records."""

        def work(connection: sqlite3.Connection) -> int:
            state = self._refresh(connection)
            stored = count_rows(connection, state.segment) - len(state.records.removed)
            return stored + len(state.records.created) + len(state.unlisted)

        return self._database.read(work)

    def batches(
        self, *, after: Key | None = None, upto: Key | None = None, size: int = 10_000
    ) -> Iterator[Batch[ChromaRecord]]:
        """Yield batches of the records with ``after < (row,) <= upto``, each from one snapshot of the database."""
        position = None if after is None else row_of(after)
        last = None if upto is None else row_of(upto)
        size = max(1, min(size, BATCH_BYTES // (4 * (self.collection.dimension or 1))))
        if self._database.pacing is not None:
            size = min(size, self._database.pacing.batch)
        done = False
        while not done:
            records, position, done = self._read(position, last, size)
            if records:
                yield Batch(records, (records[-1].row,))

    def changed(self, connection: sqlite3.Connection, ids: Sequence[str]) -> list[ChromaRecord]:
        """Return those of `ids` that are there, as they are in a snapshot of the database.

        Raises
        ------
        IndexChangedError
            Chroma wrote the index meanwhile: read again, in another snapshot.
        """
        state = self._refresh(connection)
        wanted = set(ids)
        rows = [row for row in rows_by_id(connection, state.segment, ids) if row.row not in state.records.removed]
        fill_values_of(connection, rows)
        changes = {row.id: state.records.changed[row.row] for row in rows if row.row in state.records.changed}
        for row, positions in state.records.created:
            if row.id in wanted:
                rows.append(Row(row.row, row.id, row.seq))
                changes[row.id] = positions
        records = self._records(connection, state, rows, changes)
        if self._is_moving(records):
            raise IndexChangedError
        return records

    def ids(self, connection: sqlite3.Connection) -> set[str]:
        """Return the ids of all records in a snapshot of the database."""
        state = self._refresh(connection)
        stored = rows_of_segment(connection, state.segment)
        there = {identity for identity, row in stored.items() if row not in state.records.removed}
        return there | {row.id for row, _ in state.records.created}

    def tables_at(self, connection: sqlite3.Connection) -> int:
        """Return the last position of the queue that the tables have taken in."""
        return self._refresh(connection).tables_at

    def losses(self) -> list[Loss]:
        """List what is lost of this collection, by record id; this reads the whole collection."""
        self._doubtful = {}
        found = losses_of_records(self.name, (r for batch in self.batches() for r in batch.records))
        state = self._database.read(self._refresh)
        problems = [] if state.index is None else state.index.problems
        damage = [Loss(kind, self.name, (), f"{state.segments.vector}: {detail}") for kind, detail in problems]
        if state.unlisted:
            detail = (
                "their rows in the tables are lost: they come from the index and the queue, deleted ones perhaps too"
            )
            damage.append(Loss("record-unreadable", self.name, tuple(row.id for row in state.unlisted), detail))
        return damage + found + self._doubts()

    def _doubts(self) -> list[Loss]:
        """List the records of a damaged database of which a change may be lost."""
        found = []
        kinds = {
            "text-missing": "neither document nor metadata can be read; what others have may be incomplete",
            "text-outdated": "taken from the full-text table or from an older change; a newer one may be lost",
            "vector-outdated": "a newer change may be lost with the queue",
            "record-doubtful": "only the queue has it, and its deletion may be lost with the queue",
        }
        for kind, ids in self._doubtful.items():
            found.append(Loss(kind, self.name, tuple(ids), kinds[kind]))
        return found

    def _note_doubts(self, state: State, row: Row, vector: Vector, filled_from: int | None) -> None:
        """Note what a damaged database leaves open about a record."""
        salvage = self._database.salvage
        if salvage is None:
            return
        doubts = []
        if row.seq is None and filled_from is not None and any(gap.meets(filled_from, None) for gap in state.gaps):
            doubts.append("record-doubtful")
        if not row.values and salvage.touches("embedding_metadata", "embedding_metadata_array", "embeddings"):
            doubts.append("text-missing")
        stale = filled_from is not None and any(gap.meets(filled_from, row.seq) for gap in state.gaps)
        if stale or row.row in salvage.documents:
            doubts.append("text-outdated")
        if vector.data is not None and any(gap.meets(vector.position, row.seq) for gap in state.gaps):
            doubts.append("vector-outdated")
        for kind in doubts:
            self._doubtful.setdefault(kind, {})[row.id] = None

    def _read(self, after: int | None, upto: int | None, size: int) -> tuple[list[ChromaRecord], int | None, bool]:
        def work(connection: sqlite3.Connection) -> tuple[list[ChromaRecord], int | None, bool]:
            return self._read_batch(connection, self._refresh(connection), after, upto, size)

        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_PAUSE)
            try:
                found = self._database.read(work)
            except IndexChangedError:
                continue
            if not self._is_moving(found[0]):
                return found
        raise SourceBusyError(
            "its index kept changing while it was read",
            where=f"{self._store}: {self.name}",
            hint="Run the command again when the application writes less.",
        )

    def _is_moving(self, records: list[ChromaRecord]) -> bool:
        """Tell whether vectors may be missing only because Chroma is writing the index: once, until it stands still."""
        state = self._state
        if state is None or all(record.origin != "missing" for record in records):
            return False
        seen = (None if state.index is None else state.index.signature, state.taken_in)
        moving = seen != self._confirmed
        self._confirmed = seen
        return moving

    def _read_batch(
        self, connection: sqlite3.Connection, state: State, after: int | None, upto: int | None, size: int
    ) -> tuple[list[ChromaRecord], int | None, bool]:
        unlisted = _between(state.unlisted, after, upto)
        if unlisted:
            return self._records(connection, state, unlisted[:size], {}), unlisted[:size][-1].row, False
        fresh = read_rows(connection, state.segment, after, upto, size)
        rows = fill_values(connection, state.segment, fresh, BATCH_BYTES)
        done = len(fresh) < size and len(rows) == len(fresh)
        position = rows[-1].row if rows else after
        changes = {row.id: state.records.changed[row.row] for row in rows if row.row in state.records.changed}
        rows = [row for row in rows if row.row not in state.records.removed]
        if done:
            created = {row.id: positions for row, positions in state.records.created}
            # With a damaged queue, the position that made a record need not be the last that touched it.
            added = [Row(row.row, row.id, None if state.gaps else row.seq) for row, _ in state.records.created]
            for row in _between(added, after, upto):
                rows.append(row)
                changes[row.id] = created[row.id]
        return self._records(connection, state, rows, changes), position, done

    def _records(
        self, connection: sqlite3.Connection, state: State, rows: list[Row], changes: dict[str, list[int]]
    ) -> list[ChromaRecord]:
        filled = self._finish_values(connection, state, rows, changes)
        vectors = read_vectors(connection, state, rows, self.collection.dimension)
        for row, vector in zip(rows, vectors, strict=True):
            self._note_doubts(state, row, vector, filled.get(row.id))
        return [_record(row, vector) for row, vector in zip(rows, vectors, strict=True)]

    def _finish_values(
        self, connection: sqlite3.Connection, state: State, rows: list[Row], changes: dict[str, list[int]]
    ) -> dict[str, int]:
        """Bring values up to date; return the position that a damaged record's were filled in from."""
        damaged = self._database.salvage is not None
        past = {r.id: state.texts[r.id] for r in rows if r.id in state.texts and (damaged or has_float(r.values))}
        wanted = [seq for positions in changes.values() for seq in positions]
        wanted += [op.seq for operations in past.values() for op in operations]
        filled: dict[str, int] = {}
        if not wanted:
            return filled
        texts = {seq: parse_metadata(text) for seq, text in fetch_metadata(connection, wanted).items()}
        for row in rows:
            # An operation beyond the last that touched the record did nothing.
            operations = [op for op in past.get(row.id, ()) if row.seq is None or op.seq <= row.seq]
            taken = [texts.get(op.seq, {}) for op in operations]
            oldest = restore(row.values, taken) if damaged else None
            if oldest is not None:
                filled[row.id] = operations[oldest].seq
            sharpen(row.values, taken)
            for seq in changes.get(row.id, ()):
                merge(row.values, texts.get(seq, {}))
                filled.setdefault(row.id, seq)
        return filled

    def _refresh(self, connection: sqlite3.Connection) -> State:
        """Return the state that fits this snapshot, made anew if the database or the index changed."""
        version = self._database.version(connection)
        if self._state is None or not self._state.fits(version):
            salvage = self._database.salvage
            self._state = build_state(connection, version, self._directory, self.collection, self._state, salvage)
        return self._state


def row_of(key: Key) -> int:
    """Return the row number that a reading key is.

    Raises
    ------
    TypeError
        The key is not one number.
    """
    if len(key) != 1 or not isinstance(key[0], int):
        raise TypeError(f"the key of a Chroma record is one row number, not {key!r}")
    return key[0]


def _between(rows: list[Row], after: int | None, upto: int | None) -> list[Row]:
    return [row for row in rows if (after is None or row.row > after) and (upto is None or row.row <= upto)]


def _record(row: Row, vector: Vector) -> ChromaRecord:
    document = row.values.get(DOCUMENT)
    text = row.values.pop(DOCUMENT) if isinstance(document, str) else None
    return ChromaRecord(
        row.row, row.id, text if isinstance(text, str) else None, row.values or None, vector.data, vector.origin
    )
