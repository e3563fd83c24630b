"""The contract of the command line, as a user or a script meets it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance import compare_installations
from tests.databases import fresh_database
from tests.support import CONVERSATIONS, ENTITIES, change, lines, migrate_fully, rows, run_program, run_sql, snapshot

MIGRATE_FIELDS = {"run_id", "status", "seconds", "datasets"}
MIGRATED_DATASET_FIELDS = {
    "dataset", "source", "source_rows", "target_rows", "quarantined_rows", "preserved_originals", "seconds",
}  # fmt: skip
VERIFY_FIELDS = {"status", "datasets", "differences", "queries"}
VERIFIED_DATASET_FIELDS = {
    "dataset", "source", "source_rows", "target_rows", "quarantined_rows", "compared_rows", "differences",
}  # fmt: skip


def write(directory: Path, *, quarantine: bool = False) -> Path:
    change(directory / "m.db", ENTITIES + CONVERSATIONS + "CREATE TABLE t (k TEXT PRIMARY KEY, v TEXT)")
    change(directory / "m.db", "INSERT INTO t VALUES ('a', 'A'), ('b', 'B' || char(0))")
    change(directory / "m.db", "INSERT INTO entities (entity_id, name, entity_type) VALUES ('e1', 'N', 'person')")
    (directory / "events.jsonl").write_bytes(lines('{"event_type": "e"}', *(["torn"] if quarantine else [])))
    return directory


def run(command: str, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in one process, which for a few records is quicker."""
    return run_program(command, *arguments, "--jobs", "1", **variables)


def document(outcome: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the one JSON document on standard output."""
    found: dict[str, Any] = json.loads(outcome.stdout)
    assert outcome.stdout.isascii()
    return found


@pytest.fixture(scope="module")
def migrated(server_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    directory = write(tmp_path_factory.mktemp("cli") / "data")
    with fresh_database(server_dsn) as dsn:
        migrate_fully(dsn, directory)
        yield dsn, directory


def test_migrate_prints_one_document_and_progress_elsewhere(tmp_path: Path, database: str) -> None:
    directory = write(tmp_path / "data")
    outcome = run_program("migrate", directory, "--dsn", database, "--json")
    assert outcome.returncode == 0, outcome.stderr
    found = document(outcome)
    assert found.keys() >= MIGRATE_FIELDS
    assert found["status"] == "complete"
    assert {part["dataset"] for part in found["datasets"]} == {
        "m.db/entities", "m.db/conversations", "m.db/t", "events.jsonl",
    }  # fmt: skip
    for part in found["datasets"]:
        assert part.keys() >= MIGRATED_DATASET_FIELDS
        assert part["source_rows"] == part["target_rows"] + part["quarantined_rows"]
    assert next(p for p in found["datasets"] if p["dataset"] == "m.db/t")["preserved_originals"] == 1
    assert "target" in outcome.stderr


def test_quarantined_records_make_the_exit_status_1(tmp_path: Path, database: str) -> None:
    directory = write(tmp_path / "data", quarantine=True)
    outcome = run("migrate", directory, "--dsn", database)
    assert outcome.returncode == 1
    assert "quarantined" in outcome.stdout
    assert run("verify", directory, "--dsn", database).returncode == 0
    # A second run has nothing to copy; the records are still in quarantine.
    again = run("migrate", directory, "--dsn", database)
    assert again.returncode == 1
    assert "othing" in again.stdout


def test_verify_prints_one_document(migrated: tuple[str, Path]) -> None:
    dsn, directory = migrated
    outcome = run("verify", directory, "--dsn", dsn, "--json")
    assert outcome.returncode == 0, outcome.stderr
    found = document(outcome)
    assert found.keys() >= VERIFY_FIELDS
    assert (found["status"], found["differences"]) == ("identical", [])
    for part in found["datasets"]:
        assert part.keys() >= VERIFIED_DATASET_FIELDS
        assert part["compared_rows"] == part["source_rows"]


def test_verify_names_a_difference(tmp_path: Path, database: str) -> None:
    directory = write(tmp_path / "data")
    migrate_fully(database, directory)
    run_sql(database, "UPDATE m.t SET v = 'changed' WHERE k = 'a'")
    outcome = run("verify", directory, "--dsn", database, "--json")
    assert outcome.returncode == 1
    found = document(outcome)
    assert found["status"] == "different"
    assert found["differences"] == [
        {"dataset": "m.db/t", "key": '["a"]', "field": "v", "source": "A", "target": "changed", "found_by": "records"}
    ]
    plain = run("verify", directory, "--dsn", database)
    assert plain.returncode == 1
    for word in ("m.db/t", '["a"]', "changed", "Different"):
        assert word in plain.stdout


def test_the_dsn_may_come_from_the_environment(migrated: tuple[str, Path]) -> None:
    dsn, directory = migrated
    outcome = run("verify", directory, "--json", DATABASE_URL=dsn)
    assert outcome.returncode == 0
    assert document(outcome)["status"] == "identical"


def test_nothing_to_copy_is_said(migrated: tuple[str, Path]) -> None:
    dsn, directory = migrated
    before = snapshot(directory)
    outcome = run("migrate", directory, "--dsn", dsn)
    assert outcome.returncode == 0
    assert "othing" in outcome.stdout
    assert snapshot(directory) == before


def test_inspect_and_status_print_one_document(migrated: tuple[str, Path]) -> None:
    dsn, directory = migrated
    inspected = run_program("inspect", directory, "--json")
    assert inspected.returncode == 0
    document(inspected)
    status = run_program("status", directory, "--dsn", dsn, "--json")
    assert status.returncode == 0
    assert document(status)["status"] == "complete"


UNREACHABLE = "postgresql://nobody:secret@127.0.0.1:1/nothing"
WRONG: dict[str, tuple[list[str], str]] = {
    "no such directory": (["migrate", "{empty}/none", "--dsn", "{dsn}"], "none"),
    "a file for a directory": (["migrate", "{data}/m.db", "--dsn", "{dsn}"], "m.db"),
    "nothing in it": (["migrate", "{empty}", "--dsn", "{dsn}"], "Is it the right directory?"),
    "nothing matches": (["migrate", "{data}", "--dsn", "{dsn}", "--sqlite", "x*"], "patterns"),
    "server not reachable": (["migrate", "{data}", "--dsn", UNREACHABLE], "127.0.0.1"),
    "malformed DSN": (["migrate", "{data}", "--dsn", "nonsense"], "malformed"),
    "empty DSN": (["migrate", "{data}", "--dsn", ""], "--dsn is empty"),
    "no such database": (["migrate", "{data}", "--dsn", "{dsn} dbname=none_such"], "none_such"),
    "a schema of PostgreSQL's": (["migrate", "{data}", "--dsn", "{dsn}", "--schema", "pg_x"], "pg_"),
    "an empty schema": (["migrate", "{data}", "--dsn", "{dsn}", "--schema", ""], "--schema"),
    "an unknown kind of index": (["migrate", "{data}", "--dsn", "{dsn}", "--vector-index", "btree"], "hnsw"),
    "a store that is there forgotten": (["migrate", "{data}", "--dsn", "{dsn}", "--forget", "m.db"], "is there"),
    "an excluded store forgotten": (
        ["migrate", "{data}", "--dsn", "{dsn}", "--exclude", "m.db", "--forget", "m.db"],
        "is there",
    ),
    "an unknown store forgotten": (["migrate", "{data}", "--dsn", "{dsn}", "--forget", "x.db"], "never migrated"),
    "another installation": (["migrate", "{other}", "--dsn", "{dsn}"], "--moved"),
    "another installation, with a store to forget": (
        ["migrate", "{other}", "--dsn", "{dsn}", "--forget", "events.jsonl"],
        "is there",
    ),
    "verify before migrate": (["verify", "{data}", "--dsn", "{dsn}", "--schema", "never"], "migrate"),
    "status before migrate": (["status", "{data}", "--dsn", "{dsn}", "--schema", "never"], "migrate"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_run_says_why_and_what_to_do(migrated: tuple[str, Path], tmp_path: Path, what: str) -> None:
    dsn, directory = migrated
    arguments, word = WRONG[what]
    change(tmp_path / "other" / "z.db", "CREATE TABLE t (a)")
    (tmp_path / "empty").mkdir()
    places = {"data": directory, "empty": tmp_path / "empty", "other": tmp_path / "other", "dsn": dsn}
    before = rows(dsn, "SELECT count(*), (SELECT count(*) FROM telemetry) FROM m.t")
    outcome = run_program(*(argument.format(**places) for argument in arguments), "--json")
    assert outcome.returncode == 2
    assert outcome.stderr.splitlines()[-1] or outcome.stderr
    assert "Error: " in outcome.stderr
    assert word in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "secret" not in outcome.stderr + outcome.stdout
    found = document(outcome)
    assert found["status"] == "error"
    assert found["error"]
    assert rows(dsn, "SELECT count(*), (SELECT count(*) FROM telemetry) FROM m.t") == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["migrate"],
        ["migrate", ".", "--no-such-option"],
        ["migrate", ".", "--jobs", "0"],
        ["migrate", ".", "--batch-size", "many"],
        ["no-such-command"],
    ],
)
def test_what_the_command_line_does_not_have_is_refused(arguments: list[str]) -> None:
    outcome = run_program(*arguments)
    assert outcome.returncode == 2
    assert outcome.stdout == ""
    assert "Usage" in outcome.stderr


def test_a_store_that_is_gone_can_be_forgotten(tmp_path: Path, database: str) -> None:
    directory = write(tmp_path / "data", quarantine=True)
    migrate_fully(database, directory)
    (directory / "events.jsonl").unlink()
    missing = run("migrate", directory, "--dsn", database, "--json")
    assert missing.returncode == 1
    assert [problem["source"] for problem in document(missing)["problems"]] == ["events.jsonl"]
    assert rows(database, "SELECT count(*) FROM telemetry") == [(1,)]
    outcome = run("migrate", directory, "--dsn", database, "--forget", "events.jsonl", "--json")
    assert outcome.returncode == 0, outcome.stderr
    assert document(outcome)["status"] == "complete"
    assert rows(database, "SELECT count(*), (SELECT count(*) FROM iceburg_migration.quarantine) FROM telemetry") == [
        (0, 0)
    ]
    (directory / "m.db").rename(directory / "n.db")
    outcome = run("migrate", directory, "--dsn", database, "--forget", "m.db", "--json")
    assert outcome.returncode == 0, outcome.stderr
    assert rows(database, "SELECT to_regclass('m.t') IS NULL, count(*) FROM n.t") == [(True, 2)]
    assert rows(database, "SELECT count(*) FROM matrix_entities") == [(1,)]


def test_an_installation_that_was_moved(tmp_path: Path, database: str) -> None:
    directory = write(tmp_path / "data")
    migrate_fully(database, directory)
    moved = directory.rename(tmp_path / "elsewhere")
    assert run("migrate", moved, "--dsn", database).returncode == 2
    outcome = run("migrate", moved, "--dsn", database, "--moved", "--json")
    assert outcome.returncode == 0
    assert document(outcome)["unchanged"] is True


def test_a_part_of_the_stores_can_be_chosen(tmp_path: Path, database: str) -> None:
    directory = write(tmp_path / "data")
    outcome = run("migrate", directory, "--dsn", database, "--exclude", "*.jsonl", "--json")
    assert outcome.returncode == 0
    assert {part["source"] for part in document(outcome)["datasets"]} == {"m.db"}
    assert run("verify", directory, "--dsn", database, "--exclude", "*.jsonl").returncode == 0
    assert run("verify", directory, "--dsn", database).returncode == 1
    # What is left out is not taken for gone.
    migrate_fully(database, directory)
    outcome = run("migrate", directory, "--dsn", database, "--jsonl", "*", "--json")
    assert (outcome.returncode, document(outcome)["problems"]) == (0, [])


def test_the_demo_works_twice_in_a_row(tmp_path: Path, database: str) -> None:
    for _ in range(2):
        outcome = run("demo", tmp_path / "demo", "--entities", "100", "--dsn", database, "--json")
        found = document(outcome)
        assert found["migrate"]["status"] == "complete"
        assert found["verify"]["status"] == "identical"
        assert found["rollback"]["differences"] == []
        # The generated installation has records that PostgreSQL cannot hold.
        assert outcome.returncode in (0, 1)
    assert found["migrate"]["unchanged"] is True
    assert compare_installations.compare(tmp_path / "demo", tmp_path / "demo-restored") == []
    refused = run("demo", tmp_path / "demo", "--entities", "200", "--dsn", database)
    assert refused.returncode == 2
    assert "100 entities" in refused.stderr
