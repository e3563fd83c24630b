"""The consistency check finds what differs, and nothing else, while the application writes and others apply."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from iceburg.database import change_log
from iceburg.database.applier import open_applier
from iceburg.database.arming import install_logs
from iceburg.database.connection import connect
from iceburg.database.schema import schema_names
from iceburg.database.target_table import prepare_loaders
from iceburg.migration.worker import Advance, StoppedError
from iceburg.records import Store
from iceburg.sources.discovery import discover
from iceburg.verification.consistency_report import ConsistencyReport
from iceburg.verification.target_look import TargetLook
from tests.integration.consistency import assert_all_compared, assert_identical, check, differences, thread
from tests.support import (
    CONVERSATIONS,
    ENTITIES,
    RELATIONSHIPS,
    Listener,
    change,
    lines,
    migrate,
    migrate_complete,
    rows,
    run_program,
    run_sql,
    some_entities,
)

_TABLES = """
CREATE TABLE plain (a INTEGER PRIMARY KEY AUTOINCREMENT, u TEXT UNIQUE, v);
CREATE TABLE text_key (k TEXT PRIMARY KEY COLLATE NOCASE, v TEXT);
CREATE TABLE without (a TEXT, b INT, v TEXT, PRIMARY KEY (b DESC, a)) WITHOUT ROWID;
CREATE TABLE keyless (v TEXT);
"""
_ROW = "a row of which there is no record"


class Installation:
    """An armed file with tables of several kinds, migrated; and what applies its changes."""

    def __init__(self, dsn: str, data_dir: Path) -> None:
        self.dsn, self.data_dir = dsn, data_dir
        self.path = data_dir / "m.db"
        change(self.path, ENTITIES + RELATIONSHIPS + CONVERSATIONS + _TABLES)
        self.fill()
        list(install_logs(discover(data_dir), lambda: None))
        migrate_complete(dsn, data_dir)

    def fill(self) -> None:
        change(
            self.path,
            "INSERT INTO entities (entity_id, name, entity_type, properties) VALUES (?, ?, ?, ?)",
            *some_entities(300),
        )
        change(
            self.path,
            """
            INSERT INTO entities (entity_id, name, entity_type) VALUES (NULL, 'No id', 'x'), (NULL, 'None', 'x'),
                ('nul', 'a' || char(0), 'x');
            INSERT INTO conversations (conversation_id, timestamp, user_message, assistant_message, metadata)
                VALUES ('c', '2026-01-01T00:00:00.5', 'q', 'a', '{"a": NaN}'),
                ('c', '2026-01-01T00:00:01', 'q', 'b', NULL);
            INSERT INTO plain (u, v) VALUES ('one', 1), ('two', 2.5), ('three', x'00'), ('four', 'odd' || char(0));
            INSERT INTO text_key VALUES ('Abc', 'x'), ('b', 'y'), (CAST(x'66ff' AS TEXT), 'quarantined');
            INSERT INTO without VALUES ('a', 1, 'x'), ('b', 1, 'y');
            INSERT INTO keyless VALUES ('same'), ('same'), ('other');
            """,
        )

    def check(self, **options: Any) -> ConsistencyReport:
        return check(self.dsn, self.data_dir, **options)

    def apply(self) -> int:
        applier = open_applier(Store("sqlite", self.path, "m.db"), self.path, schema_names(None))
        try:
            with connect(self.dsn, autocommit=True) as connection:
                prepare_loaders(connection)
                return applier.apply(connection).changes
        finally:
            applier.close()

    def prune(self) -> int:
        applier = open_applier(Store("sqlite", self.path, "m.db"), self.path, schema_names(None))
        try:
            with connect(self.dsn, autocommit=True) as connection:
                return applier.prune(connection)
        finally:
            applier.close()

    @contextmanager
    def applied(self, every: float = 0.005, prune: bool = True) -> Iterator[None]:
        """Apply, and prune, in a thread."""

        def work(stop: threading.Event) -> None:
            applier = open_applier(Store("sqlite", self.path, "m.db"), self.path, schema_names(None))
            with connect(self.dsn, autocommit=True) as connection:
                prepare_loaders(connection)
                while not stop.wait(every):
                    applier.apply(connection)
                    if prune and random.random() < 0.05:
                        applier.prune(connection)
            applier.close()

        with thread(work):
            yield

    @contextmanager
    def written(self, statements: Callable[[int], str], pause: float = 0.02) -> Iterator[None]:
        """Write in a thread, as any program does."""

        def work(stop: threading.Event) -> None:
            number = 0
            with closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as connection:
                while not stop.wait(pause):
                    number += 1
                    connection.executescript(f"BEGIN; {statements(number)}; COMMIT")
            assert number

        with thread(work):
            yield


@pytest.fixture
def installation(tmp_path: Path, database: str) -> Installation:
    return Installation(database, tmp_path)


def mixed(number: int) -> str:
    """Write a bit of everything: inserts, replacements that evict, key changes, deletions; keys come again."""
    n = number % 97
    return f"""
        INSERT OR REPLACE INTO entities (entity_id, name, entity_type) VALUES ('e{n:06d}', 'Again {number}', 'x');
        INSERT INTO entities (entity_id, name, entity_type) VALUES ('w{number}', 'New {number}', 'x');
        DELETE FROM entities WHERE entity_id = 'w{number - 20}';
        UPDATE entities SET entity_id = 'm' || entity_id WHERE entity_id = 'w{number - 5}' AND {number} % 3 = 0;
        INSERT INTO entities (entity_id, name, entity_type) VALUES (NULL, 'Nobody {number}', 'x');
        DELETE FROM entities WHERE name = 'Nobody {number - 3}';
        INSERT OR REPLACE INTO plain (u, v) VALUES ('u{n}', {number});
        INSERT OR REPLACE INTO text_key VALUES ('k{n}', 'v' || char(0) || '{number}');
        UPDATE text_key SET k = upper(k) WHERE k = 'k{n}' AND {number} % 2;
        INSERT OR REPLACE INTO without VALUES ('a', {n}, '{number}');
        INSERT INTO keyless VALUES ('{number}');
        DELETE FROM keyless WHERE rowid = {number - 7};
        UPDATE conversations SET assistant_message = '{number}' WHERE id = 1"""


def test_identical_at_rest(installation: Installation) -> None:
    report = installation.check()
    assert_identical(report)
    assert_all_compared(report)
    assert {d.dataset for d in report.datasets} == {
        f"m.db/{name}"
        for name in ("entities", "relationships", "conversations", "plain", "text_key", "without", "keyless")
    }
    assert sum(dataset.rechecked for dataset in report.datasets) == 0
    assert all(dataset.position == 0 for dataset in report.datasets)
    # Nothing had to be applied for this.
    assert rows(installation.dsn, "SELECT structure FROM iceburg_migration.positions") == [("",)]


def test_identical_while_it_is_written_and_applied(installation: Installation) -> None:
    with installation.applied(), installation.written(mixed):
        reports = [installation.check(patience=30.0) for _ in range(3)]
    for report in reports:
        assert_identical(report)
    assert sum(dataset.rechecked for report in reports for dataset in report.datasets) > 0
    assert_identical(installation.check())


def test_identical_while_it_is_written_in_wal_mode(installation: Installation) -> None:
    change(installation.path, "PRAGMA journal_mode = WAL")
    with installation.applied(), installation.written(mixed, pause=0.005):
        assert_identical(installation.check(patience=30.0))


def test_a_position_that_is_behind_with_nobody_applying(installation: Installation) -> None:
    installation.apply()
    change(installation.path, "UPDATE entities SET name = 'Written' WHERE rowid <= 50; DELETE FROM plain WHERE a = 1")
    report = installation.check()
    assert_identical(report)
    assert_all_compared(report)
    assert next(d for d in report.datasets if d.dataset == "m.db/entities").rechecked == 50
    assert rows(installation.dsn, "SELECT position FROM iceburg_migration.positions") == [(51,)]


def test_writes_that_nobody_else_applies(installation: Installation) -> None:
    with installation.written(mixed, pause=0.01):
        assert_identical(installation.check())


_DAMAGE = {
    "a value": (
        "UPDATE matrix_entities SET entity_data = jsonb_set(entity_data, '{name}', '\"Other\"')"
        " WHERE entity_data ->> 'entity_id' = 'e000200'",
        [("m.db/entities", '["e000200"]', "name", "Name 200", "Other")],
    ),
    "a missing row": (
        "DELETE FROM matrix_entities WHERE entity_data ->> 'entity_id' = 'e000200'",
        [("m.db/entities", '["e000200"]', "(record)", "a record", None)],
    ),
    "an extra row": (
        "INSERT INTO m.without (a, b, v) VALUES ('z', 77, 'nobody')",
        [("m.db/without", '[77, "z"]', "(record)", None, _ROW)],
    ),
    "an extra row by rowid": (
        "INSERT INTO m.keyless (_iceburg_rowid, v) VALUES (5000000, 'nobody')",
        [("m.db/keyless", "[5000000]", "(record)", None, _ROW)],
    ),
    "an extra row that tells no key": (
        "INSERT INTO matrix_entities (id, dataset_id, entity_type, entity_data, created_at, updated_at)"
        " SELECT '00000000-0000-0000-0000-000000000001', dataset_id, entity_type, entity_data, created_at, updated_at"
        " FROM matrix_entities WHERE entity_data ->> 'name' = 'No id'",
        [("m.db/entities", "00000000-0000-0000-0000-000000000001", "(record)", None, _ROW)],
    ),
    "a copy of a row under another id": (
        "INSERT INTO matrix_entities (id, dataset_id, entity_type, entity_data, created_at, updated_at)"
        " SELECT '00000000-0000-0000-0000-000000000001', dataset_id, entity_type, entity_data, created_at, updated_at"
        " FROM matrix_entities WHERE entity_data ->> 'entity_id' = 'e000200'",
        [("m.db/entities", '["e000200"]', "(record)", None, _ROW)],
    ),
    "a row that cannot be turned back": (
        "UPDATE matrix_entities SET entity_data = '[1]' WHERE entity_data ->> 'entity_id' = 'e000200'",
        [("m.db/entities", '["e000200"]', "entity_data", "a record", "[1]")],
    ),
    "a derived column": (
        "UPDATE conversations SET updated_at = '2000-01-01' WHERE row_id = 2",
        None,
    ),
    "an original": (
        "UPDATE iceburg_migration.originals SET value = 'changed' WHERE record_key = '[4]'",
        [("m.db/plain", "[4]", "v", "odd\0", "changed")],
    ),
    "a missing original": (
        "DELETE FROM iceburg_migration.originals WHERE record_key = '[4]'",
        None,
    ),
    "an extra original": (
        "INSERT INTO iceburg_migration.originals SELECT dataset_id, '[5000000]', field, storage_class, value, reason"
        " FROM iceburg_migration.originals WHERE record_key = '[4]'",
        [("m.db/plain", "[5000000]", "(record)", None, "originals of which there is no record")],
    ),
    "an extra quarantined record": (
        "INSERT INTO iceburg_migration.quarantine SELECT dataset_id, '[\"zz\"]', record, reason"
        " FROM iceburg_migration.quarantine",
        [("m.db/text_key", '["zz"]', "(record)", None, "a quarantined record of which there is no record")],
    ),
    "an original of no key": (
        "INSERT INTO iceburg_migration.originals SELECT dataset_id, 'nonsense', field, storage_class, value, reason"
        " FROM iceburg_migration.originals WHERE record_key = '[4]'",
        [("m.db/plain", "nonsense", "(record)", None, "kept for what is no key of a record")],
    ),
    "a missing quarantined record": (
        "DELETE FROM iceburg_migration.quarantine",
        [("m.db/text_key", '["f\\udcff"]', "(record)", "a record", None)],
    ),
}


@pytest.mark.parametrize("what", _DAMAGE)
def test_damage_is_named(installation: Installation, what: str) -> None:
    statement, expected = _DAMAGE[what]
    assert run_sql(installation.dsn, statement) > 0
    found = differences(installation.check())
    assert found
    if expected is not None:
        assert found == expected


@pytest.mark.parametrize("what", [name for name, (_, expected) in _DAMAGE.items() if expected is not None])
def test_damage_is_named_under_writes(installation: Installation, what: str) -> None:
    statement, expected = _DAMAGE[what]
    assert expected is not None
    with installation.applied(), installation.written(mixed):
        assert run_sql(installation.dsn, statement) > 0
        found = differences(installation.check(patience=30.0))
    assert found == expected


def test_a_damaged_row_that_is_written_again_is_mended(installation: Installation) -> None:
    run_sql(installation.dsn, "UPDATE m.plain SET u = 'damaged' WHERE a = 1")
    assert differences(installation.check())
    change(installation.path, "UPDATE plain SET u = 'again' WHERE a = 1")
    assert_identical(installation.check())


def test_a_record_that_never_rests_is_unsettled(installation: Installation) -> None:
    # Whenever it is looked at, one write more is in PostgreSQL, and another one is on its way.
    number = 0

    def write() -> None:
        nonlocal number
        number += 1
        change(installation.path, f"UPDATE plain SET v = {number} WHERE a = 1")

    def meanwhile() -> bool:
        write()
        installation.apply()
        write()
        return False

    report = installation.check(patience=30.0, stopping=meanwhile)
    assert report.status == "different"
    assert report.differences == ()
    assert [(d.dataset, d.key, d.field) for d in report.unsettled] == [("m.db/plain", "[1]", "v")]
    plain = next(d for d in report.datasets if d.dataset == "m.db/plain")
    assert (plain.unsettled, plain.compared_rows, plain.source_rows) == (1, 3, 4)
    assert_identical(installation.check())


def test_only_the_first_differences_are_listed_and_all_are_counted(installation: Installation) -> None:
    run_sql(installation.dsn, "UPDATE matrix_entities SET entity_type = 'damaged'")
    report = installation.check(limit=7)
    assert len(report.differences) == 7
    assert next(d for d in report.datasets if d.dataset == "m.db/entities").differences == 303


def test_a_table_that_is_made_meanwhile(installation: Installation) -> None:
    made: list[int] = []

    def make(_event: Advance) -> None:
        if not made:
            made.append(1)
            change(installation.path, "CREATE TABLE later (a INTEGER PRIMARY KEY, b); INSERT INTO later VALUES (1, 2)")

    report = installation.check(listener=Listener(make))
    assert made
    assert_identical(report)
    assert_all_compared(report)
    assert "m.db/later" in {dataset.dataset for dataset in report.datasets}


def test_structures_that_change_while_it_is_written_and_applied(installation: Installation) -> None:
    scripts = iter(
        (
            "ALTER TABLE plain ADD COLUMN more TEXT DEFAULT 'm'",
            "DROP TABLE relationships",
            "CREATE TABLE later (a INTEGER PRIMARY KEY, b); INSERT INTO later VALUES (1, 2)",
            "ALTER TABLE text_key RENAME TO renamed",
            "VACUUM",
        )
    )

    def restructure(_event: Advance) -> None:
        script = next(scripts, None)
        if script is not None:
            change(installation.path, script)

    def write(number: int) -> str:
        return f"UPDATE entities SET source = '{number}' WHERE rowid = {number % 50}"

    with installation.applied(), installation.written(write, pause=0.01):
        assert_identical(installation.check(patience=30.0, listener=Listener(restructure)))
    report = installation.check()
    assert_identical(report)
    names = {dataset.dataset for dataset in report.datasets}
    assert {"m.db/later", "m.db/renamed"} <= names
    assert not {"m.db/relationships", "m.db/text_key"} & names


@pytest.mark.parametrize("prune", [False, True], ids=["kept", "pruned"])
def test_what_is_written_and_applied_between_the_two_looks(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, prune: bool
) -> None:
    installation.apply()
    original = TargetLook.look
    done: list[int] = []

    def look(self: TargetLook, *arguments: Any) -> Any:
        if not done:
            done.append(1)
            change(installation.path, "UPDATE conversations SET assistant_message = 'later'; DELETE FROM plain")
            change(installation.path, "UPDATE entities SET name = 'Later' WHERE rowid < 200; DELETE FROM text_key")
            installation.apply()
            if prune:
                # The entries that would explain the differences are gone.
                installation.prune()
        return original(self, *arguments)

    monkeypatch.setattr(TargetLook, "look", look)
    report = installation.check()
    assert done
    assert_identical(report)
    assert_all_compared(report)


def test_a_migration_that_begins_meanwhile(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TargetLook.look
    done: list[int] = []

    def look(self: TargetLook, *arguments: Any) -> Any:
        if not done:
            done.append(1)
            # As a migration does before it writes anything over.
            begin = "UPDATE iceburg_migration.positions SET log_id = '', position = 0, epoch = epoch + 1"
            run_sql(installation.dsn, begin)
            run_sql(installation.dsn, "DELETE FROM matrix_entities; DELETE FROM conversations; DELETE FROM m.plain")
        return original(self, *arguments)

    monkeypatch.setattr(TargetLook, "look", look)
    report = installation.check()
    assert done
    assert report.differences == ()
    ((problem),) = report.problems
    assert "being migrated" in problem["problem"]


def test_vacuum_gives_other_rowids(installation: Installation) -> None:
    change(installation.path, "DELETE FROM keyless WHERE rowid = 1")
    installation.apply()
    change(installation.path, "VACUUM")
    assert_identical(installation.check())


def test_a_file_that_rests_and_has_no_log(tmp_path: Path, database: str) -> None:
    change(tmp_path / "m.db", ENTITIES + _TABLES)
    change(tmp_path / "m.db", "INSERT INTO plain (u, v) VALUES ('one', 1), ('two', 'x' || char(0))")
    (tmp_path / "e.jsonl").write_bytes(lines('{"event_type": "e"}', '{"n": 1}', "torn"))
    migrate_complete(database, tmp_path)
    report = check(database, tmp_path)
    assert_identical(report)
    assert_all_compared(report)
    assert rows(database, "SELECT count(*) FROM iceburg_migration.positions") == [(0,)]
    run_sql(database, "UPDATE m.plain SET u = 'damaged' WHERE a = 1; DELETE FROM telemetry WHERE byte_offset = 0")
    run_sql(database, "INSERT INTO m.plain (a, u) VALUES (9, 'nobody')")
    assert differences(check(database, tmp_path)) == [
        ("e.jsonl", "[0]", "(record)", "a record", None),
        ("m.db/plain", "[1]", "u", "one", "damaged"),
        ("m.db/plain", "[9]", "(record)", None, _ROW),
    ]


def test_a_file_without_a_log_that_is_written_to(tmp_path: Path, database: str) -> None:
    change(tmp_path / "m.db", _TABLES)
    change(tmp_path / "m.db", "INSERT INTO plain (u) VALUES ('one')")
    migrate_complete(database, tmp_path)
    report = check(
        database, tmp_path, listener=Listener(lambda _: change(tmp_path / "m.db", "INSERT INTO plain DEFAULT VALUES"))
    )
    assert report.status == "different"
    ((problem),) = report.problems
    assert "not logged" in problem["problem"]
    assert "log install" in problem["problem"]


def test_what_was_never_migrated_or_attached_is_named(tmp_path: Path, database: str) -> None:
    change(tmp_path / "m.db", _TABLES)
    change(tmp_path / "armed.db", _TABLES)
    migrate_complete(database, tmp_path)
    change(tmp_path / "new.db", "CREATE TABLE t (a)")
    list(install_logs(discover(tmp_path, sqlite=["armed.db"]), lambda: None))
    (tmp_path / "gone.db").write_bytes((tmp_path / "m.db").read_bytes())
    migrate(database, tmp_path, narrowed=True)
    (tmp_path / "gone.db").unlink()
    change(tmp_path / "newer.db", "CREATE TABLE t (a)")
    run_sql(
        database,
        "DELETE FROM iceburg_migration.positions p USING iceburg_migration.sources s"
        " WHERE p.source_id = s.source_id AND s.name = 'armed.db'",
    )
    report = check(database, tmp_path)
    assert report.status == "different"
    problems = {problem["source"]: problem["problem"] for problem in report.problems}
    assert problems.keys() == {"newer.db", "armed.db", "gone.db"}
    assert "run `iceburg-db migrate`" in problems["newer.db"]
    assert "no position" in problems["armed.db"]
    assert "not in the data directory" in problems["gone.db"]
    assert {dataset.source for dataset in report.datasets} == {"m.db", "new.db"}
    report = check(database, tmp_path, sqlite=["m.db"], narrowed=True)
    assert_identical(report)


def test_a_position_of_another_log_is_named(installation: Installation) -> None:
    with closing(sqlite3.connect(installation.path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        change_log.remove(connection)
        connection.execute("COMMIT")
    # What is left is a file at rest.
    assert_identical(installation.check())
    list(install_logs(discover(installation.data_dir), lambda: None))
    assert "not the one applied" in installation.check().problems[0]["problem"]
    run_sql(installation.dsn, "UPDATE iceburg_migration.positions SET log_id = ''")
    assert "being migrated" in installation.check().problems[0]["problem"]


def test_a_log_that_is_replaced_meanwhile(installation: Installation) -> None:
    done: list[int] = []

    def replace(_event: Advance) -> None:
        if not done:
            done.append(1)
            with closing(sqlite3.connect(installation.path, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                change_log.remove(connection)
                change_log.install(connection, "m.db", "")
                connection.execute("COMMIT")

    ((problem),) = installation.check(listener=Listener(replace)).problems
    assert "taken out or replaced" in problem["problem"]


def test_shadow_tables_of_an_armed_file_are_passed_over(tmp_path: Path, database: str) -> None:
    change(tmp_path / "m.db", _TABLES + "CREATE VIRTUAL TABLE search USING fts5 (body)")
    list(install_logs(discover(tmp_path), lambda: None))
    migrate_complete(database, tmp_path)
    change(tmp_path / "m.db", "INSERT INTO search VALUES ('words')")
    report = check(database, tmp_path)
    assert_identical(report)
    assert "m.db/search_data" in {passed["dataset"] for passed in report.passed_over}


def test_it_stops_when_asked(installation: Installation) -> None:
    seen: list[Advance] = []
    with pytest.raises(StoppedError):
        installation.check(listener=Listener(seen.append), stopping=lambda: bool(seen))


def test_the_command(installation: Installation) -> None:
    outcome = run_program("check", installation.data_dir, "--dsn", installation.dsn, "--json")
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads(outcome.stdout)
    assert found["status"] == "identical"
    assert found.keys() >= {"status", "datasets", "differences", "unsettled"}
    assert found["datasets"][0].keys() >= {
        "dataset", "source", "source_rows", "target_rows", "compared_rows", "rechecked", "differences",
    }  # fmt: skip
    run_sql(installation.dsn, "UPDATE m.plain SET u = 'damaged' WHERE a = 1")
    started = time.monotonic()
    outcome = run_program("check", installation.data_dir, "--dsn", installation.dsn)
    assert time.monotonic() - started < 30
    assert outcome.returncode == 1
    for word in ("Different: m.db/plain, key [1], u:", "damaged", "rechecked"):
        assert word in outcome.stdout
    with contextlib.suppress(ValueError):
        raise AssertionError(json.loads(outcome.stdout))
    # Each number stands below its word; both end at the same place.
    header, row = (line for line in outcome.stdout.splitlines() if line.startswith(("dataset ", "m.db/plain ")))
    dataset = next(entry for entry in found["datasets"] if entry["dataset"] == "m.db/plain")
    for word, number in (
        ("source rows", dataset["source_rows"]),
        ("target rows", dataset["target_rows"]),
        ("quarantined", dataset["quarantined_rows"]),
        ("compared", dataset["compared_rows"]),
        ("differences", 1),
        ("unsettled", 0),
    ):
        end = header.index(word) + len(word)
        assert row[:end].endswith(f" {number:,}"), (word, header, row)
    narrowed = run_program("check", installation.data_dir, "--dsn", installation.dsn, "--sqlite", "none*")
    assert narrowed.returncode == 2
