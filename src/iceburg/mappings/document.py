"""ICEBURG's Matrix store: entities and relationships as rows with a JSONB document.

The type and the creation time have columns of their own; every other column of the record is a key of the document. A
column that holds JSON text is embedded as JSON, NULL leaves its key out, ``''`` is the empty string. What is searched
(``entity_id``, ``name``, the ends of a relationship) PostgreSQL generates from the document.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from collections.abc import Mapping as Dictionary
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from operator import attrgetter, itemgetter
from typing import Final

import orjson
from msgspec import MsgspecError, Raw

from iceburg.mappings.codecs import PgValue, encode_varchar
from iceburg.mappings.identity import identify, key_text
from iceburg.mappings.json_fragment import Fragment, fragment_of_any, fragment_of_json, fragment_of_text
from iceburg.mappings.json_members import (
    document_decoder,
    is_surely_same,
    restored_json,
    split,
    string_in,
    text_of,
)
from iceburg.mappings.json_number import value_of_number
from iceburg.mappings.json_value import loads, quote, same_json
from iceburg.mappings.mapping import Difference, Original, Originals, Row, TargetColumn, UnrestorableError
from iceburg.mappings.sqlite_record import RecordShape, SqliteRecord, pack, unpack
from iceburg.mappings.timestamps import sqlite_timestamp, usable_datetime
from iceburg.records import Key, Value

TYPE_LENGTH: Final = 100


@dataclass(frozen=True, slots=True)
class DocumentTable:
    """One of the two tables of the Matrix store.

    Attributes
    ----------
    key, type
        The source columns that identify a record and give its type.
    texts, documents
        The known columns that hold plain text, and those that hold JSON text.
    target
        The PostgreSQL table; `type` is the name of its type column too.
    document
        Its JSONB column.
    """

    key: str
    type: str
    texts: frozenset[str]
    documents: frozenset[str]
    target: str
    document: str


ENTITIES: Final = DocumentTable(
    key="entity_id",
    type="entity_type",
    texts=frozenset({"entity_id", "name", "source"}),
    documents=frozenset({"properties", "countries", "datasets"}),
    target="matrix_entities",
    document="entity_data",
)
RELATIONSHIPS: Final = DocumentTable(
    key="relationship_id",
    type="relationship_type",
    texts=frozenset({"relationship_id", "source_id", "target_id", "source"}),
    documents=frozenset({"properties"}),
    target="matrix_relationships",
    document="relationship_data",
)

_ID, _DATASET, _TYPE, _DOCUMENT, _CREATED, _UPDATED = range(6)


# In what ``record_send`` gives of a row: where the type's length is, and two times that are NULL.
_AT_TYPE: Final = 44
_TIMESTAMP: Final = 1114
_NO_TIMES: Final = 2 * struct.pack("!Ii", _TIMESTAMP, -1)
_size: Final = struct.Struct("!i").unpack_from
_time: Final = struct.Struct("!Iiq").unpack_from
_EPOCH: Final = datetime(2000, 1, 1)
_MICROSECOND: Final = timedelta(microseconds=1)


@lru_cache(maxsize=8192)
def _date(day: int) -> str:
    """Write a day, counted from 2000-01-01, and the space after it."""
    return (_EPOCH + timedelta(days=day)).isoformat(" ")[:11]


@lru_cache(maxsize=86_400)
def _time_of_day(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).isoformat(" ")[11:]


def _written(times: bytes) -> str | None:
    """Return as text the first of the times that a row ends with; None if they are none that a text is of."""
    if len(times) != 32:
        return None
    kind, size, value = _time(times)
    if (kind, size) != (_TIMESTAMP, 8):
        return None
    seconds, fraction = divmod(value, 1_000_000)
    try:
        if fraction:
            return str(_EPOCH + value * _MICROSECOND)
        # From its parts, of which there are far fewer than there are times.
        return _date(seconds // 86_400) + _time_of_day(seconds % 86_400)
    except OverflowError:
        return None


@lru_cache(maxsize=4096)
def _small_json(value: str) -> Fragment:
    return fragment_of_json(value)


def _fragment_of_json(value: Value) -> Fragment:
    # Country and dataset lists repeat by the thousand; properties hardly ever do.
    return _small_json(value) if type(value) is str and len(value) < 64 else fragment_of_json(value)


class DocumentMapping:
    """Conversion of one Matrix table; see `iceburg.mappings.mapping.Mapping`.

    Parameters
    ----------
    table
        Which of the two.
    dataset
        Name of the dataset, from which the ids follow.
    dataset_id
        Its number in the ledger.
    shape
        Where the columns stand in a record.
    """

    key_columns: Final = (_ID,)

    def __init__(self, table: DocumentTable, dataset: str, dataset_id: int, shape: RecordShape) -> None:
        self.shape = RecordShape(shape.key_width, shape.columns, table.documents)
        self.columns: Final = (
            TargetColumn("id", "uuid"),
            TargetColumn("dataset_id", "integer"),
            TargetColumn(table.type, "varchar"),
            TargetColumn(table.document, "jsonb"),
            TargetColumn("created_at", "timestamp"),
            TargetColumn("updated_at", "timestamp"),
        )
        self._table = table
        self._dataset_id = dataset_id
        self._identify = identify(dataset)
        self._key = self.shape.position(table.key)
        self._type = self.shape.position(table.type)
        self._created = self.shape.position("created_at") if "created_at" in shape.columns else None
        self._members = tuple(
            (self.shape.position(name), name, quote(name) + ":", self._fragment_function(name))
            for name in shape.columns
            if name not in (table.type, "created_at")
        )
        self._names = frozenset(name for _, name, _, _ in self._members)
        texts = [(at, name) for at, name, _, _ in self._members if name not in table.documents]
        documents = [(at, name) for at, name, _, _ in self._members if name in table.documents]
        self._decode = document_decoder([name for _, name in texts], [name for _, name in documents])
        self._texts = itemgetter(*(at for at, _ in texts))
        self._texts_of = attrgetter(*(f"t{n}" for n in range(len(texts))))
        self._documents = tuple((at, attrgetter(f"o{n}")) for n, (at, _) in enumerate(documents))
        self._columns_in_order = tuple((name, name in table.documents) for name in shape.columns)

    def _fragment_function(self, name: str) -> Callable[[Value], Fragment]:
        if name in self._table.documents:
            return _fragment_of_json
        return fragment_of_text if name in self._table.texts else fragment_of_any

    def key(self, record: SqliteRecord) -> Key:
        """Return the value of the key column; NULL, which SQLite takes there any number of times, with the rowid."""
        value = record[self._key]
        return (value,) if value is not None else (None, record[0])

    def row_key(self, record: SqliteRecord) -> Row:
        """Return the id."""
        return (self._identify(key_text(self.key(record))),)

    def convert(self, record: SqliteRecord) -> tuple[Row, Originals]:
        """Return the row and the originals to keep."""
        originals: list[Original] = []
        document = self._plain_document(record) or self._document(record, originals)
        kind, reason = encode_varchar(record[self._type], TYPE_LENGTH)
        if reason is not None:
            originals.append(Original(self._table.type, record[self._type], reason))
        created = self._created_at(record, originals)
        row = (
            self._identify(key_text(self.key(record))),
            self._dataset_id,
            kind,
            document,
            created,
            created,
        )
        return row, tuple(originals)

    def _plain_document(self, record: SqliteRecord) -> str | None:
        """Write the document in one go; None where something in it needs a closer look.

        A third of the time that `_document` takes, and nearly all records are of this kind.
        """
        document: dict[str, str | orjson.Fragment] = {}
        for position, name, _, fragment_of in self._members:
            value = record[position]
            if value is None:
                continue
            if type(value) is not str:
                return None
            if fragment_of is _fragment_of_json and value:
                fragment, reason = _fragment_of_json(value)
                if fragment is None or reason is not None:
                    return None
                document[name] = orjson.Fragment(fragment)
            else:
                document[name] = value
        try:
            text = orjson.dumps(document).decode()
        except TypeError:  # a lone surrogate: a byte that is not UTF-8
            return None
        return None if "\\u0000" in text else text

    def _document(self, record: SqliteRecord, originals: list[Original]) -> str:
        """Write the document value by value, and find the originals to keep."""
        members = []
        for position, name, prefix, fragment_of in self._members:
            fragment, reason = fragment_of(record[position])
            if fragment is not None:
                members.append(prefix + fragment)
            if reason is not None:
                originals.append(Original(name, record[position], reason))
        return "{" + ",".join(members) + "}"

    def _created_at(self, record: SqliteRecord, originals: list[Original]) -> datetime | None:
        if self._created is None:
            return None
        value = record[self._created]
        if value is None:
            return None
        found = sqlite_timestamp(value) if type(value) is str else None
        if found is None:
            originals.append(Original("created_at", value, "not of the form 'YYYY-MM-DD HH:MM:SS'"))
            return usable_datetime(value)
        return found

    def restore(self, row: Row, originals: Dictionary[str, Value]) -> SqliteRecord:
        """Return the record; raises `UnrestorableError` where the document is not one that `convert` makes."""
        text = row[_DOCUMENT]
        members = split(text) if isinstance(text, str) else None
        if members is None or not members.keys() <= self._names:
            raise UnrestorableError(self._table.document, text)
        record: list[Value] = [None] * self.shape.key_width
        for name, is_json in self._columns_in_order:
            if name in originals:
                record.append(originals[name])
            elif name == self._table.type:
                record.append(row[_TYPE])  # type: ignore[arg-type]
            elif name == "created_at":
                created = row[_CREATED]
                record.append(created.isoformat(" ") if isinstance(created, datetime) else None)
            elif name not in members:
                record.append(None)
            elif is_json:
                record.append(restored_json(text_of(members[name])))
            else:
                record.append(_restored(name, members[name]))
        return tuple(record)

    def matches(self, record: SqliteRecord, sent: bytes) -> bool:
        """Tell quickly of most records that their row, without originals, is as it should be; see `Matching`."""
        # Each field after the number of its type and its length; the id and the dataset, of fixed lengths, come first.
        size = _size(sent, _AT_TYPE)[0]
        at = _AT_TYPE + 4
        kind = None
        if size >= 0:
            kind = sent[at : at + size].decode()
            at += size
        size = _size(sent, at + 4)[0]
        at += 8
        if size <= 0 or self._decode is None:
            return False
        try:
            # After the number of the format.
            document = self._decode(sent[at + 1 : at + size])
        except MsgspecError:
            return False
        # No other value is equal to a text, or to None.
        if self._texts_of(document) != self._texts(record):
            return False
        for position, member_of in self._documents:
            value, member = record[position], member_of(document)
            if value is None or member is None:
                if value is not member:
                    return False
            elif type(value) is not str or not _is_same_json(value, bytes(member)):
                return False
        wanted = record[self._type]
        if kind != wanted or not (wanted is None or type(wanted) is str):
            return False
        if self._created is None or record[self._created] is None:
            return sent.endswith(_NO_TIMES) and len(sent) == at + size + len(_NO_TIMES)
        times = sent[at + size :]
        return times[8:16] == times[24:] and _written(times) == record[self._created]

    def differences(self, source: SqliteRecord, restored: SqliteRecord) -> list[Difference]:
        """Compare column by column."""
        return self.shape.differences(source, restored)

    def derived(self, record: SqliteRecord) -> tuple[tuple[int, PgValue], ...]:
        """``updated_at`` begins as ``created_at``; the dataset is what the row was looked up by."""
        if self._created is None:
            return ((_CREATED, None), (_UPDATED, None))
        return ((_UPDATED, self._created_at(record, [])),)

    def pack(self, record: SqliteRecord) -> bytes:
        """Write the whole record for the quarantine."""
        return pack(record)

    def unpack(self, packed: bytes) -> SqliteRecord:
        """Read what `pack` wrote."""
        return unpack(packed)


def _is_same_json(value: str, printed: bytes) -> bool:
    """Whether a column that holds JSON text has the same value as what ``jsonb`` printed is restored to."""
    if is_surely_same(value, printed):
        return True
    restored = restored_json(printed.decode())
    return restored == value or same_json(value, restored)


def _restored(name: str, member: Raw) -> Value:
    """Return the value of a column that holds no JSON: a text or a number."""
    text = string_in(member)
    if text is not None:
        return text
    value = loads(text_of(member))
    if value is None or isinstance(value, bool | dict | list):
        raise UnrestorableError(name, value)
    return value_of_number(value)
