"""Migrating while the application writes: whatever it does meanwhile is there in the end, and nothing else."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from iceburg.database import applier, change_log
from iceburg.database.bootstrap import claim_target
from iceburg.database.connection import connect
from iceburg.database.phases import Phase, PhaseError, move_phase, phase_changes, read_phase
from iceburg.database.schema import schema_names
from iceburg.errors import TargetError
from iceburg.migration import live
from iceburg.migration.ledger import Ledger
from iceburg.migration.pace import FilePace
from tests.support import (
    CONVERSATIONS,
    ENTITIES,
    RELATIONSHIPS,
    Listener,
    assert_identical,
    change,
    lines,
    meanwhile,
    migrate,
    migrate_fully,
    migrate_live,
    rows,
    run_sql,
    some_entities,
    verify,
)

NAMES = schema_names(None)
_TABLES = """
CREATE TABLE plain (a INTEGER PRIMARY KEY AUTOINCREMENT, u TEXT UNIQUE, v);
CREATE TABLE without (a TEXT, b INT, v TEXT, u INT UNIQUE, PRIMARY KEY (b DESC, a)) WITHOUT ROWID;
CREATE TABLE keyless (v TEXT, w);
"""
_INSERT = "INSERT INTO entities (entity_id, name, entity_type, properties) VALUES (?, ?, ?, ?)"


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read without pauses: nobody's writes are timed here."""
    monkeypatch.setattr(FilePace, "_share_now", lambda self, now: 1.0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An installation with a SQLite file, of 40 records a table, and a JSONL file."""
    path = tmp_path / "m.db"
    change(path, ENTITIES + RELATIONSHIPS + CONVERSATIONS + _TABLES)
    change(path, _INSERT, *some_entities(40))
    change(path, "INSERT INTO plain (u, v) VALUES (?, ?)", *((f"u{n}", n) for n in range(40)))
    change(path, "INSERT INTO without VALUES (?, ?, ?, ?)", *((f"a{n}", n % 7, "v", n) for n in range(40)))
    change(path, "INSERT INTO keyless VALUES (?, ?)", *((f"k{n}", n) for n in range(40)))
    (tmp_path / "events.jsonl").write_bytes(lines(*[json.dumps({"event_type": "e", "n": n}) for n in range(40)]))
    return tmp_path


def is_long(seen: list[object], length: int) -> bool:
    return len(seen) >= length


def assert_in_step(dsn: str, data_dir: Path) -> None:
    """See that both sides are the same, that no store waits, and that the phase says so."""
    assert_identical(verify(dsn, data_dir))
    assert rows(dsn, "SELECT count(*) FROM iceburg_migration.positions WHERE log_id = ''") == [(0,)]
    assert rows(dsn, "SELECT count(*) FROM iceburg_migration.sources WHERE NOT complete") == [(0,)]
    with connect(dsn, autocommit=True) as connection:
        assert read_phase(connection, NAMES).phase is Phase.FOLLOWING


def migrate_to_the_end(dsn: str, data_dir: Path, **options: Any) -> None:
    report = migrate_live(dsn, data_dir, batch_size=10, **options)
    assert report.problems == ()
    assert report.status == "complete"
    for dataset in report.datasets:
        assert dataset.source_rows == dataset.target_rows + dataset.quarantined_rows, dataset
    assert_in_step(dsn, data_dir)


def test_an_installation_at_rest(data: Path, database: str) -> None:
    migrate_to_the_end(database, data)
    with connect(database, autocommit=True) as connection:
        moves = [(c.from_phase, c.to_phase, c.moved_by) for c in phase_changes(connection, NAMES)]
    assert moves == [("copying", "following", "migrate"), ("embedded", "copying", "migrate")]
    # Again: nothing is copied, and the phase stays.
    report = migrate_live(database, data)
    assert report.unchanged
    assert_in_step(database, data)


@pytest.mark.parametrize(
    "scripts",
    [
        ["INSERT INTO entities (entity_id, name, entity_type) VALUES ('new', 'New', 'x')"],
        ["UPDATE entities SET name = 'changed' WHERE rowid IN (3, 38)"],
        ["DELETE FROM entities WHERE rowid IN (2, 39)"],
        # A new rowid for a record: read twice, or never.
        ["INSERT OR REPLACE INTO entities (entity_id, name, entity_type) VALUES ('e000003', 'Replaced', 'x')"] * 3,
        ["UPDATE entities SET rowid = 1000 - rowid WHERE rowid BETWEEN 5 AND 30"] * 2,
        ["UPDATE entities SET entity_id = entity_id || 'x' WHERE rowid % 2"] * 2,
        # Evicted through another key than its own.
        [f"INSERT OR REPLACE INTO plain (a, u, v) VALUES ({90 + n}, 'u{n}', 'evicts')" for n in range(5)],
        [f"INSERT OR REPLACE INTO without VALUES ('z', {n}, 'evicts', {n * 3})" for n in range(5)],
        ["UPDATE without SET b = 100 - b, a = a || 'x'", "DELETE FROM without WHERE b > 95"],
        ["DELETE FROM keyless WHERE w < 20", "VACUUM", "INSERT INTO keyless VALUES ('late', 1)", "VACUUM"],
        ["DELETE FROM entities WHERE rowid < 20", "VACUUM", "DELETE FROM entities WHERE rowid < 5", "VACUUM"],
        ["ALTER TABLE plain ADD COLUMN more TEXT DEFAULT 'm'", "UPDATE plain SET more = 'n' WHERE a % 3 = 0"],
        ["CREATE TABLE later (a INTEGER PRIMARY KEY, b); INSERT INTO later VALUES (1, 'x')"],
        ["ALTER TABLE keyless RENAME TO renamed", "INSERT INTO renamed VALUES ('r', 1)"],
        ["DROP TABLE relationships; DROP TABLE keyless"],
        ["DROP TABLE plain; CREATE TABLE plain (x TEXT PRIMARY KEY); INSERT INTO plain VALUES ('p')"],
        ["CREATE INDEX late ON entities (name)", "CREATE INDEX later ON plain (v)"],
        ["INSERT INTO entities (entity_id, name, entity_type) VALUES (CAST(x'66ff' AS TEXT), 'a' || char(0), 'x')"],
    ],
    ids=lambda scripts: scripts[0][:40],
)
def test_whatever_is_written_meanwhile_is_there_in_the_end(data: Path, database: str, scripts: list[str]) -> None:
    path = data / "m.db"
    steps = [partial(change, path, script) for script in scripts]
    migrate_to_the_end(database, data, listener=meanwhile(*steps))


def test_lines_that_are_appended_cut_and_rotated_meanwhile(data: Path, database: str) -> None:
    path = data / "events.jsonl"
    more = lines(*[json.dumps({"event_type": "late", "n": n}) for n in range(5)])

    def append() -> None:
        with path.open("ab") as file:
            file.write(more + b'{"unfinished": ')

    def rotate() -> None:
        path.rename(data / "events.jsonl.1")
        path.write_bytes(more)

    def finish() -> None:
        with path.open("ab") as file:
            file.write(b'{"event_type": "last"}\n')

    migrate_to_the_end(database, data, listener=meanwhile(*[append] * 3, rotate, append, finish))
    there = sum(len((data / name).read_bytes().splitlines()) for name in ("events.jsonl", "events.jsonl.1"))
    kept = "SELECT (SELECT count(*) FROM telemetry) + (SELECT count(*) FROM iceburg_migration.quarantine)"
    assert rows(database, kept) == [(there,)]
    assert rows(database, "SELECT count(*) FROM telemetry WHERE event_type = 'last'") == [(0,)]  # it ends a bad line


def test_stores_that_turn_up_meanwhile_are_taken_in(data: Path, database: str) -> None:
    def new_stores() -> None:
        change(data / "sub" / "new.db", "CREATE TABLE t (a INTEGER PRIMARY KEY); INSERT INTO t VALUES (1), (2)")
        (data / "new.jsonl").write_bytes(lines('{"event_type": "n"}'))

    migrate_to_the_end(database, data, listener=meanwhile(new_stores))
    assert rows(database, "SELECT count(*) FROM new.t") == [(2,)]


def test_a_run_that_was_stopped_is_continued_and_copies_nothing_twice(data: Path, database: str) -> None:
    path = data / "m.db"
    for stop_after in (1, 3, 5):
        seen: list[object] = []
        stopping = partial(is_long, seen, stop_after)
        report = migrate_live(database, data, batch_size=10, listener=Listener(seen.append), stopping=stopping)
        assert report.interrupted
        change(path, f"DELETE FROM entities WHERE rowid = {stop_after}; UPDATE plain SET v = v + 1 WHERE a = 2")
        change(path, "INSERT OR REPLACE INTO entities (entity_id, name, entity_type) VALUES ('e000020', 'r', 'x')")
        with connect(database, autocommit=True) as connection:
            assert read_phase(connection, NAMES).phase is Phase.COPYING
    report = migrate_live(database, data, batch_size=10)
    assert report.status == "complete"
    copied = sum(dataset.copied_rows for dataset in report.datasets if dataset.source == "m.db")
    assert 0 < copied < 180
    assert_in_step(database, data)


def test_what_was_migrated_at_rest_is_not_copied_again(data: Path, database: str) -> None:
    migrate_fully(database, data)
    report = migrate_live(database, data)
    assert sum(dataset.copied_rows for dataset in report.datasets) == 0
    assert_in_step(database, data)
    change(data / "m.db", "DELETE FROM entities WHERE rowid < 9")
    migrate_to_the_end(database, data)


def test_what_was_migrated_at_rest_and_has_changed_since_is_brought_up_to_date(data: Path, database: str) -> None:
    migrate_fully(database, data)
    path = data / "m.db"
    change(path, "DELETE FROM entities WHERE rowid < 9; UPDATE plain SET v = 'x' WHERE a = 7; DELETE FROM keyless")
    later = [lambda: change(path, "DELETE FROM entities WHERE rowid = 11"), lambda: change(path, "DELETE FROM without")]
    migrate_to_the_end(database, data, listener=meanwhile(*later))


def test_what_a_migration_at_rest_has_left_half_done_is_taken_over(data: Path, database: str) -> None:
    seen: list[int] = []
    migrate(database, data, batch_size=10, listener=Listener(lambda _: seen.append(1)), stopping=lambda: len(seen) > 2)
    change(data / "m.db", "DELETE FROM entities WHERE rowid < 9; UPDATE entities SET name = 'y' WHERE rowid = 12")
    migrate_to_the_end(database, data)


def test_what_is_followed_is_not_migrated_at_rest(data: Path, database: str) -> None:
    migrate_to_the_end(database, data)
    with pytest.raises(PhaseError, match="works in phase embedded; this is following"):
        migrate(database, data)
    assert_in_step(database, data)


def test_a_finalized_installation_is_not_migrated(data: Path, database: str) -> None:
    migrate_to_the_end(database, data)
    run_sql(database, "UPDATE iceburg_migration.phase SET phase = 'finalized'")
    for migrating in (migrate, migrate_live):
        with pytest.raises(PhaseError, match="PostgreSQL alone is written"):
            migrating(database, data)


def test_two_at_once_are_refused(data: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iceburg.migration.ledger._PATIENCE", 0.1)
    with connect(database, autocommit=True) as connection:
        claim_target(connection, NAMES, data)
        Ledger(connection, NAMES).take_over()
        with pytest.raises(TargetError, match="Another migration"):
            migrate_live(database, data)


def test_nobody_believes_what_is_being_copied(data: Path, database: str) -> None:
    found: list[Any] = []

    def look() -> None:
        found.append(
            rows(database, "SELECT log_id, copy_position FROM iceburg_migration.positions WHERE copy_log_id <> ''")
        )

    migrate_to_the_end(database, data, listener=meanwhile(look, look))
    assert all(log_id == "" for looked in found for log_id, _ in looked)
    assert found[0]


def test_a_backlog_is_caught_up_with_in_steps(data: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "STEP", 7)
    path = data / "m.db"

    def much() -> None:
        change(path, "UPDATE entities SET name = name || 'x'; DELETE FROM entities WHERE rowid % 3 = 0")
        change(path, "UPDATE keyless SET w = w + 1; UPDATE without SET v = 'w'; ALTER TABLE plain ADD COLUMN z")

    migrate_to_the_end(database, data, listener=meanwhile(much, much_less(path)))


def much_less(path: Path) -> Callable[[], None]:
    return lambda: change(path, "UPDATE plain SET z = 1 WHERE a < 5")


def test_a_large_table_that_would_have_to_be_read_whole_is_copied_again(
    data: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applier, "MAX_ROWS_READ_WHOLE", 15)
    path = data / "m.db"
    migrate_to_the_end(database, data)
    # VACUUM may have given new rowids, and a new table is not in the log.
    change(path, "DELETE FROM keyless WHERE w < 10; VACUUM")
    change(path, "CREATE TABLE copied AS SELECT * FROM entities; ALTER TABLE plain ADD COLUMN z DEFAULT 3")
    migrate_to_the_end(database, data, listener=meanwhile(lambda: change(path, "DELETE FROM copied WHERE rowid > 30")))


def test_a_replaced_file_is_copied_anew(data: Path, database: str) -> None:
    migrate_to_the_end(database, data)
    (data / "m.db").unlink()
    change(data / "m.db", ENTITIES + "CREATE TABLE keyless (v TEXT, w)")
    change(data / "m.db", _INSERT, *some_entities(7))
    migrate_to_the_end(database, data)


def test_a_file_whose_changes_cannot_be_logged_stops_no_other(data: Path, database: str) -> None:
    change(data / "odd.db", "CREATE TABLE t (a); CREATE UNIQUE INDEX i ON t (lower(a)); INSERT INTO t VALUES ('x')")
    report = migrate_live(database, data)
    assert report.status == "incomplete"
    (problem,) = report.problems
    assert problem.source == "odd.db"
    assert "on an expression" in problem.problem
    with connect(database, autocommit=True) as connection:
        assert read_phase(connection, NAMES).phase is Phase.FOLLOWING
        assert phase_changes(connection, NAMES)[0].evidence["problems"].keys() == {"odd.db"}
    change(data / "odd.db", "DROP INDEX i")
    migrate_to_the_end(database, data)


def test_a_compressed_file_is_copied_as_it_rests(data: Path, database: str) -> None:
    import gzip

    (data / "old.jsonl.gz").write_bytes(gzip.compress(lines('{"event_type": "old"}')))
    migrate_to_the_end(database, data)
    (data / "old.jsonl.gz").write_bytes(gzip.compress(lines('{"event_type": "new"}', '{"event_type": "newer"}')))
    migrate_to_the_end(database, data)
    assert rows(database, "SELECT count(*) FROM telemetry WHERE event_type LIKE 'new%'") == [(2,)]


def test_the_phase_of_a_running_cutover_stays(data: Path, database: str) -> None:
    migrate_to_the_end(database, data)
    with connect(database, autocommit=True) as connection:
        move_phase(connection, NAMES, Phase.DUAL, by="cutover", reason="tried")
        change(data / "late.db", "CREATE TABLE t (a INTEGER PRIMARY KEY); INSERT INTO t VALUES (1)")
        migrate_live(database, data)
        assert read_phase(connection, NAMES).phase is Phase.DUAL
    assert_identical(verify(database, data))


def test_the_log_keeps_what_the_copy_needs(data: Path, database: str) -> None:
    """While a source is being copied nothing of its log is pruned, whoever prunes."""
    from iceburg.database.applier import open_applier
    from iceburg.sources.discovery import discover

    (store,) = discover(data, sqlite=["m.db"])
    pruned: list[int] = []

    def prune() -> None:
        change(data / "m.db", "UPDATE entities SET name = name || 'x'")
        pruning = open_applier(store, store.path, NAMES)
        with connect(database, autocommit=True) as connection:
            pruned.append(pruning.prune(connection))
        pruning.close()

    migrate_to_the_end(database, data, listener=meanwhile(prune, prune))
    assert pruned == [0, 0]
    with closing(sqlite3.connect(data / "m.db")) as connection:
        assert change_log.count_pending(connection, 0) >= 80
