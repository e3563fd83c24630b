"""The files of a Chroma HNSW index: header, level 0, norms, upper levels, and the pickle that names the labels.

The layout is that of hnswlib as Chroma compiles it; it is the same from 0.4 to 1.5.
"""

from __future__ import annotations

import math
import pickle
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

_HEADER: Final = struct.Struct("<iQQQQQQiIQQQdQ")
_VERSION = 1
_M = 16
_MAX_LINKS = 2 * _M
_EF_CONSTRUCTION = 100
_DELETED = 1 << 16  # bit 0 of the byte after the 16-bit link count
_NEAREST = 16
_BLOCK = 512
_MINIMUM_CAPACITY = 100


@dataclass(slots=True)
class Index:
    """What an index has taken in: labels count from 1 and are never used again.

    Attributes
    ----------
    space
        ``cosine`` indexes hold unit vectors and their norms beside them; ``l2`` and ``ip`` the vectors as they are.
    labels
        The label of each live id.
    vectors
        One vector for each label ever given, in the order of the labels.
    deleted
        The labels whose elements are marked as deleted.
    """

    space: str
    labels: dict[str, int] = field(default_factory=dict)
    vectors: list[npt.NDArray[np.float32]] = field(default_factory=list)
    deleted: set[int] = field(default_factory=set)

    def set(self, key: str, vector: npt.NDArray[np.float32]) -> None:
        """Add a vector, or replace the one that the id has."""
        if key in self.labels:
            self.vectors[self.labels[key] - 1] = vector
        else:
            self.vectors.append(vector)
            self.labels[key] = len(self.vectors)

    def delete(self, key: str) -> None:
        """Mark the element of an id as deleted."""
        self.deleted.add(self.labels.pop(key))

    def write(self, directory: Path) -> None:
        """Write the five files into a new directory."""
        directory.mkdir(parents=True)
        matrix = np.stack(self.vectors)
        elements, dimension = matrix.shape
        norms = np.zeros(elements, dtype="<f4")
        if self.space == "cosine":
            norms = np.sqrt(np.square(matrix, dtype="f8").sum(axis=1)).astype("<f4")
            matrix = matrix / np.maximum(norms, np.float32(1e-30))[:, None]
        level0 = np.zeros(
            elements,
            dtype=[("count", "<u4"), ("links", "<u4", (_MAX_LINKS,)), ("data", "<f4", (dimension,)), ("label", "<u8")],
        )
        links = _links(matrix)
        level0["count"] = links.shape[1]
        level0["links"][:, : links.shape[1]] = links
        level0["data"] = matrix
        level0["label"] = np.arange(1, elements + 1)
        for label in self.deleted:
            level0["count"][label - 1] |= _DELETED
        size = level0.dtype.itemsize
        data_offset = 4 + 4 * _MAX_LINKS
        header = _HEADER.pack(
            _VERSION, 0, max(elements, _MINIMUM_CAPACITY), elements, size, size - 8, data_offset, 0, 0,
            _M, _MAX_LINKS, _M, 1 / math.log(_M), _EF_CONSTRUCTION,
        )  # fmt: skip
        (directory / "header.bin").write_bytes(header)
        (directory / "data_level0.bin").write_bytes(level0.tobytes())
        (directory / "length.bin").write_bytes(norms.tobytes())
        # One 32-bit zero an element: none of them has links above level 0.
        (directory / "link_lists.bin").write_bytes(bytes(4 * elements))
        names = {
            "dimensionality": None,
            "total_elements_added": elements,
            "max_seq_id": None,
            "id_to_label": self.labels,
            "label_to_id": {label: key for key, label in self.labels.items()},
            "id_to_seq_id": {},
        }
        (directory / "index_metadata.pickle").write_bytes(pickle.dumps(names, protocol=3))


def _links(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Link each element to its nearest and, so that all can be reached, to those a power of two further on."""
    elements = len(matrix)
    others = elements - 1
    nearest = min(_NEAREST, others)
    strides = [1 << k for k in range(_MAX_LINKS - _NEAREST) if 1 << k < elements]
    own = np.arange(elements)
    columns = [(own + stride) % elements for stride in strides]
    if nearest:
        squares = np.square(matrix).sum(axis=1)
        found = np.empty((elements, nearest), dtype=np.int64)
        for start in range(0, elements, _BLOCK):
            block = matrix[start : start + _BLOCK]
            distances = squares[None, :] - 2 * (block @ matrix.T)
            distances[np.arange(len(block)), own[start : start + _BLOCK]] = np.inf
            found[start : start + _BLOCK] = np.argpartition(distances, nearest - 1, axis=1)[:, :nearest]
        columns.extend(found.T)
    return np.stack(columns, axis=1).astype(np.uint32) if columns else np.empty((elements, 0), dtype=np.uint32)
