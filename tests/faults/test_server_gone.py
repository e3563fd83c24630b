"""PostgreSQL goes away in the middle of a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest

from iceburg.database.embedded import EmbeddedServer
from tests.conftest import FAST
from tests.faults.test_interrupt import wait_for_batches
from tests.faults.test_kill import children
from tests.support import change, migrate_fully, rows, run_program, start_program

# A server that is stopped at once has to find after a crash what it had said was written.
DURABLE = FAST | {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}

_WAITING = "FROM pg_locks WHERE relation = 'iceburg_migration.chunks'::regclass AND NOT granted"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    change(tmp_path / "data" / "m.db", "CREATE TABLE t (k TEXT PRIMARY KEY, v TEXT); CREATE TABLE u (v TEXT)")
    change(tmp_path / "data" / "m.db", "INSERT INTO t VALUES (?, ?)", *((f"k{n}", "v") for n in range(6000)))
    change(tmp_path / "data" / "m.db", "INSERT INTO u VALUES (?)", *((f"{n}\0",) for n in range(3000)))
    return tmp_path / "data"


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_server_that_stops_at_once_is_an_error_and_the_next_run_goes_on(
    directory: Path, server_home: Path, jobs: str
) -> None:
    server = EmbeddedServer(server_home, overrides=DURABLE)
    dsn = server.database_for(directory)
    program = start_program("migrate", directory, "--dsn", dsn, "--jobs", jobs, "--batch-size", "20", "--json")
    wait_for_batches(program, dsn, 20)
    with closing(psycopg.connect(dsn)) as connection:
        connection.execute("LOCK TABLE iceburg_migration.chunks IN SHARE ROW EXCLUSIVE MODE")
        server.stop("immediate")
    output, said = program.communicate(timeout=60)
    assert program.returncode == 2, said
    assert "Traceback" not in said
    assert "Error: " in said
    assert "un the command again" in said
    assert json.loads(output)["status"] == "error"
    refused = run_program("migrate", directory, "--dsn", dsn)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    server.ensure_running()
    # The batches of the last moments are lost, each with its position.
    ((copied, noted),) = rows(
        dsn,
        "SELECT (SELECT count(*) FROM m.t) + (SELECT count(*) FROM m.u), coalesce(sum(rows), 0)"
        " FROM iceburg_migration.chunks",
    )
    assert copied == noted < 9000
    migrate_fully(dsn, directory, batch_size=20)
    assert rows(dsn, "SELECT count(*), (SELECT count(*) FROM m.u) FROM m.t") == [(6000, 3000)]
    assert rows(dsn, "SELECT count(*) FROM iceburg_migration.originals") == [(3000,)]


@contextmanager
def at_work(directory: Path, database: str) -> Iterator[subprocess.Popen[str]]:
    """Start a migration, and hold its workers at their first batch: they are quick, and would be done."""
    change(directory / "first.db", "CREATE TABLE first (a)")
    made = run_program("migrate", directory, "--dsn", database, "--sqlite", "first.db")
    assert made.returncode == 0, made.stderr
    with psycopg.connect(database) as connection:
        connection.execute("LOCK TABLE iceburg_migration.chunks IN SHARE ROW EXCLUSIVE MODE")
        program = start_program("migrate", directory, "--dsn", database, "--jobs", "2", "--batch-size", "20")
        while not rows(database, f"SELECT pid {_WAITING}"):
            assert program.poll() is None, program.communicate()
            time.sleep(0.01)
        yield program


def test_a_worker_whose_session_is_ended_is_an_error_and_the_next_run_goes_on(directory: Path, database: str) -> None:
    with at_work(directory, database) as program:
        assert rows(database, f"SELECT pg_terminate_backend(pid) {_WAITING}")
    _, said = program.communicate(timeout=60)
    assert program.returncode == 2, said
    assert "Traceback" not in said
    assert "un the command again" in said
    assert rows(database, "SELECT status FROM iceburg_migration.runs ORDER BY run_id DESC LIMIT 1") == [("failed",)]
    migrate_fully(database, directory)


def test_a_worker_that_is_killed_is_an_error_and_the_next_run_goes_on(directory: Path, database: str) -> None:
    with at_work(directory, database) as program:
        workers = [pid for pid in children(program.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(workers[0], signal.SIGKILL)
    _, said = program.communicate(timeout=60)
    assert program.returncode == 2, said
    assert "Traceback" not in said
    assert "ended from outside" in said
    migrate_fully(database, directory)
