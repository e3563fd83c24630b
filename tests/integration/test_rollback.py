"""Rolling back: everything comes home, from a state of PostgreSQL that is said, over nothing that is there."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from iceburg.config import Settings
from iceburg.database import UnifiedDatabase
from iceburg.demo.generator import generate
from iceburg.errors import TargetError, UsageError
from iceburg.migration.output import Output
from iceburg.migration.worker import StoppedError
from iceburg.records import Store
from iceburg.sources.chroma import ChromaStore
from iceburg.sources.discovery import discover
from iceburg.sources.fingerprint import fingerprint
from tests.acceptance import compare_installations
from tests.databases import fresh_database
from tests.faults.alone import Alone, alone, read_counter
from tests.support import (
    CONVERSATIONS,
    ENTITIES,
    Listener,
    assert_identical,
    change,
    lines,
    migrate,
    migrate_complete,
    roll_back,
    rows,
    run_sql,
    snapshot,
    some_entities,
    verify,
)

STATE = ".iceburg-rollback.json"


@pytest.fixture(scope="module")
def installation(server_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    directory = tmp_path_factory.mktemp("rollback") / "data"
    generate(directory, entities=200, vectors=60, metadata_rows=20, lines=100, seed=7)
    with fresh_database(server_dsn) as dsn:
        migrate_complete(dsn, directory)
        yield dsn, directory


@pytest.fixture(scope="module")
def small(server_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """An installation that tests do not change in PostgreSQL, or change back."""
    directory = write(tmp_path_factory.mktemp("small") / "data")
    with fresh_database(server_dsn) as dsn:
        migrate_complete(dsn, directory)
        yield dsn, directory


def write(directory: Path) -> Path:
    change(directory / "m.db", ENTITIES + CONVERSATIONS + "CREATE TABLE t (k TEXT PRIMARY KEY, v TEXT)")
    change(directory / "m.db", "INSERT INTO t VALUES ('a', 'A'), ('b', 'B' || char(0))")
    change(directory / "m.db", "INSERT INTO entities (entity_id, name, entity_type) VALUES (?, ?, ?)", *(
        row[:3] for row in some_entities(20)
    ))  # fmt: skip
    (directory / "logs").mkdir()
    (directory / "logs" / "events.jsonl").write_bytes(lines('{"event_type": "e", "n": 1.50}', '{"a": "\u00fc"}'))
    return directory


# Everything comes back


def test_an_installation_comes_back_as_it_was(installation: tuple[str, Path], tmp_path: Path) -> None:
    dsn, directory = installation
    report = roll_back(dsn, directory, tmp_path / "out", jobs=2)
    assert (report.status, report.problems, report.differences) == ("complete", (), ())
    assert compare_installations.compare(directory, tmp_path / "out") == []
    for dataset in report.datasets:
        assert dataset.restored_rows == dataset.target_rows + dataset.quarantined_rows == dataset.compared_rows
    for path in (tmp_path / "out").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_a_chroma_directory_comes_back_as_a_file_that_plain_sqlite_reads(
    installation: tuple[str, Path], tmp_path: Path
) -> None:
    dsn, directory = installation
    roll_back(dsn, directory, tmp_path / "out")
    for name in ("data/chroma", "data/memory/chroma"):
        read: dict[tuple[str, str, str], compare_installations.Records] = {}
        with ChromaStore(directory / name) as store:
            for collection in store.collections():
                records = [r for batch in store.reader(collection).batches() for r in batch.records]
                read[collection.tenant, collection.database, collection.name] = {
                    r.id: (r.document, r.metadata, r.vector) for r in records
                }
        restored = compare_installations.read_export(tmp_path / "out" / f"{name}.export.sqlite3")
        assert sum(map(len, read.values())) > 60
        assert compare_installations.compare_records(read, restored) == []
    # An export is no store: an installation that is restored has no more of them than the original.
    kinds = {store.kind for store in discover(tmp_path / "out")}
    assert kinds == {"sqlite", "jsonl"}


def test_what_was_written_to_postgresql_alone_comes_back(
    installation: tuple[str, Path], tmp_path: Path, server_dsn: str
) -> None:
    directory = shutil.copytree(installation[1], tmp_path / "data")
    with fresh_database(server_dsn) as dsn:
        migrate_complete(dsn, directory)
        with alone(directory, dsn) as db:
            model = Alone(directory, db, seed=3)
            model.write(200)
        # The files may be gone.
        shutil.rmtree(directory)
        report = roll_back(dsn, directory, tmp_path / "out")
        assert (report.status, report.problems, report.differences) == ("complete", (), ())
        model.check(tmp_path / "out")


def test_what_is_restored_verifies_as_the_original_does(small: tuple[str, Path], tmp_path: Path) -> None:
    dsn, directory = small
    assert roll_back(dsn, directory, tmp_path / "out").status == "complete"
    assert_identical(verify(dsn, tmp_path / "out"))


def test_the_highest_number_ever_given_is_not_given_again(tmp_path: Path, database: str) -> None:
    directory = tmp_path / "data"
    with UnifiedDatabase(Settings(data_dir=directory)) as db:
        numbers = [db.conversations.save("c", "q", "a") for _ in range(5)]
    settings = Settings(data_dir=directory, use_postgres=True, database_url=SecretStr(database))
    with UnifiedDatabase(settings) as db:
        # One that goes the short way to PostgreSQL, and two at once.
        assert db.conversations.delete(numbers[-1])
        numbers += [db.conversations.save("c", "q", "a") for _ in range(2)]
        assert all(db.conversations.delete(number) for number in numbers[-2:])
        assert db.conversations.newest(limit=1)[0].id == numbers[3]
    assert roll_back(database, directory, tmp_path / "out").status == "complete"
    assert read_counter(tmp_path / "out" / "conversations.db", "conversations") == numbers[-1]


@pytest.mark.parametrize("given", [None, 3, 100])
def test_a_counter_that_somebody_has_set_comes_back(tmp_path: Path, database: str, given: int | None) -> None:
    path = tmp_path / "data" / "c.db"
    change(path, "CREATE TABLE t (i INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO t VALUES (5), (9)")
    change(path, "DELETE FROM sqlite_sequence" if given is None else f"UPDATE sqlite_sequence SET seq = {given}")
    migrate_complete(database, path.parent)
    roll_back(database, path.parent, tmp_path / "out")
    assert compare_installations.compare(path.parent, tmp_path / "out") == []


def test_a_schema_that_is_not_utf8_comes_back(tmp_path: Path, database: str) -> None:
    path = tmp_path / "data" / "x.db"
    change(path, "CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT DEFAULT 'é'); CREATE INDEX i ON t (b) -- é")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO t (a) VALUES (1)")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = CAST(replace(CAST(sql AS BLOB), CAST('é' AS BLOB), x'ff') AS TEXT)"
        )
        connection.commit()
    (path.parent / "l.jsonl").write_bytes(lines('{"a": 1}'))
    migrate_complete(database, path.parent)
    assert roll_back(database, path.parent, tmp_path / "out").status == "complete"
    assert compare_installations.compare(path.parent, tmp_path / "out") == []


def test_a_target_that_an_older_version_made(tmp_path: Path, database: str) -> None:
    directory = write(tmp_path / "data")
    migrate_complete(database, directory)
    run_sql(database, "UPDATE iceburg_migration.sources SET description = CASE kind WHEN 'jsonl' THEN '{}'::jsonb"
            " ELSE description - 'sequences' - 'analysed' - 'empty_file' END")  # fmt: skip
    report = roll_back(database, directory, tmp_path / "out")
    assert (report.status, report.problems) == ("complete", ())
    assert "were not kept" in report.notes[0].text
    assert compare_installations.compare(directory, tmp_path / "out") == []


def test_another_schema_and_some_stores_only(tmp_path: Path, database: str) -> None:
    directory = write(tmp_path / "data")
    migrate_complete(database, directory, schema="other")
    report = roll_back(
        database, directory, tmp_path / "out", schema="other", wanted=lambda source: source.kind == "sqlite"
    )
    assert (report.status, [store.store for store in report.stores]) == ("complete", ["m.db"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [STATE, "m.db"]


# From one state


def test_what_is_written_meanwhile_is_in_no_file(tmp_path: Path, database: str) -> None:
    directory = write(tmp_path / "data")
    change(directory / "n.db", "CREATE TABLE n (k TEXT PRIMARY KEY, v TEXT); INSERT INTO n VALUES ('a', 'A')")
    migrate_complete(database, directory)
    written = []

    def write_meanwhile(_: object) -> None:
        written.append(
            run_sql(database, "UPDATE m.t SET v = 'changed'; UPDATE n.n SET v = 'changed'; DELETE FROM telemetry")
        )

    report = roll_back(database, directory, tmp_path / "out", listener=Listener(write_meanwhile))
    assert written
    assert (report.status, report.differences) == ("complete", ())
    assert compare_installations.compare(directory, tmp_path / "out") == []


# Nothing is written over


def test_a_directory_that_is_not_empty_is_refused(small: tuple[str, Path], tmp_path: Path) -> None:
    dsn, directory = small
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    before = snapshot(tmp_path / "out")
    with pytest.raises(UsageError, match="not empty"):
        roll_back(dsn, directory, tmp_path / "out")
    with pytest.raises(UsageError, match="not a directory"):
        roll_back(dsn, directory, tmp_path / "out" / "mine")
    assert snapshot(tmp_path / "out") == before
    # The installation itself least of all.
    for inside in (directory, directory / "restored"):
        with pytest.raises(UsageError, match="in the installation"):
            roll_back(dsn, directory, inside)


def test_a_rollback_of_another_target_is_refused(small: tuple[str, Path], tmp_path: Path, database: str) -> None:
    dsn, directory = small
    roll_back(dsn, directory, tmp_path / "out")
    migrate(database, directory)
    with pytest.raises(UsageError, match="something else"):
        roll_back(database, directory, tmp_path / "out")
    with pytest.raises(TargetError, match="holds the installation"):
        roll_back(dsn, tmp_path / "elsewhere", tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def test_a_file_that_came_into_the_directory_meanwhile_is_left_alone(small: tuple[str, Path], tmp_path: Path) -> None:
    dsn, directory = small
    out = tmp_path / "out"
    roll_back(dsn, directory, out, wanted=lambda source: source.kind == "sqlite")
    (out / "logs").mkdir()
    (out / "logs" / "events.jsonl").write_text("mine")
    with pytest.raises(UsageError, match="did not make it"):
        roll_back(dsn, directory, out)
    assert (out / "logs" / "events.jsonl").read_text() == "mine"


def test_what_was_changed_after_it_was_restored_is_left_alone(small: tuple[str, Path], tmp_path: Path) -> None:
    dsn, directory = small
    out = tmp_path / "out"
    roll_back(dsn, directory, out)
    change(out / "m.db", "INSERT INTO t VALUES ('mine', 'mine')")
    with pytest.raises(UsageError, match=r"m\.db"):
        roll_back(dsn, directory, out)
    with closing(sqlite3.connect(out / "m.db")) as connection:
        assert connection.execute("SELECT v FROM t WHERE k = 'mine'").fetchone() == ("mine",)


def test_a_store_whose_name_leads_out_of_the_directory_is_refused(tmp_path: Path, database: str) -> None:
    directory = write(tmp_path / "data")
    migrate_complete(database, directory)
    run_sql(database, "UPDATE iceburg_migration.sources SET name = '../escaped.db' WHERE name = 'm.db'")
    with pytest.raises(UsageError, match="escaped"):
        roll_back(database, directory, tmp_path / "out" / "deep")
    assert not list(tmp_path.rglob("*escaped*"))


def test_only_one_rollback_writes_to_a_directory(small: tuple[str, Path], tmp_path: Path) -> None:
    dsn, directory = small

    def another(_: object) -> None:
        with pytest.raises(UsageError, match="Another rollback"):
            roll_back(dsn, directory, tmp_path / "out")
        tried.append(True)

    tried: list[bool] = []
    roll_back(dsn, directory, tmp_path / "out", listener=Listener(another))
    assert tried


# Going on


def test_a_rollback_that_was_stopped_goes_on(small: tuple[str, Path], tmp_path: Path) -> None:
    dsn, directory = small
    asked = iter([False, False, True])
    with pytest.raises(StoppedError):
        roll_back(dsn, directory, tmp_path / "out", stopping=lambda: next(asked, True))
    report = roll_back(dsn, directory, tmp_path / "out")
    assert report.status == "complete"
    assert compare_installations.compare(directory, tmp_path / "out") == []
    again = roll_back(dsn, directory, tmp_path / "out")
    assert (again.status, {store.state for store in again.stores}) == ("complete", {"kept"})


class KilledError(BaseException):
    """As if the process had ended here."""


@pytest.mark.parametrize(
    ("moment", "number"),
    [("note_done", 1), ("note_done", 2), ("_set", 1), ("_set", 2), ("_set", 3), ("_save", 1), ("remove_partial", 3)],
)
def test_a_kill_between_a_file_and_the_note_of_it(
    small: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, number: int
) -> None:
    dsn, directory = small
    out = tmp_path / "out"
    die_at(monkeypatch, moment, number)
    with pytest.raises(KilledError):
        roll_back(dsn, directory, out)
    monkeypatch.undo()
    assert roll_back(dsn, directory, out).status == "complete"
    assert compare_installations.compare(directory, out) == []
    assert [path for path in out.rglob("*") if "partial" in path.name] == []
    # The same while what is there is written anew.
    change(out / "m.db", "UPDATE t SET v = 'A ' WHERE k = 'a'")
    alter(out, "m.db", "sqlite")
    (out / STATE).write_text((out / STATE).read_text().replace('"complete": true', '"complete": false'))
    die_at(monkeypatch, moment, 1 if moment == "note_done" else min(number, 2))
    with pytest.raises(KilledError):
        roll_back(dsn, directory, out)
    monkeypatch.undo()
    assert roll_back(dsn, directory, out).status == "complete"
    assert compare_installations.compare(directory, out) == []


def die_at(monkeypatch: pytest.MonkeyPatch, moment: str, number: int) -> None:
    """End a run where a method is called for the nth time."""
    original, calls = getattr(Output, moment), iter(range(1, 100))

    def dying(self: Output, *arguments: Any) -> Any:
        if next(calls) == number:
            raise KilledError
        return original(self, *arguments)

    monkeypatch.setattr(Output, moment, dying)


def test_a_complete_rollback_is_not_made_anew(tmp_path: Path, database: str) -> None:
    directory = write(tmp_path / "data")
    migrate_complete(database, directory)
    roll_back(database, directory, tmp_path / "out")
    run_sql(database, "UPDATE m.t SET v = 'later' WHERE k = 'a'")
    before = snapshot(tmp_path / "out")
    report = roll_back(database, directory, tmp_path / "out")
    assert report.status == "incomplete"
    assert "another directory" in report.problems[0].text
    assert [(d["key"], d["source"], d["target"]) for d in report.differences] == [('["a"]', "A", "later")]
    assert snapshot(tmp_path / "out") == before


# Checking


def alter(out: Path, name: str, kind: Any) -> None:
    """Have a file that was changed pass for the one that was restored."""
    state = json.loads((out / STATE).read_text())
    state["stores"][name]["fingerprint"] = fingerprint(Store(kind, out / name, name))
    (out / STATE).write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("script", "difference"),
    [
        ("UPDATE t SET v = 'A ' WHERE k = 'a'", ('["a"]', "v", "A ", "A")),
        ("UPDATE t SET v = 'B' WHERE k = 'b'", ('["b"]', "v", "B", "B\0")),
        ("DELETE FROM t WHERE k = 'b'", ("", "(rows)", 1, 2)),
        ("INSERT INTO t VALUES ('c', NULL)", ('["c"]', "(record)", "a record", None)),
    ],
)
def test_the_check_finds_what_is_wrong_in_a_file(
    small: tuple[str, Path], tmp_path: Path, script: str, difference: tuple[Any, ...]
) -> None:
    dsn, directory = small
    out = tmp_path / "out"
    roll_back(dsn, directory, out)
    change(out / "m.db", script)
    alter(out, "m.db", "sqlite")
    report = roll_back(dsn, directory, out)
    found = [(d["key"], d["field"], d["source"], d["target"]) for d in report.differences]
    assert difference in found
    assert all(entry["dataset"] == "m.db/t" for entry in report.differences)


@pytest.mark.parametrize(
    "content",
    [
        lines('{"event_type": "e", "n": 1.5}', '{"a": "u"}'),
        lines('{"event_type": "e", "n": 1.5}'),
        lines('{"event_type": "e", "n": 1.5}', '{"a": "\u00fc"}', "{}"),
        lines('{"a": "\u00fc"}', '{"event_type": "e", "n": 1.5}'),
    ],
)
def test_the_check_finds_what_is_wrong_in_lines(small: tuple[str, Path], tmp_path: Path, content: bytes) -> None:
    dsn, directory = small
    out = tmp_path / "out"
    roll_back(dsn, directory, out)
    (out / "logs" / "events.jsonl").write_bytes(content)
    alter(out, "logs/events.jsonl", "jsonl")
    report = roll_back(dsn, directory, out)
    assert report.differences
    assert {entry["dataset"] for entry in report.differences} == {"logs/events.jsonl"}


def test_what_an_unfinished_run_has_wrong_is_made_anew(small: tuple[str, Path], tmp_path: Path) -> None:
    dsn, directory = small
    out = tmp_path / "out"
    roll_back(dsn, directory, out)
    change(out / "m.db", "UPDATE t SET v = 'A ' WHERE k = 'a'")
    alter(out, "m.db", "sqlite")
    (out / STATE).write_text((out / STATE).read_text().replace('"complete": true', '"complete": false'))
    report = roll_back(dsn, directory, out)
    assert (report.status, report.differences) == ("complete", ())
    assert {store.store: store.state for store in report.stores} == {"m.db": "written", "logs/events.jsonl": "kept"}
    assert compare_installations.compare(directory, out) == []


# What another program has done to PostgreSQL


def test_a_row_of_which_no_record_can_be_made_costs_no_other(tmp_path: Path, database: str) -> None:
    directory = write(tmp_path / "data")
    migrate_complete(database, directory)
    run_sql(database, "UPDATE matrix_entities SET entity_data = '{\"what\": 1}' WHERE entity_id = 'e000003'")
    report = roll_back(database, directory, tmp_path / "out")
    assert report.status == "incomplete"
    assert "changed by another program" in report.problems[0].text
    with closing(sqlite3.connect(tmp_path / "out" / "m.db")) as connection:
        assert connection.execute("SELECT count(*) FROM entities").fetchone() == (19,)
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (2,)


def test_rows_without_a_number_come_last(tmp_path: Path, database: str) -> None:
    directory = write(tmp_path / "data")
    migrate_complete(database, directory)
    for number in (1, 2):
        run_sql(
            database,
            "INSERT INTO telemetry (id, event_data, dataset_id) SELECT gen_random_uuid(), %s::jsonb, dataset_id"
            " FROM iceburg_migration.datasets WHERE name = 'logs/events.jsonl'",
            (f'{{"n": {number}}}',),
        )
        run_sql(
            database,
            "INSERT INTO conversations (id, query, dataset_id) SELECT gen_random_uuid(), %s, dataset_id"
            " FROM iceburg_migration.datasets WHERE name = 'm.db/conversations'",
            (f"q{number}",),
        )
    report = roll_back(database, directory, tmp_path / "out")
    found = [json.loads(line) for line in (tmp_path / "out" / "logs" / "events.jsonl").read_text().splitlines()]
    assert sorted(entry["n"] for entry in found[-2:]) == [1, 2]
    assert "had no number" in report.notes[0].text
    # SQLite takes no conversation without an id of its conversation: said, and nothing else is lost.
    assert report.status == "incomplete"
    assert any("NOT NULL" in problem.text for problem in report.problems)


def test_a_unique_index_that_postgresql_does_not_hold_is_said_to_be_missing(tmp_path: Path, database: str) -> None:
    path = tmp_path / "data" / "u.db"
    change(path, "CREATE TABLE t (k TEXT PRIMARY KEY, v TEXT); CREATE UNIQUE INDEX one ON t (v) WHERE v <> '';"
           " INSERT INTO t VALUES ('a', 'A'), ('b', 'B')")  # fmt: skip
    migrate_complete(database, path.parent)
    run_sql(database, "UPDATE u.t SET v = 'A'")
    report = roll_back(database, path.parent, tmp_path / "out")
    assert report.status == "incomplete"
    assert "index one is not made" in report.problems[0].text
    with closing(sqlite3.connect(tmp_path / "out" / "u.db")) as connection:
        assert connection.execute("SELECT k, v FROM t ORDER BY k").fetchall() == [("a", "A"), ("b", "A")]


def test_a_migration_that_is_not_complete_is_said(tmp_path: Path, database: str) -> None:
    directory = write(tmp_path / "data")
    migrate_complete(database, directory)
    run_sql(database, "UPDATE iceburg_migration.sources SET complete = FALSE WHERE name = 'm.db'")
    report = roll_back(database, directory, tmp_path / "out")
    assert report.status == "incomplete"
    assert "not complete" in report.problems[0].text
    assert compare_installations.compare(directory, tmp_path / "out") == []


def test_nothing_is_written_to_postgresql(small: tuple[str, Path], tmp_path: Path) -> None:
    dsn, directory = small
    count = "SELECT xact_commit >= 0, (SELECT count(*) FROM iceburg_migration.runs) FROM pg_stat_database LIMIT 1"
    before = rows(dsn, count)
    # A server that takes no writes will do.
    report = roll_back(f"{dsn} options='-c default_transaction_read_only=on'", directory, tmp_path / "out", jobs=2)
    assert report.status == "complete"
    assert rows(dsn, count) == before
