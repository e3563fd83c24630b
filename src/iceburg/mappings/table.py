"""Any other SQLite table: one column for each of its columns, under its names.

A record is found by the table's primary key where the census saw that the key can serve (no NULL, nothing that loses
its identity), else by a ``bigint`` that holds the rowid. A key value that PostgreSQL cannot hold exactly sends the
record to the quarantine; any other value keeps its original beside a usable one.
"""

from __future__ import annotations

from collections.abc import Mapping as Dictionary
from dataclasses import dataclass
from typing import Final

from iceburg.mappings.codecs import CODECS, PgValue
from iceburg.mappings.mapping import Difference, Original, Originals, Row, TargetColumn, UnmappableError
from iceburg.mappings.sqlite_record import RecordShape, SqliteRecord, pack, unpack
from iceburg.records import Key, Value

ROWID_COLUMN: Final = "_iceburg_rowid"


@dataclass(frozen=True, slots=True)
class ColumnPlan:
    """How one source column is held.

    Attributes
    ----------
    source, target
        Its names there and here.
    codec
        Name of the codec in `iceburg.mappings.codecs.CODECS`.
    not_null
        Whether the target column is NOT NULL.
    """

    source: str
    target: str
    codec: str
    not_null: bool


class TableMapping:
    """Conversion of a table one to one; see `iceburg.mappings.mapping.Mapping`.

    Parameters
    ----------
    plans
        The columns, in record order.
    key
        Source names of the columns that identify a record; empty for the rowid.
    key_width
        How many values of the reading key come first in a record.
    """

    def __init__(self, plans: tuple[ColumnPlan, ...], key: tuple[str, ...], key_width: int) -> None:
        self.shape = RecordShape(key_width, tuple(plan.source for plan in plans))
        by_rowid = not key
        if by_rowid and key_width != 1:
            raise ValueError("a table without a key of its own is read by its rowid")
        self._by_rowid = by_rowid
        self._key_positions = (0,) if by_rowid else tuple(self.shape.position(name) for name in key)
        self._columns = tuple(
            (key_width + i, plan.source, CODECS[plan.codec], plan.not_null or plan.source in key, plan.source in key)
            for i, plan in enumerate(plans)
        )
        columns = tuple(TargetColumn(plan.target, CODECS[plan.codec].type) for plan in plans)
        self.columns: Final = (TargetColumn(ROWID_COLUMN, "bigint"), *columns) if by_rowid else columns
        self.key_columns: Final = (0,) if by_rowid else tuple(self.shape.columns.index(name) for name in key)

    def key(self, record: SqliteRecord) -> Key:
        """Return the primary key's values, or the rowid; with the rowid too where NULLs leave the key not unique."""
        key = tuple(record[i] for i in self._key_positions)
        return key if None not in key else key + record[: self.shape.key_width]

    def row_key(self, record: SqliteRecord) -> Row | None:
        """Return the target's key values; None where PostgreSQL cannot hold them."""
        if self._by_rowid:
            return (record[0],)
        width = self.shape.key_width
        encoded = [self._columns[p - width][2].encode(record[p]) for p in self._key_positions]
        if any(value is None or reason is not None for value, reason in encoded):
            return None
        return tuple(value for value, _ in encoded)

    def convert(self, record: SqliteRecord) -> tuple[Row, Originals]:
        """Return the row and the originals to keep."""
        row: list[PgValue] = [record[0]] if self._by_rowid else []
        originals: list[Original] = []
        for position, name, codec, not_null, in_key in self._columns:
            value, reason = codec.encode(record[position])
            if reason is not None:
                if in_key:
                    raise UnmappableError(f"key column {name}: {reason}")
                originals.append(Original(name, record[position], reason))
            if value is None and not_null:
                raise UnmappableError(f"no value for NOT NULL column {name}: {reason or 'NULL'}")
            row.append(value)
        return tuple(row), tuple(originals)

    def restore(self, row: Row, originals: Dictionary[str, Value]) -> SqliteRecord:
        """Return the record that `row` and its originals came from."""
        values = row[1:] if self._by_rowid else row
        key: SqliteRecord = (row[0],) if self._by_rowid else (None,) * self.shape.key_width  # type: ignore[assignment]
        return key + tuple(
            originals[name] if name in originals else codec.decode(value)
            for value, (_, name, codec, _, _) in zip(values, self._columns, strict=True)
        )

    def differences(self, source: SqliteRecord, restored: SqliteRecord) -> list[Difference]:
        """Compare column by column."""
        return self.shape.differences(source, restored)

    def derived(self, record: SqliteRecord) -> tuple[tuple[int, PgValue], ...]:
        """No column is derived: all of them are restored."""
        return ()

    def pack(self, record: SqliteRecord) -> bytes:
        """Write the whole record for the quarantine."""
        return pack(record)

    def unpack(self, packed: bytes) -> SqliteRecord:
        """Read what `pack` wrote."""
        return unpack(packed)
