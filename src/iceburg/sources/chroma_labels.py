"""Matching rows of an index to records without the pickle that says which is which.

Chroma 1.x numbers labels in the order in which records were added, as it does ``embeddings.id``. That holds only as
long as nothing was changed or deleted, so it is used only where every number agrees with that, and what it gives is
marked.
"""

from __future__ import annotations

import sqlite3

import numpy as np

from iceburg.sources.chroma_catalogue import sequence_number
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
    rows = connection.execute(
        "SELECT embedding_id, seq_id FROM embeddings WHERE +segment_id = ? ORDER BY id", (segment,)
    )
    ids: list[str] = []
    previous = 0
    for identity, raw in rows:
        seq = sequence_number(raw)
        if seq is None or seq <= previous:
            return {}
        previous = seq
        if seq <= taken_in:
            ids.append(identity)
    if len(ids) != layout.rows:
        return {}
    return {identity: label for label, identity in enumerate(ids, start=1)}
