"""The records of a dataset as the target has them: each row turned back into the record that it came from.

They are read through a cursor of the server, in the order of the source, and never all at once. Originals are looked up
by record key; a row whose own values do not give the key, because an original stands in the key, is known by its id.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, LiteralString, TypeAlias

import psycopg
from psycopg import sql

from iceburg.database.catalogue import Dataset
from iceburg.database.kept import originals_of
from iceburg.database.schema import SchemaNames
from iceburg.database.target_table import uuid_text
from iceburg.mappings.identity import identify, key_text
from iceburg.mappings.mapping import Mapping, Row, UnrestorableError
from iceburg.records import Value

Restored: TypeAlias = "tuple[Row, Any]"

BATCH: Final = 2_000
_SELECT: Final[LiteralString] = "SELECT {columns} FROM {table} AS t WHERE {owned} ORDER BY {order}"
_QUARANTINED: Final[LiteralString] = """
SELECT record_key, record FROM {state}.quarantine WHERE dataset_id = {dataset}
ORDER BY substring(record_key FROM '^\\[(\\d+)\\]$')::numeric NULLS LAST, record_key
"""
_KEYS: Final[LiteralString] = "SELECT DISTINCT record_key FROM {state}.originals WHERE dataset_id = {dataset}"
_HAS_ORIGINALS: Final[LiteralString] = "SELECT 1 FROM {state}.originals WHERE dataset_id = %s LIMIT 1"
# What puts the rows of the plan's tables into the order of their source. Rows that another program has written have no
# place in it, and come last in the order of their making.
_ORDERS: Final[dict[str, LiteralString]] = {
    "conversations": "t.row_id, t.created_at, t.id",
    # Records without an id keep their rowids, which have to be given before SQLite gives any.
    "entities": "t.entity_id NULLS FIRST, t.id",
    "relationships": "t.relationship_id NULLS FIRST, t.id",
    "telemetry": 't.byte_offset, t."timestamp", t.id',
    "embeddings": "t.row_id, t.created_at, t.id",
    "vectors": "t.row_id, t.created_at, t.id",
}
# Where their number is; of conversations and of vectors SQLite gives the next one itself.
_NUMBERED: Final = {"telemetry": 2, "embeddings": 2}
_LISTED: Final = 20


@dataclass(slots=True)
class Refused:
    """Rows that cannot be turned back, because another program has changed them: how many, and some of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, row: str, error: UnrestorableError) -> None:
        """Note a row."""
        self.count += 1
        if len(self.examples) < _LISTED:
            self.examples.append(f"row {row}, {error}")


class TargetRecords:
    """Reads one dataset, within a transaction of the caller that sees one snapshot; a context manager.

    Parameters
    ----------
    connection
        With `prepare_loaders`.
    names
        Of the target's schemas.
    dataset
        Which one.

    Attributes
    ----------
    mapping
        Of the dataset.
    refused
        Rows of which no record can be made.
    unplaced
        How many rows have no number, because another program has written them. They come last, with the next ones.
    """

    def __init__(self, connection: psycopg.Connection, names: SchemaNames, dataset: Dataset) -> None:
        self.mapping: Mapping[Any] = dataset.mapping()
        self.refused = Refused()
        self.unplaced = 0
        self._last = 0
        self._originals: _Originals | None = None
        self._numbered = _NUMBERED.get(dataset.definition["mapping"])
        self._connection = connection
        self._names = names
        self._dataset = dataset
        self._target = dataset.target()

    def __enter__(self) -> TargetRecords:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._originals is not None:
            self._originals.close()

    def count(self) -> int:
        """Return the number of rows."""
        return self._target.count(self._connection)

    def rows(self, size: int = BATCH) -> Iterator[list[Restored]]:
        """Yield rows with their records, in the order of the source."""
        for rows in self._fetch(self._select(), size):
            yield self.restore(rows)

    def restore(self, rows: Sequence[Row]) -> list[Restored]:
        """Return rows of the mapping's columns with their records, in their order; those that are refused left out."""
        if self._originals is None:
            self._originals = _Originals(self._connection, self._names, self._dataset, self.mapping)
        return list(self._restored(rows, self._originals.of(rows)))

    def _restored(self, rows: Sequence[Row], kept: dict[int, dict[str, Value]]) -> Iterator[Restored]:
        restore = self.mapping.restore
        for number, row in enumerate(rows):
            if self._numbered is not None:
                row = self._placed(row, self._numbered)
            try:
                record = restore(row, kept.get(number, {}))
            except UnrestorableError as error:
                self.refused.add(self._named(row), error)
                continue
            yield row, record

    def _placed(self, row: Row, position: int) -> Row:
        number = row[position]
        if number is None:
            self.unplaced += 1
            number = self._last + 1
            row = (*row[:position], number, *row[position + 1 :])
        assert isinstance(number, int)  # noqa: S101 - a bigint
        self._last = number
        return row

    def _named(self, row: Row) -> str:
        key = [row[i] for i in self._target.key_columns]
        return ", ".join(uuid_text(v) if isinstance(v, bytes) and len(v) == 16 else repr(v) for v in key)

    def quarantined(self, size: int = BATCH) -> Iterator[list[Any]]:
        """Yield the records that are kept whole, in the order of their numbers, where their keys are numbers."""
        unpack = self.mapping.unpack
        statement = self._names.format(_QUARANTINED, dataset=sql.Literal(self._dataset.dataset_id))
        for rows in self._fetch(statement, size):
            yield [unpack(packed) for _, packed in rows]

    def _select(self) -> sql.Composed:
        kind = self._dataset.definition["mapping"]
        keys = [sql.Identifier("t", self._target.columns[i][0]) for i in self._target.key_columns]
        order = sql.SQL(", ").join(keys) if kind == "table" else sql.SQL(_ORDERS[kind])
        owner = self._target.owner_column
        return self._names.format(
            _SELECT,
            columns=sql.SQL(", ").join(sql.Identifier("t", name) for name, _ in self._target.columns),
            table=self._target.identifier,
            owned=sql.SQL("TRUE")
            if owner is None
            else sql.SQL("{} = {}").format(sql.Identifier("t", owner), sql.Literal(self._target.owner_id)),
            order=order,
        )

    def _fetch(self, statement: sql.Composed, size: int) -> Iterator[list[Any]]:
        with psycopg.RawServerCursor(self._connection, f"iceburg_{id(statement):x}") as cursor:
            cursor.execute(statement, binary=True)
            while rows := cursor.fetchmany(size):
                yield rows


class _Originals:
    """The originals of rows, batch by batch.

    Of the plan's tables, a row's id follows from its record's key but does not give it: the keys that have originals
    are put down by the ids that follow from them, in a database of SQLite's that goes to disk where it grows.
    """

    def __init__(
        self, connection: psycopg.Connection, names: SchemaNames, dataset: Dataset, mapping: Mapping[Any]
    ) -> None:
        self._connection = connection
        self._names = names
        self._dataset = dataset
        self._mapping = mapping
        found = connection.execute(names.format(_HAS_ORIGINALS), (dataset.dataset_id,)).fetchone()
        self._any = found is not None
        self._keys: sqlite3.Connection | None = None
        if self._any and dataset.definition["mapping"] != "table":
            self._keys = self._put_down()

    def close(self) -> None:
        """Give the database back."""
        if self._keys is not None:
            self._keys.close()

    def _put_down(self) -> sqlite3.Connection:
        identity = identify(self._dataset.name)
        keys = sqlite3.connect("")
        keys.execute("CREATE TABLE keys (id BLOB PRIMARY KEY, record_key TEXT NOT NULL) WITHOUT ROWID")
        statement = self._names.format(_KEYS, dataset=sql.Literal(self._dataset.dataset_id))
        with psycopg.RawServerCursor(self._connection, "iceburg_keys") as cursor:
            cursor.execute(statement, binary=True)
            while rows := cursor.fetchmany(BATCH):
                keys.executemany("INSERT INTO keys VALUES (?, ?)", ((identity(key), key) for (key,) in rows))
        keys.commit()
        return keys

    def of(self, rows: Sequence[Row]) -> dict[int, dict[str, Value]]:
        """Return the originals of rows: by position, then by field."""
        if not self._any:
            return {}
        keys = self._known(rows) if self._keys is not None else self._own(rows)
        if not keys:
            return {}
        found = originals_of(self._connection, self._names, self._dataset.dataset_id, list(keys.values()))
        return {number: found[key] for number, key in keys.items() if key in found}

    def _known(self, rows: Sequence[Row]) -> dict[int, str]:
        assert self._keys is not None  # noqa: S101 - asked before
        select = "SELECT record_key FROM keys WHERE id = ?"
        found = ((number, self._keys.execute(select, (row[0],)).fetchone()) for number, row in enumerate(rows))
        return {number: key[0] for number, key in found if key is not None}

    def _own(self, rows: Sequence[Row]) -> dict[int, str]:
        """Return the keys of rows whose key is among their own values, which are exact."""
        mapping, keys = self._mapping, {}
        for number, row in enumerate(rows):
            try:
                keys[number] = key_text(mapping.key(mapping.restore(row, {})))
            except UnrestorableError:
                continue
        return keys
