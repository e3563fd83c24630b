"""Reading the vectors of one HNSW directory: ``header.bin``, ``data_level0.bin``, ``length.bin`` and the pickle.

The files are read with plain positioned reads, not mapped: Chroma rewrites them while it runs, and a mapped file that
shrinks kills the process. The layout is hnswlib's, found by experiment with stores of chromadb 0.4 to 1.5.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iceburg.sources.chroma_pickle import IndexMetadata, PickleRefusedError, read_index_metadata

_HEADER = struct.Struct("<iQQQQQQiIQQQdQ")
_FILES = ("header.bin", "data_level0.bin", "length.bin", "link_lists.bin", "index_metadata.pickle")
#: One read of `data_level0.bin`; large enough to run at memory speed, small beside a batch.
_CHUNK = 4 << 20
#: Rows further apart than this are read by themselves.
_GAP = 64 << 10
#: hnswlib divides by the norm plus this, so that a zero vector stays zero.
_EPSILON = 1e-30

Signature = tuple[tuple[int, int, int] | None, ...]


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


def signature(directory: Path) -> Signature:
    """Return what changes when Chroma writes one of the directory's files."""
    found: list[tuple[int, int, int] | None] = []
    for name in _FILES:
        try:
            stat = (directory / name).stat()
        except FileNotFoundError:
            found.append(None)
        else:
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


class HnswIndex:
    """The vectors of one HNSW directory by record id.

    Parameters
    ----------
    directory
        The directory, named by its segment.
    dimension
        The catalogue's dimension; None where it is not known.
    cosine
        Whether rows are unit vectors whose norms are in `length.bin`; None where it is not known and to be guessed.

    Attributes
    ----------
    metadata
        The pickle; None where there is none or it was refused.
    layout
        None where nothing can be read from the rows.
    problems
        Pairs of kind and explanation, of what is damaged.
    """

    def __init__(self, directory: Path, dimension: int | None, cosine: bool | None) -> None:
        self.directory = directory
        self.problems: list[tuple[str, str]] = []
        self.signature = signature(directory)
        self.metadata = self._without_shared_labels(self._read_pickle())
        self.layout: Layout | None = None
        self.labels: NDArray[np.int64] = np.empty(0, np.int64)
        self.deleted: NDArray[np.bool_] = np.empty(0, np.bool_)
        self.norms: NDArray[np.float32] | None = None
        try:
            layout = self._find_layout(dimension)
            if layout is not None:
                self.labels, self.deleted = self._read_labels(layout)
            self.layout = layout
        except IndexDamagedError as error:
            self.problems.append(("index-unreadable", str(error)))
        except OSError as error:
            self.problems.append(("index-unreadable", f"{error.strerror}: {error.filename}"))
        if self.layout is not None and len(self.labels) < self.layout.rows:
            self.problems.append(("index-cut", f"data_level0.bin has {len(self.labels)} of {self.layout.rows} rows"))
        # A label can stand in a deleted row and again in a live one; the live one comes first.
        order = np.lexsort((self.deleted, self.labels))
        self._sorted_labels = self.labels[order]
        self._sorted_rows = order
        self.cosine = self._guess_cosine() if cosine is None else cosine
        if self.cosine:
            self.norms = self._read_norms()

    @property
    def id_to_label(self) -> dict[str, int]:
        """Record id to label; empty without a pickle."""
        return {} if self.metadata is None else self.metadata.id_to_label

    def rows_of(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of each label, -1 where the file has none."""
        if not len(self._sorted_labels):
            return np.full(len(labels), -1, np.int64)
        at = np.searchsorted(self._sorted_labels, labels)
        at[at == len(self._sorted_labels)] = 0
        return np.where(self._sorted_labels[at] == labels, self._sorted_rows[at], -1)

    def vectors(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Read the vectors at `rows`.

        Returns
        -------
        vectors
            One a row: the original where the distance is l2 or ip, unit vector x norm where it is cosine.
        normed
            False where a cosine row's norm is lost and its vector is therefore only a direction.
        """
        raw = self._gather(rows)
        if not self.cosine:
            return raw, np.ones(len(rows), np.bool_)
        if self.norms is None:
            return raw, np.zeros(len(rows), np.bool_)
        known = rows < len(self.norms)
        norms = np.ones(len(rows), np.float64)
        norms[known] = self.norms[rows[known]].astype(np.float64) + _EPSILON
        with np.errstate(invalid="ignore", over="ignore"):
            return (raw * norms[:, None]).astype("<f4"), known

    def has_norm(self, row: int) -> bool:
        """Tell whether `length.bin` has the norm of a row; true where no norm is needed."""
        return not self.cosine or (self.norms is not None and row < len(self.norms))

    def _read_pickle(self) -> IndexMetadata | None:
        path = self.directory / "index_metadata.pickle"
        try:
            return read_index_metadata(path)
        except FileNotFoundError:
            return None
        except PickleRefusedError as error:
            self.problems.append(("pickle-refused", f"index_metadata.pickle was not read: {error}"))
        except OSError as error:
            self.problems.append(("pickle-refused", f"index_metadata.pickle was not read: {error.strerror}"))
        return None

    def _without_shared_labels(self, metadata: IndexMetadata | None) -> IndexMetadata | None:
        """Leave out ids that share a label: a changed bit can do that, and nobody can tell whose the row is."""
        if metadata is None:
            return None
        uses = Counter(metadata.id_to_label.values())
        if len(uses) == len(metadata.id_to_label):
            return metadata
        shared = {label for label, count in uses.items() if count > 1}
        self.problems.append(("index-unreadable", f"index_metadata.pickle gives {len(shared)} labels more than once"))
        sound = {identity: label for identity, label in metadata.id_to_label.items() if label not in shared}
        return dataclasses.replace(metadata, id_to_label=sound)

    def _find_layout(self, dimension: int | None) -> Layout | None:
        if not (self.directory / "data_level0.bin").exists():
            if self.metadata is not None or self.signature[0] is not None:
                raise IndexDamagedError("data_level0.bin is missing")
            return None
        try:
            layout = parse_header((self.directory / "header.bin").read_bytes())
        except FileNotFoundError:
            error = IndexDamagedError("header.bin is missing")
        except IndexDamagedError as damage:
            error = damage
        else:
            if dimension is not None and layout.dimension != dimension:
                error = IndexDamagedError(f"header.bin says {layout.dimension} dimensions, the catalogue {dimension}")
            elif layout.rows == 0 and self.id_to_label:
                error = IndexDamagedError("header.bin says that no row is in use, the pickle says otherwise")
            else:
                return layout
        derived = self._derive_layout(dimension)
        if derived is None:
            raise error
        return derived

    def _derive_layout(self, dimension: int | None) -> Layout | None:
        """Find the layout without a header, where labels and links prove it."""
        if self.metadata is None or not self.id_to_label:
            return None
        dimension = dimension or self.metadata.dimension
        if not dimension:
            return None
        size = (self.directory / "data_level0.bin").stat().st_size
        found: list[Layout] = []
        # hnswlib's M is 16 unless the collection says otherwise; a row has room for 2 x M links.
        for m in [16, *(m for m in range(2, 513) if m != 16)]:
            vector_at = 4 + 8 * m
            label_at = vector_at + 4 * dimension
            row_size = label_at + 8
            if size % row_size == 0:
                layout = self._prove_layout(Layout(size // row_size, row_size, vector_at, label_at))
                found += [] if layout is None else [layout]
            if found and m == 16:
                break
        return found[0] if len(found) == 1 else None

    def _prove_layout(self, layout: Layout) -> Layout | None:
        """Return the layout with the number of rows in use, None if the rows contradict it."""
        metadata = self.metadata
        if metadata is None:
            return None
        wanted = np.sort(np.fromiter(metadata.id_to_label.values(), np.int64, len(metadata.id_to_label)))
        last = metadata.last_label or int(wanted[-1])
        labels, _ = self._read_labels(layout)
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
        return layout if self._links_fit(layout, last) else None

    def _links_fit(self, layout: Layout, last: int) -> bool:
        room = (layout.vector_at - 4) // 4
        for rows in _chunks(np.arange(layout.rows, dtype=np.int64), max(1, _CHUNK // layout.row_size)):
            heads = self._read_columns(layout, rows, 0, layout.vector_at).view("<u4")
            counts = heads[:, 0] & 0xFFFF
            if np.any(counts > room) or np.any(heads[:, 0] >> 17):
                return False
            linked = np.arange(room)[None, :] < counts[:, None]
            if np.any(heads[:, 1:][linked] > last):
                return False
        return True

    def _read_labels(self, layout: Layout) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        labels, deleted = [], []
        per_chunk = max(1, _CHUNK // layout.row_size)
        with (self.directory / "data_level0.bin").open("rb") as file:
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

    def _read_norms(self) -> NDArray[np.float32] | None:
        if self.layout is None or not len(self.labels):
            return None
        try:
            data = (self.directory / "length.bin").read_bytes()
        except FileNotFoundError:
            self.problems.append(("norm-lost", "length.bin is missing: only the directions of the vectors are left"))
            return None
        except OSError as error:
            self.problems.append(("norm-lost", f"length.bin cannot be read: {error.strerror}"))
            return None
        norms = np.frombuffer(data, "<f4", min(len(data) // 4, len(self.labels)))
        if len(norms) < len(self.labels):
            self.problems.append(("norm-lost", f"length.bin has {len(norms)} of {len(self.labels)} norms"))
        return norms

    def _guess_cosine(self) -> bool:
        """Tell from rows and norms alone whether the distance is cosine: all rows unit vectors, all norms plausible."""
        if not len(self.labels):
            return False
        path = self.directory / "length.bin"
        for rows in _chunks(np.arange(len(self.labels), dtype=np.int64), 4096):
            sizes = np.linalg.norm(self._gather(rows).astype(np.float64), axis=1)
            if not np.all((np.abs(sizes - 1) < 1e-5) | (sizes == 0)):
                return False
        if not path.exists():
            return True
        norms = np.frombuffer(path.read_bytes()[: 4 * len(self.labels)], "<f4")
        return bool(np.all(np.isfinite(norms) & (norms >= 0) & (norms < 1e12)) and np.any(norms > 1e-12))

    def _gather(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        if self.layout is None:
            raise IndexDamagedError("there are no rows to read")
        return self._read_columns(self.layout, rows, self.layout.vector_at, self.layout.label_at).view("<f4")

    def _read_columns(self, layout: Layout, rows: NDArray[np.int64], start: int, stop: int) -> NDArray[np.uint8]:
        """Read the bytes from `start` to `stop` of each row."""
        found = np.empty((len(rows), stop - start), np.uint8)
        order = np.argsort(rows, kind="stable")
        with (self.directory / "data_level0.bin").open("rb", buffering=0) as file:
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


def _chunks(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def segment_directories(directory: Path) -> Sequence[Path]:
    """Return the subdirectories that hold HNSW files, sorted by name."""
    return sorted(p for p in directory.iterdir() if p.is_dir() and any((p / name).exists() for name in _FILES))
