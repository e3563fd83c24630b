"""SIGINT and SIGTERM stop between batches; a second run beside the first is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psycopg
import pytest

from tests.support import ENTITIES, change, migrate_fully, rows, run_program, some_entities, start_program

BATCHES = ("--batch-size", "20")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    found = tmp_path / "data"
    change(found / "m.db", ENTITIES + "CREATE TABLE t (k TEXT PRIMARY KEY, v TEXT);")
    statement = "INSERT INTO entities (entity_id, name, entity_type, properties) VALUES (?, ?, ?, ?)"
    change(found / "m.db", statement, *some_entities(6000))
    change(found / "m.db", "INSERT INTO t VALUES (?, ?)", *((f"k{n}", "v") for n in range(6000)))
    return found


def batches(dsn: str) -> int:
    if rows(dsn, "SELECT to_regclass('iceburg_migration.chunks') IS NULL") == [(True,)]:
        return 0
    return int(rows(dsn, "SELECT count(*) FROM iceburg_migration.chunks")[0][0])


def wait_for_batches(program: subprocess.Popen[str], dsn: str, count: int) -> None:
    while batches(dsn) < count:
        assert program.poll() is None, program.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_between_two_batches(
    directory: Path, database: str, number: signal.Signals, status: int, jobs: str
) -> None:
    program = start_program("migrate", directory, "--dsn", database, "--jobs", jobs, "--json", *BATCHES)
    wait_for_batches(program, database, 5)
    with psycopg.connect(database) as connection:
        # Or a program that is quicker than this test would be done before it hears the signal.
        connection.execute("LOCK TABLE iceburg_migration.chunks IN SHARE ROW EXCLUSIVE MODE")
        # A terminal sends Ctrl-C to all processes of the group; a supervisor sends SIGTERM to the main one.
        if number == signal.SIGINT:
            os.killpg(program.pid, number)
        else:
            program.send_signal(number)
        time.sleep(0.5)
    output, said = program.communicate(timeout=30)
    assert program.returncode == status, said
    assert "Stopping after this batch" in said
    assert "Traceback" not in said
    document = json.loads(output)
    assert (document["status"], document["interrupted"]) == ("incomplete", True)
    assert 0 < batches(database) < 600
    assert rows(database, "SELECT status FROM iceburg_migration.runs") == [("interrupted",)]
    migrate_fully(database, directory)
    assert rows(database, "SELECT sum(rows)::int FROM iceburg_migration.chunks") == [(12000,)]


@pytest.mark.parametrize("delay", [0.05, 0.3, 0.6, 0.9, 1.2])
def test_ctrl_c_at_the_start_leaves_no_traceback(directory: Path, database: str, delay: float) -> None:
    program = start_program("migrate", directory, "--dsn", database, "--jobs", "2", *BATCHES)
    time.sleep(delay)
    os.killpg(program.pid, signal.SIGINT)
    _, said = program.communicate(timeout=30)
    # Until our handlers are there, Python's own ends the program; then there is nothing to be stopped between.
    if "Stopping" in said:
        assert "Traceback" not in said
        assert program.returncode == 130
    else:
        assert program.returncode in (-signal.SIGINT, 130, 1)
    migrate_fully(database, directory)


def test_a_second_signal_stops_at_once(directory: Path, database: str) -> None:
    program = start_program("migrate", directory, "--dsn", database, "--jobs", "2", *BATCHES)
    wait_for_batches(program, database, 3)
    # A stopped process takes both signals when it goes on.
    program.send_signal(signal.SIGSTOP)
    program.send_signal(signal.SIGINT)
    program.send_signal(signal.SIGTERM)
    program.send_signal(signal.SIGCONT)
    _, said = program.communicate(timeout=30)
    assert program.returncode in (130, 143)
    assert "Stopped at once" in said
    migrate_fully(database, directory)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_verification(directory: Path, database: str, number: signal.Signals, status: int) -> None:
    migrate_fully(database, directory)
    # A verification that waits for a lock is certain not to be over yet.
    with psycopg.connect(database) as connection:
        connection.execute("LOCK TABLE matrix_entities")
        program = start_program("verify", directory, "--dsn", database, "--jobs", "1")
        # Of this database: in others there are other tests.
        while not rows(database, "SELECT FROM pg_locks WHERE NOT granted AND relation = 'matrix_entities'::regclass"):
            assert program.poll() is None
            time.sleep(0.02)
        program.send_signal(number)
        time.sleep(0.2)
        connection.rollback()
    _, said = program.communicate(timeout=30)
    assert program.returncode == status, said
    assert "Stopped" in said
    assert "Traceback" not in said


def test_a_second_run_is_refused_while_one_is_running(directory: Path, database: str) -> None:
    program = start_program("migrate", directory, "--dsn", database, "--jobs", "1", *BATCHES)
    wait_for_batches(program, database, 3)
    program.send_signal(signal.SIGSTOP)
    try:
        second = run_program("migrate", directory, "--dsn", database)
        status = run_program("status", directory, "--dsn", database, "--json")
    finally:
        program.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert "Another migration of this target is running" in second.stderr
    assert "status" in second.stderr
    document = json.loads(status.stdout)
    assert (status.returncode, document["status"]) == (0, "incomplete")
    assert document["runs"][0]["status"] == "running"
    _, said = program.communicate(timeout=60)
    assert program.returncode == 0, said
    migrate_fully(database, directory)
