"""Finding the layout of an index whose ``header.bin`` is lost, where labels and links prove it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from iceburg.sources.chroma_pickle import IndexMetadata
from iceburg.sources.chroma_rows import Layout, chunks, read_columns, read_labels

#: Rows looked at in one step.
_ROWS = 4096


def derive_layout(path: Path, metadata: IndexMetadata, dimension: int | None) -> Layout | None:
    """Find the layout of a `data_level0.bin` without a header.

    Parameters
    ----------
    path
        The file.
    metadata
        The pickle.
    dimension
        The catalogue's dimension; None where it is not known.

    Returns
    -------
    Layout or None
        None where no layout, or more than one, agrees with the labels of the pickle.
    """
    dimension = dimension or metadata.dimension
    if not dimension or not metadata.id_to_label:
        return None
    size = path.stat().st_size
    found: list[Layout] = []
    # hnswlib's M is 16 unless the collection says otherwise; a row has room for 2 x M links.
    for m in [16, *(m for m in range(2, 513) if m != 16)]:
        vector_at = 4 + 8 * m
        label_at = vector_at + 4 * dimension
        row_size = label_at + 8
        if size % row_size == 0:
            layout = _prove(path, metadata, Layout(size // row_size, row_size, vector_at, label_at))
            found += [] if layout is None else [layout]
        if found and m == 16:
            break
    return found[0] if len(found) == 1 else None


def _prove(path: Path, metadata: IndexMetadata, layout: Layout) -> Layout | None:
    """Return the layout with the number of rows in use, None if the rows contradict it."""
    wanted = np.sort(np.fromiter(metadata.id_to_label.values(), np.int64, len(metadata.id_to_label)))
    last = metadata.last_label or int(wanted[-1])
    labels, _ = read_labels(path, layout)
    order = np.argsort(labels, kind="stable")
    at = np.searchsorted(labels[order], wanted)
    if not len(labels) or np.any(at == len(labels)) or np.any(labels[order][at % len(labels)] != wanted):
        return None
    # The rows in use come first; what follows is whatever the memory held.
    rows = int(order[at].max()) + 1
    used = labels[:rows]
    if np.any((used < 0) | (used > last)) or len(np.unique(used)) != rows:
        return None
    layout = Layout(rows, layout.row_size, layout.vector_at, layout.label_at)
    return layout if _links_fit(path, layout, last) else None


def _links_fit(path: Path, layout: Layout, last: int) -> bool:
    room = (layout.vector_at - 4) // 4
    for rows in chunks(np.arange(layout.rows, dtype=np.int64), _ROWS):
        heads = read_columns(path, layout, rows, 0, layout.vector_at).view("<u4")
        counts = heads[:, 0] & 0xFFFF
        if np.any(counts > room) or np.any(heads[:, 0] >> 17):
            return False
        linked = np.arange(room)[None, :] < counts[:, None]
        if np.any(heads[:, 1:][linked] > last):
            return False
    return True
