"""What the order of numbers tells where the pickle that maps ids to rows of the index is lost.

Chroma 1.x numbers labels in the order in which records were added, as it does ``embeddings.id``; 0.x shuffles each
batch. That holds only as long as nothing was changed or deleted, so it is used only where every number agrees with it
and nothing speaks of an older version, and what it gives is marked.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iceburg.sources.chroma_catalogue import columns, sequence_number
from iceburg.sources.chroma_index import HnswIndex


def match_labels(connection: sqlite3.Connection, segment: str, index: HnswIndex, taken_in: int) -> dict[str, int]:
    """Return id to label by the order of rows; empty where there is any sign of churn.

    Parameters
    ----------
    connection
        The database.
    segment
        The collection's METADATA segment.
    index
        The index without a pickle.
    taken_in
        Last position of the queue that the index holds.
    """
    layout = index.layout
    if layout is None or not layout.rows or len(index.labels) < layout.rows or index.deleted.any():
        return {}
    if not np.array_equal(np.sort(index.labels), np.arange(1, layout.rows + 1)):
        return {}
    if not _made_by_1_x(connection, segment, index.directory.name):
        return {}
    rows = connection.execute(
        "SELECT embedding_id, seq_id FROM embeddings WHERE +segment_id = ? ORDER BY id", (segment,)
    )
    ids: list[str] = []
    previous = 0
    for identity, seq in rows:
        # Versions before 1.0 wrote a BLOB.
        if not isinstance(seq, int) or seq <= previous:
            return {}
        previous = seq
        if seq <= taken_in:
            ids.append(identity)
    if len(ids) != layout.rows:
        return {}
    return {identity: label for label, identity in enumerate(ids, start=1)}


def _made_by_1_x(connection: sqlite3.Connection, segment: str, vector_segment: str) -> bool:
    """Tell whether nothing that versions before 1.0 leave behind is left in the catalogue."""
    if "config_json_str" not in columns(connection, "collections"):
        return False
    of_segment = "SELECT 1 FROM segment_metadata WHERE segment_id IN (?, ?)"
    if connection.execute(of_segment, (segment, vector_segment)).fetchone() is not None:
        return False
    of_collection = """
        SELECT c.config_json_str FROM collections c JOIN segments s ON s.collection = c.id WHERE s.id = ?
    """
    found = connection.execute(of_collection, (segment,)).fetchone()
    return found is not None and isinstance(found[0], str) and "hnsw_configuration" not in found[0]


@dataclass(frozen=True, slots=True)
class Arrivals:
    """The order in which the records of a store were made.

    Attributes
    ----------
    rows
        Numbers of all rows, ascending, which is the order in which they were made.
    least
        For each, the lowest position that one of the rows after it has left in the tables.
    """

    rows: NDArray[np.int64]
    least: NDArray[np.int64]

    def made_before(self, row: int, seq: int) -> bool:
        """Tell whether a row is known to have been made before a position: a later row has been there by then."""
        at = int(np.searchsorted(self.rows, row))
        return at < len(self.rows) and bool(self.least[at] < seq)


def read_arrivals(connection: sqlite3.Connection) -> Arrivals:
    """Read the order in which all records of the store were made."""
    found = connection.execute("SELECT id, seq_id FROM embeddings ORDER BY id").fetchall()
    known = [(row, seq) for row, seq in ((row, sequence_number(raw)) for row, raw in found) if seq is not None]
    rows = np.array([row for row, _ in known], np.int64)
    seqs = np.array([seq for _, seq in known] + [np.iinfo(np.int64).max], np.int64)
    return Arrivals(rows, np.minimum.accumulate(seqs[::-1])[::-1][1:])
