"""A Chroma directory as one SQLite file that needs no chromadb to be read: the form is described in docs/chroma.md.

Everything that PostgreSQL has of the directory is in it. Discovery knows the file by its application id and does not
take it for a store.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from iceburg.mappings.json_value import dumps
from iceburg.migration.output import create
from iceburg.records import Batch, ChromaRecord, Key
from iceburg.sources.recognise import EXPORT_ID
from iceburg.sources.sqlite_fetch import lenient_text

SUFFIX: Final = ".export.sqlite3"
_FORM: Final = "iceburg-db export of a Chroma directory, form 1"
_SCHEMA: Final = f"""
PRAGMA application_id = {EXPORT_ID};
CREATE TABLE about (form TEXT NOT NULL, store TEXT NOT NULL);
CREATE TABLE collections (
    collection INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    tenant TEXT NOT NULL,
    database TEXT NOT NULL,
    name TEXT NOT NULL,
    dimension INTEGER,
    distance TEXT NOT NULL,
    metadata TEXT NOT NULL,
    configuration TEXT,
    schema TEXT);
CREATE TABLE records (
    collection INTEGER NOT NULL REFERENCES collections,
    row INTEGER NOT NULL,
    id TEXT NOT NULL,
    document TEXT,
    metadata TEXT,
    vector BLOB,
    vector_origin TEXT NOT NULL,
    PRIMARY KEY (collection, row)) WITHOUT ROWID;
"""
_INSERT_COLLECTION: Final = """
INSERT INTO collections VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?, ?, ?)
"""
_INSERT_RECORD: Final = "INSERT INTO records VALUES (?, ?, CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?)"
_SELECT: Final = """
SELECT row, id, document, metadata, vector, vector_origin FROM records
WHERE collection = ? AND row > ? ORDER BY row LIMIT ?
"""
_FIRST: Final = -(2**63)
# Bytes of vectors that a batch may have.
_BATCH_BYTES: Final = 8 << 20


class ChromaExport:
    """Writes one file; a context manager that gives up its connection.

    Parameters
    ----------
    path
        Where; the file is made.
    store
        The directory's name below the data directory.
    """

    def __init__(self, path: Path, store: str) -> None:
        create(path)
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = MEMORY")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.executescript(_SCHEMA)
        self._connection.execute("INSERT INTO about VALUES (?, ?)", (_FORM, store))

    def __enter__(self) -> ChromaExport:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()

    def add_collection(self, number: int, collection: dict[str, Any]) -> None:
        """Add a collection, given as its dataset's definition has it."""
        place = [_raw(collection[name]) for name in ("id", "tenant", "database", "name")]
        self._connection.execute(
            _INSERT_COLLECTION,
            (
                number,
                *place,
                collection["dimension"],
                collection["distance"],
                dumps(collection.get("metadata") or {}),
                collection.get("configuration"),
                collection.get("schema"),
            ),
        )

    def add_records(self, number: int, records: Iterable[ChromaRecord]) -> None:
        """Add records of a collection, in one transaction."""
        self._connection.execute("BEGIN")
        self._connection.executemany(
            _INSERT_RECORD,
            (
                (
                    number,
                    record.row,
                    _raw(record.id),
                    None if record.document is None else _raw(record.document),
                    None if record.metadata is None else dumps(record.metadata),
                    record.vector,
                    record.origin,
                )
                for record in records
            ),
        )
        self._connection.execute("COMMIT")

    def highest_row(self, number: int) -> int | None:
        """Return the highest row number of a collection; None where it has no records."""
        found = self._connection.execute("SELECT max(row) FROM records WHERE collection = ?", (number,)).fetchone()
        highest: int | None = found[0]
        return highest


class ExportReader:
    """Reads one collection of an export; a `iceburg.records.DatasetReader` of `iceburg.records.ChromaRecord`."""

    def __init__(self, path: Path, number: int, dimension: int | None) -> None:
        self._path = path
        self._number = number
        self._dimension = dimension

    @property
    def name(self) -> str:
        """The number of the collection."""
        return str(self._number)

    def count(self) -> int:
        """Return the number of records."""
        with closing(self._connect()) as connection:
            select = "SELECT count(*) FROM records WHERE collection = ?"
            return int(connection.execute(select, (self._number,)).fetchone()[0])

    def batches(
        self, *, after: Key | None = None, upto: Key | None = None, size: int = 10_000
    ) -> Iterator[Batch[ChromaRecord]]:
        """Yield batches of the records with ``after < row <= upto``."""
        last = _FIRST if after is None else after[0]
        size = max(1, min(size, _BATCH_BYTES // (4 * (self._dimension or 1))))
        with closing(self._connect()) as connection:
            while rows := connection.execute(_SELECT, (self._number, last, size)).fetchall():
                last = rows[-1][0]
                records = [_record(row) for row in rows if upto is None or row[0] <= upto[0]]
                if records:
                    yield Batch(records, (records[-1].row,))
                if len(records) < len(rows) or len(rows) < size:
                    return

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True)
        connection.text_factory = lenient_text
        return connection


def _record(row: tuple[Any, ...]) -> ChromaRecord:
    number, identity, document, metadata, vector, origin = row
    return ChromaRecord(number, identity, document, None if metadata is None else json.loads(metadata), vector, origin)


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
