"""Bringing the installation's own files up to date: after a time of PostgreSQL alone, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from iceburg.config import Settings
from iceburg.database import Entity, UnifiedDatabase
from iceburg.database.catalogue import Catalogue
from iceburg.database.postgres_change import WRITERS_LOCK
from iceburg.database.schema import schema_names
from iceburg.database.target_table import prepare_loaders
from iceburg.errors import TargetError
from iceburg.migration.sqlite_in_place import FileDifference, RefusedError, examine_file, update_file
from iceburg.records import Store
from tests.faults.alone import Alone, alone, read_table
from tests.support import (
    CONVERSATIONS,
    assert_identical,
    assert_same_records,
    change,
    lines,
    migrate,
    migrate_complete,
    roll_back_in_place,
    rows,
    run_sql,
    snapshot,
    verify,
)


def dual(data_dir: Path, dsn: str) -> UnifiedDatabase:
    return UnifiedDatabase(Settings(data_dir=data_dir, use_postgres=True, database_url=SecretStr(dsn)))


@pytest.fixture
def installation(tmp_path: Path, database: str) -> Path:
    """An installation that was in dual mode, and then PostgreSQL was alone."""
    directory = tmp_path / "data"
    with UnifiedDatabase(Settings(data_dir=directory)) as db:
        for number in range(20):
            db.conversations.save("c", f"q{number}", "a", metadata={"n": number})
            db.matrix.put(Entity(f"e{number}", f"Name {number}", "person"))
            db.embeddings.add("notes", [f"v{number}"], [[number, 1.0, 0.0, 0.0]])
            db.telemetry.append({"event_type": "e", "timestamp": float(number)})
    with dual(directory, database) as db:
        db.conversations.save("c", "in both", "a")
        db.matrix.put(Entity("both", "Both", "person"))
        db.embeddings.add("notes", ["both"], [[9.0, 1.0, 0.0, 0.0]])
        db.telemetry.append({"event_type": "both", "timestamp": 1.0})
        assert db.conversations.newest()[0].user_message == "in both"
    return directory


def files(directory: Path) -> dict[str, Any]:
    """What is in the files, without times of directories."""
    return {name: entry[2] for name, entry in snapshot(directory).items() if "-wal" not in name and "-shm" not in name}


def test_what_was_written_to_postgresql_alone_comes_into_the_files(installation: Path, database: str) -> None:
    with alone(installation, database) as db:
        model = Alone(installation, db, seed=1)
        model.write(200)
    before = files(installation)
    planned = roll_back_in_place(database, installation, dry_run=True)
    assert files(installation) == before
    assert {store.state for store in planned.stores} == {"to be changed"}
    report = roll_back_in_place(database, installation)
    assert (report.status, report.problems) == ("complete", ())
    assert [d.changed_rows for d in report.datasets] == [d.changed_rows for d in planned.datasets]
    model.check(installation)
    assert_identical(verify(database, installation))
    again = roll_back_in_place(database, installation)
    assert {store.state for store in again.stores} == {"unchanged"}


def test_dual_write_goes_on_where_it_was_left(installation: Path, database: str) -> None:
    with alone(installation, database) as db:
        model = Alone(installation, db, seed=2)
        model.write(80)
    roll_back_in_place(database, installation)
    with dual(installation, database) as db:
        number = db.conversations.save("c", "after", "a")
        db.matrix.put(Entity("after", "After", "person"))
        db.embeddings.upsert("notes", ["after"], [[0.5, 1.0, 0.0, 0.0]])
        db.telemetry.append({"event_type": "after", "timestamp": 2.0})
        assert number == model.number + 1
    assert_identical(verify(database, installation))
    # Nothing that came from PostgreSQL was applied to it again: the entries were passed, not read.
    for name in ("conversations.db", "matrix.db", "vectors.db"):
        ((position,),) = rows(
            database,
            "SELECT position FROM iceburg_migration.positions p JOIN iceburg_migration.sources s USING (source_id)"
            " WHERE s.name = %s",
            (name,),
        )
        with closing(sqlite3.connect(installation / name)) as file:
            (last,) = file.execute("SELECT seq FROM sqlite_sequence WHERE name = '_iceburg_changes'").fetchone()
        assert position == last, name


@pytest.mark.parametrize(
    ("file", "script"),
    [
        ("conversations.db", "UPDATE conversations SET user_message = 'old code' WHERE id = 3"),
        ("matrix.db", "DELETE FROM entities WHERE entity_id = 'e3'"),
        ("matrix.db", "ALTER TABLE entities ADD COLUMN more TEXT"),
    ],
)
def test_a_file_that_was_changed_since_is_refused_and_nothing_is_written(
    installation: Path, database: str, file: str, script: str
) -> None:
    with alone(installation, database) as db:
        Alone(installation, db, seed=3).write(30)
    change(installation / file, script)
    before = files(installation)
    with pytest.raises(RefusedError) as refused:
        roll_back_in_place(database, installation)
    assert file in str(refused.value)
    assert files(installation) == before
    # The others can be brought up to date all the same.
    report = roll_back_in_place(database, installation, wanted=lambda source: source.name != file)
    assert report.status == "complete"
    assert files(installation)[str(installation / file)] == before[str(installation / file)]


def test_an_older_copy_is_refused(installation: Path, database: str) -> None:
    shutil.copy2(installation / "conversations.db", installation.parent / "backup")
    with dual(installation, database) as db:
        db.conversations.save("c", "newer", "a")
    with alone(installation, database) as db:
        db.conversations.save("c", "alone", "a")
    shutil.copy2(installation.parent / "backup", installation / "conversations.db")
    with pytest.raises(RefusedError, match="older copy"):
        roll_back_in_place(database, installation)


def test_lines_that_postgresql_does_not_have_are_refused(installation: Path, database: str) -> None:
    with alone(installation, database) as db:
        db.telemetry.append({"event_type": "alone", "timestamp": 3.0})
    path = installation / "telemetry" / "events.jsonl"
    with path.open("ab") as file:
        file.write(b'{"event_type": "old code"}\n')
    before = path.read_bytes()
    with pytest.raises(RefusedError, match="does not have"):
        roll_back_in_place(database, installation)
    assert path.read_bytes() == before


def test_a_file_that_ends_in_the_middle_of_a_line_gets_the_others_behind_it(tmp_path: Path, database: str) -> None:
    path = tmp_path / "data" / "telemetry" / "events.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(lines('{"event_type": "whole"}') + b'{"event_type": "to')
    migrate(database, tmp_path / "data")
    with alone(tmp_path / "data", database) as db:
        db.telemetry.append_many([{"event_type": "ü", "x": 1e22}, {"event_type": "b", "timestamp": 0.50}])
    report = roll_back_in_place(database, tmp_path / "data")
    assert report.status == "complete"
    found = path.read_bytes().split(b"\n")
    assert found[:2] == [b'{"event_type": "whole"}', b'{"event_type": "to']
    assert [json.loads(line) for line in found[2:4]] == [
        {"event_type": "ü", "x": 1e22},
        {"event_type": "b", "timestamp": 0.50},
    ]
    assert found[4:] == [b""]
    assert_same_records(verify(database, tmp_path / "data"))


def test_an_append_that_was_cut_off_is_finished(installation: Path, database: str) -> None:
    with alone(installation, database) as db:
        db.telemetry.append_many([{"event_type": f"alone {n}", "n": n} for n in range(5)])
    path = installation / "telemetry" / "events.jsonl"
    before = path.read_bytes()
    roll_back_in_place(database, installation)
    whole = path.read_bytes()
    # As if the machine had stopped in the middle of the append, before PostgreSQL knew of any of it.
    run_sql(database, "UPDATE iceburg_migration.positions SET position = %s WHERE source_id = (SELECT source_id"
            " FROM iceburg_migration.sources WHERE name = 'telemetry/events.jsonl')", (len(before),))  # fmt: skip
    for cut in (len(before), len(before) + 7, len(whole) - 1, len(whole)):
        os.truncate(path, len(before))
        with path.open("ab") as file:
            file.write(whole[len(before) : cut])
        run_sql(database, "UPDATE iceburg_migration.positions SET position = %s WHERE source_id = (SELECT source_id"
                " FROM iceburg_migration.sources WHERE name = 'telemetry/events.jsonl')", (len(before),))  # fmt: skip
        roll_back_in_place(database, installation)
        assert path.read_bytes() == whole
        assert_identical(verify(database, installation))


def update_and_die(connection: psycopg.Connection, found: FileDifference) -> None:
    """Bring a file up to date, and lose what PostgreSQL was told of it, as a kill would."""
    with connection.transaction(force_rollback=True):
        update_file(connection, schema_names(None), found)
    found.close()


def test_a_kill_between_the_files_commit_and_postgresqls_is_made_good(installation: Path, database: str) -> None:
    with alone(installation, database) as db:
        model = Alone(installation, db, seed=4)
        model.write(60)
    names = schema_names(None)
    with psycopg.connect(database, autocommit=True) as connection:
        prepare_loaders(connection)
        catalogue = Catalogue(connection, names)
        for source in catalogue.sources():
            if source.kind != "sqlite":
                continue
            store = Store("sqlite", installation / source.name, source.name)
            datasets = tuple(catalogue.datasets(source.source_id))
            found = examine_file(connection, names, store, source, datasets, lambda *_: None, lambda: None)
            assert found.count
            update_and_die(connection, found)
    report = roll_back_in_place(database, installation)
    assert report.status == "complete"
    model.check(installation)
    assert_identical(verify(database, installation))


def test_dual_write_after_such_a_kill_changes_nothing(installation: Path, database: str) -> None:
    with alone(installation, database) as db:
        model = Alone(installation, db, seed=5)
        model.write(60)
    names = schema_names(None)
    roll_back_in_place(database, installation, wanted=lambda source: source.kind == "jsonl")
    with psycopg.connect(database, autocommit=True) as connection:
        prepare_loaders(connection)
        catalogue = Catalogue(connection, names)
        for source in catalogue.sources():
            if source.kind == "sqlite":
                store = Store("sqlite", installation / source.name, source.name)
                datasets = tuple(catalogue.datasets(source.source_id))
                found = examine_file(connection, names, store, source, datasets, lambda *_: None, lambda: None)
                update_and_die(connection, found)
    with dual(installation, database) as db:
        db.matrix.put(Entity("later", "Later", "person"))
        db.conversations.save("c", "later", "a")
        db.embeddings.upsert("notes", ["later"], [[0.5, 1.0, 0.0, 0.0]])
    assert_identical(verify(database, installation))


def test_a_file_that_was_never_in_dual_mode(tmp_path: Path, database: str) -> None:
    directory = tmp_path / "data"
    with UnifiedDatabase(Settings(data_dir=directory)) as db:
        db.conversations.save("c", "first", "a")
        db.matrix.put(Entity("e1", "One", "person"))
    migrate_complete(database, directory)
    with alone(directory, database) as db:
        model = Alone(directory, db, seed=6)
        model.write(60)
    assert roll_back_in_place(database, directory).status == "complete"
    model.check(directory)
    # A migration sees that nothing has changed since.
    assert migrate(database, directory).unchanged
    assert_same_records(verify(database, directory))


def test_triggers_of_the_application_do_not_fire(tmp_path: Path, database: str) -> None:
    path = tmp_path / "data" / "conversations.db"
    change(path, CONVERSATIONS + "CREATE TABLE audit (what TEXT); CREATE TRIGGER noted AFTER INSERT ON conversations"
           " BEGIN INSERT INTO audit VALUES (NEW.user_message); END")  # fmt: skip
    change(path, "INSERT INTO conversations (conversation_id, timestamp, user_message, assistant_message)"
           " VALUES ('c', '2026-01-01T00:00:00.000001', 'q', 'a')")  # fmt: skip
    migrate_complete(database, tmp_path / "data")
    with alone(tmp_path / "data", database) as db:
        db.conversations.save("c", "alone", "a")
    roll_back_in_place(database, tmp_path / "data")
    assert [row["user_message"] for row in read_table(path, "conversations")] == ["q", "alone"]
    assert read_table(path, "audit") == [{"what": "q"}]
    change(path, "INSERT INTO conversations (conversation_id, timestamp, user_message, assistant_message)"
           " VALUES ('c', '2026-01-01T00:00:00.000001', 'fires again', 'a')")  # fmt: skip
    assert read_table(path, "audit")[-1] == {"what": "fires again"}


def test_losing_most_records_is_taken_for_an_accident(tmp_path: Path, database: str) -> None:
    path = tmp_path / "data" / "t.db"
    change(path, "CREATE TABLE t (k TEXT PRIMARY KEY, v TEXT)")
    change(path, "INSERT INTO t VALUES (?, ?)", *((f"k{n}", "v") for n in range(300)))
    migrate_complete(database, tmp_path / "data")
    run_sql(database, "DELETE FROM t.t WHERE k <> 'k7'")
    before = path.read_bytes()
    with pytest.raises(RefusedError, match="remove-many"):
        roll_back_in_place(database, tmp_path / "data")
    assert path.read_bytes() == before
    assert roll_back_in_place(database, tmp_path / "data", remove_many=True).status == "complete"
    assert read_table(path, "t") == [{"k": "k7", "v": "v"}]


@pytest.fixture
def odd_table(tmp_path: Path, database: str) -> Path:
    path = tmp_path / "data" / "t.db"
    change(path, "CREATE TABLE t (a TEXT, b TEXT UNIQUE); CREATE TABLE w (x TEXT, y INT, z, PRIMARY KEY (y DESC, x))"
           " WITHOUT ROWID; CREATE TABLE g (i INTEGER PRIMARY KEY, d AS (i * 2), s TEXT)")  # fmt: skip
    change(path, "INSERT INTO t VALUES (?, ?)", *((f"a{n}", f"b{n}") for n in range(10)))
    change(path, "INSERT INTO w VALUES (?, ?, ?)", *((f"x{n}", n, b"z\0") for n in range(10)))
    change(path, "INSERT INTO g (i, s) VALUES (?, ?)", *((n, "s") for n in range(10)))
    migrate_complete(database, path.parent)
    return path


def test_rows_that_swap_unique_values_and_tables_of_other_forms(odd_table: Path, database: str) -> None:
    run_sql(database, "ALTER TABLE t.t DROP CONSTRAINT IF EXISTS t_b_key")
    run_sql(database, "UPDATE t.t SET b = CASE a WHEN 'a1' THEN 'b2' ELSE 'b1' END WHERE a IN ('a1', 'a2')")
    run_sql(database, "UPDATE t.w SET z = convert_to('new', 'UTF8') WHERE y = 3; DELETE FROM t.w WHERE y = 4")
    run_sql(database, "INSERT INTO t.w VALUES ('x', 99, NULL)")
    run_sql(database, "UPDATE t.g SET s = 'other' WHERE i = 5")
    assert roll_back_in_place(database, odd_table.parent).status == "complete"
    assert {row["a"]: row["b"] for row in read_table(odd_table, "t")} == {
        **{f"a{n}": f"b{n}" for n in range(10)}, "a1": "b2", "a2": "b1",
    }  # fmt: skip
    with closing(sqlite3.connect(odd_table)) as file:
        assert file.execute("SELECT x, y, z FROM w WHERE y IN (3, 4, 99) ORDER BY y").fetchall() == [
            ("x3", 3, b"new"), ("x", 99, None),
        ]  # fmt: skip
        assert file.execute("SELECT i, d, s FROM g WHERE i = 5").fetchone() == (5, 10, "other")
    assert_same_records(verify(database, odd_table.parent))


def test_what_the_table_does_not_take_leaves_the_file_as_it_was(odd_table: Path, database: str) -> None:
    run_sql(database, "ALTER TABLE t.t DROP CONSTRAINT IF EXISTS t_b_key")
    run_sql(database, "UPDATE t.t SET b = 'b1' WHERE a = 'a2'; UPDATE t.g SET s = 'other' WHERE i = 5")
    before = odd_table.read_bytes()
    with pytest.raises(RefusedError, match="UNIQUE"):
        roll_back_in_place(database, odd_table.parent)
    assert odd_table.read_bytes() == before


def test_an_application_that_is_writing_is_waited_for_and_not_overtaken(installation: Path, database: str) -> None:
    ((number,),) = rows(
        database, "SELECT dataset_id FROM iceburg_migration.datasets WHERE name = 'conversations.db/conversations'"
    )
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s, %s)", (WRITERS_LOCK, number))
        other.execute("SET lock_timeout = 0")
        with pytest.raises(TargetError, match="is writing"):
            roll_back_in_place(database, installation, patience=0.1)


@pytest.mark.parametrize("changed", [False, True])
def test_a_file_that_was_only_copied_is_known_by_what_it_holds(tmp_path: Path, database: str, *, changed: bool) -> None:
    path = tmp_path / "data" / "t.db"
    change(path, "CREATE TABLE t (k TEXT PRIMARY KEY, v TEXT)")
    change(path, "INSERT INTO t VALUES (?, ?)", *((f"k{n}", f"v\0{n}" if n % 9 == 0 else "v") for n in range(3000)))
    migrate_complete(database, path.parent, batch_size=500)
    run_sql(database, "UPDATE t.t SET v = 'alone' WHERE k = 'k5'")
    shutil.copyfile(path, tmp_path / "copy")
    path.unlink()
    (tmp_path / "copy").rename(path)
    if not changed:
        assert roll_back_in_place(database, path.parent).status == "complete"
        assert {row["v"] for row in read_table(path, "t") if row["k"] == "k5"} == {"alone"}
        return
    change(path, "INSERT INTO t VALUES ('more', 'more')")
    with pytest.raises(RefusedError, match="changed since"):
        roll_back_in_place(database, path.parent)
