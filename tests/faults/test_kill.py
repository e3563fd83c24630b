"""SIGKILL at any moment: the next run goes on and ends the same, nothing twice and nothing missing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from iceburg.demo.generator import generate
from tests.support import change, migrate, migrate_fully, rows, start_program

KILLS = 8


def children(pid: int) -> set[int]:
    """Return the processes below a process, by the kernel's own list."""
    found: set[int] = set()
    pending = [pid]
    while pending:
        for path in Path(f"/proc/{pending.pop()}/task").glob("*/children"):
            below = {int(child) for child in path.read_text().split()}
            pending.extend(below - found)
            found |= below
    return found


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until_gone(pids: set[int], seconds: float) -> set[int]:
    deadline = time.monotonic() + seconds
    while (alive := {pid for pid in pids if is_alive(pid)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


def written_since(dsn: str, transaction: int) -> int:
    """Return the number of batches that have been committed since a transaction; -1 while there is no ledger."""
    try:
        found = rows(
            dsn,
            "SELECT count(*) FROM iceburg_migration.chunks WHERE xmin::text::bigint > %s::bigint",
            (transaction,),
        )
    except psycopg.errors.UndefinedTable:
        return -1
    return int(found[0][0])


def run_and_kill(dsn: str, directory: Path, batches: int, delay: float, *, group: bool) -> bool:
    """Start a migration, kill it when it has committed so many batches; return whether it was still running."""
    ((now,),) = rows(dsn, "SELECT pg_current_xact_id()::text::bigint")
    program = start_program("migrate", directory, "--dsn", dsn, "--batch-size", "200", "--jobs", "2")
    while program.poll() is None and written_since(dsn, now) < batches:
        time.sleep(0.01)
    time.sleep(delay)
    if program.poll() is not None:
        _, complaint = program.communicate()
        assert program.returncode in (0, 1), complaint
        return False
    below = children(program.pid)
    if group:
        os.killpg(program.pid, signal.SIGKILL)
    else:
        program.kill()
    left = wait_until_gone(below, 10)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    program.communicate()
    assert left == set()
    return True


def assert_no_duplicates(dsn: str) -> None:
    for table, key in (
        ("matrix_entities", "dataset_id, entity_data ->> 'entity_id', entity_data::text"),
        ("telemetry", "dataset_id, byte_offset"),
        ("embeddings", "collection_id, row_id"),
        ("conversations", "dataset_id, row_id"),
    ):
        assert rows(dsn, f"SELECT {key}, count(*) FROM {table} GROUP BY {key} HAVING count(*) > 1") == []
    for table in ("originals", "quarantine"):
        key = "dataset_id, record_key" + (", field" if table == "originals" else "")
        twice = f"SELECT {key} FROM iceburg_migration.{table} GROUP BY {key} HAVING count(*) > 1"
        assert rows(dsn, twice) == []


def test_a_run_that_is_killed_among_its_indexes_is_finished(directory: Path, database: str) -> None:
    program = start_program("migrate", directory, "--dsn", database, "--jobs", "2")
    loaded = "SELECT to_regclass('iceburg_migration.datasets') IS NOT NULL"
    while program.poll() is None:
        if rows(database, loaded) == [(True,)] and not rows(
            database, "SELECT FROM iceburg_migration.datasets HAVING count(*) FILTER (WHERE phase <> 'loading') = 0"
        ):
            break
        time.sleep(0.01)
    assert program.poll() is None
    os.killpg(program.pid, signal.SIGKILL)
    program.communicate()
    report = migrate_fully(database, directory)
    assert not any("exists" in note for part in report.datasets for note in part.notes)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("killed") / "data"
    generate(found, entities=3000, seed=3)
    return found


@pytest.mark.parametrize("group", [True, False], ids=["the whole group", "only the main process"])
def test_a_migration_that_is_killed_again_and_again_ends_the_same(
    directory: Path, database: str, *, group: bool
) -> None:
    rng = random.Random(20 + group)
    killed = 0
    for number in range(KILLS // 2):
        # The first before there is a schema or soon after, the others among the batches, of which there are some fifty.
        batches = -1 if number == 0 else rng.randrange(1, 6)
        killed += run_and_kill(database, directory, batches, rng.uniform(0, 0.1), group=group)
    assert killed > 2
    migrate_fully(database, directory)
    assert_no_duplicates(database)


def test_a_refresh_that_is_killed_ends_the_same(tmp_path: Path, database: str) -> None:
    path = tmp_path / "data" / "m.db"
    rng = random.Random(5)
    change(path, "CREATE TABLE t (k TEXT PRIMARY KEY, v TEXT, u INT UNIQUE); CREATE TABLE b (v TEXT)")
    change(path, "INSERT INTO t VALUES (?, ?, ?)", *((f"k{n}", "x" * 100, n) for n in range(8000)))
    change(path, "INSERT INTO b VALUES (?)", *((f"{n % 50}\0",) for n in range(4000)))
    migrate_fully(database, path.parent, batch_size=200)
    for number in range(3):
        change(path, f"UPDATE t SET v = v || '{number}', k = k || 'x' WHERE u % 3 = {number}")
        change(path, f"DELETE FROM t WHERE u % 17 = {number}; DELETE FROM b WHERE rowid % 11 = {number}; VACUUM")
        assert run_and_kill(database, path.parent, rng.randrange(1, 15), 0, group=True)
    migrate_fully(database, path.parent)
    assert_no_duplicates(database)
    assert rows(database, "SELECT count(*) FROM iceburg_migration.originals") == rows(
        database, "SELECT count(*) FROM m.b"
    )


def test_the_locks_of_a_run_that_was_killed_in_a_long_statement_do_not_refuse_the_next(
    directory: Path, database: str
) -> None:
    migrate_fully(database, directory)
    program = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "from iceburg.database.schema import schema_names\n"
            "from iceburg.migration.ledger import Ledger\n"
            "from iceburg.migration.session import connect_writer\n"
            "connection = connect_writer(sys.argv[1])\n"
            "Ledger(connection, schema_names(None)).take_over()\n"
            "print('locked', flush=True)\n"
            "connection.execute('SELECT pg_sleep(120)')\n",
            database,
        ],
        stdout=subprocess.PIPE,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == b"locked\n"
    # The statement has to be under way; its session is waited for, not the clock.
    while not rows(database, "SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"):
        time.sleep(0.01)
    program.kill()
    program.communicate()
    assert migrate(database, directory).unchanged


def test_a_worker_whose_parent_ended_before_it_was_ready_ends_too() -> None:
    # As if the parent had been another process, which is what a worker sees whose parent is gone.
    starting = "_start_worker('', None, None, None, 1, None)"
    script = f"from iceburg.migration.worker import _start_worker; {starting}; print('waits')"
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (1, b"", b"")
