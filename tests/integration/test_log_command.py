"""The commands that put change logs into SQLite files, take them out, and say how they stand."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from iceburg.database.applier import open_applier
from iceburg.database.connection import connect
from iceburg.database.embedded import EmbeddedServer
from iceburg.database.schema import schema_names
from iceburg.database.target_table import prepare_loaders
from iceburg.records import Store
from tests.conftest import FAST
from tests.support import CONVERSATIONS, ENTITIES, change, lines, migrate_complete, rows, run_program, run_sql, snapshot

_ODD = """
CREATE TABLE keyless (v TEXT);
CREATE VIEW people AS SELECT * FROM entities WHERE entity_type = 'person';
CREATE VIRTUAL TABLE search USING fts5 (body);
"""
_ADD = "INSERT INTO entities (entity_id, name, entity_type) VALUES ('{0}', 'Name', 'person')"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    change(directory / "m.db", ENTITIES + _ODD)
    change(directory / "m.db", _ADD.format("e1"))
    change(directory / "deep" / "c.db", CONVERSATIONS)
    (directory / "events.jsonl").write_bytes(lines('{"event_type": "e"}'))
    return directory


def run(tmp_path: Path, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """Run a command with a home in which there is no server, and return its document."""
    outcome = run_program("log", *arguments, "--json", ICEBURG_HOME=str(tmp_path / "home"))
    assert outcome.returncode == code, outcome.stderr + outcome.stdout
    found: dict[str, Any] = json.loads(outcome.stdout)
    return found


def log(found: dict[str, Any], store: str) -> dict[str, Any]:
    return next(entry for entry in found["logs"] if entry["store"] == store)


def schema_of(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "SELECT * FROM sqlite_master WHERE name <> 'sqlite_sequence' ORDER BY name"
        ).fetchall()


def entries(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT tbl, op FROM _iceburg_changes ORDER BY seq").fetchall()


def test_installing_arms_every_file_and_needs_no_server(data: Path, tmp_path: Path) -> None:
    found = run(tmp_path, "install", data)
    assert found["status"] == "complete"
    matrix = log(found, "m.db")
    assert matrix["tables"] == matrix["new_tables"] == ["entities", "keyless"]
    left_out = {(entry["kind"], entry["name"]) for entry in matrix["not_logged"]}
    assert {("view", "people"), ("virtual table", "search"), ("shadow table", "search_data")} <= left_out
    assert all(entry["why"] for entry in matrix["not_logged"])
    assert log(found, "deep/c.db")["tables"] == ["conversations"]
    assert log(found, "events.jsonl")["note"] == "the file is its own log"
    change(data / "m.db", _ADD.format("e2"))
    assert entries(data / "m.db") == [("entities", "t")]
    assert not (tmp_path / "home").exists()


def test_installing_again_changes_nothing(data: Path, tmp_path: Path) -> None:
    run(tmp_path, "install", data)
    before = schema_of(data / "m.db")
    again = run(tmp_path, "install", data)
    assert log(again, "m.db")["tables"] == ["entities", "keyless"]
    assert log(again, "m.db")["new_tables"] == []
    assert schema_of(data / "m.db") == before
    assert entries(data / "m.db") == []


def test_installing_again_takes_in_new_tables_whole(data: Path, tmp_path: Path) -> None:
    run(tmp_path, "install", data)
    change(data / "m.db", "CREATE TABLE later (a INTEGER PRIMARY KEY); INSERT INTO later VALUES (1)")
    assert log(run(tmp_path, "status", data), "m.db")["waiting_tables"] == ["later"]
    assert log(run(tmp_path, "install", data), "m.db")["new_tables"] == ["later"]
    assert entries(data / "m.db") == [("later", "r")]
    assert log(run(tmp_path, "status", data), "m.db")["waiting_tables"] == []


def test_a_file_that_cannot_be_armed_stops_no_other(data: Path, tmp_path: Path) -> None:
    change(data / "a.db", "CREATE TABLE t (a TEXT); CREATE UNIQUE INDEX i ON t (lower(a))")
    (data / "b.db").write_bytes(b"this is no database, whatever its name says")
    before = schema_of(data / "a.db")
    found = run(tmp_path, "install", data, code=1)
    assert found["status"] == "incomplete"
    assert "table t" in log(found, "a.db")["problem"]
    assert "Drop the index" in log(found, "a.db")["problem"]
    assert log(found, "b.db")["problem"]
    assert log(found, "m.db")["problem"] is None
    assert log(found, "m.db")["tables"]
    assert schema_of(data / "a.db") == before


def test_a_locked_file_is_left_and_named(data: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(data / "m.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        found = run(tmp_path, "install", data, code=1)
        connection.execute("ROLLBACK")
    assert "lock" in log(found, "m.db")["problem"]
    assert log(found, "deep/c.db")["problem"] is None


def test_the_patterns_narrow_it(data: Path, tmp_path: Path) -> None:
    found = run(tmp_path, "install", data, "--sqlite", "deep/*")
    assert [entry["store"] for entry in found["logs"]] == ["deep/c.db"]
    found = run(tmp_path, "install", data, "--exclude", "deep", "--exclude", "*.jsonl")
    assert [entry["store"] for entry in found["logs"]] == ["m.db"]
    outcome = run_program("log", "install", data, "--sqlite", "none*", "--json")
    assert outcome.returncode == 2


def test_status_changes_nothing(data: Path, tmp_path: Path) -> None:
    run(tmp_path, "install", data, "--sqlite", "m.db")
    change(data / "m.db", _ADD.format("e2"))
    before = snapshot(data)
    found = run(tmp_path, "status", data)
    assert snapshot(data) == before
    matrix, conversations = log(found, "m.db"), log(found, "deep/c.db")
    assert (matrix["armed"], matrix["last"], matrix["entries"]) == (True, 1, 1)
    assert matrix["log_id"]
    assert matrix["armed_at"]
    assert (matrix["position"], matrix["pending"]) == (None, None)
    assert conversations["armed"] is False
    assert log(found, "events.jsonl")["last"] == 20
    assert found["target"] is None
    assert not (tmp_path / "home").exists()


def test_an_empty_log_is_removed_without_a_trace(data: Path, tmp_path: Path) -> None:
    before = schema_of(data / "m.db")
    run(tmp_path, "install", data)
    found = run(tmp_path, "remove", data)
    assert (log(found, "m.db")["removed"], log(found, "m.db")["entries"]) == (True, 0)
    # SQLite itself moves the pages of a schema about; what is in it is the same.
    assert [row[:3] + row[4:] for row in schema_of(data / "m.db")] == [row[:3] + row[4:] for row in before]
    quiet = snapshot(data)
    assert log(run(tmp_path, "remove", data), "m.db")["removed"] is False
    assert snapshot(data) == quiet


def test_entries_that_nobody_can_vouch_for_are_kept(data: Path, tmp_path: Path) -> None:
    run(tmp_path, "install", data)
    change(data / "m.db", _ADD.format("e2"))
    found = run(tmp_path, "remove", data, code=1)
    assert "not known" in log(found, "m.db")["problem"]
    assert "--force" in log(found, "m.db")["problem"]
    assert log(found, "deep/c.db")["removed"] is True
    assert entries(data / "m.db") == [("entities", "t")]
    found = run(tmp_path, "remove", data, "--force")
    assert (log(found, "m.db")["removed"], log(found, "m.db")["entries"]) == (True, 1)
    assert log(found, "m.db")["pending"] is None


@pytest.fixture
def attached(data: Path, tmp_path: Path, database: str) -> tuple[str, Path]:
    """An installation whose m.db is armed, migrated, and written to once since."""
    run(tmp_path, "install", data, "--sqlite", "m.db")
    change(data / "m.db", _ADD.format("e2"))
    migrate_complete(database, data)
    change(data / "m.db", _ADD.format("e3"))
    change(data / "m.db", _ADD.format("e4"))
    return database, data


def apply(dsn: str, data: Path) -> None:
    applier = open_applier(Store("sqlite", data / "m.db", "m.db"), data / "m.db", schema_names(None))
    with connect(dsn, autocommit=True) as connection:
        prepare_loaders(connection)
        applier.apply(connection)
    applier.close()


def test_status_says_what_is_pending(attached: tuple[str, Path], tmp_path: Path) -> None:
    dsn, data = attached
    found = run(tmp_path, "status", data, "--dsn", dsn)
    matrix = log(found, "m.db")
    assert (matrix["last"], matrix["entries"], matrix["position"], matrix["pending"]) == (3, 3, 1, 2)
    apply(dsn, data)
    matrix = log(run(tmp_path, "status", data, "--dsn", dsn), "m.db")
    assert (matrix["last"], matrix["position"], matrix["pending"]) == (3, 3, 0)
    plain = run_program("log", "status", data, "--dsn", dsn)
    assert plain.returncode == 0
    assert matrix["log_id"][:12] in plain.stdout


def test_status_says_that_the_server_did_not_answer(data: Path, tmp_path: Path) -> None:
    run(tmp_path, "install", data)
    found = run(tmp_path, "status", data, "--dsn", "postgresql://a:secret@127.0.0.1:1/none", code=1)
    assert "127.0.0.1" in found["target_problem"]
    assert "secret" not in json.dumps(found)
    assert log(found, "m.db")["armed"] is True


def test_what_is_pending_keeps_the_log(attached: tuple[str, Path], tmp_path: Path) -> None:
    dsn, data = attached
    found = run(tmp_path, "remove", data, "--dsn", dsn, code=1)
    assert "of the 3 entries of its log 2 are not" in log(found, "m.db")["problem"]
    assert len(entries(data / "m.db")) == 3
    apply(dsn, data)
    found = run(tmp_path, "remove", data, "--dsn", dsn)
    assert (log(found, "m.db")["removed"], log(found, "m.db")["entries"], log(found, "m.db")["pending"]) == (True, 3, 0)
    # What is there now is migrated as any file is.
    migrate_complete(dsn, data)


def test_force_removes_what_is_pending_and_says_how_much(attached: tuple[str, Path], tmp_path: Path) -> None:
    dsn, data = attached
    found = run(tmp_path, "remove", data, "--dsn", dsn, "--force")
    assert (log(found, "m.db")["entries"], log(found, "m.db")["pending"]) == (3, 2)
    migrate_complete(dsn, data)
    assert rows(dsn, "SELECT count(*) FROM matrix_entities") == [(4,)]


@pytest.mark.parametrize(
    ("log_id", "word"), [("", "migrated"), ("another", "not the one applied")], ids=["migrated", "another log"]
)
def test_a_position_of_another_log_vouches_for_nothing(
    attached: tuple[str, Path], tmp_path: Path, log_id: str, word: str
) -> None:
    dsn, data = attached
    apply(dsn, data)
    run_sql(dsn, "UPDATE iceburg_migration.positions SET log_id = %s", (log_id,))
    assert word in log(run(tmp_path, "remove", data, "--dsn", dsn, code=1), "m.db")["problem"]
    assert word in log(run(tmp_path, "status", data, "--dsn", dsn), "m.db")["note"]


def test_the_installations_own_database_is_asked_and_none_is_made(data: Path, server_home: Path) -> None:
    def run_here(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return run_program("log", *arguments, "--json", ICEBURG_HOME=str(server_home))

    run_here("install", data)
    change(data / "m.db", _ADD.format("e2"))
    server = EmbeddedServer(server_home, overrides=FAST)
    server.ensure_running()
    # A server in which this installation has no database: nothing is known, and none is made.
    found = json.loads(run_here("status", data).stdout)
    assert (found["target"], server.status().databases) == (None, ())
    dsn = server.database_for(data)
    migrate_complete(dsn, data)
    found = json.loads(run_here("status", data).stdout)
    assert (log(found, "m.db")["position"], log(found, "m.db")["pending"]) == (1, 0)
    # One that was stopped is started: what it has is the only way to know.
    server.stop("fast")
    outcome = run_here("remove", data)
    assert outcome.returncode == 0, outcome.stdout
    assert log(json.loads(outcome.stdout), "m.db")["pending"] == 0
    with psycopg.connect(server.database_for(data)) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
