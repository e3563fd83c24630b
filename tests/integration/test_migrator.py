"""The migration of a whole installation, run by run."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from iceburg.demo.generator import generate
from iceburg.demo.manifest import Manifest
from iceburg.errors import TargetError
from iceburg.migration.report import MigrationReport
from iceburg.sources.sqlite import SqliteFile
from tests.databases import fresh_database
from tests.support import (
    CONVERSATIONS,
    ENTITIES,
    Listener,
    assert_identical,
    change,
    dataset,
    lines,
    migrate,
    migrate_fully,
    rows,
    run_sql,
    snapshot,
    verify,
)


class Migrated:
    """A generated installation and what its first migration said."""

    def __init__(self, dsn: str, directory: Path) -> None:
        self.dsn = dsn
        self.directory = directory
        self.manifest: Manifest = generate(directory, entities=300, seed=7)
        self.before = snapshot(directory)
        self.report: MigrationReport = migrate(dsn, directory)


@pytest.fixture(scope="module")
def migrated(server_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Migrated]:
    with fresh_database(server_dsn) as dsn:
        yield Migrated(dsn, tmp_path_factory.mktemp("generated") / "data")


def test_every_record_is_a_row_or_quarantined(migrated: Migrated) -> None:
    report = migrated.report
    assert (report.status, report.problems, report.unchanged) == ("complete", (), False)
    for found in report.datasets:
        assert found.source_rows == found.target_rows + found.quarantined_rows, found
        assert found.copied_rows == found.source_rows
    assert report.quarantined > 0


def test_the_counts_are_those_of_what_was_generated(migrated: Migrated) -> None:
    expected = {}
    for store, part in migrated.manifest.datasets():
        if part.kind in ("table", "collection", "lines"):
            name = store.name if part.kind == "lines" else f"{store.name}/{part.name}"
            expected[name] = part.records
    found = {part.dataset: part.source_rows for part in migrated.report.datasets}
    assert {name: found.get(name) for name in expected} == expected
    # Shadow tables of a virtual table are the only ones beside those of the manifest.
    assert all("concept_search" in name for name in found.keys() - expected.keys())


def test_verification_compares_every_record_and_finds_nothing(migrated: Migrated) -> None:
    report = verify(migrated.dsn, migrated.directory)
    assert_identical(report)
    assert sum(part.compared_rows for part in report.datasets) == sum(p.source_rows for p in migrated.report.datasets)


def test_a_second_run_copies_nothing_and_says_so(migrated: Migrated) -> None:
    report = migrate(migrated.dsn, migrated.directory)
    assert (report.status, report.unchanged) == ("complete", True)
    assert [part.copied_rows for part in report.datasets if part.copied_rows] == []
    counts = [(p.dataset, p.source_rows, p.target_rows, p.quarantined_rows) for p in report.datasets]
    assert counts == [(p.dataset, p.source_rows, p.target_rows, p.quarantined_rows) for p in migrated.report.datasets]


def test_going_through_unchanged_stores_again_writes_nothing(migrated: Migrated) -> None:
    before = rows(migrated.dsn, "SELECT id, xmin::text FROM matrix_entities ORDER BY id")
    report = migrate(migrated.dsn, migrated.directory, recheck=True)
    assert (report.status, report.unchanged) == ("complete", False)
    assert [part.copied_rows for part in report.datasets if part.copied_rows] == []
    assert rows(migrated.dsn, "SELECT id, xmin::text FROM matrix_entities ORDER BY id") == before
    assert_identical(verify(migrated.dsn, migrated.directory))


def test_neither_migrating_nor_verifying_touches_the_sources(migrated: Migrated) -> None:
    migrate(migrated.dsn, migrated.directory, recheck=True)
    verify(migrated.dsn, migrated.directory)
    assert snapshot(migrated.directory) == migrated.before


def test_workers_copy_the_same_as_one_process(migrated: Migrated, database: str) -> None:
    report = migrate_fully(database, migrated.directory, jobs=2, batch_size=37)
    fields = ("dataset", "source_rows", "target_rows", "quarantined_rows", "preserved_originals")
    assert [[getattr(p, f) for f in fields] for p in report.datasets] == [
        [getattr(p, f) for f in fields] for p in migrated.report.datasets
    ]
    for statement in (
        "SELECT id, entity_type, entity_data::text, created_at FROM matrix_entities ORDER BY id",
        "SELECT id, text, embedding::text, metadata::text FROM embeddings ORDER BY id",
        "SELECT id, event_type, event_data::text, timestamp FROM telemetry ORDER BY id",
    ):
        assert rows(database, statement) == rows(migrated.dsn, statement)


def small(directory: Path) -> Path:
    change(
        directory / "matrix.db", ENTITIES + "INSERT INTO entities (entity_id, name, entity_type) VALUES ('a','A','x')"
    )
    change(
        directory / "research.db",
        "CREATE TABLE notes (id INTEGER PRIMARY KEY, t TEXT); INSERT INTO notes VALUES (1,'n')",
    )
    (directory / "events.jsonl").write_bytes(lines('{"event_type": "e"}', "torn"))
    return directory


def test_rows_of_a_store_that_is_gone_stay_until_it_is_forgotten(tmp_path: Path, database: str) -> None:
    directory = small(tmp_path)
    migrate_fully(database, directory)
    (directory / "research.db").unlink()
    (directory / "events.jsonl").unlink()
    report = migrate(database, directory)
    assert report.status == "incomplete"
    assert [problem.source for problem in report.problems] == ["events.jsonl", "research.db"]
    assert "--forget" in report.problems[0].problem
    assert rows(database, "SELECT t FROM research.notes") == [("n",)]
    assert rows(database, "SELECT count(*) FROM telemetry") == [(1,)]
    verification = verify(database, directory)
    assert verification.status == "different"
    assert {problem["source"] for problem in verification.problems} == {"events.jsonl", "research.db"}


def test_the_target_of_another_installation_is_refused(tmp_path: Path, database: str) -> None:
    first, second = small(tmp_path / "first"), small(tmp_path / "second")
    migrate_fully(database, first)
    with pytest.raises(TargetError, match="--moved"):
        migrate(database, second)
    assert_identical(verify(database, first))
    assert migrate(database, second, moved=True).status == "complete"
    with pytest.raises(TargetError, match="--moved"):
        migrate(database, first)


def test_tables_of_others_are_refused_and_left_alone(tmp_path: Path, database: str) -> None:
    directory = small(tmp_path)
    run_sql(database, "CREATE TABLE telemetry (theirs INT)")
    run_sql(database, "CREATE SCHEMA research CREATE TABLE notes (theirs INT)")
    with pytest.raises(TargetError, match="telemetry") as caught:
        migrate(database, directory)
    assert "--schema" in caught.value.hint
    assert rows(database, "SELECT nspname FROM pg_namespace WHERE nspname ~ 'iceburg'") == []
    migrate_fully(database, directory, schema="ours")
    columns = "SELECT table_schema, table_name FROM information_schema.columns WHERE column_name = 'theirs' ORDER BY 1"
    assert rows(database, columns) == [("public", "telemetry"), ("research", "notes")]
    assert rows(database, "SELECT count(*) FROM ours.telemetry") == [(1,)]


def test_a_schema_of_others_with_the_name_of_a_file_is_left_alone(tmp_path: Path, database: str) -> None:
    directory = small(tmp_path)
    run_sql(database, "CREATE SCHEMA research CREATE TABLE notes (theirs INT)")
    report = migrate_fully(database, directory)
    assert dataset(report, "research.db/notes").target == "research_2.notes"
    assert rows(database, "SELECT * FROM research.notes") == []


def test_two_installations_share_a_database_in_two_schemas(tmp_path: Path, database: str) -> None:
    first, second = small(tmp_path / "first"), small(tmp_path / "second")
    change(second / "research.db", "INSERT INTO notes VALUES (2, 'more')")
    migrate_fully(database, first, schema="one")
    migrate_fully(database, second, schema="two")
    assert_identical(verify(database, first, schema="one"))
    assert rows(database, "SELECT count(*) FROM one_research.notes") == [(1,)]
    assert rows(database, "SELECT count(*) FROM two_research.notes") == [(2,)]


def test_one_row_that_postgresql_refuses_costs_no_other(tmp_path: Path, database: str) -> None:
    long = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOP", k=10_000))
    change(tmp_path / "keys.db", "CREATE TABLE k (name TEXT PRIMARY KEY, n INT)")
    change(tmp_path / "keys.db", "INSERT INTO k VALUES (?, ?)", *((f"k{n}", n) for n in range(100)), (long, 100))
    report = migrate_fully(database, tmp_path, batch_size=64)
    assert (report.datasets[0].target_rows, report.datasets[0].quarantined_rows) == (100, 1)
    ((reason, record),) = rows(database, "SELECT reason, record FROM iceburg_migration.quarantine")
    assert reason.startswith("PostgreSQL: index row")
    assert long.encode() in record
    assert rows(database, "SELECT count(*), sum(n) FROM keys.k") == [(100, 4950)]


def test_stores_that_cannot_be_read_cost_no_other(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SqliteFile.__init__, "__kwdefaults__", {"busy_timeout": 0.2, "pacing": None})
    directory = small(tmp_path)
    for name in ("cut.db", "locked.db"):
        change(directory / name, "CREATE TABLE t (a TEXT)")
        change(directory / name, "INSERT INTO t VALUES (?)", *((f"{n}" * 200,) for n in range(500)))
    whole = (directory / "cut.db").read_bytes()
    (directory / "cut.db").write_bytes(whole[: len(whole) // 2])
    # No pages, but a SQLite header: the rest is noise, as in an encrypted file with a plain header.
    (directory / "garbage.db").write_bytes(whole[:100] + bytes(range(256)) * 64)
    with closing(sqlite3.connect(directory / "locked.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        report = migrate(database, directory)
        other.rollback()
    assert report.status == "incomplete"
    problems = {problem.source: problem.problem for problem in report.problems}
    assert problems.keys() == {"cut.db", "garbage.db", "locked.db"}
    assert "locked" in problems["locked.db"]
    for name in ("matrix.db/entities", "research.db/notes", "events.jsonl"):
        part = dataset(report, name)
        assert part.source_rows == part.target_rows + part.quarantined_rows > 0
    verification = verify(database, directory)
    assert verification.status == "different"
    assert {"cut.db", "garbage.db"} <= {problem["source"] for problem in verification.problems}


def test_a_store_written_to_meanwhile_is_brought_up_to_date(tmp_path: Path, database: str) -> None:
    path = tmp_path / "busy.db"
    change(path, "CREATE TABLE t (k TEXT PRIMARY KEY, v INT)")
    change(path, "INSERT INTO t VALUES (?, ?)", *((f"k{n}", n) for n in range(10)))
    wrote: list[int] = []

    def write(_event: object) -> None:
        if not wrote:
            wrote.append(1)
            change(path, "DELETE FROM t WHERE v < 3; UPDATE t SET v = 50 WHERE v = 5; INSERT INTO t VALUES ('new', 1)")

    report = migrate(database, tmp_path, batch_size=4, listener=Listener(write))
    assert report.status == "complete"
    assert dataset(report, "busy.db/t").source_rows == 8
    assert_identical(verify(database, tmp_path))


def test_a_run_that_was_asked_to_stop_is_continued(tmp_path: Path, database: str) -> None:
    change(tmp_path / "m.db", CONVERSATIONS)
    change(
        tmp_path / "m.db",
        "INSERT INTO conversations (conversation_id, timestamp, user_message, assistant_message)"
        " VALUES (?, '2025-06-01T12:00:00', 'q', 'a')",
        *((str(n),) for n in range(100)),
    )
    advanced: list[int] = []
    listener = Listener(lambda event: advanced.append(event.written))
    report = migrate(database, tmp_path, batch_size=10, listener=listener, stopping=lambda: len(advanced) >= 3)
    assert (report.status, report.interrupted) == ("incomplete", True)
    assert rows(database, "SELECT count(*) FROM conversations") == [(30,)]
    report = migrate_fully(database, tmp_path, batch_size=10)
    assert dataset(report, "m.db/conversations").copied_rows == 70


def test_several_streams_of_one_table_meet_without_gap(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iceburg.migration.preparation._ROWS_PER_STREAM", 100)
    monkeypatch.setattr("iceburg.sources.sqlite_rows._PARTITION_ROWIDS", 100)
    change(tmp_path / "s.db", "CREATE TABLE t (k TEXT PRIMARY KEY, v INT); CREATE TABLE n (i INTEGER PRIMARY KEY)")
    change(tmp_path / "s.db", "INSERT INTO t VALUES (?, ?)", *((f"k{n}", n) for n in range(1000)))
    change(tmp_path / "s.db", "INSERT INTO n VALUES (?)", *((n * 3,) for n in range(1000)))
    migrate_fully(database, tmp_path, jobs=2, batch_size=90)
    assert rows(database, "SELECT count(*) FROM iceburg_migration.streams") == [(4,)]
    change(tmp_path / "s.db", "INSERT INTO n VALUES (-50); INSERT INTO n VALUES (99999); DELETE FROM t WHERE v % 7 = 0")
    # A record that moves from the first stream to the last.
    change(tmp_path / "s.db", "INSERT OR REPLACE INTO t VALUES ('k3', 3000); INSERT INTO t VALUES ('k7', 7000)")
    migrate_fully(database, tmp_path, jobs=2, batch_size=90)
    assert rows(database, "SELECT v FROM s.t WHERE k IN ('k3', 'k7') ORDER BY v") == [(3000,), (7000,)]


def test_a_worker_that_was_overtaken_writes_nothing_more(tmp_path: Path, database: str) -> None:
    change(tmp_path / "m.db", "CREATE TABLE t (a INTEGER PRIMARY KEY)")
    change(tmp_path / "m.db", "INSERT INTO t VALUES (?)", *((n,) for n in range(50)))
    raised: list[int] = []

    def overtake(_event: object) -> None:
        if not raised:
            raised.append(run_sql(database, "UPDATE iceburg_migration.installation SET fence = fence + 1"))

    with pytest.raises(TargetError, match="taken over"):
        migrate(database, tmp_path, batch_size=10, listener=Listener(overtake))
    assert rows(database, "SELECT count(*) FROM m.t") == [(10,)]
    migrate_fully(database, tmp_path, batch_size=10)


def test_a_worker_that_was_overtaken_after_its_last_batch_does_not_call_the_stream_done(
    tmp_path: Path, database: str
) -> None:
    change(tmp_path / "m.db", "CREATE TABLE t (a INTEGER PRIMARY KEY); INSERT INTO t VALUES (1)")

    def overtake(_event: object) -> None:
        run_sql(database, "UPDATE iceburg_migration.installation SET fence = fence + 1")

    with pytest.raises(TargetError, match="taken over"):
        migrate(database, tmp_path, listener=Listener(overtake))
    assert rows(database, "SELECT done FROM iceburg_migration.streams") == [(False,)]


def test_a_batch_and_its_position_are_there_together_or_not_at_all(tmp_path: Path, database: str) -> None:
    change(tmp_path / "m.db", "CREATE TABLE t (a TEXT PRIMARY KEY, b TEXT)")
    migrate_fully(database, tmp_path)
    run_sql(
        database,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''refused''; END';"
        "CREATE TRIGGER refuse BEFORE INSERT ON iceburg_migration.chunks FOR EACH ROW WHEN (NEW.chunk = 3)"
        " EXECUTE FUNCTION refuse()",
    )
    change(tmp_path / "m.db", "INSERT INTO t VALUES (?, ?)", *((f"k{n:02d}", "b\0") for n in range(50)))
    with pytest.raises(TargetError, match="refused"):
        migrate(database, tmp_path, batch_size=10)
    assert rows(
        database,
        "SELECT count(*), (SELECT sum(rows)::int FROM iceburg_migration.chunks),"
        " (SELECT count(*) FROM iceburg_migration.originals) FROM m.t",
    ) == [(30, 30, 30)]
    run_sql(database, "DROP TRIGGER refuse ON iceburg_migration.chunks")
    migrate_fully(database, tmp_path, batch_size=10)


def test_a_second_run_beside_the_first_is_refused(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iceburg.migration.ledger._PATIENCE", 0.1)
    directory = small(tmp_path)
    refused: list[str] = []

    def second(_event: object) -> None:
        if not refused:
            with pytest.raises(TargetError) as caught:
                migrate(database, directory)
            refused.append(str(caught.value))

    migrate(database, directory, listener=Listener(second))
    assert "Another migration of this target is running" in refused[0]
    assert_identical(verify(database, directory))
    # The lock goes with the session: nothing is left behind.
    with psycopg.connect(database, autocommit=True) as connection:
        for _ in range(100):
            # A session of the server ends a moment after its connection.
            held = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()
            if held == (0,):
                break
            time.sleep(0.05)
        assert held == (0,)
