"""The nearest records, exactly, and the same on both sides.

A database orders the records by a distance that it computes in single precision, each by its own code: good enough to
say which records cannot be among the nearest, not to order them. So the records it gives are measured again here, in
double precision from the stored vectors, by one function for both sides; and more of them are asked for until none that
was not given can be nearer.

For that a database must give first, in any order, the records whose distance it does not *trust*, then the others by a
distance that is no further from the true one than `margin` says; for ``ip``, where the margin is each record's own, by
that distance less the margin. It trusts the records whose norm is within `NORMS` and, for ``l2``, all of them.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from iceburg.database.protocol import Distance

Floats: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]
Payload = TypeVar("Payload")

NORMS: Final = (1e-12, 1e12)
"""Within these Euclidean norms, nothing overflows and nothing that counts underflows in single precision."""

_SLACK: Final = 24
_GROWTH: Final = 8
_CHUNK: Final = 256
# Half a unit in the last place of single precision, the rounding error of one operation.
_ROUNDING: Final = 2.0**-24
# The databases' norms have rounding errors too: only what is well within the bounds is sure to have been trusted.
_WELL_WITHIN: Final = 2.0
# A squared distance that is far from overflowing in single precision; one that overflows is greater.
_FAR: Final = 1e35


@dataclass(frozen=True, slots=True)
class Candidate(Generic[Payload]):
    """A record that a database gave: its id, its vector as little-endian float32 bytes, and whatever goes with it."""

    id: str
    vector: bytes
    payload: Payload


Fetch: TypeAlias = Callable[[int | None], Iterable[Candidate[Payload]]]
"""Gives so many candidates, or all of them for None; ordered as the module says."""


def measure(distance: Distance, vectors: Floats, query: Floats) -> tuple[Doubles, Doubles]:
    """Return the distances of the rows of `vectors` from `query`, and their norms.

    The sums are made by halving, in an order that follows from the dimension alone: so a record has the same distance,
    to the bit, whatever it is measured together with, and on every machine.
    """
    rows, sought = vectors.astype(np.float64), query.astype(np.float64)
    with np.errstate(all="ignore"):
        norms = np.sqrt(_sums(rows * rows))
        if distance == "l2":
            differences = rows - sought
            return _sums(differences * differences), norms
        products = _sums(rows * sought)
        if distance == "ip":
            return 1.0 - products, norms
        lengths = norms * norm(query)
        return np.where(lengths == 0, 1.0, 1.0 - products / np.where(lengths == 0, 1.0, lengths)), norms


def norm(vector: Floats) -> float:
    """Return the Euclidean norm."""
    square = vector.astype(np.float64) ** 2
    return float(np.sqrt(_sums(square[np.newaxis, :])[0]))


def _sums(terms: Doubles) -> Doubles:
    """Add up each row; `terms` is used up."""
    width = terms.shape[1]
    while width > 1:
        half = width // 2
        terms[:, :half] += terms[:, width - half : width]
        width -= half
    return terms[:, 0].copy()


def relative_error(dimension: int) -> float:
    """Bound the error of a sum of products in single precision, in any order, relative to the sum of their sizes."""
    return 3 * (dimension + 8) * _ROUNDING


def is_trusted_query(distance: Distance, query: Floats) -> bool:
    """Whether a database can order anything by its distance from `query`."""
    return distance == "l2" or NORMS[0] * _WELL_WITHIN < norm(query) < NORMS[1] / _WELL_WITHIN


def margin(distance: Distance, query: Floats, distances: Doubles, norms: Doubles) -> Doubles:
    """Bound how far a database's distance may be from the true one, for each of some records."""
    error = relative_error(len(query))
    if distance == "l2":
        return distances * error + 1e-30
    if distance == "cosine":
        return np.full_like(distances, error)
    return 2 * error * norms * norm(query)


def nearest(
    distance: Distance,
    query: Floats,
    k: int,
    fetch: Fetch[Payload],
    accepts: Callable[[Candidate[Payload]], bool] = lambda candidate: True,
) -> list[tuple[Candidate[Payload], float]]:
    """Return the `k` nearest of the candidates that are accepted, with their distances; equal ones by id, bytewise.

    Vectors of another size than `query`, and such as hold what is not finite, are near to nothing.
    """
    limit = k + _SLACK if is_trusted_query(distance, query) else None
    while True:
        found = _Nearest[Payload](distance, query, k, accepts)
        count = 0
        for chunk in _chunks(fetch(limit)):
            count += len(chunk)
            found.take(chunk)
            if limit is not None and found.is_settled:
                return found.best()
        if limit is None or count < limit:
            return found.best()
        limit *= _GROWTH


def _chunks(candidates: Iterable[Candidate[Payload]]) -> Iterator[list[Candidate[Payload]]]:
    source = iter(candidates)
    while chunk := list(islice(source, _CHUNK)):
        yield chunk


class _Nearest(Generic[Payload]):
    def __init__(
        self, distance: Distance, query: Floats, k: int, accepts: Callable[[Candidate[Payload]], bool]
    ) -> None:
        self._distance = distance
        self._query = query
        self._k = k
        self._accepts = accepts
        self._best: list[tuple[float, bytes, int, Candidate[Payload]]] = []
        self._taken = 0
        # No record that is yet to come is nearer than this.
        self._bound = -np.inf

    @property
    def is_settled(self) -> bool:
        return len(self._best) == self._k and self._best[-1][0] < self._bound

    def best(self) -> list[tuple[Candidate[Payload], float]]:
        return [(candidate, distance) for distance, _, _, candidate in self._best]

    def take(self, chunk: Sequence[Candidate[Payload]]) -> None:
        size = 4 * len(self._query)
        fitting = [candidate for candidate in chunk if len(candidate.vector) == size]
        if not fitting:
            return
        vectors = np.frombuffer(b"".join(c.vector for c in fitting), "<f4").reshape(len(fitting), -1)
        distances, norms = measure(self._distance, vectors, self._query)
        self._raise_bound(distances, norms)
        for candidate, distance in zip(fitting, distances.tolist(), strict=True):
            beyond = len(self._best) == self._k and distance > self._best[-1][0]
            if distance - distance == 0 and not beyond and self._accepts(candidate):
                # The number keeps candidates from being compared; it decides nothing, as ids differ.
                self._taken += 1
                insort(self._best, (distance, _bytes(candidate.id), self._taken, candidate))
                del self._best[self._k :]

    def _raise_bound(self, distances: Doubles, norms: Doubles) -> None:
        if self._distance == "l2":
            trusted = distances < _FAR
        else:
            trusted = (norms > NORMS[0] * _WELL_WITHIN) & (norms < NORMS[1] / _WELL_WITHIN)
        if trusted.any():
            # A record is at least its margin nearer than the database says, and this one at most its own farther.
            distances, norms = distances[trusted], norms[trusted]
            lower = distances - 2 * margin(self._distance, self._query, distances, norms)
            self._bound = max(self._bound, float(lower.max()))


def _bytes(text: Any) -> bytes:
    return str(text).encode("utf-8", "surrogateescape")
