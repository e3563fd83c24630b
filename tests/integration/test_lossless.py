"""What PostgreSQL cannot hold keeps its bytes: looked at with plain SQL, without our own reading of them.

Each case is one record of one dataset: the source value, the bytes that must be in ``originals`` (with SQLite's storage
class), and the usable value that must be in the row beside them.
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iceburg.demo.chroma_writer import Collection, Operation, write_chroma
from tests.databases import fresh_database
from tests.support import CONVERSATIONS, ENTITIES, change, migrate_fully, rows


@dataclass(frozen=True)
class Case:
    """One value: its SQL, what is kept of it, and what the row has."""

    name: str
    field: str
    sql: str
    kind: str
    kept: bytes
    usable: Any


def text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def raw(value: bytes) -> str:
    return f"CAST(x'{value.hex()}' AS TEXT)"


INVALID_JSON = '{"name": ["cut off'
DUPLICATE = '{"a": 1, "a": 2}'
NUL_JSON = '{"a": "x\\u0000y"}'
LONE = '{"a": "\\ud800"}'
NAN = '{"a": NaN, "b": -Infinity}'
LATIN_JSON = b'{"a": "caf\xe9"}'
JSON_CASES = [
    ("NUL in JSON", text(NUL_JSON), "text", NUL_JSON.encode()),
    ("lone surrogate in JSON", text(LONE), "text", LONE.encode()),
    ("invalid JSON", text(INVALID_JSON), "text", INVALID_JSON.encode()),
    ("duplicate keys", text(DUPLICATE), "text", DUPLICATE.encode()),
    ("NaN in JSON", text(NAN), "text", NAN.encode()),
    ("invalid UTF-8 in JSON", raw(LATIN_JSON), "text", LATIN_JSON),
    ("BLOB for JSON", "x'7b7d'", "blob", b"{}"),
    ("integer for JSON", "CAST(5 AS BLOB)", "blob", b"5"),
]
TEXT_CASES = [
    ("NUL in text", "'a' || char(0) || 'b'", "text", b"a\0b", "a\ufffdb"),
    ("invalid UTF-8", raw(b"caf\xe9 \xff"), "text", b"caf\xe9 \xff", "caf\ufffd \ufffd"),
    ("lone surrogate", raw(b"\xed\xa0\x80"), "text", b"\xed\xa0\x80", None),
    ("BLOB for text", "x'00ff'", "blob", b"\x00\xff", None),
]


ANY = object()
ENTITY_CASES = [
    *(Case(name, "properties", sql, kind, kept, ANY) for name, sql, kind, kept in JSON_CASES),
    *(Case(name, "name", sql, kind, kept, usable) for name, sql, kind, kept, usable in TEXT_CASES),
    Case("over-long type", "entity_type", text("x" * 120), "text", b"x" * 120, "x" * 100),
    Case("unparseable time", "created_at", "'yesterday'", "text", b"yesterday", None),
    Case(
        "time of another form",
        "created_at",
        "'2025-06-01T12:00:00Z'",
        "text",
        b"2025-06-01T12:00:00Z",
        "2025-06-01 12:00:00",
    ),
    Case("BLOB for a time", "created_at", "x'32'", "blob", b"2", None),
]
CONVERSATION_CASES = [
    *(Case(name, "metadata", sql, kind, kept, ANY) for name, sql, kind, kept in JSON_CASES),
    *(Case(name, "user_message", sql, kind, kept, usable) for name, sql, kind, kept, usable in TEXT_CASES),
    Case("over-long mode", "mode", text("é" * 60), "text", ("é" * 60).encode(), "é" * 50),
    Case("over-long agent", "agent_used", text("a" * 51), "text", b"a" * 51, "a" * 50),
    Case("unparseable time", "timestamp", "'yesterday'", "text", b"yesterday", None),
    Case("epoch as text", "timestamp", "'1748779200'", "text", b"1748779200", None),
    Case("unparseable creation", "created_at", "''", "text", b"", None),
]
TABLE = """
CREATE TABLE t (id INTEGER PRIMARY KEY, txt TEXT, num INTEGER, fraction REAL, price DECIMAL(10, 2), flag BOOLEAN,
    day DATE, moment TIMESTAMP, bytes BLOB)
"""
TABLE_CASES = [
    *(Case(name, "txt", sql, kind, kept, usable) for name, sql, kind, kept, usable in TEXT_CASES),
    Case("text for INTEGER", "num", "'n/a'", "text", b"n/a", None),
    Case("BLOB for INTEGER", "num", "x'07'", "blob", b"\x07", None),
    Case("text for REAL", "fraction", "'NaN'", "text", b"NaN", None),
    Case("BLOB for REAL", "fraction", "x'31'", "blob", b"1", None),
    Case("text for DECIMAL", "price", "'12,50'", "text", b"12,50", None),
    Case("text for BOOLEAN", "flag", "'yes'", "text", b"yes", None),
    Case("impossible date", "day", "'2025-02-30'", "text", b"2025-02-30", None),
    Case("number for a date", "day", "20250601", "integer", b"20250601", ANY),
    Case("unparseable moment", "moment", "'soon'", "text", b"soon", None),
    Case("infinite moment", "moment", "'infinity'", "text", b"infinity", None),
    Case(
        "another form of moment",
        "moment",
        "'2025-06-01T12:00:00Z'",
        "text",
        b"2025-06-01T12:00:00Z",
        "2025-06-01 12:00:00",
    ),
    Case("text for BLOB", "bytes", "'text'", "text", b"text", "\\x74657874"),
    Case("number for BLOB", "bytes", "42", "integer", b"42", "\\x3432"),
]


@pytest.fixture(scope="module")
def migrated(server_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("lossless")
    write_sqlite(directory)
    write_lines(directory)
    write_vectors(directory)
    with fresh_database(server_dsn) as dsn:
        migrate_fully(dsn, directory)
        yield dsn


def write_sqlite(directory: Path) -> None:
    path = directory / "s.db"
    change(path, ENTITIES + CONVERSATIONS + TABLE)
    for number, case in enumerate(ENTITY_CASES):
        given = {"entity_id": text(f"e{number}"), "name": "'n'", "entity_type": "'t'", case.field: case.sql}
        change(path, f"INSERT INTO entities ({', '.join(given)}) VALUES ({', '.join(given.values())})")
    for number, case in enumerate(CONVERSATION_CASES):
        given = {
            "id": str(number),
            "conversation_id": "'c'",
            "timestamp": "'2025-06-01T12:00:00'",
            "user_message": "'q'",
            "assistant_message": "'r'",
            case.field: case.sql,
        }
        change(path, f"INSERT INTO conversations ({', '.join(given)}) VALUES ({', '.join(given.values())})")
    ordinary = "'x', 1, 1.5, 2.25, 1, '2025-06-01', '2025-06-01 12:00:00', x'00'"
    change(path, ";".join(f"INSERT INTO t VALUES ({n}, {ordinary})" for n in range(1000, 1200)))
    for number, case in enumerate(TABLE_CASES):
        change(path, f"INSERT INTO t (id, {case.field}) VALUES ({number}, {case.sql})")


def originals(dsn: str, dataset: str, key: object) -> list[tuple[str, str, bytes | None]]:
    """Read what is kept of one record, without any code of ours."""
    found = rows(
        dsn,
        "SELECT field, storage_class, value FROM iceburg_migration.originals"
        " JOIN iceburg_migration.datasets d USING (dataset_id) WHERE d.name = %s AND record_key = %s",
        (dataset, json.dumps([key])),
    )
    return [(field, kind, None if value is None else bytes(value)) for field, kind, value in found]


def names(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("number", range(len(cases)), ids=[f"{c.field}-{c.name}" for c in cases])


@names(ENTITY_CASES)
def test_an_entity_keeps_what_does_not_fit(migrated: str, number: int) -> None:
    case = ENTITY_CASES[number]
    assert originals(migrated, "s.db/entities", f"e{number}") == [(case.field, case.kind, case.kept)]
    column = {"entity_type": "entity_type", "created_at": "created_at::text", "name": "name"}.get(case.field)
    ((usable, entity_id),) = rows(
        migrated,
        f"SELECT {column or 'entity_data::text'}, entity_id FROM matrix_entities WHERE entity_id = %s",
        (f"e{number}",),
    )
    assert entity_id == f"e{number}"
    if column is None:
        assert json.loads(usable)["entity_id"] == f"e{number}"
    elif case.usable is not None or case.field == "created_at":
        assert usable == case.usable


@names(CONVERSATION_CASES)
def test_a_conversation_keeps_what_does_not_fit(migrated: str, number: int) -> None:
    case = CONVERSATION_CASES[number]
    assert originals(migrated, "s.db/conversations", number) == [(case.field, case.kind, case.kept)]
    column = {"user_message": "query", "agent_used": "agent"}.get(case.field, case.field)
    ((usable, response),) = rows(
        migrated, f'SELECT "{column}"::text, response FROM conversations WHERE row_id = %s', (number,)
    )
    assert response == "r"
    if case.usable is not ANY and case.field != "user_message":
        assert usable == case.usable


@names(TABLE_CASES)
def test_a_row_of_any_other_table_keeps_what_does_not_fit(migrated: str, number: int) -> None:
    case = TABLE_CASES[number]
    assert originals(migrated, "s.db/t", number) == [(case.field, case.kind, case.kept)]
    ((usable,),) = rows(migrated, f"SELECT {case.field}::text FROM s.t WHERE id = %s", (number,))
    if case.usable is not ANY and not (case.field == "txt" and case.usable is None):
        assert usable == case.usable


def test_an_ordinary_value_is_kept_nowhere_else(migrated: str) -> None:
    kept = rows(
        migrated,
        "SELECT count(*) FROM iceburg_migration.originals JOIN iceburg_migration.datasets d"
        " USING (dataset_id) WHERE d.name LIKE 's.db/%%'",
    )
    assert kept == [(len(ENTITY_CASES) + len(CONVERSATION_CASES) + len(TABLE_CASES),)]


# Lines

KEPT_LINES = {
    "NUL in JSON": b'{"event_type": "nul", "p": "a\\u0000b"}',
    "lone surrogate": b'{"event_type": "lone", "p": "\\ud800"}',
    "invalid UTF-8": b'{"event_type": "latin", "p": "caf\xe9"}',
    "duplicate keys": b'{"event_type": "twice", "p": 1, "p": 2}',
    "NaN": b'{"event_type": "nan", "p": NaN}',
    "huge number": b'{"event_type": "huge", "p": 1e200000}',
}
REFUSED_LINES = {
    "invalid JSON": b'{"event_type": "cut',
    "not an object": b"[1, 2]",
    "a string": b'"text"',
    "only NUL": b"\0\0\0",
    "two objects": b'{"a": 1}{"b": 2}',
}
PLAIN_LINES = {
    "unparseable time": (b'{"event_type": "when", "timestamp": "soon"}', "when", None),
    "epoch milliseconds": (b'{"event_type": "ms", "timestamp": 1748779200123}', "ms", "2025-06-01 12:00:00.123"),
    "over-long type": (b'{"event_type": "' + b"t" * 150 + b'"}', "t" * 100, None),
    "number for a type": (b'{"event_type": 5}', "events", None),
}


def write_lines(directory: Path) -> None:
    found = [*KEPT_LINES.values(), *REFUSED_LINES.values(), *(line for line, _, _ in PLAIN_LINES.values())]
    (directory / "events.jsonl").write_bytes(b"\n".join([*found, b'{"torn": ']))


def offset(line: bytes) -> int:
    found = [*KEPT_LINES.values(), *REFUSED_LINES.values(), *(line for line, _, _ in PLAIN_LINES.values())]
    return sum(len(other) + 1 for other in found[: found.index(line)])


@pytest.mark.parametrize("case", KEPT_LINES)
def test_a_line_keeps_its_bytes(migrated: str, case: str) -> None:
    line = KEPT_LINES[case]
    assert originals(migrated, "events.jsonl", offset(line)) == [("line", "blob", line)]
    ((kind, document),) = rows(
        migrated, "SELECT event_type, event_data::text FROM telemetry WHERE byte_offset = %s", (offset(line),)
    )
    assert f'"event_type": "{kind}"'.encode() in line
    assert json.loads(document)["event_type"] == kind


@pytest.mark.parametrize("case", REFUSED_LINES)
def test_a_line_that_is_no_object_is_quarantined(migrated: str, case: str) -> None:
    line = REFUSED_LINES[case]
    ((record,),) = rows(
        migrated,
        "SELECT record FROM iceburg_migration.quarantine JOIN iceburg_migration.datasets d USING (dataset_id)"
        " WHERE d.name = 'events.jsonl' AND record_key = %s",
        (f"[{offset(line)}]",),
    )
    assert bytes(record) == f"{offset(line)}:".encode() + line + b"\n"
    assert rows(migrated, "SELECT count(*) FROM telemetry WHERE byte_offset = %s", (offset(line),)) == [(0,)]


def test_a_torn_line_is_quarantined_with_its_reason(migrated: str) -> None:
    found = rows(migrated, "SELECT record, reason FROM iceburg_migration.quarantine WHERE reason LIKE 'torn%%'")
    ((record, reason),) = [(bytes(record), reason) for record, reason in found]
    assert (record.partition(b":")[2], reason) == (b'{"torn": ', "torn last line")


@pytest.mark.parametrize("case", PLAIN_LINES)
def test_a_line_whose_type_or_time_is_odd_is_whole_in_its_document(migrated: str, case: str) -> None:
    line, kind, time = PLAIN_LINES[case]
    assert originals(migrated, "events.jsonl", offset(line)) == []
    ((document, event_type, timestamp),) = rows(
        migrated,
        "SELECT event_data::text, event_type, timestamp::text FROM telemetry WHERE byte_offset = %s",
        (offset(line),),
    )
    assert json.loads(document) == json.loads(line)
    assert (event_type, timestamp) == (kind, time)


# Vectors

PLAIN = np.arange(4, dtype=np.float32)
NAN_VECTOR = np.array([1, math.nan, 3, math.inf], np.float32)


def write_vectors(directory: Path) -> None:
    operations = (
        Operation("add", "fine", PLAIN, {"chroma:document": "fine", "n": 1}),
        Operation("add", "nan vector", NAN_VECTOR, {"chroma:document": "nan"}),
        Operation("add", "nul document", PLAIN, {"chroma:document": "a\0b"}),
        Operation("add", "nul metadata", PLAIN, {"chroma:document": "d", "m": "x\0y"}),
        Operation("add", "nul\0id", PLAIN, {"chroma:document": "i"}),
    )
    write_chroma(directory / "chroma", "1.5", [Collection("c", 4, "l2", operations)], random.Random(0))


def test_vectors_and_texts_of_a_collection_keep_what_does_not_fit(migrated: str) -> None:
    assert originals(migrated, "chroma/c", "fine") == []
    assert originals(migrated, "chroma/c", "nan vector") == [("vector", "blob", struct.pack("<4f", *NAN_VECTOR))]
    assert originals(migrated, "chroma/c", "nul document") == [("document", "text", b"a\0b")]
    ((field, kind, value),) = originals(migrated, "chroma/c", "nul metadata")
    assert (field, kind, json.loads(value or b"")) == ("metadata", "text", {"m": "x\0y"})
    assert originals(migrated, "chroma/c", "nul\0id") == [("id", "text", b"nul\0id")]
    assert rows(migrated, "SELECT record_id, text, embedding::text FROM embeddings ORDER BY row_id") == [
        ("fine", "fine", "[0,1,2,3]"),
        ("nan vector", "nan", None),
        ("nul document", "a\ufffdb", "[0,1,2,3]"),
        ("nul metadata", "d", "[0,1,2,3]"),
        ("nul\ufffdid", "i", "[0,1,2,3]"),
    ]
