"""Pages of the quarantine: records as they were in their store, in a form that can be looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import psycopg

from iceburg.dashboard import statements
from iceburg.database.catalogue import Catalogue, Dataset
from iceburg.database.schema import SchemaNames
from iceburg.records import ChromaRecord, Line

PAGE: Final = 20
"""Records of a page."""
_SHOWN: Final = 2000
_PLAIN: Final = frozenset("\n\t")


@dataclass(frozen=True, slots=True)
class Field:
    """A value of a record.

    Attributes
    ----------
    name
        Of its column; what it is, where a record has no columns.
    kind
        ``null``, ``integer``, ``real``, ``text`` or ``blob``.
    text
        The value; what cannot be printed stands as an escape, bytes stand in hexadecimal.
    size
        Of the whole value in characters (bytes of a blob), where `text` is cut; else None.
    """

    name: str
    kind: str
    text: str
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A record in quarantine: of which dataset, its key there, why, and its values."""

    dataset: str
    key: str
    reason: str
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class QuarantinePage:
    """A page: of which dataset (None: of all), which one (from 1) of how many, of how many records, and these."""

    dataset: str | None
    page: int
    pages: int
    records: int
    found: tuple[Quarantined, ...]


def read_quarantine(
    connection: psycopg.Connection, names: SchemaNames, dataset: str | None, page: int
) -> QuarantinePage:
    """Ask for a page; for the last one, where there are not so many."""
    row = connection.execute(names.format(statements.COUNT_QUARANTINE), {"dataset": dataset}).fetchone()
    records = 0 if row is None else int(row[0])
    pages = max(1, -(-records // PAGE))
    page = min(max(1, page), pages)
    given = {"dataset": dataset, "limit": PAGE, "offset": (page - 1) * PAGE}
    rows = connection.execute(names.format(statements.SELECT_QUARANTINE_PAGE), given).fetchall()
    known = {found.dataset_id: found for found in Catalogue(connection, names).datasets()} if rows else {}
    found = tuple(
        Quarantined(name, _shown(key)[0], reason, fields_of(known[number], record))
        for number, name, key, reason, record in rows
        if number in known
    )
    return QuarantinePage(dataset, page, pages, records, found)


def fields_of(dataset: Dataset, record: bytes) -> tuple[Field, ...]:
    """Return the values of a record as its quarantine keeps it."""
    unpacked: Any = dataset.mapping().unpack(record)
    if isinstance(unpacked, Line):
        # Its offset is its key.
        return (_field("line", unpacked.raw.decode("utf-8", "surrogateescape")),)
    if isinstance(unpacked, ChromaRecord):
        metadata = None if unpacked.metadata is None else repr(unpacked.metadata)
        return (
            _field("id", unpacked.id),
            _field("document", unpacked.document),
            _field("metadata", metadata),
            _field("vector", unpacked.vector),
        )
    columns = dataset.definition["columns"]
    values = unpacked[len(unpacked) - len(columns) :]
    return tuple(_field(name, value) for name, value in zip(columns, values, strict=True))


def _field(name: str, value: Any) -> Field:
    name = _shown(name)[0]
    if value is None:
        return Field(name, "null", "NULL")
    if isinstance(value, bytes):
        return Field(name, "blob", value[: _SHOWN // 2].hex(), len(value) if len(value) > _SHOWN // 2 else None)
    if isinstance(value, str):
        return Field(name, "text", *_shown(value))
    return Field(name, "integer" if isinstance(value, int) else "real", repr(value))


def _shown(text: str) -> tuple[str, int | None]:
    """Return a text with escapes for what cannot be printed, or turns the direction of what is around it."""
    cut = text[:_SHOWN]
    shown = "".join(c if c.isprintable() or c in _PLAIN else _escaped(c) for c in cut)
    return shown, len(text) if len(text) > len(cut) else None


def _escaped(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:
        # A byte that is not UTF-8: see `iceburg.records`.
        return f"\\x{number - 0xDC00:02x}"
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
