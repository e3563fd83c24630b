"""Reading the indexes of a store whose catalogue is gone: ids and vectors, no documents and no names."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path

import numpy as np

from iceburg.records import Batch, ChromaRecord, Key, VectorOrigin
from iceburg.sources.chroma_catalogue import CollectionInfo
from iceburg.sources.chroma_index import HnswIndex, segment_directories
from iceburg.sources.chroma_loss import Loss, losses_of_records
from iceburg.sources.chroma_reader import row_of


def orphan_collections(directory: Path, claimed: Container[str] = ()) -> list[CollectionInfo]:
    """List the indexes of a directory, except those of segments that are claimed, as collections named by segment."""
    found = []
    for segment in segment_directories(directory):
        if segment.name in claimed:
            continue
        index = HnswIndex(segment, None, None)
        dimension = index.layout.dimension if index.layout is not None and len(index.labels) else None
        name = segment.name
        found.append(CollectionInfo(name, "", "", name, dimension, "cosine" if index.cosine else "l2", {}))
    return found


class OrphanReader:
    """The ids and vectors of one index; see `iceburg.records.DatasetReader`.

    Rows are numbered downwards from -1 by label, so that they can never be taken for rows of a catalogue.
    """

    def __init__(self, directory: Path, collection: CollectionInfo) -> None:
        self.collection = collection
        self._index = HnswIndex(directory / collection.id, collection.dimension, collection.distance == "cosine")
        items = sorted((-1 - label, identity) for identity, label in self._index.id_to_label.items())
        self._rows = np.array([row for row, _ in items], np.int64)
        self._ids = [identity for _, identity in items]

    @property
    def name(self) -> str:
        """The segment's id."""
        return self.collection.name

    def count(self) -> int:
        """Return the number of records."""
        return len(self._ids)

    def batches(
        self, *, after: Key | None = None, upto: Key | None = None, size: int = 10_000
    ) -> Iterator[Batch[ChromaRecord]]:
        """Yield batches of the records with ``after < (row,) <= upto``."""
        start = 0 if after is None else int(np.searchsorted(self._rows, row_of(after), "right"))
        stop = len(self._rows) if upto is None else int(np.searchsorted(self._rows, row_of(upto), "right"))
        for first in range(start, stop, size):
            places = range(first, min(first + size, stop))
            records = [self._record(place) for place in places]
            yield Batch(records, (records[-1].row,))

    def losses(self) -> list[Loss]:
        """List what is lost, by record id; this reads the whole index."""
        damage = [Loss(kind, self.name, (), detail) for kind, detail in self._index.problems]
        return damage + losses_of_records(self.name, (r for batch in self.batches() for r in batch.records))

    def _record(self, place: int) -> ChromaRecord:
        row = int(self._rows[place])
        vector: bytes | None = None
        origin: VectorOrigin = "missing"
        if self._index.layout is not None:
            at = self._index.rows_of(np.array([-1 - row], np.int64))
            if at[0] >= 0:
                vectors, known = self._index.vectors(at)
                vector = vectors[0].tobytes()
                origin = "index" if not self._index.cosine else "index-norm" if known[0] else "direction"
        return ChromaRecord(row, self._ids[place], None, None, vector, origin)
