"""The command rollback, as a user or a script meets it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iceburg.demo.generator import generate
from tests.acceptance import compare_installations
from tests.databases import fresh_database
from tests.support import (
    REPOSITORY,
    change,
    environment,
    lines,
    migrate_complete,
    run_program,
    run_sql,
    snapshot,
    start_program,
)

FIELDS = {"status", "seconds", "as_of", "output", "in_place", "stores", "datasets", "differences", "problems", "notes"}
DATASET_FIELDS = {
    "dataset", "source", "target_rows", "quarantined_rows", "restored_rows", "changed_rows", "compared_rows",
    "differences",
}  # fmt: skip


def document(outcome: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the one JSON document on standard output."""
    found: dict[str, Any] = json.loads(outcome.stdout)
    assert outcome.stdout.isascii()
    return found


@pytest.fixture(scope="module")
def migrated(server_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    directory = tmp_path_factory.mktemp("command") / "data"
    change(directory / "t.db", "CREATE TABLE t (k TEXT PRIMARY KEY, v TEXT); INSERT INTO t VALUES ('a', 'A')")
    (directory / "events.jsonl").write_bytes(lines('{"event_type": "e"}', "torn"))
    with fresh_database(server_dsn) as dsn:
        migrate_complete(dsn, directory)
        yield dsn, directory


def test_one_document_and_progress_elsewhere(migrated: tuple[str, Path], tmp_path: Path) -> None:
    dsn, directory = migrated
    outcome = run_program("rollback", directory, tmp_path / "out", "--dsn", dsn, "--jobs", "1", "--json")
    assert outcome.returncode == 0, outcome.stderr
    found = document(outcome)
    assert found.keys() == FIELDS
    assert (found["status"], found["in_place"], found["differences"]) == ("complete", False, [])
    assert {store["store"]: store["state"] for store in found["stores"]} == {
        "events.jsonl": "written", "t.db": "written",
    }  # fmt: skip
    for part in found["datasets"]:
        assert part.keys() == DATASET_FIELDS
        assert part["restored_rows"] == part["target_rows"] + part["quarantined_rows"]
    assert "target" in outcome.stderr
    assert compare_installations.compare(directory, tmp_path / "out") == []


def test_what_a_person_reads(migrated: tuple[str, Path], tmp_path: Path) -> None:
    dsn, directory = migrated
    outcome = run_program("rollback", directory, tmp_path / "out", "--dsn", dsn, "--jobs", "1")
    assert outcome.returncode == 0, outcome.stderr
    for word in ("t.db/t", "written", "Complete: 3 records restored and compared", str(tmp_path / "out")):
        assert word in outcome.stdout
    planned = run_program("rollback", directory, "--in-place", "--dry-run", "--dsn", dsn)
    assert planned.returncode == 0, planned.stderr
    assert "Complete: 0 records changed" in planned.stdout


def test_differences_make_the_status_1(migrated: tuple[str, Path], tmp_path: Path, database: str) -> None:
    directory = tmp_path / "data"
    change(directory / "t.db", "CREATE TABLE t (k TEXT PRIMARY KEY, v TEXT); INSERT INTO t VALUES ('a', 'A')")
    migrate_complete(database, directory)
    arguments = ("rollback", directory, tmp_path / "out", "--dsn", database, "--jobs", "1")
    assert run_program(*arguments).returncode == 0
    run_sql(database, "UPDATE t.t SET v = 'later'")
    outcome = run_program(*arguments)
    assert outcome.returncode == 1
    for word in ("Different: t.db/t", "later", "another directory"):
        assert word in outcome.stdout


def test_the_script_is_the_command(migrated: tuple[str, Path], tmp_path: Path) -> None:
    dsn, directory = migrated
    script = REPOSITORY / "scripts" / "rollback_to_sqlite.py"
    outcome = subprocess.run(
        [sys.executable, script, directory, tmp_path / "out", "--dsn", dsn, "--jobs", "1", "--json"],
        env=environment(), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (outcome.returncode, document(outcome)["status"]) == (0, "complete")


WRONG: dict[str, tuple[list[str], str]] = {
    "no directory to write to": (["{data}"], "--in-place"),
    "both": (["{data}", "{out}", "--in-place"], "writes no directory"),
    "a dry run of a directory": (["{data}", "{out}", "--dry-run"], "--in-place only"),
    "a directory with something in it": (["{data}", "{full}"], "not empty"),
    "a directory in the installation": (["{data}", "{data}/out"], "in the installation"),
    "another installation": (["{out}", "{full}"], "holds the installation"),
    "never migrated": (["{data}", "{out}", "--schema", "never"], "migrate"),
    "nothing matches": (["{data}", "{out}", "--sqlite", "x*"], "nothing to restore"),
    "a Python that is none": (["{data}", "{out}", "--chroma-python", "{data}/t.db"], "--chroma-python"),
    "a program that is no Python with chromadb": (["{data}", "{out}", "--chroma-python", "{false}"], "has chromadb"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_run_says_why_and_what_to_do(migrated: tuple[str, Path], tmp_path: Path, what: str) -> None:
    dsn, directory = migrated
    arguments, word = WRONG[what]
    before = snapshot(directory)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    places = {"data": directory, "full": tmp_path / "full", "out": tmp_path / "out", "false": shutil.which("false")}
    outcome = run_program("rollback", *(a.format(**places) for a in arguments), "--dsn", dsn, "--json")
    assert outcome.returncode == 2
    assert "Error: " in outcome.stderr
    assert word in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert document(outcome)["status"] == "error"
    assert snapshot(directory) == before
    assert not (tmp_path / "out").exists()


def test_an_installation_that_the_embedded_server_does_not_know_makes_nothing(tmp_path: Path) -> None:
    outcome = run_program("rollback", tmp_path / "none", tmp_path / "out", ICEBURG_HOME=str(tmp_path / "home"))
    assert outcome.returncode == 2
    assert "no database of this installation" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_stops_between_batches_and_the_next_run_goes_on(tmp_path: Path, database: str) -> None:
    directory = tmp_path / "data"
    generate(directory, entities=2000, vectors=0, conversations=50, metadata_rows=20, lines=50, seed=4)
    migrate_complete(database, directory)
    arguments = ("rollback", directory, tmp_path / "out", "--dsn", database, "--no-chromadb")
    program = start_program(*arguments)
    while not (tmp_path / "out").exists() and program.poll() is None:
        time.sleep(0.005)
    program.send_signal(signal.SIGINT)
    _, words = program.communicate()
    assert program.returncode == 130, words
    assert "Traceback" not in words
    assert "Run the same command again" in words
    again = run_program(*arguments)
    assert again.returncode == 0, again.stdout
    assert compare_installations.compare(directory, tmp_path / "out") == []
