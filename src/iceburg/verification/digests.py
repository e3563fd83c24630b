"""Digests of records and of rows: what tells a later verification that both are what was compared before.

A digest of rows has to be the same whether it is computed here, of the rows that were compared, or by PostgreSQL, of
all rows in whatever order it comes upon them. So each row has a SHA-256, of the bytes that ``record_send`` gives of it,
and the digest of a part is their number and their exclusive or: as no two rows of a table are equal, a changed, missing
or surplus row changes it, but for a collision of SHA-256. It tells of accidents; whoever can choose hundreds of rows at
will can make rows that cancel each other out, and could write the proofs as well.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from importlib import metadata, resources
from typing import Any, Final

from iceburg.database.catalogue import Dataset
from iceburg.database.copy_format import NULL, Encoder
from iceburg.mappings.mapping import Row

# `marshal` of this version writes equal values as equal bytes; later ones write what is the same object only once.
_MARSHAL: Final = 2
_ROWS_IN_A_PART: Final = 8_192
_BITS: Final = 16
# What decides whether a record and a row are found to be equal.
_PACKAGES: Final = ("iceburg.mappings", "iceburg.verification", "iceburg.database")
_MODULES: Final = {
    "iceburg.verification": ("digests.py", "proofs.py", "ranges.py", "records.py", "verifier.py"),
    "iceburg.database": ("target_table.py", "record_format.py", "copy_format.py", "catalogue.py", "kept.py"),
}


def digest_records(records: Sequence[Any]) -> bytes:
    """Return the SHA-256 of records as they were read, in order."""
    plain = [record if isinstance(record, tuple) else astuple(record) for record in records]
    return hashlib.sha256(marshal.dumps(plain, _MARSHAL)).digest()


@cache
def _program() -> bytes:
    """Return a digest of the code that compares, and of the versions of what it rests on."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        wanted = _MODULES.get(package)
        for entry in sorted(resources.files(package).iterdir(), key=lambda entry: entry.name):
            if entry.name.endswith(".py") and (wanted is None or entry.name in wanted):
                digest.update(f"{package}/{entry.name}\0".encode() + entry.read_bytes())
    digest.update(repr((sys.version_info[:2], metadata.version("orjson"), metadata.version("psycopg"))).encode())
    return digest.digest()


def identify_conversion(dataset: Dataset) -> bytes:
    """Return a digest of how a dataset's rows are restored and compared: of the program and of the definition."""
    about = (dataset.dataset_id, dataset.name, dataset.target_schema, dataset.target_table, dataset.definition)
    return hashlib.sha256(_program() + json.dumps(about, sort_keys=True, default=str).encode()).digest()


def shift_for(rows: int) -> int:
    """Return by how many of 16 bits the parts of so many rows are wider than one value."""
    parts = max(1, rows // _ROWS_IN_A_PART)
    return max(_BITS - parts.bit_length() + 1, 6)


def part_count(shift: int) -> int:
    """Return the number of parts."""
    return 1 << (_BITS - shift)


@dataclass(frozen=True, slots=True)
class RowsDigest:
    """Number of rows and exclusive or of their SHA-256."""

    rows: int
    value: int

    def to_bytes(self) -> bytes:
        """Return the value as it is kept."""
        return self.value.to_bytes(32, "big")


class RowDigests:
    """Collects the digests of the rows of one dataset, by part.

    Parameters
    ----------
    key
        Number (OID) of the type of each column that identifies a row, and its encoder for COPY, which writes a value as
        ``record_send`` does; None where that is a single UUID, whose bits are as good as a digest's.
    shift
        See `part_count`.
    """

    def __init__(self, key: Sequence[tuple[int, Encoder]] | None, shift: int) -> None:
        self._key = [] if key is None else [(struct.pack("!I", oid), encode) for oid, encode in key]
        self._shift = shift
        self.part = self._part_of_uuid if key is None else self._part_of_digest
        self._values = [0] * part_count(shift)
        self._rows = [0] * part_count(shift)
        self.spoiled: set[int] = set()

    def _part_of_uuid(self, key: Row) -> int:
        raw: Any = key[0]
        return int(raw[0] << 8 | raw[1]) >> self._shift

    def _part_of_digest(self, key: Row) -> int:
        fields = [struct.pack("!i", len(self._key))]
        for (oid, encode), value in zip(self._key, key, strict=True):
            fields += (oid, NULL if value is None else encode(value))
        raw = hashlib.sha256(b"".join(fields)).digest()
        return (raw[0] << 8 | raw[1]) >> self._shift

    def add(self, rows: Iterable[tuple[Row, bytes]]) -> None:
        """Add rows that were found to be as they should: the key of each, and what ``record_send`` gave of it."""
        part_of, values, counts = self.part, self._values, self._rows
        sha256, number = hashlib.sha256, int.from_bytes
        for key, sent in rows:
            part = part_of(key)
            values[part] ^= number(sha256(sent).digest(), "big")
            counts[part] += 1

    def spoil(self, key: Row | None) -> None:
        """Have the part of a key found changed by every later verification."""
        if key is not None:
            self.spoiled.add(self.part(key))

    def found(self) -> dict[int, RowsDigest]:
        """Return the digests of the parts that have rows."""
        return {
            part: RowsDigest(rows, value)
            for part, (rows, value) in enumerate(zip(self._rows, self._values, strict=True))
            if rows
        }


def merge(digests: Iterable[dict[int, RowsDigest]]) -> dict[int, RowsDigest]:
    """Put together what several have collected of different rows."""
    found: dict[int, RowsDigest] = {}
    for parts in digests:
        for part, other in parts.items():
            mine = found.get(part, RowsDigest(0, 0))
            found[part] = RowsDigest(mine.rows + other.rows, mine.value ^ other.value)
    return found
