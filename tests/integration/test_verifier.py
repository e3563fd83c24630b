"""Verification finds every way in which a target can differ, and names it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iceburg.demo.chroma_writer import Collection, Operation, write_chroma
from iceburg.errors import SchemaVersionError, UsageError
from iceburg.verification_page import write_page
from tests.databases import fresh_database
from tests.support import (
    CONVERSATIONS,
    ENTITIES,
    RELATIONSHIPS,
    assert_identical,
    change,
    found,
    lines,
    migrate,
    migrate_fully,
    migrate_live,
    rows,
    run_sql,
    verify,
)

TABLES = (
    "public.conversations",
    "public.matrix_entities",
    "public.matrix_relationships",
    "public.embeddings",
    "public.telemetry",
    "iceburg_migration.originals",
    "iceburg_migration.quarantine",
    "s.t",
    "s.bare",
)
# A stored generated column is made anew with its row.
COLUMNS = (
    "SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute"
    " WHERE attrelid = %s::regclass AND attnum > 0 AND attgenerated = ''"
)


@dataclass
class Installation:
    """A migrated installation, and how its tables are brought back to what they were."""

    directory: Path
    dsn: str
    repair: str


@pytest.fixture(scope="module")
def installation(server_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    directory = tmp_path_factory.mktemp("verified")
    write(directory)
    with fresh_database(server_dsn) as dsn:
        migrate_fully(dsn, directory)
        run_sql(dsn, "CREATE SCHEMA saved")
        repair = ""
        for number, table in enumerate(TABLES):
            columns = rows(dsn, COLUMNS, (table,))[0][0]
            run_sql(dsn, f"CREATE TABLE saved.t{number} AS SELECT {columns} FROM {table}")
            repair += f"DELETE FROM {table}; INSERT INTO {table} ({columns}) SELECT {columns} FROM saved.t{number};"
        yield Installation(directory, dsn, repair)


@pytest.fixture
def target(installation: Installation) -> Iterator[str]:
    """The DSN of the migrated database, which is repaired afterwards."""
    yield installation.dsn
    run_sql(installation.dsn, installation.repair)


def write(directory: Path) -> None:
    path = directory / "s.db"
    change(path, ENTITIES + RELATIONSHIPS + CONVERSATIONS)
    change(
        path,
        """
        CREATE TABLE t (k TEXT PRIMARY KEY, n INT, r REAL, txt TEXT, b BLOB, day TIMESTAMP);
        CREATE TABLE bare (a TEXT);
        """,
    )
    change(
        path,
        "INSERT INTO t VALUES (?, ?, ?, ?, x'00ff', '2025-06-01 12:00:00')",
        *((f"k{n}", n, n / 3, f"text {n}") for n in range(20)),
    )
    change(
        path,
        "INSERT INTO t (k, txt) VALUES ('empty', ''), ('null', NULL), ('kept', 'a' || char(0)),"
        " ('k' || char(0), 'quarantined')",
    )
    change(path, "INSERT INTO bare VALUES (?)", *((f"a{n}",) for n in range(5)))
    change(
        path,
        "INSERT INTO entities VALUES (?, ?, 'person', 'src', ?, '[\"us\"]', '[]', '2025-06-01 12:00:00')",
        *((f"e{n}", f"Name {n}", json.dumps({"score": 1.0, "n": n, "big": 2**70})) for n in range(20)),
        ("bad", "Bad", "{cut"),
    )
    change(
        path,
        "INSERT INTO relationships VALUES (?, 'e1', ?, 'knows', '{}', NULL, '2025-06-01 12:00:00')",
        *((f"r{n}", f"e{n}") for n in range(20)),
    )
    change(
        path,
        "INSERT INTO conversations VALUES (?, 'c1', '2025-06-01T12:00:00.000001', 'question', 'answer', NULL, '',"
        " '{\"a\": 1.0}', '2025-06-01 12:00:00')",
        *((n,) for n in range(1, 20)),
    )
    (directory / "events.jsonl").write_bytes(
        lines(
            *(
                f'{{"event_type": "e", "timestamp": {1_750_000_000 + n}.5, "event_data": {{"v": 1.0, "n": {n}}}}}'
                for n in range(20)
            )
        )
        + lines(
            '{"event_type": "twice", "a": 1, "a": 1}',
            '{"event_type": "nul", "a": "\\u0000"}',
            "no json",
            '["no object"]',
        )
    )
    vectors = np.random.default_rng(3).standard_normal((20, 8), dtype=np.float32)
    operations = [
        Operation("add", f"id{n}", vector, {"chroma:document": f"document {n}", "whole": 1.0, "n": n, "flag": True})
        for n, vector in enumerate(vectors)
    ]
    operations.append(Operation("add", "bare", vectors[0], None))
    operations.append(Operation("add", "nan", np.full(8, np.nan, np.float32), None))
    write_chroma(directory / "chroma", "1.5", [Collection("c", 8, "l2", operations)], random.Random(0))


def test_what_was_migrated_is_identical(installation: Installation, target: str) -> None:
    assert_identical(verify(target, installation.directory))
    kept = rows(
        target, "SELECT (SELECT count(*) FROM iceburg_migration.originals), count(*) FROM iceburg_migration.quarantine"
    )
    assert kept == [(5, 3)]


E, C, T, L, V = "s.db/entities", "s.db/conversations", "s.db/t", "events.jsonl", "chroma/c"
CHANGES: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
    "entity: 1.0 became 1": (
        "UPDATE matrix_entities SET entity_data = jsonb_set(entity_data, '{properties,score}', '1')"
        " WHERE entity_id = 'e3'",
        [
            (
                E,
                '["e3"]',
                "properties",
                '{"score": 1.0, "n": 3, "big": 1180591620717411303424}',
                '{"n": 3, "big": 1180591620717411303424, "score": 1}',
            )
        ],
    ),
    "entity: a large number is off by one": (
        "UPDATE matrix_entities SET entity_data = jsonb_set(entity_data, '{properties,big}', '1180591620717411303425')"
        " WHERE entity_id = 'e3'",
        [
            (
                E,
                '["e3"]',
                "properties",
                '{"score": 1.0, "n": 3, "big": 1180591620717411303424}',
                '{"n": 3, "big": 1180591620717411303425, "score": 1.0}',
            )
        ],
    ),
    "entity: name": (
        "UPDATE matrix_entities SET entity_data = jsonb_set(entity_data, '{name}', '\"name 3\"')"
        " WHERE entity_id = 'e3'",
        [(E, '["e3"]', "name", "Name 3", "name 3")],
    ),
    "entity: type": (
        "UPDATE matrix_entities SET entity_type = 'Person' WHERE entity_id = 'e3'",
        [(E, '["e3"]', "entity_type", "person", "Person")],
    ),
    "entity: source became NULL": (
        "UPDATE matrix_entities SET entity_data = entity_data - 'source' WHERE entity_id = 'e3'",
        [(E, '["e3"]', "source", "src", None)],
    ),
    "entity: a key more": (
        "UPDATE matrix_entities SET entity_data = entity_data || '{\"x\": null}' WHERE entity_id = 'e3'",
        [(E, '["e3"]', "entity_data", "a record", ...)],
    ),
    "entity: created_at off by a microsecond": (
        "UPDATE matrix_entities SET created_at = created_at + '1 us'::interval WHERE entity_id = 'e3'",
        [(E, '["e3"]', "created_at", "2025-06-01 12:00:00", "2025-06-01 12:00:00.000001")],
    ),
    "entity: updated_at off by a microsecond": (
        "UPDATE matrix_entities SET updated_at = updated_at + '1 us'::interval WHERE entity_id = 'e3'",
        [(E, '["e3"]', "updated_at", "2025-06-01 12:00:00", "2025-06-01 12:00:00.000001")],
    ),
    "entity whose record has an original: another field": (
        "UPDATE matrix_entities SET entity_data = jsonb_set(entity_data, '{name}', '\"x\"') WHERE entity_id = 'bad'",
        [(E, '["bad"]', "name", "Bad", "x")],
    ),
    "entity whose record has an original: the usable value": (
        "UPDATE matrix_entities SET entity_data = jsonb_set(entity_data, '{properties}', '\"x\"', TRUE)"
        " WHERE entity_id = 'bad'",
        [(E, '["bad"]', "entity_data", ..., ...)],
    ),
    "entity whose record has an original: updated_at": (
        "UPDATE matrix_entities SET updated_at = NULL WHERE entity_id = 'bad'",
        [(E, '["bad"]', "updated_at", "2025-06-01 12:00:00", None)],
    ),
    "entity deleted": (
        "DELETE FROM matrix_entities WHERE entity_id = 'e3'",
        [(E, '["e3"]', "(record)", "a record", None)],
    ),
    "entity too many": (
        "INSERT INTO matrix_entities (id, entity_type, entity_data, dataset_id)"
        " SELECT gen_random_uuid(), entity_type, entity_data, dataset_id FROM matrix_entities WHERE entity_id = 'e3'",
        [(E, '["e3"]', "(record)", None, "a row of which there is no record")],
    ),
    "entity in place of another": (
        "UPDATE matrix_entities SET id = gen_random_uuid() WHERE entity_id = 'e3'",
        [
            (E, '["e3"]', "(record)", "a record", None),
            (E, '["e3"]', "(record)", None, "a row of which there is no record"),
        ],
    ),
    "entity of another dataset": (
        "UPDATE matrix_entities SET dataset_id = 9999 WHERE entity_id = 'e3'",
        [
            (E, '["e3"]', "(record)", "a record", None),
            ("public.matrix_entities", "dataset_id 9999", "(record)", None, ...),
        ],
    ),
    "relationship: end": (
        "UPDATE matrix_relationships SET relationship_data = jsonb_set(relationship_data, '{target_id}', '\"e4\"')"
        " WHERE relationship_id = 'r3'",
        [("s.db/relationships", '["r3"]', "target_id", "e3", "e4")],
    ),
    "conversation: text": (
        "UPDATE conversations SET response = 'Answer' WHERE row_id = 7",
        [(C, "[7]", "assistant_message", "answer", "Answer")],
    ),
    "conversation: timestamp": (
        "UPDATE conversations SET timestamp = timestamp + '1 us'::interval WHERE row_id = 7",
        [(C, "[7]", "timestamp", "2025-06-01T12:00:00.000001", "2025-06-01T12:00:00.000002")],
    ),
    "conversation: NULL became ''": (
        "UPDATE conversations SET agent = '' WHERE row_id = 7",
        [(C, "[7]", "agent_used", None, "")],
    ),
    "conversation: '' became NULL": (
        "UPDATE conversations SET mode = NULL WHERE row_id = 7",
        [(C, "[7]", "mode", "", None)],
    ),
    "conversation: metadata 1.0 became 1": (
        "UPDATE conversations SET metadata = '{\"a\": 1}' WHERE row_id = 7",
        [(C, "[7]", "metadata", '{"a": 1.0}', '{"a": 1}')],
    ),
    "conversation: updated_at": (
        "UPDATE conversations SET updated_at = now() WHERE row_id = 7",
        [(C, "[7]", "updated_at", "2025-06-01 12:00:00", ...)],
    ),
    "conversation: two ids swapped": (
        "UPDATE conversations SET row_id = 15 - row_id WHERE row_id IN (7, 8)",
        [(C, "[7]", "id", 7, 8), (C, "[8]", "id", 8, 7)],
    ),
    "line: 1.0 became 1": (
        "UPDATE telemetry SET event_data = jsonb_set(event_data, '{event_data,v}', '1')"
        " WHERE event_data #>> '{event_data,n}' = '3'",
        [(L, ..., "event_data", '{"v": 1.0, "n": 3}', '{"n": 3, "v": 1}')],
    ),
    "line: time off by a microsecond": (
        "UPDATE telemetry SET timestamp = timestamp + '1 us'::interval WHERE event_data #>> '{event_data,n}' = '0'",
        [(L, "[0]", "timestamp", "2025-06-15 15:06:40.500000", "2025-06-15 15:06:40.500001")],
    ),
    "line: type": ("UPDATE telemetry SET event_type = 'f' WHERE byte_offset = 0", [(L, "[0]", "event_type", "e", "f")]),
    "line: offset": (
        "UPDATE telemetry SET byte_offset = 1 WHERE byte_offset = 0",
        [(L, "[0]", "byte_offset", 0, 1)],
    ),
    "line deleted": ("DELETE FROM telemetry WHERE byte_offset = 0", [(L, "[0]", "(record)", "a record", None)]),
    "line too many": (
        "INSERT INTO telemetry SELECT gen_random_uuid(), event_type, event_data, timestamp, dataset_id, byte_offset"
        " FROM telemetry WHERE byte_offset = 0",
        [(L, "[0]", "(record)", None, "a row of which there is no record")],
    ),
    "line of no dataset": (
        "INSERT INTO telemetry (id, event_data, dataset_id) VALUES (gen_random_uuid(), '{}', 4711)",
        [("public.telemetry", "dataset_id 4711", "(record)", None, ...)],
    ),
    "line whose record has an original": (
        "UPDATE telemetry SET event_data = '{\"event_type\": \"nul\"}' WHERE event_type = 'nul'",
        [(L, ..., "event_data", ..., ...)],
    ),
    "embedding: document": (
        "UPDATE embeddings SET text = 'Document 3' WHERE record_id = 'id3'",
        [(V, '["id3"]', "document", "document 3", "Document 3")],
    ),
    "embedding: no document became ''": (
        "UPDATE embeddings SET has_text = TRUE WHERE record_id = 'bare'",
        [(V, '["bare"]', "document", None, "")],
    ),
    "embedding: metadata 1.0 became 1": (
        "UPDATE embeddings SET metadata = jsonb_set(metadata, '{whole}', '1') WHERE record_id = 'id3'",
        [(V, '["id3"]', "metadata.whole", 1.0, 1)],
    ),
    "embedding: metadata true became 1": (
        "UPDATE embeddings SET metadata = jsonb_set(metadata, '{flag}', '1') WHERE record_id = 'id3'",
        [(V, '["id3"]', "metadata.flag", True, 1)],
    ),
    "embedding: metadata key gone": (
        "UPDATE embeddings SET metadata = metadata - 'n' WHERE record_id = 'id3'",
        [(V, '["id3"]', "metadata.n", 3, "(absent)")],
    ),
    "embedding: origin": (
        "UPDATE embeddings SET vector_origin = 'index' WHERE record_id = 'id3'",
        [(V, '["id3"]', "origin", "queue", "index")],
    ),
    "embedding: id": (
        "UPDATE embeddings SET record_id = 'ID3' WHERE record_id = 'id3'",
        [(V, '["id3"]', "id", "id3", "ID3")],
    ),
    "embedding: vector gone": (
        "UPDATE embeddings SET embedding = NULL WHERE record_id = 'id3'",
        [(V, '["id3"]', "vector", "8 dimensions", None)],
    ),
    "embedding: a vector where there was none": (
        "UPDATE embeddings SET embedding = '[1,2,3,4,5,6,7,8]' WHERE record_id = 'nan'",
        [(V, '["nan"]', "embedding", None, ...)],
    ),
    "embedding of no collection": (
        "UPDATE embeddings SET collection_id = 555 WHERE record_id = 'id3'",
        [
            (V, '["id3"]', "(record)", "a record", None),
            ("public.embeddings", "collection_id 555", "(record)", None, ...),
        ],
    ),
    "row: text": ("UPDATE s.t SET txt = 'Text 3' WHERE k = 'k3'", [(T, '["k3"]', "txt", "text 3", "Text 3")]),
    "row: trailing space": (
        "UPDATE s.t SET txt = 'text 3 ' WHERE k = 'k3'",
        [(T, '["k3"]', "txt", "text 3", "text 3 ")],
    ),
    "row: integer": ("UPDATE s.t SET n = 4 WHERE k = 'k3'", [(T, '["k3"]', "n", 3, 4)]),
    "row: the last bit of a float": (
        "UPDATE s.t SET r = 1.0000000000000002 WHERE k = 'k3'",
        [(T, '["k3"]', "r", 1.0, 1.0000000000000002)],
    ),
    "row: the sign of zero": ("UPDATE s.t SET r = '-0' WHERE k = 'k0'", [(T, '["k0"]', "r", 0.0, -0.0)]),
    "row: NULL became ''": ("UPDATE s.t SET txt = '' WHERE k = 'null'", [(T, '["null"]', "txt", None, "")]),
    "row: '' became NULL": ("UPDATE s.t SET txt = NULL WHERE k = 'empty'", [(T, '["empty"]', "txt", "", None)]),
    "row: bytes": ("UPDATE s.t SET b = '\\x00fe' WHERE k = 'k3'", [(T, '["k3"]', "b", "x'00ff'", "x'00fe'")]),
    "row: date": (
        "UPDATE s.t SET day = day + '1 s'::interval WHERE k = 'k3'",
        [(T, '["k3"]', "day", "2025-06-01 12:00:00", "2025-06-01 12:00:01")],
    ),
    "row: a part of a microsecond more than the form has": (
        "UPDATE s.t SET day = day + '1 us'::interval WHERE k = 'k3'",
        [(T, '["k3"]', "day", "2025-06-01 12:00:00", "2025-06-01 12:00:00.000001")],
    ),
    "row deleted": ("DELETE FROM s.t WHERE k = 'k3'", [(T, '["k3"]', "(record)", "a record", None)]),
    "row too many": (
        "INSERT INTO s.t (k) VALUES ('more')",
        [(T, '["more"]', "(record)", None, "a row of which there is no record")],
    ),
    "row without a key too many": (
        "INSERT INTO s.bare VALUES (99, 'a')",
        [("s.db/bare", "[99]", "(record)", None, "a row of which there is no record")],
    ),
    "row whose record has an original: the usable value": (
        "UPDATE s.t SET txt = 'b' WHERE k = 'kept'",
        [(T, '["kept"]', "txt", "a\ufffd", "b")],
    ),
    "row whose record has an original: another field": (
        "UPDATE s.t SET n = 1 WHERE k = 'kept'",
        [(T, '["kept"]', "n", None, 1)],
    ),
    "original: bytes": (
        "UPDATE iceburg_migration.originals SET value = 'a\\000\\000' WHERE record_key = '[\"kept\"]'",
        [(T, '["kept"]', "txt", "a\0", "a\0\0")],
    ),
    "original: bytes that are the same JSON": (
        "UPDATE iceburg_migration.originals SET value ="
        ' convert_to(\'{"event_type": "nul", "a":  "\\u0000"}\', \'UTF8\')'
        " WHERE reason LIKE 'NUL%' AND field = 'line'",
        [(L, ..., "(original of line)", ..., ...)],
    ),
    "original: storage class": (
        "UPDATE iceburg_migration.originals SET storage_class = 'blob' WHERE record_key = '[\"kept\"]'",
        [(T, '["kept"]', "txt", "a\0", "x'6100'")],
    ),
    "original gone": (
        "DELETE FROM iceburg_migration.originals WHERE record_key = '[\"bad\"]'",
        [(E, '["bad"]', "properties", "{cut", '"{cut"')],
    ),
    "original too many, of a record that has none": (
        "INSERT INTO iceburg_migration.originals SELECT dataset_id, '[\"k3\"]', 'txt', 'text', 'text 3', 'r'"
        " FROM iceburg_migration.datasets WHERE name = 's.db/t'",
        [(T, '["k3"]', "(original of txt)", None, "text 3")],
    ),
    "original too many, of a field that is not there": (
        "INSERT INTO iceburg_migration.originals SELECT dataset_id, '[\"kept\"]', 'nothing', 'text', 'x', 'r'"
        " FROM iceburg_migration.datasets WHERE name = 's.db/t'",
        [(T, '["kept"]', "(original of nothing)", None, "x")],
    ),
    "original too many, of no record": (
        "INSERT INTO iceburg_migration.originals SELECT dataset_id, '[\"nobody\"]', 'txt', 'text', 'x', 'r'"
        " FROM iceburg_migration.datasets WHERE name = 's.db/t'",
        [(T, "", "(originals)", 1, 2), (T, ..., "(kept)", None, ...)],
    ),
    "original twice": (
        "INSERT INTO iceburg_migration.originals SELECT * FROM iceburg_migration.originals WHERE field = 'txt'",
        [(T, "", "(originals)", 1, 2)],
    ),
    "quarantined record gone": (
        "DELETE FROM iceburg_migration.quarantine WHERE record LIKE '%no json%'",
        [(L, ..., "(record)", "a record", None)],
    ),
    "quarantined record changed": (
        "UPDATE iceburg_migration.quarantine SET record ="
        " replace(encode(record, 'escape'), 'no json', 'no JSON')::bytea"
        " WHERE record LIKE '%no json%'",
        [(L, ..., "line", "no json", "no JSON")],
    ),
    "quarantined record unreadable": (
        "UPDATE iceburg_migration.quarantine SET record = '\\xff' WHERE record LIKE '%quarantined%'",
        [(T, ..., "(quarantine)", "a record", ...)],
    ),
    "quarantined record too many": (
        "INSERT INTO iceburg_migration.quarantine SELECT dataset_id, '[\"nobody\"]', '[]', 'r'"
        " FROM iceburg_migration.datasets WHERE name = 's.db/t'",
        [(T, "", "(quarantined records)", 1, 2), (T, ..., "(kept)", None, ...)],
    ),
    "quarantined record beside its row": (
        "INSERT INTO iceburg_migration.quarantine SELECT dataset_id, '[0]',"
        " convert_to('0:' || (SELECT 'x'), 'UTF8'), 'r'"
        " FROM iceburg_migration.datasets WHERE name = 'events.jsonl'",
        [(L, "[0]", "(record)", "a record", "a row and a quarantined record"), (L, "[0]", "line", ..., "x")],
    ),
}


def matches(difference: tuple[Any, ...], expected: tuple[Any, ...]) -> bool:
    return all(
        b is ... or (a == b and type(a) is type(b) and repr(a) == repr(b))
        for a, b in zip(difference, expected, strict=True)
    )


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_the_target_is_found_and_named(installation: Installation, target: str, what: str) -> None:
    statement, expected = CHANGES[what]
    assert run_sql(target, statement) > 0
    report = verify(target, installation.directory)
    assert report.status == "different"
    differences = found(report)
    assert len(differences) == len(expected), differences
    for difference, wanted in zip(differences, expected, strict=True):
        assert matches(difference, wanted), (difference, wanted)
    counted = sum(part.differences for part in report.datasets)
    assert counted == sum(1 for difference in differences if not difference[0].startswith("public."))


@pytest.mark.parametrize("bit", [0, 1, 22, 23, 30, 31])
def test_one_flipped_bit_of_a_vector_is_found(installation: Installation, target: str, bit: int) -> None:
    ((vector,),) = rows(target, "SELECT embedding::text FROM embeddings WHERE record_id = 'id5'")
    before = np.array(json.loads(vector), np.float32)
    after = before.copy()
    after.view(np.uint32)[6] ^= np.uint32(1 << bit)
    run_sql(target, "UPDATE embeddings SET embedding = %s WHERE record_id = 'id5'", (str([float(x) for x in after]),))
    ((name, key, field, source, changed),) = found(verify(target, installation.directory))
    assert (name, key, field) == (V, '["id5"]', "vector[6]")
    assert (np.float32(source), np.float32(changed)) == (before[6], after[6])


def test_every_difference_is_counted_and_the_first_are_listed(installation: Installation, target: str) -> None:
    run_sql(target, "UPDATE matrix_entities SET entity_type = 'x'")
    run_sql(target, "DELETE FROM matrix_relationships")
    run_sql(target, "INSERT INTO s.t (k) SELECT 'more' || n FROM generate_series(1, 12) n")
    report = verify(target, installation.directory, limit=4)
    counts = {part.dataset: part.differences for part in report.datasets if part.differences}
    assert counts == {E: 21, "s.db/relationships": 20, T: 12}
    assert len(report.differences) == 12


def test_with_a_sample_only_some_are_compared(installation: Installation, target: str) -> None:
    report = verify(target, installation.directory, sample=5)
    assert (report.status, report.sampled) == ("identical", True)
    assert {part.compared_rows for part in report.datasets} == {5}
    run_sql(target, "UPDATE matrix_entities SET entity_type = 'x'")
    assert verify(target, installation.directory, sample=5).status == "different"


def test_a_table_that_was_dropped_is_a_difference(tmp_path: Path, database: str) -> None:
    change(tmp_path / "a.db", "CREATE TABLE bare (a)")
    migrate_fully(database, tmp_path)
    run_sql(database, "DROP TABLE a.bare")
    assert found(verify(database, tmp_path)) == [("a.db/bare", "", "(table)", "a table", None)]


def test_a_counter_that_is_lost_is_a_difference(tmp_path: Path, database: str) -> None:
    change(tmp_path / "a.db", "CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT)")
    change(tmp_path / "a.db", "INSERT INTO t VALUES (1), (7); DELETE FROM t WHERE a = 7")
    migrate_fully(database, tmp_path)
    path = "'{tables,0,sequence}'"
    run_sql(database, f"UPDATE iceburg_migration.sources SET description = jsonb_set(description, {path}, '1')")
    assert ("a.db", "", "(counter of t)", "7", "1") in found(verify(database, tmp_path))


def test_of_a_table_that_was_dropped_every_record_is_missing(tmp_path: Path, database: str) -> None:
    change(tmp_path / "a.db", "CREATE TABLE bare (a); INSERT INTO bare VALUES (1), (2)")
    migrate_fully(database, tmp_path)
    run_sql(database, "ALTER TABLE a.bare DROP COLUMN a")
    report = verify(database, tmp_path)
    (records,) = (d for d in report.differences if d.field == "(records)")
    assert (records.dataset, records.found_by, records.source) == ("a.db/bare", "records", "2 records")


def test_what_is_not_migrated_yet_is_a_difference(tmp_path: Path, database: str) -> None:
    with pytest.raises(SchemaVersionError, match="migrate"):
        verify(database, tmp_path)
    change(tmp_path / "a.db", "CREATE TABLE t (a); INSERT INTO t VALUES (1)")
    migrate_fully(database, tmp_path)
    change(tmp_path / "a.db", "CREATE TABLE u (a)")
    change(tmp_path / "b.db", "CREATE TABLE t (a)")
    report = verify(database, tmp_path)
    assert report.status == "different"
    assert {problem["source"]: problem["problem"] for problem in report.problems} == {
        "a.db": "a.db/u: not in PostgreSQL, run `iceburg-db migrate`",
        "b.db": "is not in PostgreSQL: run `iceburg-db migrate`",
    }
    change(tmp_path / "a.db", "DROP TABLE t")
    assert "gone" in str(verify(database, tmp_path).problems)


def test_a_source_that_changed_is_a_difference(tmp_path: Path, database: str) -> None:
    change(tmp_path / "a.db", "CREATE TABLE t (a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)")
    migrate(database, tmp_path)
    change(tmp_path / "a.db", "DELETE FROM t WHERE a = 1; UPDATE t SET b = 5 WHERE a = 2; INSERT INTO t VALUES (4, 4)")
    assert sorted(found(verify(database, tmp_path))) == [
        ("a.db/t", "[1]", "(record)", None, "a row of which there is no record"),
        ("a.db/t", "[2]", "b", 5, 2),
        ("a.db/t", "[4]", "(record)", "a record", None),
    ]


def test_repair_mends_from_the_store_and_keeps_what_was_there(tmp_path: Path, database: str) -> None:
    write(tmp_path)
    migrate_fully(database, tmp_path)
    run_sql(database, "DELETE FROM s.t WHERE k = 'k3'; UPDATE s.t SET n = 77 WHERE k = 'k4'")
    run_sql(database, "INSERT INTO s.t (k, n) VALUES ('more', 1)")
    run_sql(database, "UPDATE matrix_entities SET entity_data = '{}' WHERE entity_id = 'e2'")
    report = verify(database, tmp_path, repair=True)
    assert_identical(report)
    assert {(one.dataset, one.key, one.action) for one in report.repairs} == {
        (T, '["k3"]', "added"),
        (T, '["k4"]', "replaced"),
        (T, '["more"]', "removed"),
        (E, '["e2"]', "replaced"),
    }
    assert all(one.problem is None for one in report.repairs)
    statement = "SELECT before->'rows'->0->>'n' FROM iceburg_migration.repairs WHERE record_key = %s"
    before = rows(database, statement, ['["k4"]'])
    assert before == [("77",)]


def test_what_is_followed_is_not_mended(tmp_path: Path, database: str) -> None:
    change(tmp_path / "a.db", "CREATE TABLE t (a INTEGER PRIMARY KEY); INSERT INTO t VALUES (1)")
    migrate_live(database, tmp_path)
    run_sql(database, "DELETE FROM a.t")
    with pytest.raises(UsageError, match="--rewrite"):
        verify(database, tmp_path, repair=True)
    assert rows(database, "SELECT count(*) FROM a.t") == [(0,)]


def test_answers_are_compared_and_different_ones_shown(installation: Installation, target: str) -> None:
    run_sql(target, "UPDATE matrix_entities SET entity_type = 'x' WHERE entity_id = 'e3'")
    report = verify(target, installation.directory)
    (query,) = [query for query in report.queries if query.query == "count entities by type"]
    assert (query.identical, query.asked, query.different) == (False, 1, 1)
    assert query.example is not None
    assert "20" in str(query.example["target"])


def test_the_page_is_whole_and_escapes_what_it_shows(installation: Installation, target: str, tmp_path: Path) -> None:
    run_sql(target, "UPDATE s.t SET txt = '<script>alert(1)</script>' WHERE k = 'k3'")
    page = tmp_path / "report.html"
    write_page(page, verify(target, installation.directory), "here")
    text = page.read_text("utf-8")
    assert "<svg" in text
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "http" not in text
    assert page.stat().st_mode & 0o777 == 0o600
