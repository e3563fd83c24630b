"""Where things are in ``data_level0.bin``, and reading rows of it.

The file is read with plain positioned reads, not mapped: Chroma rewrites it while it runs, and a mapped file that
shrinks kills the process. The layout is hnswlib's, found by experiment with stores of chromadb 0.4 to 1.5.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_HEADER = struct.Struct("<iQQQQQQiIQQQdQ")
#: One read of the file; large enough to run at memory speed, small beside a batch.
_CHUNK = 4 << 20
#: Rows further apart than this are read by themselves.
_GAP = 64 << 10


class IndexDamagedError(Exception):
    """An HNSW directory whose rows cannot be told apart."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are in `data_level0.bin`.

    Attributes
    ----------
    rows
        Rows in use, whether or not the file has them all.
    row_size
        Bytes of a row.
    vector_at, label_at
        Byte offsets of the vector and of the label in a row.
    """

    rows: int
    row_size: int
    vector_at: int
    label_at: int

    @property
    def dimension(self) -> int:
        """Components of a vector."""
        return (self.label_at - self.vector_at) // 4


def parse_header(data: bytes) -> Layout:
    """Read the bytes of a `header.bin`.

    Raises
    ------
    IndexDamagedError
        Its fields contradict one another.
    """
    if len(data) < _HEADER.size:
        raise IndexDamagedError(f"header.bin has {len(data)} of {_HEADER.size} bytes")
    version, start, capacity, rows, row_size, label_at, vector_at, _, _, _, links, *_ = _HEADER.unpack_from(data)
    sound = (
        version == 1
        and start == 0
        and rows <= capacity
        and vector_at == 4 + 4 * links
        and label_at > vector_at
        and (label_at - vector_at) % 4 == 0
        and row_size == label_at + 8
    )
    if not sound:
        raise IndexDamagedError("the fields of header.bin contradict one another")
    return Layout(rows, row_size, vector_at, label_at)


def read_labels(path: Path, layout: Layout) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    labels, deleted = [], []
    per_chunk = max(1, _CHUNK // layout.row_size)
    with path.open("rb") as file:
        rows = min(layout.rows, os.fstat(file.fileno()).st_size // layout.row_size)
        for start in range(0, rows, per_chunk):
            count = min(per_chunk, rows - start)
            block = os.pread(file.fileno(), count * layout.row_size, start * layout.row_size)
            whole = len(block) // layout.row_size
            table = np.frombuffer(block, np.uint8, whole * layout.row_size).reshape(whole, layout.row_size)
            raw = np.ascontiguousarray(table[:, layout.label_at : layout.label_at + 8])
            labels.append(raw.view("<i8").reshape(whole))
            deleted.append((table[:, 2] & 1).astype(np.bool_))
            if whole < count:
                break
    if not labels:
        return np.empty(0, np.int64), np.empty(0, np.bool_)
    return np.concatenate(labels), np.concatenate(deleted)


def read_columns(path: Path, layout: Layout, rows: NDArray[np.int64], start: int, stop: int) -> NDArray[np.uint8]:
    """Read the bytes from `start` to `stop` of each row."""
    found = np.empty((len(rows), stop - start), np.uint8)
    order = np.argsort(rows, kind="stable")
    with path.open("rb", buffering=0) as file:
        for run in _runs(rows[order], layout.row_size):
            places = order[run]
            first, last = int(rows[places[0]]), int(rows[places[-1]])
            size = (last - first + 1) * layout.row_size
            block = os.pread(file.fileno(), size, first * layout.row_size)
            if len(block) != size:
                raise IndexDamagedError("data_level0.bin became shorter while it was read")
            table = np.frombuffer(block, np.uint8).reshape(-1, layout.row_size)
            found[places] = table[rows[places] - first, start:stop]
    return found


def _runs(rows: NDArray[np.int64], row_size: int) -> Iterator[slice]:
    """Cut ascending row numbers into runs that one read each is worth."""
    start = 0
    gap, span = max(1, _GAP // row_size), max(1, _CHUNK // row_size)
    breaks = np.flatnonzero(np.diff(rows) > gap) + 1
    for stop in [*breaks.tolist(), len(rows)]:
        while start < stop:
            cut = start + int(np.searchsorted(rows[start:stop], rows[start] + span))
            yield slice(start, cut)
            start = cut


def chunks(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Cut row numbers into parts of at most `size`."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
