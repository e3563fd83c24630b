"""What holds for a whole collection at one moment: positions, queue, pending records, index."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from iceburg.sources.chroma_catalogue import (
    CollectionInfo,
    Segments,
    columns,
    is_complete,
    max_sequence,
    segments_of,
)
from iceburg.sources.chroma_index import HnswIndex, signature
from iceburg.sources.chroma_labels import Arrivals, match_labels, read_arrivals
from iceburg.sources.chroma_pages import Gap
from iceburg.sources.chroma_queue import ADD, DELETE, Operation, VectorPositions, locate_vectors, read_operations
from iceburg.sources.chroma_salvage import Salvage
from iceburg.sources.chroma_tables import PendingRecords, Row, last_position, replay_records, rows_of_segment
from iceburg.sources.chroma_unlisted import find_unlisted


@dataclass(slots=True)
class State:
    """A collection at one moment.

    Attributes
    ----------
    version
        The database's version that this was made of.
    segments, index
        The collection's segments and its index, None where it has no directory.
    taken_in, tables_at
        Last position of the queue that the index and the tables have taken in.
    vectors
        Where in the queue vectors are.
    records
        What the queue holds of records beyond the tables.
    texts
        Id to positions whose metadata the tables have taken in; filled where it is worth looking at.
    by_order
        Id to label by the order of rows, where the pickle is lost.
    unlisted
        Records whose rows in damaged tables are lost, known from the index and the queue; their numbers are negative.
    gaps
        Where positions of a damaged queue are lost.
    arrivals
        The order in which records were made, where the queue leaves open what an ADD did.
    """

    version: tuple[int, int]
    segments: Segments
    index: HnswIndex | None
    taken_in: int
    tables_at: int
    vectors: VectorPositions
    records: PendingRecords
    texts: dict[str, list[Operation]]
    by_order: dict[str, int]
    unlisted: list[Row]
    gaps: list[Gap]
    arrivals: Arrivals | None

    @property
    def segment(self) -> str:
        """The METADATA segment; empty where there is none, which no row belongs to."""
        return self.segments.metadata or ""

    def fits(self, version: tuple[int, int]) -> bool:
        """Tell whether neither the database nor the index has changed."""
        if self.version != version:
            return False
        return self.index is None or signature(self.index.directory) == self.index.signature


def build_state(
    connection: sqlite3.Connection,
    version: tuple[int, int],
    directory: Path,
    collection: CollectionInfo,
    old: State | None,
    salvage: Salvage | None,
) -> State:
    """Read a collection's state from one snapshot of the database."""
    segments = segments_of(connection, collection.id)
    index = _open_index(directory, segments, collection, None if old is None else old.index)
    metadata = None if index is None else index.metadata
    labels = None if metadata is None else metadata.id_to_label
    operations = list(read_operations(connection, collection.id))
    taken_in = max_sequence(connection, segments.vector)
    tables_at = max_sequence(connection, segments.metadata)
    gaps = [] if salvage is None else salvage.gaps("embeddings_queue")
    complete = is_complete(connection) and not gaps and (salvage is None or not salvage.schema_damaged)
    unsure = bool(gaps)
    if salvage is not None and salvage.touches("max_seq_id"):
        # The positions may be lost: what the index and the tables have is then taken to be the newest.
        unsure = unsure or taken_in is None
        taken_in = (operations[-1].seq if operations else 0) if taken_in is None else taken_in
        tables_at = last_position(connection, segments.metadata or "") if tables_at is None else tables_at
    if taken_in is None:
        # 0.4 keeps it in the pickle alone.
        taken_in = 0 if metadata is None else metadata.max_seq_id or 0
    # A complete queue tells by itself which ids there were.
    in_index = {} if labels is None and complete else labels
    vectors = locate_vectors(operations, taken_in, in_index, complete=complete)
    if unsure:
        # A later operation may be lost, so an operation that the index had taken in proves nothing.
        vectors.certain.clear()
    records = replay_records(connection, segments.metadata or "", operations, tables_at or 0)
    by_order: dict[str, int] = {}
    if index is not None and metadata is None and index.layout is not None:
        by_order = match_labels(connection, segments.metadata or "", index, taken_in)
    texts = _texts(operations, tables_at or 0, gaps) if salvage is not None or _rounds_floats(connection) else {}
    unlisted: list[Row] = []
    if salvage is not None and salvage.touches("embeddings"):
        listed = rows_of_segment(connection, segments.metadata or "")
        listed.update((row.id, row.row) for row, _ in records.created)
        lost = salvage.gaps("embeddings")
        unlisted = find_unlisted(operations, labels or {}, vectors.removed, listed, lost)
    arrivals = read_arrivals(connection) if vectors.doubtful and columns(connection, "embeddings") else None
    return State(
        version=version,
        segments=segments,
        index=index,
        taken_in=taken_in,
        tables_at=tables_at or 0,
        vectors=vectors,
        records=records,
        texts=texts,
        by_order=by_order,
        unlisted=unlisted,
        gaps=gaps,
        arrivals=arrivals,
    )


def _open_index(
    directory: Path, segments: Segments, collection: CollectionInfo, old: HnswIndex | None
) -> HnswIndex | None:
    if segments.vector is None or not _is_plain(segments.vector):
        return None
    place = directory / segments.vector
    if not place.is_dir():
        return None
    if old is not None and old.directory == place and signature(place) == old.signature:
        return old
    return HnswIndex(place, collection.dimension, collection.distance == "cosine")


def _is_plain(name: str) -> bool:
    """Refuse a segment id that would name a place outside the store."""
    return bool(name) and Path(name).name == name and name not in {".", ".."} and "\0" not in name


def _rounds_floats(connection: sqlite3.Connection) -> bool:
    """Tell whether 1.x has written to the store: it rounds floats in the tables."""
    if not columns(connection, "max_seq_id"):
        return False
    return (
        connection.execute("SELECT 1 FROM max_seq_id WHERE typeof(seq_id) = 'integer' LIMIT 1").fetchone() is not None
    )


def _texts(operations: list[Operation], upto: int, gaps: list[Gap]) -> dict[str, list[Operation]]:
    """Return id to the operations that have shaped its record, those left out that did nothing."""
    found: dict[str, list[Operation]] = {}
    for op in operations:
        if op.seq > upto:
            break
        earlier = found.get(op.id)
        if op.operation == DELETE:
            found.pop(op.id, None)
        elif earlier is None:
            found[op.id] = [op]
        elif op.operation != ADD or any(gap.meets(earlier[-1].seq, op.seq) for gap in gaps):
            earlier.append(op)
    return found
