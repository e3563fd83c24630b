"""The record types that all rooms speak.

A *value* is what a SQLite column can hold. Text is a Python ``str`` in which bytes that are not UTF-8 stand as lone
surrogates (``bytes.decode("utf-8", "surrogateescape")``), so that text and its bytes determine each other; a ``bytes``
is always a BLOB. A *key* is a tuple of values. A *store* is a file or directory; a *dataset* is what one store holds of
one kind: a table, a collection, the lines of a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar

Value: TypeAlias = int | float | str | bytes | None
Key: TypeAlias = tuple[Value, ...]
StoreKind: TypeAlias = Literal["sqlite", "chroma", "jsonl"]

Record = TypeVar("Record")
Record_co = TypeVar("Record_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Store:
    """One embedded store below a data directory.

    Attributes
    ----------
    kind
        What it is, judged by its content.
    path
        Absolute path of the file (SQLite, JSONL) or directory (Chroma).
    name
        Path relative to the data directory, with ``/``; the store's name everywhere else.
    problem
        Why it cannot be read at all; None when nothing is known against it.
    """

    kind: StoreKind
    path: Path
    name: str
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Batch(Generic[Record]):
    """Records read in one short read, in key order.

    Attributes
    ----------
    records
        At least one record.
    last
        The reading key of the last record: pass it as ``after`` to go on from here.
    """

    records: Sequence[Record]
    last: Key


class DatasetReader(Protocol[Record_co]):
    """A dataset that can be read in key order, from any position, any number of times.

    The key is the *reading* key (rowid, byte offset, row number), which need not be the record's identity.
    Implementations hold no transaction or lock between two batches and use memory bounded by one batch.
    """

    @property
    def name(self) -> str:
        """Name of the dataset within its store, for messages."""
        ...

    def batches(self, *, after: Key | None = None, upto: Key | None = None, size: int = 10_000) -> Iterator[Batch[Any]]:
        """Yield batches of the records with ``after < key <= upto``; None means unbounded."""
        ...

    def count(self) -> int:
        """Return the number of records."""
        ...


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a JSONL file.

    Attributes
    ----------
    offset
        Byte offset of its first byte (in the decompressed stream for ``.gz``): its key.
    number
        Line number from 1, blank lines counted; 0 where reading began in the middle of the file.
    raw
        Its bytes without the terminator (and, in the first line, without a byte order mark).
    terminator
        ``b"\\n"``, ``b"\\r\\n"``, or ``b""`` for a last line that was not finished.
    """

    offset: int
    number: int
    raw: bytes
    terminator: bytes


MetadataValue: TypeAlias = str | int | float | bool | list[str] | list[int] | list[float] | list[bool] | None
VectorOrigin: TypeAlias = Literal["queue", "index", "index-norm", "direction", "label-order", "missing"]


@dataclass(frozen=True, slots=True)
class ChromaRecord:
    """One record of a Chroma collection, as its files hold it.

    Attributes
    ----------
    row
        ``embeddings.id``: the reading key. Negative where the catalogue is gone and the rows are numbered by label.
    id
        The record's id in its collection.
    document
        The document, None where the record has none.
    metadata
        Key to value, ``chroma:document`` left out, ``chroma:uri`` kept; None where the record has none.
    vector
        Little-endian float32 bytes, 4 x dimension; None where it is gone.
    origin
        Where the vector came from: ``queue`` and ``index`` are exact; ``index-norm`` is unit vector x norm (cosine,
        within 2e-7 of the largest component); ``direction`` is a unit vector whose norm is lost; ``label-order`` was
        matched by a heuristic; ``missing``.
    """

    row: int
    id: str
    document: str | None
    metadata: dict[str, MetadataValue] | None
    vector: bytes | None
    origin: VectorOrigin


def encode_key(key: Key) -> str:
    """Write a key as ASCII JSON text, injectively.

    ``(5,)`` is ``[5]``, ``("5",)`` is ``["5"]``, a BLOB is ``{"blob": hex}``; bytes that are not UTF-8 appear as
    ``\\udcXX`` escapes.
    """
    return json.dumps([{"blob": v.hex()} if isinstance(v, bytes) else v for v in key])


def decode_key(text: str) -> Key:
    """Read what `encode_key` wrote."""
    return tuple(bytes.fromhex(v["blob"]) if isinstance(v, dict) else v for v in json.loads(text))
