"""Choosing and reading the vector of each record, from the queue or from the index."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iceburg.records import VectorOrigin
from iceburg.sources.chroma_index import HnswIndex, signature
from iceburg.sources.chroma_queue import fetch_vectors
from iceburg.sources.chroma_rows import IndexDamagedError
from iceburg.sources.chroma_state import State
from iceburg.sources.chroma_tables import Row

#: Two vectors are the same one if they differ by less than this part of the largest component.
_SAME = 1e-6


@dataclass(frozen=True, slots=True)
class Vector:
    """A vector, where it came from, and the position in the queue up to which it is known to be the newest."""

    data: bytes | None
    origin: VectorOrigin
    position: int = 0


_MISSING = Vector(None, "missing")


class IndexChangedError(Exception):
    """Chroma rewrote the index while a batch was read."""


def read_vectors(connection: sqlite3.Connection, state: State, rows: list[Row], dimension: int | None) -> list[Vector]:
    """Read the vector of each row.

    Raises
    ------
    IndexChangedError
        The index on disk is no longer the one that `state` was made of.
    """
    candidates = [_candidates(state, row) for row in rows]
    queued = fetch_vectors(connection, (seq for positions, _ in candidates for seq in positions))
    if dimension is not None:
        queued = {seq: vector for seq, vector in queued.items() if len(vector) == 4 * dimension}
    certain = [queued.get(positions[0]) if sure else None for positions, sure in candidates]
    indexed = _indexed(state, rows, [vector is None for vector in certain])
    if state.index is not None and signature(state.index.directory) != state.index.signature:
        raise IndexChangedError
    chosen = []
    for (positions, _), sure_one, stored in zip(candidates, certain, indexed, strict=True):
        maybe = [(seq, queued[seq]) for seq in positions if seq in queued]
        if sure_one is not None:
            chosen.append(Vector(sure_one, "queue", positions[0]))
        elif stored.data is not None:
            same = (v for _, v in maybe if _same(v, stored.data, direction=stored.origin == "direction"))
            exact = next(same, None)
            chosen.append(stored if exact is None else Vector(exact, "queue", stored.position))
        elif maybe:
            chosen.append(Vector(maybe[0][1], "queue", maybe[0][0]))
        else:
            chosen.append(_MISSING)
    return chosen


def _candidates(state: State, row: Row) -> tuple[tuple[int, ...], bool]:
    """Return positions of the queue that may hold a row's vector, newest first, and whether the first does."""
    pending = state.vectors.pending.get(row.id)
    if pending is not None and not _idle(state, row, pending):
        return (pending,), True
    positions = tuple(seq for seq in state.vectors.settled.get(row.id, ()) if not _idle(state, row, seq))
    sure = bool(positions) and (row.id in state.vectors.certain or positions[0] == row.seq)
    return positions, sure


def _idle(state: State, row: Row, seq: int) -> bool:
    """Tell whether the operation at a position is known to have done nothing to a record."""
    if row.seq is None or seq == row.seq or seq > state.tables_at:
        return False
    unproved = seq in state.vectors.doubtful
    if seq > row.seq:
        # One that touched the record would have left its position in the tables.
        return unproved or seq <= state.taken_in
    return unproved and state.arrivals is not None and state.arrivals.made_before(row.row, seq)


def _indexed(state: State, rows: list[Row], wanted: list[bool]) -> list[Vector]:
    """Read the vectors that the index has for the rows wanted."""
    found = [_MISSING] * len(rows)
    index = state.index
    if index is None or index.layout is None:
        return found
    labels = state.by_order or index.id_to_label
    places, label_list = [], []
    for place, row in enumerate(rows):
        if wanted[place] and row.id in labels and row.id not in state.vectors.removed:
            places.append(place)
            label_list.append(labels[row.id])
    at = index.rows_of(np.array(label_list, np.int64))
    have = np.flatnonzero(at >= 0)
    if not len(have):
        return found
    try:
        vectors, normed = index.vectors(at[have])
    except (IndexDamagedError, FileNotFoundError) as error:
        raise IndexChangedError from error
    lost = _unrecoverable(index, at[have])
    for number, (vector, known, gone) in enumerate(zip(vectors, normed.tolist(), lost.tolist(), strict=True)):
        if not gone:
            origin = _origin(index, known=known, by_order=bool(state.by_order))
            found[places[int(have[number])]] = Vector(vector.tobytes(), origin, state.taken_in)
    return found


def _origin(index: HnswIndex, *, known: bool, by_order: bool) -> VectorOrigin:
    if by_order:
        return "label-order"
    if not index.cosine:
        return "index"
    return "index-norm" if known else "direction"


def _unrecoverable(index: HnswIndex, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which cosine rows were divided by a norm that is not finite, so that nothing of them is left."""
    lost = np.zeros(len(rows), np.bool_)
    if index.norms is not None:
        known = rows < len(index.norms)
        lost[known] = ~np.isfinite(index.norms[rows[known]])
    return lost


def _same(vector: bytes, stored: bytes, *, direction: bool) -> bool:
    one, two = np.frombuffer(vector, "<f4").astype(np.float64), np.frombuffer(stored, "<f4").astype(np.float64)
    if len(one) != len(two):
        return False
    if direction:
        size = np.linalg.norm(one)
        one = one / size if size else one
    return bool(np.array_equal(one, two) or np.all(np.abs(one - two) <= _SAME * np.max(np.abs(one), initial=0)))
