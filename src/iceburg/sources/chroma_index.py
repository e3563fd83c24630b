"""Reading the vectors of one HNSW directory: ``header.bin``, ``data_level0.bin``, ``length.bin`` and the pickle."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iceburg.sources.chroma_layout import derive_layout
from iceburg.sources.chroma_pickle import IndexMetadata, PickleRefusedError, read_index_metadata
from iceburg.sources.chroma_rows import IndexDamagedError, Layout, chunks, parse_header, read_columns, read_labels

_FILES = ("header.bin", "data_level0.bin", "length.bin", "link_lists.bin", "index_metadata.pickle")
#: hnswlib divides by the norm plus this, so that a zero vector stays zero.
_EPSILON = 1e-30

Signature = tuple[tuple[int, int, int] | None, ...]


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
        self._rows = directory / "data_level0.bin"
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
                self.labels, self.deleted = read_labels(self._rows, layout)
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
        if not self._rows.exists():
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
        derived = None if self.metadata is None else derive_layout(self._rows, self.metadata, dimension)
        if derived is None:
            raise error
        return derived

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
        for rows in chunks(np.arange(len(self.labels), dtype=np.int64), 4096):
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
        return read_columns(self._rows, self.layout, rows, self.layout.vector_at, self.layout.label_at).view("<f4")


def segment_directories(directory: Path) -> Sequence[Path]:
    """Return the subdirectories that hold HNSW files, sorted by name."""
    return sorted(p for p in directory.iterdir() if p.is_dir() and any((p / name).exists() for name in _FILES))
