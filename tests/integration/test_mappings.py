"""There and back through real tables: what PostgreSQL gives back restores the record."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from iceburg.database.connection import connect
from iceburg.database.kept import pack_value, unpack_value
from iceburg.database.schema import SchemaNames, apply_schema, schema_names
from iceburg.database.structure import create_table
from iceburg.database.target_table import TargetTable, prepare_loaders
from iceburg.mappings.codecs import CODECS, storage_class
from iceburg.mappings.conversations import ConversationMapping
from iceburg.mappings.document import ENTITIES, RELATIONSHIPS, DocumentMapping
from iceburg.mappings.embeddings import EmbeddingMapping
from iceburg.mappings.json_value import same_json
from iceburg.mappings.mapping import Mapping, Row, UnmappableError, UnrestorableError
from iceburg.mappings.sqlite_record import RecordShape, SqliteRecord
from iceburg.mappings.table import ColumnPlan, TableMapping
from iceburg.mappings.telemetry import TelemetryMapping
from iceburg.records import ChromaRecord, Line, Value
from tests.strategies import (
    CHROMA_RECORDS,
    CONVERSATION_COLUMNS,
    ENTITY_COLUMNS,
    JSON_TEXTS,
    RELATIONSHIP_COLUMNS,
    VALUES,
    floats32,
    lines,
    nested,
    records_of_plans,
    table_plans,
    table_records,
    text_of,
)

# Each example is a batch: one COPY and one query for many records.
batches = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
# Quotes, capitals, spaces, a percent sign and braces must do no harm anywhere.
NAMES = schema_names('My "data" 100% {x} Ü')


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with connect(database, autocommit=True) as opened:
        opened.execute("CREATE EXTENSION vector")
        apply_schema(opened, NAMES)
        prepare_loaders(opened)
        yield opened


def same(left: Any, right: Any, kind: str) -> bool:
    """Whether a value written and the value read are the same to the bit, of JSON as values."""
    if kind == "jsonb" and left is not None and right is not None:
        return same_json(left, right)
    if isinstance(left, float) and left == 0:
        return isinstance(right, float) and right == 0 and math.copysign(1, left) == math.copysign(1, right)
    return type(left) is type(right) and bool(left == right)


def check_through_tables(
    connection: psycopg.Connection, mapping: Mapping[Any], target: TargetTable, records: Sequence[Any], *, upsert: bool
) -> None:
    """Write the rows of records, read them back by key, and restore the records from what came."""
    converted: dict[Row, tuple[Any, Row, dict[str, Value]]] = {}
    for record in records:
        try:
            row, originals = mapping.convert(record)
        except UnmappableError:
            continue
        kept = {o.field: unpack_value(storage_class(o.value), pack_value(o.value)) for o in originals}
        key = mapping.row_key(record)
        assert key is not None
        converted[key] = (record, row, kept)
    payload = target.render(row for _, row, _ in converted.values())
    with connection.transaction(force_rollback=True):
        target.copy(connection, payload)
        if upsert:
            target.upsert(connection, payload)
        found = target.lookup(connection, list(converted))
        assert target.count(connection) == len(found) == len(converted)
        for key, (record, row, kept) in converted.items():
            for column, written, read in zip(mapping.columns, row, found[key], strict=True):
                assert same(written, read, column.type), column.name
            assert mapping.differences(record, mapping.restore(found[key], kept)) == []


def plan_table(mapping: Mapping[Any], names: SchemaNames, table: str, owner: str, number: int) -> TargetTable:
    columns = tuple((column.name, column.type) for column in mapping.columns)
    return TargetTable(names.data, table, columns, mapping.key_columns, owner, number)


@batches
@given(records=st.lists(table_records(ENTITY_COLUMNS), min_size=5, max_size=30), upsert=st.booleans())
@example(
    records=[
        (1, None, "Ann", "person", None, "null", '""', "", "2024-01-01 12:00:00", None),
        (2, None, "a\0", "x" * 101, text_of(b"\xff"), nested(1500), nested(500), '{"a":1,"a":1}', "", -0.0),
        (3, b"e1", 5, b"\xff\0", 1.5, '{"a": "\\u0000"}', "[NaN]", "-0.0", "0001-01-01 00:00:00", math.inf),
        (4, "e1", "é", "é" * 100, "", "0", "true", ' {"b": 1e16} ', "9999-12-31 23:59:59", 5e-324),
    ],
    upsert=True,
)
def test_entities(connection: psycopg.Connection, records: list[SqliteRecord], upsert: bool) -> None:
    mapping = DocumentMapping(ENTITIES, "matrix.db/entities", 3, RecordShape(1, tuple(ENTITY_COLUMNS)))
    target = plan_table(mapping, NAMES, "matrix_entities", "dataset_id", 3)
    check_through_tables(connection, mapping, target, records, upsert=upsert)


@batches
@given(records=st.lists(table_records(RELATIONSHIP_COLUMNS), min_size=5, max_size=30), upsert=st.booleans())
def test_relationships(connection: psycopg.Connection, records: list[SqliteRecord], upsert: bool) -> None:
    mapping = DocumentMapping(RELATIONSHIPS, "m/relationships", 4, RecordShape(1, tuple(RELATIONSHIP_COLUMNS)))
    target = plan_table(mapping, NAMES, "matrix_relationships", "dataset_id", 4)
    check_through_tables(connection, mapping, target, records, upsert=upsert)


# The quick way is of names that JSON writes as they are.
PLAIN_COLUMNS = tuple(name.replace('"', "") for name in ENTITY_COLUMNS)


def has_difference(mapping: DocumentMapping, record: SqliteRecord, row: Row) -> bool:
    """Whether the long way finds that a row, without originals, is not a record's."""
    try:
        restored = mapping.restore(row, {})
    except UnrestorableError:
        return True
    derived = any(row[position] != expected for position, expected in mapping.derived(record))
    return derived or mapping.differences(record, restored) != []


@batches
@given(
    records=st.lists(table_records(ENTITY_COLUMNS), min_size=5, max_size=20),
    column=st.integers(1, len(ENTITY_COLUMNS)),
    values=st.lists(VALUES | JSON_TEXTS, min_size=20, max_size=20),
)
@example(
    records=[
        (1, "e1", "Łukasz", "person", "s", '{"a": ["\\u0141"], "b": 1}', '["pa"]', "[]", "2024-01-01 12:00:00", None)
    ],
    column=5,
    values=['{"a": ["\\u0142"], "b": 1}', '{"a": ["\\u0141"], "b": true}', '{"b": 1, "a": ["Ł"]}', None, ""] * 4,
)
def test_what_matches_has_no_difference(
    connection: psycopg.Connection, records: list[SqliteRecord], column: int, values: list[Value]
) -> None:
    mapping = DocumentMapping(ENTITIES, "matrix.db/entities", 3, RecordShape(1, PLAIN_COLUMNS))
    target = plan_table(mapping, NAMES, "matrix_entities", "dataset_id", 3)
    by_key = {mapping.row_key(record): record for record in records}
    with connection.transaction(force_rollback=True):
        target.copy(connection, target.render(mapping.convert(record)[0] for record in by_key.values()))
        sent = {row[0]: (one, row) for one in target.fetch(connection, list(by_key)) for row in [target.read(one)]}
    for key, record in by_key.items():
        one, row = sent[key[0]]
        for value in [record[column], *values]:
            other = (*record[:column], value, *record[column + 1 :])
            if mapping.matches(other, one):
                assert not has_difference(mapping, other, row)


def test_a_plain_record_matches(connection: psycopg.Connection) -> None:
    mapping = DocumentMapping(ENTITIES, "matrix.db/entities", 3, RecordShape(1, PLAIN_COLUMNS))
    target = plan_table(mapping, NAMES, "matrix_entities", "dataset_id", 3)
    empty = (None,) * (len(ENTITY_COLUMNS) - 1)
    for record in (
        (1, "e1", "Łukasz", "person", "s", '{"a": ["\\u0141"], "b": true}', '["pa"]', "", "2024-01-01 12:00:00", "m"),
        (2, "e2", *empty),
        *(
            (3, "e3", "Ann", "person", "s", None, None, None, time, None)
            for time in ("0001-01-01 00:00:00", "1999-12-31 23:59:59", "2000-01-01 00:00:00", "9999-12-31 23:59:59")
        ),
    ):
        with connection.transaction(force_rollback=True):
            target.copy(connection, target.render([mapping.convert(record)[0]]))
            (sent,) = target.fetch(connection, [mapping.row_key(record)])
        assert mapping.matches(record, sent)
        assert not mapping.matches((*record[:2], "Lukasz", *record[3:]), sent)


def test_columns_whose_names_json_has_to_escape_go_the_long_way(connection: psycopg.Connection) -> None:
    columns = ("entity_id", "name", "entity_type", 'an "odd" one', "created_at")
    mapping = DocumentMapping(ENTITIES, "matrix.db/entities", 3, RecordShape(1, columns))
    target = plan_table(mapping, NAMES, "matrix_entities", "dataset_id", 3)
    record = (1, "e1", "Ann", "person", "odd", "2024-01-01 12:00:00")
    with connection.transaction(force_rollback=True):
        target.copy(connection, target.render([mapping.convert(record)[0]]))
        (sent,) = target.fetch(connection, [mapping.row_key(record)])
    assert not mapping.matches(record, sent)
    assert not has_difference(mapping, record, target.read(sent))


@batches
@given(records=st.lists(table_records(CONVERSATION_COLUMNS), min_size=5, max_size=30), upsert=st.booleans())
@example(
    records=[
        (1, 1, "c", "2024-01-01T12:00:00.000001", "", None, "x" * 51, "é" * 51, '""', "2024-01-01", 1.0, "n"),
        (2, -(2**63), "c", "0001-01-01T00:00:00", None, "a\0", "x" * 50, "é" * 50, "null", None, b"", ""),
    ],
    upsert=False,
)
def test_conversations(connection: psycopg.Connection, records: list[SqliteRecord], upsert: bool) -> None:
    mapping = ConversationMapping("c/conversations", 5, RecordShape(1, tuple(CONVERSATION_COLUMNS)))
    target = plan_table(mapping, NAMES, "conversations", "dataset_id", 5)
    check_through_tables(connection, mapping, target, records, upsert=upsert)


@batches
@given(records=st.lists(lines(), min_size=10, max_size=40), upsert=st.booleans())
@example(
    records=[
        Line(0, 1, b'{"timestamp": 1' + b"0" * 400 + b"}", b"\n"),
        Line(1, 1, b'{"event_type": "a\\u0000", "timestamp": 1e308}', b"\n"),
        Line(2, 1, b'{"timestamp": ' + b"9" * 5000 + b', "x": 1e200000, "y": -0.0}', b"\n"),
        Line(3, 1, b'{"a": "\xff", "timestamp": "0001-01-01T00:00:00+05:00"}', b"\n"),
        Line(2**63 - 1, 1, b'{"a": ' + nested(500).encode() + b"}", b"\n"),
    ],
    upsert=True,
)
def test_lines(connection: psycopg.Connection, records: list[Line], upsert: bool) -> None:
    mapping = TelemetryMapping("telemetry/events.jsonl", 6, "events")
    target = plan_table(mapping, NAMES, "telemetry", "dataset_id", 6)
    check_through_tables(connection, mapping, target, records, upsert=upsert)


@batches
@given(records=st.lists(CHROMA_RECORDS, min_size=5, max_size=30), upsert=st.booleans())
@example(
    records=[
        ChromaRecord(1, "", None, {}, b"", "missing"),
        ChromaRecord(2, "a", "", None, floats32(0.0, -0.0, 1e-45, -1e-45, 3.4028234663852886e38), "queue"),
        ChromaRecord(3, "b", "x\0", {"a\0": 1, "a\ufffd": 2, "n": math.nan, "z": -0.0}, floats32(math.nan), "index"),
        ChromaRecord(-4, "c", "x", {"i": 2**63 - 1, "f": 1e22, "l": [1.0, 2.5]}, floats32(*[1.0] * 16_000), "queue"),
        ChromaRecord(5, "d", "x", {"i": [True, False], "e": []}, floats32(*[1.0] * 16_001), "queue"),
    ],
    upsert=True,
)
def test_embeddings(connection: psycopg.Connection, records: list[ChromaRecord], upsert: bool) -> None:
    mapping = EmbeddingMapping("chroma/iceburg", 7)
    target = plan_table(mapping, NAMES, "embeddings", "collection_id", 7)
    check_through_tables(connection, mapping, target, records, upsert=upsert)


@st.composite
def tables(draw: st.DrawFn) -> tuple[tuple[ColumnPlan, ...], tuple[str, ...], list[SqliteRecord]]:
    plans, key = draw(table_plans())
    records = draw(st.lists(records_of_plans(plans), min_size=5, max_size=20))
    return plans, key, [(number, *record[1:]) for number, record in enumerate(records)]


@batches
@given(table=tables(), upsert=st.booleans())
def test_any_other_table(
    connection: psycopg.Connection,
    table: tuple[tuple[ColumnPlan, ...], tuple[str, ...], list[SqliteRecord]],
    upsert: bool,
) -> None:
    plans, key, records = table
    mapping = TableMapping(plans, key, 1)
    definition = {
        "plans": [asdict(plan) for plan in plans],
        "key": list(key),
        "description": {"integer_primary_key": None},
    }
    columns = tuple((column.name, column.type) for column in mapping.columns)
    target = TargetTable('other "schema" %s {y}', 'a "table" 50% {z} ß', columns, mapping.key_columns)
    with connection.transaction(force_rollback=True):
        create_table(connection, target.schema, target.table, definition)
        check_through_tables(connection, mapping, target, records, upsert=upsert)


@batches
@given(values=st.lists(VALUES, min_size=20, max_size=60))
@example(values=["1e999999999", "9" * 5000, "nan", "Infinity", "sNaN", -0.0, math.inf, -math.inf, 5e-324, 2.0**63])
def test_every_codec_gives_what_its_type_takes(connection: psycopg.Connection, values: list[Value]) -> None:
    codecs = list(CODECS.values())
    plans = tuple(ColumnPlan(codec.name, codec.name, codec.name, False) for codec in codecs)
    definition = {
        "plans": [asdict(plan) for plan in plans],
        "key": [],
        "description": {"integer_primary_key": None},
    }
    mapping = TableMapping(plans, (), 1)
    target = TargetTable("codecs", "values", tuple((c.name, c.type) for c in mapping.columns), mapping.key_columns)
    records = [(number, *[value] * len(plans)) for number, value in enumerate(values)]
    with connection.transaction(force_rollback=True):
        create_table(connection, target.schema, target.table, definition)
        check_through_tables(connection, mapping, target, records, upsert=False)
