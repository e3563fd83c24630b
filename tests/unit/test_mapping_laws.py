"""The laws of the mappings: there and back is the same, and nothing that is not the same passes for it."""

from __future__ import annotations

import json
import math
import random
import struct
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from iceburg.mappings.conversations import ConversationMapping
from iceburg.mappings.document import ENTITIES, RELATIONSHIPS, DocumentMapping
from iceburg.mappings.embeddings import EmbeddingMapping
from iceburg.mappings.json_value import dumps_exact, loads_exact
from iceburg.mappings.mapping import Difference, Mapping, Row, UnmappableError, UnrestorableError
from iceburg.mappings.sqlite_record import RecordShape, SqliteRecord
from iceburg.mappings.table import ColumnPlan, TableMapping
from iceburg.mappings.telemetry import TelemetryMapping
from iceburg.records import ChromaRecord, Line, Value
from tests.strategies import (
    CHROMA_RECORDS,
    CONVERSATION_COLUMNS,
    ENTITY_COLUMNS,
    HOPELESS_NUMBERS,
    RELATIONSHIP_COLUMNS,
    JsonTree,
    flip_bit,
    floats32,
    json_trees,
    lines,
    mutate_tree,
    nested,
    other_row_values,
    other_values,
    records_of_plans,
    render_tree,
    table_plans,
    table_records,
    text_of,
)

ENTITY = DocumentMapping(ENTITIES, "matrix.db/entities", 3, RecordShape(1, tuple(ENTITY_COLUMNS)))
RELATIONSHIP = DocumentMapping(RELATIONSHIPS, "matrix.db/relationships", 4, RecordShape(1, tuple(RELATIONSHIP_COLUMNS)))
CONVERSATION = ConversationMapping("conversations.db/conversations", 5, RecordShape(1, tuple(CONVERSATION_COLUMNS)))
TELEMETRY = TelemetryMapping("telemetry/events.jsonl", 6, "events")
EMBEDDING = EmbeddingMapping("chroma/iceburg", 7)
MANY = settings(max_examples=300)

AN_ENTITY: SqliteRecord = (1, "e1", "Ann", "person", None, '{"a": 1.0}', "[]", "", "2024-01-01 12:00:00", None)
A_CONVERSATION: SqliteRecord = (
    *(1, 1, "c", "2024-01-01T12:00:00.000001", "hello", "hi", None, None, "{}", "2024-01-01 12:00:00"),
    *(None, None),
)


def check_there_and_back(mapping: Mapping[Any], record: Any) -> None:
    """The law of every mapping, with the quarantine's for the records that it does not hold for."""
    assert mapping.differences(record, mapping.unpack(mapping.pack(record))) == []
    try:
        row, originals = mapping.convert(record)
    except UnmappableError as error:
        reason = error.reason
        assert reason
        return
    assert len(row) == len(mapping.columns)
    assert all(original.reason for original in originals)
    kept = {original.field: original.value for original in originals}
    assert len(kept) == len(originals)
    assert mapping.differences(record, mapping.restore(row, kept)) == []
    assert mapping.row_key(record) == tuple(row[i] for i in mapping.key_columns)
    for position, value in mapping.derived(record):
        assert row[position] == value


class TestThereAndBack:
    @MANY
    @given(table_records(ENTITY_COLUMNS))
    @example(AN_ENTITY)
    @example((7, None, "Ann", "person", None, None, None, None, None, None))
    @example((7, b"e1", 5, b"person", 1.5, "{", '{"a":1,"a":1}', nested(1500), "0001-01-01T00:00:00+05:00", -0.0))
    @example((7, "e1", "a\0", "x" * 101, text_of(b"\xff"), '""', "null", "NaN", 1e308, float("inf")))
    def test_entities(self, record: SqliteRecord) -> None:
        check_there_and_back(ENTITY, record)

    @MANY
    @given(table_records(RELATIONSHIP_COLUMNS))
    def test_relationships(self, record: SqliteRecord) -> None:
        check_there_and_back(RELATIONSHIP, record)

    @MANY
    @given(table_records(CONVERSATION_COLUMNS))
    @example(A_CONVERSATION)
    @example((*A_CONVERSATION[:4], None, *A_CONVERSATION[5:]))
    @example((*A_CONVERSATION[:6], "x" * 51, "é" * 51, '"\\u0022"', *A_CONVERSATION[9:]))
    def test_conversations(self, record: SqliteRecord) -> None:
        check_there_and_back(CONVERSATION, record)

    @given(st.data())
    def test_tables_with_columns_left_out_or_unknown(self, data: st.DataObject) -> None:
        required = ("id", "conversation_id", "timestamp", "user_message", "assistant_message")
        names = data.draw(st.permutations([*required, *data.draw(st.sets(st.sampled_from(["mode", "x", "metadata"])))]))
        mapping = ConversationMapping("c", 1, RecordShape(1, tuple(names)))
        columns = {name: CONVERSATION_COLUMNS.get(name, st.none() | st.text()) for name in names}
        check_there_and_back(mapping, data.draw(table_records(columns)))

    @MANY
    @given(lines())
    @example(Line(0, 1, b'{"event_type": "a", "timestamp": 1e308}', b"\n"))
    @example(Line(0, 1, b'{"timestamp": 1' + b"0" * 400 + b"}", b"\n"))
    @example(Line(0, 1, b'{"timestamp": ' + b"9" * 5000 + b"}", b"\n"))
    @example(Line(0, 1, b'{"timestamp": NaN, "a": 1e200000}', b"\n"))
    @example(Line(0, 1, b'{"a": ' + nested(1500).encode() + b"}", b"\n"))
    @example(Line(0, 1, b'{"a": "\xff\x00"}', b"\n"))
    @example(Line(0, 1, b'{"a": 1', b""))
    @example(Line(3, 1, b"{}\r", b""))
    def test_lines(self, record: Line) -> None:
        check_there_and_back(TELEMETRY, record)
        unpacked = TELEMETRY.unpack(TELEMETRY.pack(record))
        assert (unpacked.offset, unpacked.raw, unpacked.terminator) == (record.offset, record.raw, record.terminator)

    @MANY
    @given(CHROMA_RECORDS)
    @example(ChromaRecord(1, "", None, {}, b"", "missing"))
    @example(ChromaRecord(1, "a", "", None, floats32(0.0, -0.0, 1e-45), "queue"))
    @example(ChromaRecord(1, "a\0", "b\0", {"a\0": 1, "a\ufffd": 2}, floats32(float("nan")), "queue"))
    @example(ChromaRecord(-1, "a", None, {"x": -0.0, "y": float("nan"), "z": 2**63 - 1}, b"\1\2\3\4\5", "queue"))
    def test_embeddings(self, record: ChromaRecord) -> None:
        check_there_and_back(EMBEDDING, record)

    @MANY
    @given(st.data())
    def test_any_other_table(self, data: st.DataObject) -> None:
        plans, key = data.draw(table_plans())
        mapping = TableMapping(plans, key, 1)
        record = data.draw(records_of_plans(plans))
        check_there_and_back_by_key(mapping, record)

    @given(st.data())
    def test_the_quarantine_gives_equal_records(self, data: st.DataObject) -> None:
        for mapping, columns in ((ENTITY, ENTITY_COLUMNS), (CONVERSATION, CONVERSATION_COLUMNS)):
            record = data.draw(table_records(columns))
            unpacked = mapping.unpack(mapping.pack(record))
            assert unpacked == record
            assert list(map(type, unpacked)) == list(map(type, record))


def check_there_and_back_by_key(mapping: TableMapping, record: SqliteRecord) -> None:
    """As for all; and a record whose key has no exact equivalent has no row to be looked up by."""
    if mapping.row_key(record) is None:
        with pytest.raises(UnmappableError):
            mapping.convert(record)
    check_there_and_back(mapping, record)


class TestSensitivity:
    @given(st.data())
    def test_every_changed_value_of_a_sqlite_record_is_a_difference(self, data: st.DataObject) -> None:
        plans, _ = data.draw(table_plans())
        table = TableMapping(plans, (), 1)
        cases: list[tuple[TableMapping | DocumentMapping | ConversationMapping, st.SearchStrategy[SqliteRecord]]] = [
            (table, records_of_plans(plans)),
            (ENTITY, table_records(ENTITY_COLUMNS)),
            (CONVERSATION, table_records(CONVERSATION_COLUMNS)),
        ]
        mapping, records = data.draw(st.sampled_from(cases))
        record = data.draw(records)
        position = data.draw(st.integers(1, len(record) - 1))
        for other in other_values(record[position]):
            if is_json_with_space(record[position], other):
                continue
            changed = (*record[:position], other, *record[position + 1 :])
            name = mapping.shape.columns[position - 1]
            assert [d.field for d in mapping.differences(record, changed)] == [name]

    def test_the_sign_of_zero_is_a_difference(self) -> None:
        table = TableMapping((ColumnPlan("a", "a", "real", False), ColumnPlan("b", "b", "text", False)), (), 1)
        assert table.differences((1, 0.0, "x"), (1, -0.0, "x")) == [Difference("a", 0.0, -0.0)]
        assert table.differences((1, 0.0, "x"), (1, 0, "x")) == [Difference("a", 0.0, 0)]

    @given(json_trees(), st.randoms(use_true_random=False))
    def test_every_changed_json_value_is_a_difference(self, tree: JsonTree, style: random.Random) -> None:
        left, right = render_tree(tree, style), render_tree(mutate_tree(tree, style), style)
        entity = (*AN_ENTITY[:5], left, *AN_ENTITY[6:])
        assert ENTITY.differences(entity, (*entity[:5], right, *entity[6:])) == [Difference("properties", left, right)]
        conversation = (*A_CONVERSATION[:8], left, *A_CONVERSATION[9:])
        assert CONVERSATION.differences(conversation, (*conversation[:8], right, *conversation[9:]))
        event, other = (Line(0, 1, f'{{"p": {text}, "q": 1}}'.encode(), b"\n") for text in (left, right))
        assert [d.field for d in TELEMETRY.differences(event, other)] == ["p"]

    @pytest.mark.parametrize(
        ("left", "right"),
        [
            ('{"a": 1.0}', '{"a": 1}'),
            ('{"a": 0.0}', '{"a": -0.0}'),
            ("[9223372036854775808]", "[9223372036854775809]"),
            ("[0.1]", "[0.10000000000000000555]"),
            ("[1, 2]", "[2, 1]"),
            ('{"a": null}', "{}"),
            ('{"a": 1, "a": 2}', '{"a": 2}'),
            ('{"a": "x"}', '{"a": "X"}'),
            ("[1e400]", "[1e401]"),
            ("", '""'),
            ("null", "{}"),
        ],
    )
    def test_json_values_that_are_nearly_the_same(self, left: str, right: str) -> None:
        entity = (*AN_ENTITY[:5], left, *AN_ENTITY[6:])
        assert ENTITY.differences(entity, (*entity[:5], right, *entity[6:])) == [Difference("properties", left, right)]

    @given(lines(), st.data())
    def test_another_line_is_a_difference(self, record: Line, data: st.DataObject) -> None:
        assert TELEMETRY.differences(record, Line(record.offset + 1, 0, record.raw, b"\n"))
        bit = data.draw(st.integers(0, 8 * len(record.raw) - 1))
        changed = flip_bit(record.raw, bit)
        found = TELEMETRY.differences(record, Line(record.offset, 0, changed, b"\n"))
        assert found or _value_or_bytes(record.raw) == _value_or_bytes(changed)

    def test_what_a_directory_has_lost_by_pruning_is_no_difference_and_all_else_is(self) -> None:
        exact = ChromaRecord(1, "a", "d", {"x": 1 / 7, "l": [0.1, 0.2]}, struct.pack("<2f", 3.0, 0.1), "queue")

        def pruned(*vector: float, x: float = math.nextafter(1 / 7, 1), **fields: Any) -> ChromaRecord:
            values = {name: getattr(exact, name) for name in ChromaRecord.__slots__}
            metadata = {"x": x, "l": [math.nextafter(0.1, 1), 0.2]}
            packed = struct.pack("<2f", *vector)
            return ChromaRecord(**values | {"metadata": metadata, "vector": packed, "origin": "index-norm"} | fields)

        near = math.nextafter(3.0, 4) + 2e-7, 0.1
        assert EMBEDDING.differences(pruned(*near), exact) == []
        assert EMBEDDING.differences(pruned(3.0, 0.1, origin="index"), exact) == []
        for other in (
            pruned(3.00001, 0.1),
            pruned(*near, origin="index"),
            pruned(*near, x=1 / 7 + 1e-9),
            pruned(*near, x=True),
            pruned(*near, document="e"),
            pruned(*near, origin="direction"),
        ):
            assert EMBEDDING.differences(other, exact)
        # The other way round something is lost.
        assert EMBEDDING.differences(exact, pruned(*near))

    @given(CHROMA_RECORDS, st.data())
    def test_every_changed_field_of_a_chroma_record_is_a_difference(
        self, record: ChromaRecord, data: st.DataObject
    ) -> None:
        def changed(**fields: Any) -> ChromaRecord:
            values = {name: getattr(record, name) for name in ChromaRecord.__slots__}
            return ChromaRecord(**values | fields)

        others = [
            ("row", changed(row=record.row + 1)),
            ("id", changed(id=record.id + "\0")),
            ("document", changed(document="" if record.document is None else None)),
            ("origin", changed(origin="missing" if record.origin != "missing" else "direction")),
        ]
        if record.vector:
            bit = data.draw(st.integers(0, 8 * len(record.vector) - 1))
            others += [
                ("vector", changed(vector=flip_bit(record.vector, bit))),
                ("vector", changed(vector=record.vector + b"\0\0\0\0")),
                ("vector", changed(vector=None)),
            ]
        if record.metadata:
            key = data.draw(st.sampled_from(sorted(record.metadata)))
            without = {name: value for name, value in record.metadata.items() if name != key}
            others += [("metadata", changed(metadata=without)), ("metadata", changed(metadata=None))]
            others += [
                ("metadata", changed(metadata={**record.metadata, key: other}))
                for other in _other_metadata(record.metadata[key])
            ]
        for field, other in others:
            found = EMBEDDING.differences(record, other)
            assert found
            assert all(difference.field.startswith(field) for difference in found)
            assert EMBEDDING.differences(other, record)


def is_json_with_space(value: Value, other: Value) -> bool:
    """Whether the two are JSON texts of the same value, one with a space behind."""
    return (
        isinstance(value, str)
        and other == value + " "
        and ENTITY.differences((*AN_ENTITY[:5], value, *AN_ENTITY[6:]), (*AN_ENTITY[:5], other, *AN_ENTITY[6:])) == []
    )


def _other_metadata(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [[*value, True], value[:-1] if value else None, None, json.dumps(value)]
    if isinstance(value, bool):
        return [not value, int(value), float(value), None]
    if isinstance(value, float) and value != value:
        return [None, "NaN", 0.0]
    return [other for other in other_values(value) if not isinstance(other, bytes)]


def _value_or_bytes(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode())
    except (ValueError, RecursionError):
        return raw


class TestChangesInTheTarget:
    """A row that somebody changes cannot be restored, or restores to another record."""

    @given(table_records(ENTITY_COLUMNS))
    @example(AN_ENTITY)
    @example((*AN_ENTITY[:5], "1e400", *AN_ENTITY[6:]))
    def test_entities(self, record: SqliteRecord) -> None:
        self.check(ENTITY, record, free={0, 1})

    @given(table_records(CONVERSATION_COLUMNS))
    @example(A_CONVERSATION)
    def test_conversations(self, record: SqliteRecord) -> None:
        self.check(CONVERSATION, record, free={0, 1})

    @given(lines())
    def test_lines(self, record: Line) -> None:
        self.check(TELEMETRY, record, free={0, 1})

    @given(CHROMA_RECORDS)
    def test_embeddings(self, record: ChromaRecord) -> None:
        self.check(EMBEDDING, record, free={0, 1})

    @given(st.data())
    def test_any_other_table(self, data: st.DataObject) -> None:
        plans, _ = data.draw(table_plans())
        # A real in a numeric column is the nearest double of many numbers.
        plans = tuple(plan for plan in plans if plan.codec != "numeric") or (ColumnPlan("a", "a", "text", False),)
        self.check(TableMapping(plans, (), 1), data.draw(records_of_plans(plans)), free={0})

    def check(self, mapping: Mapping[Any], record: Any, *, free: set[int]) -> None:
        try:
            row, originals = mapping.convert(record)
        except UnmappableError:
            return
        if originals:
            return  # its row is compared with what the conversion makes of the record
        free = free | {position for position, _ in mapping.derived(record)}
        for position, value in enumerate(row):
            if position in free:
                continue
            for other in self.others(value, mapping.columns[position].type):
                changed: Row = (*row[:position], other, *row[position + 1 :])
                assert self.is_noticed(mapping, record, changed), mapping.columns[position].name

    def others(self, value: Any, kind: str) -> list[Any]:
        if value is None:
            instead: dict[str, list[Any]] = {
                "text": ["", "x"],
                "varchar": ["", "x"],
                "jsonb": ['""', "null", "{}"],
                "vector": [floats32(0.0)],
                "boolean": [False],
                "bigint": [0],
            }
            return instead.get(kind, [])
        if kind != "jsonb":
            return [other for other in other_row_values(value) if other is not None]
        document = loads_exact(value)
        changed: list[Any] = [[document], "x", {"": document}, 1]
        if isinstance(document, dict):
            changed.append({**document, "no such column": 1})
            changed += [{k: v for k, v in document.items() if k != key} for key in document]
            for key, member in document.items():
                changed += [{**document, key: [member]}, {**document, key: {}}, {**document, key: "\ufffe"}]
        return [dumps_exact(other) for other in changed if other != document]

    def is_noticed(self, mapping: Mapping[Any], record: Any, row: Row) -> bool:
        try:
            return bool(mapping.differences(record, mapping.restore(row, {})))
        except UnrestorableError:
            return True

    def test_columns_that_the_source_does_not_have(self) -> None:
        columns = ("id", "conversation_id", "timestamp", "user_message", "assistant_message")
        mapping = ConversationMapping("c", 1, RecordShape(1, columns))
        record: SqliteRecord = A_CONVERSATION[:6]
        self.check(mapping, record, free={0, 1})
        row, _ = mapping.convert(record)
        for name, value in (("mode", "x"), ("agent", "x"), ("metadata", "{}"), ("extra", "{}")):
            position = [column.name for column in mapping.columns].index(name)
            with pytest.raises(UnrestorableError):
                mapping.restore((*row[:position], value, *row[position + 1 :]), {})

    def test_documents_that_were_never_ours(self) -> None:
        row, _ = ENTITY.convert(AN_ENTITY)
        for document in ("[]", "1", '"x"', '{"zz": 1}', '{"name": null}', '{"name": true}', '{"name": {}}'):
            with pytest.raises(UnrestorableError):
                ENTITY.restore((*row[:3], document, *row[4:]), {})
        for token in HOPELESS_NUMBERS:
            assert self.is_noticed(ENTITY, AN_ENTITY, (*row[:3], f'{{"name": {token}}}', *row[4:]))


class TestKeys:
    def test_entities_without_an_id_are_told_apart_by_their_rowids(self) -> None:
        first, second = ((rowid, None, *AN_ENTITY[2:]) for rowid in (5, 6))
        assert ENTITY.key(first) == (None, 5)
        assert ENTITY.key(second) == (None, 6)
        assert ENTITY.row_key(first) != ENTITY.row_key(second)
        for record in (first, second):
            row, _ = ENTITY.convert(record)
            assert row[0] == ENTITY.row_key(record)[0]

    def test_an_id_is_the_key_whatever_the_rowid(self) -> None:
        assert ENTITY.row_key(AN_ENTITY) == ENTITY.row_key((99, *AN_ENTITY[1:]))
        assert ENTITY.key(AN_ENTITY) == ("e1",)

    def test_the_same_line_twice_is_two_records(self) -> None:
        assert TELEMETRY.row_key(Line(0, 1, b"{}", b"\n")) != TELEMETRY.row_key(Line(3, 2, b"{}", b"\n"))

    def test_datasets_have_ids_of_their_own(self) -> None:
        other = DocumentMapping(ENTITIES, "copy/matrix.db/entities", 9, RecordShape(1, tuple(ENTITY_COLUMNS)))
        assert other.row_key(AN_ENTITY) != ENTITY.row_key(AN_ENTITY)

    def test_a_table_without_a_key_needs_a_rowid(self) -> None:
        plans = (ColumnPlan("a", "a", "text", False),)
        with pytest.raises(ValueError, match="rowid"):
            TableMapping(plans, (), 2)

    def test_a_key_that_postgresql_does_not_hold_sends_the_record_to_the_quarantine(self) -> None:
        plans = (ColumnPlan("k", "k", "text", False), ColumnPlan("v", "v", "integer", True))
        mapping = TableMapping(plans, ("k",), 1)
        for key in ("a\0", text_of(b"\xff"), b"a", 5, None):
            assert mapping.row_key((1, key, 2)) is None
            with pytest.raises(UnmappableError):
                mapping.convert((1, key, 2))
        with pytest.raises(UnmappableError, match="NOT NULL column v"):
            mapping.convert((1, "a", None))
        with pytest.raises(UnmappableError, match="NOT NULL column v"):
            mapping.convert((1, "a", "n/a"))
        assert mapping.convert((1, "a", 2)) == (("a", 2), ())


class TestWhatTheRowsLookLike:
    """The rows are for people and programs to query, not only to be restored."""

    def test_an_entity(self) -> None:
        row, originals = ENTITY.convert(
            (1, "e1", "Ann", "person", None, '{"a": [1.0, 2]}', '["de"]', "", "2024-01-01 12:00:00", 7)
        )
        assert originals == ()
        assert row[1:3] == (3, "person")
        assert json.loads(str(row[3])) == {
            "entity_id": "e1",
            "name": "Ann",
            "properties": {"a": [1.0, 2]},
            "countries": ["de"],
            "datasets": "",
            'odd "column"': 7,
        }
        assert str(row[4]) == str(row[5]) == "2024-01-01 12:00:00"

    @pytest.mark.parametrize(
        ("line", "kind", "time"),
        [
            (b'{"event_type": "query", "timestamp": 1700000000.5}', "query", "2023-11-14 22:13:20.500000"),
            (b'{"timestamp": "2024-01-01T12:00:00"}', "events", "2024-01-01 12:00:00"),
            (b'{"timestamp": 1700000000123}', "events", "2023-11-14 22:13:20.123000"),
            (b'{"event_type": 5, "timestamp": "soon"}', "events", "None"),
            (b'{"event_type": "a\\u0000b", "timestamp": null}', "a\ufffdb", "None"),
            (b'{"event_type": "' + b"x" * 200 + b'"}', "x" * 100, "None"),
        ],
    )
    def test_an_event(self, line: bytes, kind: str, time: str) -> None:
        row, _ = TELEMETRY.convert(Line(10, 1, line, b"\n"))
        assert (row[3], str(row[5])) == (kind, time)

    @pytest.mark.parametrize(
        ("line", "terminator", "reason"),
        [
            (b"[1]", b"\n", "not a JSON object"),
            (b"null", b"\n", "not a JSON object"),
            (b'{"a": 1', b"\n", "invalid JSON"),
            (b'{"a": 1', b"", "torn last line"),
            (b"\xff", b"\n", "invalid JSON"),
            (b'{"a": ' + nested(600).encode() + b"}", b"\n", "JSON nested too deeply"),
        ],
    )
    def test_lines_that_are_no_events(self, line: bytes, terminator: bytes, reason: str) -> None:
        with pytest.raises(UnmappableError, match=reason):
            TELEMETRY.convert(Line(0, 1, line, terminator))

    def test_a_record_without_text_or_vector(self) -> None:
        row, originals = EMBEDDING.convert(ChromaRecord(5, "a", None, None, None, "missing"))
        assert originals == ()
        assert row[1:] == (7, 5, "a", "", False, None, "missing", None)
