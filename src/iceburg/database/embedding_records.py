"""Records of embeddings as the application gives and gets them, and as columns; the same on both sides.

What is given is checked before anything is written, so that both sides take and refuse the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from iceburg.database.conversion import Columns, json_value
from iceburg.database.nearest import Floats
from iceburg.database.protocol import Collection, Distance, EmbeddingRecord, Hit, Metadata, Vector
from iceburg.database.where import Filter, matches
from iceburg.errors import UsageError
from iceburg.mappings.embeddings import MAX_DIMENSION
from iceburg.records import Value

DISTANCES: Final[tuple[Distance, ...]] = ("cosine", "l2", "ip")
_INT64: Final = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class NewRecord:
    """A record to be written: `metadata` as JSON text, `vector` as little-endian float32 bytes, None if it is lost."""

    id: str
    document: str | None
    metadata: str | None
    vector: bytes | None


def check_collection(name: str, distance: str, dimension: int | None) -> None:
    """See that a collection of this kind can be made.

    Raises
    ------
    UsageError
        The name is no text or empty, there is no such distance, or no vector has so many dimensions.
    """
    where = f"collection {name!r}"
    if not isinstance(name, str) or not name:
        raise UsageError("a collection's name is a text that is not empty", where=where)
    _check_text(name, where)
    if "\0" in name:
        raise UsageError("a collection's name has no NUL", where=where)
    if distance not in DISTANCES:
        raise UsageError(f"there is no distance {distance!r}", where=where, hint=f"There are {', '.join(DISTANCES)}.")
    if dimension is not None:
        _check_dimension(dimension, where)


def agree(there: Collection, distance: str, dimension: int | None) -> None:
    """See that a collection is what was asked for.

    Raises
    ------
    UsageError
        It has another distance or dimension.
    """
    where = f"collection {there.name!r}"
    if there.distance != distance:
        raise UsageError(f"it has the distance {there.distance}, not {distance}", where=where)
    if dimension is not None and there.dimension not in (None, dimension):
        raise UsageError(f"it has {there.dimension} dimensions, not {dimension}", where=where)


def check_records(
    collection: str,
    dimension: int | None,
    ids: Sequence[str],
    vectors: Sequence[Vector],
    documents: Sequence[str | None] | None,
    metadatas: Sequence[Metadata | None] | None,
) -> list[NewRecord]:
    """Return records as they are to be written.

    Parameters
    ----------
    collection
        The collection's name.
    dimension
        Its dimension; None if it has none yet: then all vectors must have that of the first.
    ids, vectors, documents, metadatas
        As for `iceburg.database.protocol.EmbeddingStore.add`.

    Raises
    ------
    UsageError
        An id occurs twice; lengths differ; a vector is of another dimension, or holds what is not finite; a text is
        none; metadata holds something else than texts, finite numbers, booleans, None and lists of them.
    """
    where = f"collection {collection!r}"
    if isinstance(ids, str):
        raise UsageError("ids is a list of texts, not a text", where=where)
    given = {"vectors": vectors, "documents": documents, "metadatas": metadatas}
    for name, values in given.items():
        if values is not None and len(values) != len(ids):
            raise UsageError(f"there are {len(ids)} ids, and {len(values)} {name}", where=where)
    found = []
    seen: set[str] = set()
    for number, identity in enumerate(ids):
        if not isinstance(identity, str):
            raise UsageError(f"the id {identity!r} is not a text", where=where)
        at = f"{where}, id {identity!r}"
        _check_text(identity, at)
        if identity in seen:
            raise UsageError("the id occurs twice in the call", where=at)
        seen.add(identity)
        vector = check_vector(vectors[number], dimension, at)
        dimension = len(vector)
        document = None if documents is None else documents[number]
        if document is not None:
            if not isinstance(document, str):
                raise UsageError(f"the document is {type(document).__name__}, not a text", where=at)
            _check_text(document, at)
        metadata = None if metadatas is None else metadatas[number]
        text = None if metadata is None else _metadata_text(metadata, at)
        found.append(NewRecord(identity, document, text, vector.tobytes()))
    return found


def check_vector(vector: Vector, dimension: int | None, where: str) -> Floats:
    """Return a vector as little-endian float32.

    Raises
    ------
    UsageError
        It is of another dimension than `dimension`, of none, or of more than PostgreSQL holds; it holds what is no
        number, not finite, or too large for a float32.
    """
    try:
        given = np.asarray(vector)
    except ValueError:
        given = np.asarray(None)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "fiu"):
        raise UsageError("the vector is not a sequence of numbers", where=where)
    if dimension is not None and given.size != dimension:
        raise UsageError(f"the vector has {given.size} dimensions, not {dimension}", where=where)
    _check_dimension(given.size, where)
    with np.errstate(over="ignore"):
        found = given.astype("<f4")
    if not np.isfinite(found).all():
        position = int(np.flatnonzero(~np.isfinite(found))[0])
        raise UsageError(f"component {position} of the vector is {given[position]}, not finite in float32", where=where)
    return found


def sought_ids(ids: Sequence[str]) -> list[str]:
    """Return the ids to look for, each once; one that no store can hold is not there, and left out.

    Raises
    ------
    UsageError
        One is no text.
    """
    if isinstance(ids, str):
        raise UsageError("ids is a list of texts, not a text", where="ids")
    found: dict[str, None] = {}
    for identity in ids:
        if not isinstance(identity, str):
            raise UsageError(f"the id {identity!r} is not a text", where="ids")
        if encoded(identity) is not None:
            found[identity] = None
    return list(found)


def encoded(text: str) -> bytes | None:
    """Return a text as SQLite keeps it, perhaps with bytes that are not UTF-8; None where it cannot."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None


def check_count(k: int) -> None:
    """See that `k` is a number of records to ask for.

    Raises
    ------
    UsageError
        It is not.
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise UsageError(f"k is the number of records, 1 or more, not {k!r}")


def _check_dimension(dimension: int, where: str) -> None:
    if not isinstance(dimension, int) or not 0 < dimension <= MAX_DIMENSION:
        raise UsageError(f"a vector has 1 to {MAX_DIMENSION} dimensions, not {dimension}", where=where)


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"a text has a lone surrogate at {error.start}", where=where) from None


def _metadata_text(metadata: Metadata, where: str) -> str:
    if not isinstance(metadata, Mapping):
        raise UsageError(f"the metadata is {type(metadata).__name__}, not a dict", where=where)
    for key, value in metadata.items():
        if not isinstance(key, str):
            raise UsageError(f"the metadata key {key!r} is not a text", where=where)
        at = f"{where}, metadata {key!r}"
        _check_text(key, at)
        for item in value if isinstance(value, list | tuple) else () if value is None else (value,):
            _check_scalar(item, at)
    return json.dumps(dict(metadata))


def _check_scalar(value: Any, where: str) -> None:
    if isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, int) and value not in _INT64:
        raise UsageError(f"{value} is not a whole number of 64 bits", where=where)
    elif not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"{value!r} is neither a text, a finite number, a boolean nor a list of these", where=where)


def metadata_of(text: Value) -> dict[str, Any] | None:
    """Read the metadata column; None where it holds no JSON object."""
    found = json_value(text)
    return found if isinstance(found, dict) else None


def to_embedding_record(columns: Columns) -> EmbeddingRecord:
    """Make a record of a row of a collection's table."""
    vector, document = columns["vector"], columns["document"]
    whole = isinstance(vector, bytes) and len(vector) % 4 == 0
    return EmbeddingRecord(
        str(columns["record_id"]),
        document if isinstance(document, str) else None,
        metadata_of(columns["metadata"]),
        tuple(np.frombuffer(vector, "<f4").tolist()) if whole else None,  # type: ignore[arg-type]
    )


def to_hit(columns: Columns, distance: float) -> Hit:
    """Make what a search found of a row of a collection's table."""
    document = columns["document"]
    return Hit(
        str(columns["record_id"]),
        document if isinstance(document, str) else None,
        metadata_of(columns["metadata"]),
        distance,
    )


def holds(found: Filter | None, columns: Columns) -> bool:
    """Whether a filter holds for a row of a collection's table."""
    if found is None:
        return True
    document = columns["document"]
    return matches(found, metadata_of(columns["metadata"]), document if isinstance(document, str) else None)
