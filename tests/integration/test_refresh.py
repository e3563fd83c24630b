"""Migrating again after the sources have changed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from iceburg.demo.chroma import write_chroma_06, write_chroma_15
from tests.fixtures.chroma.unpack import unpack
from tests.support import (
    CONVERSATIONS,
    ENTITIES,
    RELATIONSHIPS,
    Listener,
    assert_identical,
    change,
    dataset,
    lines,
    migrate,
    migrate_fully,
    rows,
    run_sql,
    some_entities,
    verify,
)

LONG = "".join(random.Random(2).choices("abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOP", k=10_000))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A SQLite file with a table of every kind of key, and rows to change in it."""
    path = tmp_path / "shop.db"
    change(
        path,
        ENTITIES
        + """
        CREATE TABLE keyed (k TEXT PRIMARY KEY, v INT, u TEXT UNIQUE);
        CREATE TABLE numbered (id INTEGER PRIMARY KEY AUTOINCREMENT, v TEXT NOT NULL, u INT);
        CREATE UNIQUE INDEX numbered_u ON numbered(u);
        CREATE TABLE bare (a TEXT, b REAL);
        CREATE TABLE compound (a TEXT, b INT, c TEXT, PRIMARY KEY (b, a)) WITHOUT ROWID;
        CREATE TABLE child (id INTEGER PRIMARY KEY, k TEXT REFERENCES keyed(k), n INT REFERENCES numbered(id));
        """,
    )
    change(path, "INSERT INTO keyed VALUES (?, ?, ?)", *((f"k{n}", n, f"u{n}") for n in range(50)))
    change(path, "INSERT INTO numbered VALUES (?, ?, ?)", *((n, f"v{n}", n) for n in range(1, 51)))
    change(path, "INSERT INTO bare VALUES (?, ?)", *((f"a{n // 2}", n + 0.5) for n in range(50)))
    change(path, "INSERT INTO compound VALUES (?, ?, 'c')", *((f"a{n % 5}", n // 5) for n in range(50)))
    change(path, "INSERT INTO child VALUES (?, ?, ?)", *((n, f"k{n}", n + 1) for n in range(50)))
    change(
        path, "INSERT INTO entities (entity_id, name, entity_type, properties) VALUES (?, ?, ?, ?)", *some_entities(50)
    )
    return path


CHANGES = {
    "inserts": "INSERT INTO keyed VALUES ('new', 1, 'new'); INSERT INTO bare VALUES ('new', 1);"
    " INSERT INTO compound VALUES ('', -1, NULL); INSERT INTO numbered (v, u) VALUES ('new', 51)",
    "updates": "UPDATE keyed SET v = v + 1; UPDATE numbered SET v = v || '!' WHERE id % 7 = 0;"
    " UPDATE bare SET b = -b; UPDATE compound SET c = a;"
    " UPDATE entities SET name = 'other' WHERE entity_id > 'e000040'",
    "deletes": "DELETE FROM keyed WHERE v % 3 = 0; DELETE FROM numbered WHERE id BETWEEN 10 AND 20;"
    " DELETE FROM bare WHERE rowid < 5; DELETE FROM compound WHERE b = 3; DELETE FROM entities WHERE name LIKE '%7'",
    "all rows deleted": "DELETE FROM keyed; DELETE FROM numbered; DELETE FROM bare; DELETE FROM compound;"
    " DELETE FROM entities",
    "as many inserts as deletes": "DELETE FROM keyed WHERE v < 5;"
    " INSERT INTO keyed SELECT 'n' || v, v, 'n' || v FROM keyed WHERE v BETWEEN 10 AND 14",
    "key changes": "UPDATE keyed SET k = 'x' || k WHERE v < 9; UPDATE numbered SET id = id + 1000 WHERE id < 5;"
    " UPDATE compound SET b = b + 100 WHERE a = 'a1';"
    " UPDATE entities SET entity_id = 'x' || entity_id WHERE name < 'O'",
    "keys swapped": "UPDATE keyed SET k = 'tmp' WHERE k = 'k1'; UPDATE keyed SET k = 'k1' WHERE k = 'k2';"
    " UPDATE keyed SET k = 'k2' WHERE k = 'tmp'; UPDATE numbered SET id = -1 WHERE id = 1;"
    " UPDATE numbered SET id = 1 WHERE id = 50; UPDATE numbered SET id = 50 WHERE id = -1",
    "unique values swapped": "UPDATE keyed SET u = 'tmp' WHERE k = 'k1'; UPDATE keyed SET u = 'u1' WHERE k = 'k40';"
    " UPDATE keyed SET u = 'u40' WHERE k = 'k1'; UPDATE numbered SET u = -1 WHERE id = 1;"
    " UPDATE numbered SET u = 1 WHERE id = 45; UPDATE numbered SET u = 45 WHERE id = 1",
    "rows replaced": "INSERT OR REPLACE INTO keyed VALUES ('k3', -3, 'u7'), ('k9', -9, 'u9');"
    " INSERT OR REPLACE INTO numbered VALUES (30, 'evicts 31', 31);"
    " INSERT OR REPLACE INTO entities (entity_id, name, entity_type) VALUES ('e000003', 'again', 'company')",
    "rowids renumbered": "DELETE FROM bare WHERE rowid % 3 = 1; VACUUM",
    "table dropped": "DROP TABLE bare; DROP TABLE child",
    "parent table dropped": "DROP TABLE keyed",
    "table added": "CREATE TABLE later (x TEXT PRIMARY KEY, k TEXT REFERENCES keyed(k));"
    " INSERT INTO later VALUES ('1', 'k1')",
    "column added": "ALTER TABLE keyed ADD COLUMN extra TEXT DEFAULT 'e'; ALTER TABLE entities ADD COLUMN extra INT;"
    " UPDATE entities SET extra = 5 WHERE name < 'Name 3'; ALTER TABLE bare ADD COLUMN c",
    "column dropped": "ALTER TABLE numbered RENAME COLUMN v TO w; ALTER TABLE bare DROP COLUMN b",
    "table renamed": "ALTER TABLE keyed RENAME TO renamed",
    "parents deleted": "DELETE FROM keyed WHERE k < 'k3'",
    "orphans come and go": "UPDATE child SET k = 'nobody' WHERE id < 4; DELETE FROM numbered WHERE id = 9",
    "another type": "UPDATE keyed SET v = 'n/a' WHERE v = 3; UPDATE bare SET b = 'text' WHERE rowid = 2;"
    " UPDATE keyed SET u = CAST(x'61ff' AS TEXT) WHERE v = 9; UPDATE numbered SET v = 'a' || char(0) WHERE id = 4",
}


@pytest.mark.parametrize("changed", CHANGES)
def test_the_target_follows_every_change(store: Path, database: str, changed: str) -> None:
    migrate_fully(database, store.parent, batch_size=9)
    change(store, CHANGES[changed])
    report = migrate_fully(database, store.parent, batch_size=9)
    assert not report.unchanged
    assert migrate(database, store.parent).unchanged


SHOP_CONSTRAINTS = {
    ("shop.bare", "p", 1, True),
    ("shop.child", "f", 2, True),
    ("shop.child", "p", 1, True),
    ("shop.compound", "p", 1, True),
    ("shop.keyed", "p", 1, True),
    ("shop.keyed", "u", 1, True),
    ("shop.numbered", "p", 1, True),
}


def constraints_of_shop(database: str) -> set[tuple[str, str, int, bool]]:
    return set(
        rows(
            database,
            "SELECT conrelid::regclass::text, contype::text, count(*), bool_and(convalidated) FROM pg_constraint"
            " JOIN pg_namespace n ON n.oid = connamespace WHERE nspname = 'shop' AND contype IN ('p', 'u', 'f')"
            " GROUP BY 1, 2",
        )
    )


def test_a_refresh_says_the_same_of_the_structure_as_a_first_migration(store: Path, database: str) -> None:
    first = migrate_fully(database, store.parent)
    change(store, "UPDATE keyed SET v = v + 1")
    second = migrate_fully(database, store.parent)
    assert [part.notes for part in second.datasets] == [part.notes for part in first.datasets]
    assert constraints_of_shop(database) == SHOP_CONSTRAINTS


def test_only_what_changed_is_written(store: Path, database: str) -> None:
    migrate_fully(database, store.parent, batch_size=10)
    change(store, "UPDATE keyed SET v = -1 WHERE k = 'k25'")
    report = migrate_fully(database, store.parent, batch_size=10)
    assert {part.dataset: part.copied_rows for part in report.datasets if part.copied_rows} == {"shop.db/keyed": 10}


def test_a_random_history_of_changes_is_followed(tmp_path: Path, database: str) -> None:
    rng = random.Random(11)
    path = tmp_path / "h.db"
    change(path, "CREATE TABLE t (k TEXT PRIMARY KEY, v, u INT UNIQUE); CREATE TABLE b (x)")
    values: list[object] = [None, 1, 1.0, "text", "nul\0", b"blob", 2**62, -0.0]
    for _ in range(8):
        for _ in range(rng.randrange(1, 60)):
            key, value, unique = f"k{rng.randrange(60)}", rng.choice(values), rng.randrange(80)
            match rng.randrange(6):
                case 0 | 1 | 2:
                    change(path, "INSERT OR REPLACE INTO t VALUES (?, ?, ?)", (key, value, unique))
                    change(path, "INSERT INTO b VALUES (?)", (value,))
                case 3:
                    change(path, "DELETE FROM t WHERE k > ? AND k < ? || '5'", (key, key))
                    change(path, "DELETE FROM b WHERE rowid % 9 = ?", (unique % 9,))
                case 4:
                    change(path, "UPDATE OR REPLACE t SET k = ? WHERE u = ?", (key, unique))
                case _:
                    change(path, "VACUUM")
        migrate_fully(database, tmp_path, batch_size=rng.choice([3, 10, 100]))


# Originals and quarantine


def test_what_is_kept_beside_a_record_goes_with_it(tmp_path: Path, database: str) -> None:
    path = tmp_path / "m.db"
    change(path, ENTITIES)
    statement = "INSERT INTO entities (entity_id, name, entity_type, properties) VALUES (?, ?, ?, ?)"
    change(path, statement, *((f"e{n}", "a\0b", "t", "{bad") for n in range(10)), *some_entities(20))
    kept = "SELECT count(*), count(DISTINCT record_key) FROM iceburg_migration.originals"
    migrate_fully(database, tmp_path)
    assert rows(database, kept) == [(20, 10)]
    change(path, "DELETE FROM entities WHERE entity_id IN ('e0', 'e1')")
    migrate_fully(database, tmp_path)
    assert rows(database, kept) == [(16, 8)]
    change(path, "UPDATE entities SET name = 'fine', properties = '{}' WHERE entity_id IN ('e2', 'e3')")
    change(path, "UPDATE entities SET entity_id = 'x' || entity_id WHERE entity_id = 'e4'")
    migrate_fully(database, tmp_path)
    assert rows(database, kept) == [(12, 6)]
    change(path, "DELETE FROM entities")
    migrate_fully(database, tmp_path)
    assert rows(database, kept) == [(0, 0)]


def test_a_quarantined_record_becomes_a_row_and_the_reverse(tmp_path: Path, database: str) -> None:
    path = tmp_path / "q.db"
    change(path, "CREATE TABLE t (k TEXT PRIMARY KEY, v INT NOT NULL)")
    change(path, "INSERT INTO t VALUES (?, ?)", *((f"k{n}", n) for n in range(20)), ("bad\0", 20), (LONG, 21))
    quarantined = "SELECT count(*) FROM iceburg_migration.quarantine"
    report = migrate_fully(database, tmp_path)
    # A first migration sees the key that cannot serve, and takes the rowid; only a known plan has to quarantine.
    change(path, "DELETE FROM t WHERE v > 19")
    migrate_fully(database, tmp_path)
    before = rows(database, quarantined)[0][0]
    change(path, "INSERT INTO t VALUES (?, ?)", (LONG, 21), (LONG[::-1], 22))
    report = migrate_fully(database, tmp_path)
    assert report.quarantined == before + 2
    change(path, "UPDATE t SET k = 'short' WHERE v = 21")
    assert migrate_fully(database, tmp_path).quarantined == before + 1
    assert rows(database, "SELECT v FROM q.t WHERE k = 'short'") == [(21,)]
    change(path, "DELETE FROM t WHERE v = 22")
    change(path, "UPDATE t SET v = 'not a number' WHERE v = 5")
    assert migrate_fully(database, tmp_path).quarantined == before + 1
    assert rows(database, "SELECT count(*) FROM q.t WHERE k = 'k5'") == [(0,)]
    change(path, "UPDATE t SET v = 5 WHERE k = 'k5'")
    assert migrate_fully(database, tmp_path).quarantined == before
    assert rows(database, "SELECT v FROM q.t WHERE k = 'k5'") == [(5,)]


def test_null_keys_that_come_later_are_told_apart(tmp_path: Path, database: str) -> None:
    path = tmp_path / "n.db"
    change(path, "CREATE TABLE t (k TEXT PRIMARY KEY, v INT); INSERT INTO t VALUES ('a', 1)")
    migrate_fully(database, tmp_path)
    change(path, "INSERT INTO t VALUES (NULL, 2); INSERT INTO t VALUES (NULL, 3)")
    report = migrate_fully(database, tmp_path)
    assert dataset(report, "n.db/t").source_rows == 3
    change(path, "DELETE FROM t WHERE v = 2")
    migrate_fully(database, tmp_path)


def test_a_value_too_long_for_an_index_costs_the_index_and_not_the_row(tmp_path: Path, database: str) -> None:
    path = tmp_path / "i.db"
    change(path, ENTITIES + RELATIONSHIPS + CONVERSATIONS)
    change(
        path, "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT); CREATE INDEX t_v ON t(v); INSERT INTO t VALUES (1, 'a')"
    )
    change(path, "INSERT INTO entities (entity_id, name, entity_type) VALUES ('a', 'b', 'c')")
    migrate_fully(database, tmp_path)
    change(path, "INSERT INTO t VALUES (?, ?)", (2, LONG))
    change(path, "INSERT INTO entities (entity_id, name, entity_type) VALUES (?, 'b', 'c')", (LONG,))
    change(
        path,
        "INSERT INTO conversations (conversation_id, timestamp, user_message, assistant_message)"
        " VALUES (?, '', '', '')",
        (LONG,),
    )
    report = migrate_fully(database, tmp_path)
    assert report.quarantined == 0
    assert rows(database, "SELECT v FROM i.t WHERE id = 2") == [(LONG,)]
    assert any("t_v" in note for note in dataset(report, "i.db/t").notes)
    assert rows(database, "SELECT count(*) FROM matrix_entities WHERE entity_id = %s", (LONG,)) == [(1,)]
    # A later state in which the value fits has its index again.
    change(path, "DELETE FROM t WHERE id = 2")
    migrate_fully(database, tmp_path)
    for _ in range(10):
        # Another session of the server, such as autovacuum's, may still see the row that was deleted.
        if rows(database, "SELECT count(*) FROM pg_indexes WHERE indexname = 't_v'") == [(1,)]:
            break
        migrate_fully(database, tmp_path, recheck=True)
    assert rows(database, "SELECT count(*) FROM pg_indexes WHERE indexname = 't_v'") == [(1,)]


# JSONL


def jsonl(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


EVENTS = [f'{{"event_type": "e{n % 3}", "n": {n}, "timestamp": {1_750_000_000 + n}}}' for n in range(40)]
JSONL_CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "appended": lambda old: old + lines(*EVENTS[:5]),
    "torn line appended": lambda old: old + b'{"event_type": "to',
    "truncated": lambda old: old[: len(old) // 2],
    "emptied": lambda old: b"",
    "rewritten": lambda old: lines(*reversed(EVENTS)),
    "rewritten longer": lambda old: lines(*(f'{{"m": "{"x" * (n % 17)}"}}' for n in range(300))),
    "a line inserted in front": lambda old: lines('{"first": true}') + old,
    "a line removed in front": lambda old: old.split(b"\n", 1)[1],
    "byte order mark and CRLF": lambda old: b"\xef\xbb\xbf" + old.replace(b"\n", b"\r\n"),
    "a byte changed in the middle": lambda old: old.replace(b'"n": 20', b'"n": 21'),
    "lines no longer objects": lambda old: old.replace(b'"n": 7,', b'"n": 7]'),
}


@pytest.mark.parametrize("changed", JSONL_CHANGES)
def test_a_jsonl_file_is_followed(tmp_path: Path, database: str, changed: str) -> None:
    path = tmp_path / "events.jsonl"
    jsonl(path, lines(*EVENTS))
    migrate_fully(database, tmp_path, batch_size=7)
    jsonl(path, JSONL_CHANGES[changed](path.read_bytes()))
    migrate_fully(database, tmp_path, batch_size=7)


def test_a_torn_line_becomes_a_row_when_it_is_finished(tmp_path: Path, database: str) -> None:
    path = tmp_path / "events.jsonl"
    jsonl(path, lines(*EVENTS) + b'{"event_type": "torn", "payl')
    report = migrate_fully(database, tmp_path)
    assert report.quarantined == 1
    assert rows(database, "SELECT reason FROM iceburg_migration.quarantine") == [("torn last line",)]
    jsonl(path, path.read_bytes() + b'oad": 1}\n')
    report = migrate_fully(database, tmp_path)
    assert report.quarantined == 0
    assert rows(database, "SELECT event_data::text FROM telemetry WHERE event_type = 'torn'") == [
        ('{"payload": 1, "event_type": "torn"}',)
    ]
    assert rows(database, "SELECT count(*) FROM telemetry") == [(41,)]


def test_random_rewritings_of_a_jsonl_file_are_followed(tmp_path: Path, database: str) -> None:
    rng = random.Random(5)
    path = tmp_path / "events.jsonl"
    for _ in range(10):
        texts = [f'{{"{"k" * rng.randrange(12)}": {rng.randrange(10**6)}}}' for _ in range(rng.randrange(60))]
        texts += [""] * rng.randrange(3) + ["not json"] * rng.randrange(2)
        rng.shuffle(texts)
        content = lines(*texts)
        jsonl(path, content[: rng.randrange(len(content) + 1)] if rng.random() < 0.3 else content)
        migrate_fully(database, tmp_path, batch_size=rng.choice([2, 5, 50]))


# Chroma


def test_a_chroma_directory_in_another_state_is_followed(tmp_path: Path, database: str) -> None:
    states = unpack("damaged", tmp_path / "states") / "damaged"
    data = tmp_path / "data"
    data.mkdir()
    for state in ("1.5.9-base", "1.5.9-trunc-level0", "1.5.9-nohnsw", "1.5.9-base"):
        shutil.rmtree(data / "chroma", ignore_errors=True)
        shutil.copytree(states / state, data / "chroma")
        migrate_fully(database, data, batch_size=50)
    assert rows(database, "SELECT count(*) FROM embeddings WHERE vector_origin = 'missing'") == [(0,)]


def test_collections_come_and_go(tmp_path: Path, database: str) -> None:
    data = tmp_path / "data"
    for number, write in enumerate((write_chroma_15, write_chroma_06, write_chroma_15)):
        shutil.rmtree(data / "chroma", ignore_errors=True)
        write(data / "chroma", "chroma", seed=number, vectors=30, odd=True)
        report = migrate_fully(database, data, batch_size=11)
        assert rows(database, "SELECT count(*) FROM embedding_collections") == [(len(report.datasets),)]
    indexes = "SELECT count(*) FROM pg_indexes WHERE indexname ~ '^embeddings_ivfflat'"
    filled = sum(1 for part in report.datasets if part.target_rows)
    assert rows(database, indexes) == [(filled,)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_chroma_directory_written_to_meanwhile_is_brought_up_to_date(
    tmp_path: Path, database: str, jobs: int
) -> None:
    data = tmp_path / "data"
    write_chroma_15(data / "chroma", "chroma", seed=0, vectors=60, odd=False)
    wrote: list[int] = []

    def write(_event: object) -> None:
        if not wrote:
            wrote.append(1)
            vector = np.full(384, 0.25, np.float32).tobytes()
            change(
                data / "chroma" / "chroma.sqlite3",
                "UPDATE embedding_metadata SET string_value = 'changed meanwhile' WHERE key = 'chroma:document'",
            )
            change(
                data / "chroma" / "chroma.sqlite3",
                "UPDATE collections SET name = name || '2' WHERE ? IS NOT NULL",
                (vector,),
            )

    report = migrate(database, data, jobs=jobs, batch_size=10, listener=Listener(write))
    assert report.status == "complete"
    assert_identical(verify(database, data))
    assert rows(database, "SELECT count(*) FROM embeddings WHERE text = 'changed meanwhile'")[0][0] > 0


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_table_made_meanwhile_is_migrated(tmp_path: Path, database: str, jobs: int) -> None:
    path = tmp_path / "a.db"
    change(path, "CREATE TABLE t (a INTEGER PRIMARY KEY)")
    change(path, "INSERT INTO t VALUES (?)", *((n,) for n in range(30)))
    wrote: list[int] = []

    def write(_event: object) -> None:
        if not wrote:
            wrote.append(1)
            change(path, "CREATE TABLE later (x TEXT); INSERT INTO later VALUES ('x'); INSERT INTO t VALUES (100)")

    report = migrate(database, tmp_path, jobs=jobs, batch_size=10, listener=Listener(write))
    assert report.problems == ()
    assert [(part.dataset, part.target_rows) for part in report.datasets] == [("a.db/t", 31), ("a.db/later", 1)]
    assert_identical(verify(database, tmp_path))


def test_a_column_added_meanwhile_is_migrated(tmp_path: Path, database: str) -> None:
    path = tmp_path / "a.db"
    change(path, "CREATE TABLE t (a INTEGER PRIMARY KEY)")
    change(path, "INSERT INTO t VALUES (?)", *((n,) for n in range(30)))
    wrote: list[int] = []

    def write(_event: object) -> None:
        if not wrote:
            wrote.append(1)
            change(path, "ALTER TABLE t ADD COLUMN b TEXT DEFAULT 'new'")

    migrate(database, tmp_path, batch_size=10, listener=Listener(write))
    migrate_fully(database, tmp_path, batch_size=10)
    assert rows(database, "SELECT count(*) FROM a.t WHERE b = 'new'") == [(30,)]


def test_a_run_that_ended_between_constraints_and_completion_is_finished_without_a_word(
    store: Path, database: str
) -> None:
    first = migrate_fully(database, store.parent)
    assert all("exists" not in note for part in first.datasets for note in part.notes)
    # As a run leaves it that was killed after making the constraints.
    run_sql(database, "UPDATE iceburg_migration.sources SET complete = FALSE")
    second = migrate_fully(database, store.parent)
    assert not second.unchanged
    assert [part.notes for part in second.datasets] == [part.notes for part in first.datasets]
    assert constraints_of_shop(database) == SHOP_CONSTRAINTS


def test_rewriting_mends_a_target_that_was_changed(tmp_path: Path, database: str) -> None:
    path = tmp_path / "w.db"
    change(path, "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    for number in range(5):
        change(path, "INSERT INTO t VALUES (?, 'x')", (number,))
    migrate_fully(database, tmp_path)
    for statement in (
        "UPDATE w.t SET v = 'changed' WHERE id = 1",
        "DELETE FROM w.t WHERE id = 2",
        "INSERT INTO w.t VALUES (77, 'extra')",
    ):
        run_sql(database, statement)
    assert verify(database, tmp_path).status == "different"
    migrate(database, tmp_path, recheck=True)
    assert verify(database, tmp_path).status == "different"
    assert migrate(database, tmp_path, rewrite=True).status == "complete"
    assert rows(database, "SELECT id, v FROM w.t ORDER BY id") == [(n, "x") for n in range(5)]
    assert verify(database, tmp_path).status == "identical"
