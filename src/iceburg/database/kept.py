"""What is kept beside the rows of a dataset: originals and quarantined records, by record key."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, LiteralString

import psycopg

from iceburg.database.copy_format import ENCODERS, HEADER, TRAILER, render
from iceburg.database.schema import SchemaNames
from iceburg.mappings.codecs import storage_class
from iceburg.mappings.mapping import Original
from iceburg.records import Value

_ORIGINAL_TYPES = tuple(ENCODERS[t] for t in ("integer", "text", "text", "text", "bytea", "text"))
_QUARANTINE_TYPES = tuple(ENCODERS[t] for t in ("integer", "text", "bytea", "text"))

COPY_ORIGINALS: Final[LiteralString] = """
COPY {state}.originals (dataset_id, record_key, field, storage_class, value, reason) FROM STDIN (FORMAT BINARY)
"""
COPY_QUARANTINE: Final[LiteralString] = """
COPY {state}.quarantine (dataset_id, record_key, record, reason) FROM STDIN (FORMAT BINARY)
"""
DELETE_ORIGINALS: Final[LiteralString] = """
DELETE FROM {state}.originals WHERE dataset_id = %s AND record_key = ANY(%s)
"""
DELETE_QUARANTINE: Final[LiteralString] = """
DELETE FROM {state}.quarantine WHERE dataset_id = %s AND record_key = ANY(%s)
"""
FORGET_ORIGINALS: Final[LiteralString] = "DELETE FROM {state}.originals WHERE dataset_id = %s"
FORGET_QUARANTINE: Final[LiteralString] = "DELETE FROM {state}.quarantine WHERE dataset_id = %s"
COUNT_QUARANTINE: Final[LiteralString] = "SELECT count(*) FROM {state}.quarantine WHERE dataset_id = %s"
SELECT_KEPT_KEYS: Final[LiteralString] = """
SELECT record_key FROM {state}.originals WHERE dataset_id = %(id)s
UNION SELECT record_key FROM {state}.quarantine WHERE dataset_id = %(id)s
"""
SELECT_ORIGINALS: Final[LiteralString] = """
SELECT record_key, field, storage_class, value, reason FROM {state}.originals
WHERE dataset_id = %s AND record_key = ANY(%s)
"""


@dataclass(frozen=True, slots=True)
class Kept:
    """What one batch leaves beside its rows: originals and quarantined records, by record key."""

    originals: list[tuple[str, Original]] = field(default_factory=list)
    quarantine: list[tuple[str, bytes, str]] = field(default_factory=list)

    def digest_into(self, digest: hashlib.blake2b) -> None:
        """Add it to a chunk's digest."""
        for key, original in self.originals:
            digest.update(repr((key, original.field, original.value)).encode())
        for key, record, _ in self.quarantine:
            digest.update(repr((key, record)).encode())


def pack_value(value: Value) -> bytes | None:
    """Write a value as the bytes that `originals` keeps: text as its bytes, numbers as decimal text."""
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    return repr(value).encode()


def unpack_value(kind: str, raw: bytes | None) -> Value:
    """Read what `pack_value` wrote of a value of a storage class."""
    if kind == "null" or raw is None:
        return None
    if kind == "blob":
        return raw
    text = raw.decode("utf-8", "surrogateescape")
    return int(text) if kind == "integer" else float(text) if kind == "real" else text


def keep(connection: psycopg.Connection, names: SchemaNames, dataset_id: int, kept: Kept) -> None:
    """Write originals and quarantined records."""
    if kept.originals:
        rows: Iterable[Any] = (
            (dataset_id, key, o.field, storage_class(o.value), pack_value(o.value), o.reason)
            for key, o in kept.originals
        )
        _copy(connection, names, COPY_ORIGINALS, _ORIGINAL_TYPES, rows)
    if kept.quarantine:
        rows = ((dataset_id, key, record, reason) for key, record, reason in kept.quarantine)
        _copy(connection, names, COPY_QUARANTINE, _QUARANTINE_TYPES, rows)


def _copy(
    connection: psycopg.Connection, names: SchemaNames, statement: LiteralString, types: Any, rows: Iterable[Any]
) -> None:
    with connection.cursor() as cursor, cursor.copy(names.format(statement)) as stream:
        stream.write(HEADER + render(rows, types) + TRAILER)


def forget_kept(connection: psycopg.Connection, names: SchemaNames, dataset_id: int, keys: Sequence[str]) -> None:
    """Remove what is kept of records."""
    for statement in (DELETE_ORIGINALS, DELETE_QUARANTINE):
        connection.execute(names.format(statement), (dataset_id, list(keys)))


def kept_keys(connection: psycopg.Connection, names: SchemaNames, dataset_id: int) -> set[str]:
    """Return the keys of all records of which something is kept."""
    return {key for (key,) in connection.execute(names.format(SELECT_KEPT_KEYS), {"id": dataset_id})}


def count_quarantined(connection: psycopg.Connection, names: SchemaNames, dataset_id: int) -> int:
    """Count the quarantined records of a dataset."""
    row = connection.execute(names.format(COUNT_QUARANTINE), (dataset_id,)).fetchone()
    assert row is not None  # noqa: S101 - an aggregate always has a row
    return int(row[0])


def originals_of(
    connection: psycopg.Connection, names: SchemaNames, dataset_id: int, keys: Sequence[str]
) -> dict[str, dict[str, Value]]:
    """Return the originals of records: by key, then by field."""
    found: dict[str, dict[str, Value]] = {}
    rows = connection.execute(names.format(SELECT_ORIGINALS), (dataset_id, list(keys))).fetchall()
    for key, name, kind, raw, _ in rows:
        found.setdefault(key, {})[name] = unpack_value(kind, raw)
    return found
