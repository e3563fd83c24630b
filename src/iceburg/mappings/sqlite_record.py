"""What the mappings of SQLite tables share: the shape of a record, its comparison and its quarantine form.

A record is a tuple: the values of the reading key first, then all columns in table order
(`iceburg.sources.sqlite.TableReader`).
"""

from __future__ import annotations

from collections.abc import Mapping as Dictionary
from dataclasses import dataclass

from iceburg.mappings.codecs import same_value
from iceburg.mappings.json_value import same_json
from iceburg.mappings.mapping import Difference
from iceburg.records import Key, Value, decode_key, encode_key

SqliteRecord = tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class RecordShape:
    """Where the values stand in a record.

    Attributes
    ----------
    key_width
        How many values of the reading key come first.
    columns
        Names of the table's columns, in record order.
    json_columns
        Those that hold JSON text, which is compared as values.
    """

    key_width: int
    columns: tuple[str, ...]
    json_columns: frozenset[str] = frozenset()

    def position(self, column: str) -> int:
        """Return the position of a column's value in a record."""
        return self.key_width + self.columns.index(column)

    def assemble(self, values: Dictionary[str, Value], originals: Dictionary[str, Value]) -> SqliteRecord:
        """Build a record from restored values; the reading key, which is not restored, is NULL."""
        return (None,) * self.key_width + tuple(
            originals[name] if name in originals else values[name] for name in self.columns
        )

    def differences(self, source: SqliteRecord, restored: SqliteRecord) -> list[Difference]:
        """Compare the columns of two records."""
        width = self.key_width
        found = []
        for name, a, b in zip(self.columns, source[width:], restored[width:], strict=True):
            # Most values are texts, or nothing: these need no closer look.
            if a is b or (type(a) is str and type(b) is str and a == b) or same_value(a, b):
                continue
            if name in self.json_columns and isinstance(a, str) and isinstance(b, str) and same_json(a, b):
                continue
            found.append(Difference(name, a, b))
        return found


def pack(record: SqliteRecord) -> bytes:
    """Write a record for the quarantine."""
    return encode_key(record).encode()


def unpack(packed: bytes) -> SqliteRecord:
    """Read what `pack` wrote."""
    key: Key = decode_key(packed.decode())
    return key
