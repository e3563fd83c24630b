"""ICEBURG's conversations: one row an exchange, under the plan's column names.

``user_message`` is ``query``, ``assistant_message`` ``response``, ``agent_used`` ``agent``; the integer id, the
conversation's id and the local timestamp keep columns of their own. Columns that this version does not know go into the
document ``extra``.
"""

from __future__ import annotations

from collections.abc import Mapping as Dictionary
from datetime import datetime
from typing import Final

from iceburg.mappings.codecs import PgValue, encode_text, encode_varchar
from iceburg.mappings.identity import identify, key_text
from iceburg.mappings.json_fragment import fragment_of_any, fragment_of_json
from iceburg.mappings.json_members import restored_json
from iceburg.mappings.json_number import value_of_number
from iceburg.mappings.json_value import loads, quote
from iceburg.mappings.mapping import (
    Difference,
    Original,
    Originals,
    Row,
    TargetColumn,
    UnmappableError,
    UnrestorableError,
)
from iceburg.mappings.sqlite_record import RecordShape, SqliteRecord, pack, unpack
from iceburg.mappings.timestamps import iso_timestamp, sqlite_timestamp, usable_datetime
from iceburg.records import Key, Value

REQUIRED: Final = ("id", "conversation_id", "timestamp", "user_message", "assistant_message")
OPTIONAL: Final = ("agent_used", "mode", "metadata", "created_at")
VARCHAR_LENGTH: Final = 50

COLUMNS: Final = (
    TargetColumn("id", "uuid"),
    TargetColumn("dataset_id", "integer"),
    TargetColumn("row_id", "bigint"),
    TargetColumn("conversation_id", "text"),
    TargetColumn("timestamp", "timestamp"),
    TargetColumn("query", "text"),
    TargetColumn("response", "text"),
    TargetColumn("mode", "varchar"),
    TargetColumn("agent", "varchar"),
    TargetColumn("created_at", "timestamp"),
    TargetColumn("updated_at", "timestamp"),
    TargetColumn("metadata", "jsonb"),
    TargetColumn("extra", "jsonb"),
)
_AT: Final = {column.name: position for position, column in enumerate(COLUMNS)}


class ConversationMapping:
    """Conversion of a conversations table; see `iceburg.mappings.mapping.Mapping`."""

    columns: Final = COLUMNS
    key_columns: Final = (0,)

    def __init__(self, dataset: str, dataset_id: int, shape: RecordShape) -> None:
        self.shape = RecordShape(shape.key_width, shape.columns, frozenset({"metadata"}))
        self._dataset_id = dataset_id
        self._identify = identify(dataset)
        self._at = {name: self.shape.position(name) for name in shape.columns}
        self._extra = tuple(name for name in shape.columns if name not in REQUIRED + OPTIONAL)

    def key(self, record: SqliteRecord) -> Key:
        """Return the integer id."""
        return (record[self._at["id"]],)

    def row_key(self, record: SqliteRecord) -> Row:
        """Return the UUID."""
        return (self._identify(key_text(self.key(record))),)

    def _value(self, record: SqliteRecord, name: str) -> Value:
        position = self._at.get(name)
        return None if position is None else record[position]

    def convert(self, record: SqliteRecord) -> tuple[Row, Originals]:
        """Return the row and the originals to keep."""
        originals: list[Original] = []

        def keep(name: str, usable: PgValue, reason: str | None) -> PgValue:
            if reason is not None:
                originals.append(Original(name, record[self._at[name]], reason))
            return usable

        row_id = self._value(record, "id")
        if not isinstance(row_id, int):
            raise UnmappableError("id is not an integer")
        query = keep("user_message", *encode_text(self._value(record, "user_message")))
        if query is None:
            query = keep("user_message", "", "no user message")
        created = self._time(record, "created_at", originals)
        row = (
            self._identify(key_text((row_id,))),
            self._dataset_id,
            row_id,
            keep("conversation_id", *encode_text(self._value(record, "conversation_id"))),
            self._time(record, "timestamp", originals),
            query,
            keep("assistant_message", *encode_text(self._value(record, "assistant_message"))),
            keep("mode", *encode_varchar(self._value(record, "mode"), VARCHAR_LENGTH)),
            keep("agent_used", *encode_varchar(self._value(record, "agent_used"), VARCHAR_LENGTH)),
            created,
            created,
            keep("metadata", *fragment_of_json(self._value(record, "metadata"))),
            self._extra_document(record, originals),
        )
        return row, tuple(originals)

    def _time(self, record: SqliteRecord, name: str, originals: list[Original]) -> datetime | None:
        value = self._value(record, name)
        if value is None:
            return None
        parse = iso_timestamp if name == "timestamp" else sqlite_timestamp
        found = parse(value) if isinstance(value, str) else None
        if found is not None:
            return found
        originals.append(Original(name, value, "timestamp of another form"))
        return usable_datetime(value)

    def _extra_document(self, record: SqliteRecord, originals: list[Original]) -> str | None:
        members = []
        for name in self._extra:
            fragment, reason = fragment_of_any(record[self._at[name]])
            if fragment is not None:
                members.append(f"{quote(name)}:{fragment}")
            if reason is not None:
                originals.append(Original(name, record[self._at[name]], reason))
        return "{" + ",".join(members) + "}" if self._extra else None

    def restore(self, row: Row, originals: Dictionary[str, Value]) -> SqliteRecord:
        """Return the record that `row` and its originals came from."""
        timestamp, created, metadata = row[_AT["timestamp"]], row[_AT["created_at"]], row[_AT["metadata"]]
        values: dict[str, Value] = {
            "id": row[_AT["row_id"]],  # type: ignore[dict-item]
            "conversation_id": row[_AT["conversation_id"]],  # type: ignore[dict-item]
            "timestamp": timestamp.isoformat("T") if isinstance(timestamp, datetime) else None,
            "user_message": row[_AT["query"]],  # type: ignore[dict-item]
            "assistant_message": row[_AT["response"]],  # type: ignore[dict-item]
            "agent_used": row[_AT["agent"]],  # type: ignore[dict-item]
            "mode": row[_AT["mode"]],  # type: ignore[dict-item]
            "metadata": restored_json(metadata) if isinstance(metadata, str) else None,
            "created_at": created.isoformat(" ") if isinstance(created, datetime) else None,
        }
        for name, value in values.items():
            # A value for a column that this source does not have can only have been written by somebody else.
            if value is not None and name not in self._at:
                raise UnrestorableError(name, value)
        values |= self._restored_extra(row[_AT["extra"]])
        return self.shape.assemble(values, originals)

    def _restored_extra(self, text: PgValue) -> dict[str, Value]:
        document = loads(text) if isinstance(text, str) else {}
        if not isinstance(document, dict) or not document.keys() <= set(self._extra):
            raise UnrestorableError("extra", text)
        if (text is None) != (not self._extra):
            raise UnrestorableError("extra", text)
        values: dict[str, Value] = dict.fromkeys(self._extra)
        for name, value in document.items():
            if value is None or isinstance(value, bool | dict | list):
                raise UnrestorableError(name, value)
            values[name] = value if isinstance(value, str) else value_of_number(value)
        return values

    def differences(self, source: SqliteRecord, restored: SqliteRecord) -> list[Difference]:
        """Compare column by column."""
        return self.shape.differences(source, restored)

    def derived(self, record: SqliteRecord) -> tuple[tuple[int, PgValue], ...]:
        """``updated_at`` begins as ``created_at``."""
        return ((_AT["updated_at"], self._time(record, "created_at", [])),)

    def pack(self, record: SqliteRecord) -> bytes:
        """Write the whole record for the quarantine."""
        return pack(record)

    def unpack(self, packed: bytes) -> SqliteRecord:
        """Read what `pack` wrote."""
        return unpack(packed)
