"""The mapping of a collection's table: there and back is the same, and nothing that is not the same passes for it."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tests.unit.test_mapping_laws as laws
from iceburg.mappings.mapping import UnmappableError
from iceburg.mappings.sqlite_record import RecordShape, SqliteRecord
from iceburg.mappings.vectors import TABLE_COLUMNS, VectorTableMapping
from iceburg.records import Value
from tests.strategies import (
    INTEGERS,
    JSON_TEXTS,
    TEXTS,
    VALUES,
    VECTORS,
    floats32,
    nested,
    other_values,
    table_records,
    text_of,
)

SHAPE = RecordShape(1, TABLE_COLUMNS)
MAPPING = VectorTableMapping("vectors.db/collection_1", 8, SHAPE, 2)
OPEN = VectorTableMapping("vectors.db/collection_2", 9, SHAPE, None)
ORIGINS = st.sampled_from(["index", "queue", "missing"])
# What the layer writes, and in a sixth of the cases what only others can.
COLUMNS: dict[str, st.SearchStrategy[Value]] = {
    "row_id": INTEGERS,
    "record_id": TEXTS | TEXTS | VALUES,
    "document": st.none() | TEXTS | TEXTS | VALUES,
    "metadata": st.none() | JSON_TEXTS | JSON_TEXTS | VALUES,
    "vector": st.none() | VECTORS | VECTORS | st.just(floats32(0.5, -1.0)) | VALUES,
    "vector_origin": ORIGINS | ORIGINS | VALUES,
}
RECORDS = table_records(COLUMNS)
PLAIN: SqliteRecord = (1, 1, "r1", "a text", '{"a": [1.0, 2], "b": null}', floats32(0.1, -0.0), "index")


@settings(max_examples=200)
@given(RECORDS, st.sampled_from([MAPPING, OPEN]))
@example(PLAIN, MAPPING)
@example((1, 1, "", None, None, None, "missing"), MAPPING)
@example((1, 1, "r", "", "", floats32(math.nan, 1.0), ""), MAPPING)
@example((1, 1, "r", "", '""', floats32(1.0), "x\0"), MAPPING)
@example((1, 1, "r\0", text_of(b"\xff"), "NaN", b"\1\2\3", "index"), OPEN)
@example((1, 1, b"r", b"text", nested(1500), "vector", b"index"), OPEN)
@example((1, 1, "r", 5, '{"a": 0.10000000000000000555, "a": 1}', 1.5, "index"), OPEN)
@example((1, 1, None, None, None, None, None), OPEN)
def test_there_and_back(record: SqliteRecord, mapping: VectorTableMapping) -> None:
    laws.check_there_and_back(mapping, record)


@given(RECORDS)
@example(PLAIN)
def test_changes_in_the_target_are_noticed(record: SqliteRecord) -> None:
    laws.TestChangesInTheTarget().check(OPEN, record, free={0, 1})


@given(RECORDS, st.integers(2, 6))
def test_every_changed_value_is_a_difference(record: SqliteRecord, position: int) -> None:
    for other in other_values(record[position]):
        if position == 4 and laws.is_json_with_space(record[position], other):
            continue
        changed = (*record[:position], other, *record[position + 1 :])
        assert [d.field for d in MAPPING.differences(record, changed)] == [TABLE_COLUMNS[position - 1]]


def test_what_a_row_looks_like() -> None:
    row, originals = MAPPING.convert(PLAIN)
    assert originals == ()
    assert row[1:8] == (8, 1, "r1", "a text", True, floats32(0.1, -0.0), "index")
    assert json.loads(str(row[8])) == {"a": [1.0, 2], "b": None}


def test_a_record_is_known_by_its_number() -> None:
    # All that the change log of its file says of a deleted row.
    shadow: SqliteRecord = (1, 1, None, None, None, None, None)
    assert MAPPING.row_key(PLAIN) == MAPPING.row_key(shadow)
    assert MAPPING.key(PLAIN) == (1,)
    assert MAPPING.row_key(PLAIN) != OPEN.row_key(PLAIN)
    assert MAPPING.convert(PLAIN)[0][0] == MAPPING.row_key(PLAIN)[0]


@pytest.mark.parametrize(
    ("record", "field", "reason"),
    [
        ((*PLAIN[:5], floats32(1.0), "index"), "vector", "another dimension"),
        ((*PLAIN[:5], floats32(1.0, 2.0, 3.0), "index"), "vector", "another dimension"),
        ((*PLAIN[:5], "text", "index"), "vector", "text in a vector column"),
        ((*PLAIN[:5], floats32(math.inf, 2.0), "index"), "vector", "infinity"),
        ((*PLAIN[:4], "{", *PLAIN[5:]), "metadata", "invalid JSON"),
        ((*PLAIN[:2], b"r", *PLAIN[3:]), "record_id", "blob"),
    ],
)
def test_what_postgresql_cannot_hold_keeps_its_original(record: SqliteRecord, field: str, reason: str) -> None:
    _, originals = MAPPING.convert(record)
    assert [original.field for original in originals] == [field]
    assert reason in originals[0].reason


@pytest.mark.parametrize("position", [2, 6])
def test_a_record_without_id_or_origin_goes_to_the_quarantine(position: int) -> None:
    with pytest.raises(UnmappableError, match="NULL"):
        MAPPING.convert((*PLAIN[:position], None, *PLAIN[position + 1 :]))
