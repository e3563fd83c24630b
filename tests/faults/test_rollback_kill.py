"""SIGKILL at any moment of a rollback: the next run goes on and ends the same, and nothing half-done stays behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iceburg.demo.generator import generate
from tests.acceptance import compare_installations
from tests.databases import fresh_database
from tests.faults.alone import Alone, alone
from tests.faults.test_kill import children, wait_until_gone
from tests.support import migrate_complete, roll_back, roll_back_in_place, run_program, start_program

# `make rollback-campaign` has more of them, of a larger installation.
KILLS = 3


@pytest.fixture(scope="module")
def installation(server_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    directory = tmp_path_factory.mktemp("killed") / "data"
    generate(directory, entities=1500, metadata_rows=50, vectors=0, lines=1000, seed=11)
    with fresh_database(server_dsn) as dsn:
        migrate_complete(dsn, directory)
        yield dsn, directory


def kill_after(seconds: float, *arguments: str | Path) -> bool:
    """Start the program and kill it after a while; return whether it was still running."""
    program = start_program(*arguments, silent=True)
    deadline = time.monotonic() + seconds
    while program.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    if program.poll() is not None:
        assert program.returncode in (0, 1)
        return False
    below = children(program.pid)
    os.killpg(program.pid, signal.SIGKILL)
    program.wait()
    assert not wait_until_gone(below, 10)
    return True


def test_a_rollback_that_is_killed_again_and_again_ends_the_same(
    installation: tuple[str, Path], tmp_path: Path
) -> None:
    dsn, directory = installation
    out = tmp_path / "out"
    arguments = ("rollback", directory, out, "--dsn", dsn, "--no-chromadb")
    started = time.monotonic()
    assert run_program(*arguments).returncode == 0
    whole = time.monotonic() - started
    assert compare_installations.compare(directory, out) == []
    shutil.rmtree(out)
    rng = random.Random(1)
    # Not before the first file is begun, which is about half-way.
    killed = sum(kill_after(rng.uniform(0.35, 1) * whole, *arguments) for _ in range(KILLS))
    assert killed
    outcome = run_program(*arguments, "--json")
    assert (outcome.returncode, json.loads(outcome.stdout)["status"]) == (0, "complete"), outcome.stderr
    assert compare_installations.compare(directory, out) == []
    assert [path for path in out.rglob("*") if "partial" in path.name] == []


def test_what_was_written_between_two_runs_is_in_all_files(
    installation: tuple[str, Path], tmp_path: Path, server_dsn: str
) -> None:
    directory = shutil.copytree(installation[1], tmp_path / "data")
    with fresh_database(server_dsn) as dsn:
        migrate_complete(dsn, directory)
        with alone(directory, dsn) as db:
            model = Alone(directory, db, seed=12)
            model.write(40)
            done = roll_back(dsn, directory, tmp_path / "out", wanted=lambda source: source.name == "conversations.db")
            assert done.status == "complete"
            # As a run leaves it that is killed: not complete.
            state = tmp_path / "out" / ".iceburg-rollback.json"
            state.write_text(state.read_text().replace('"complete": true', '"complete": false'))
            model.write(40)
        report = roll_back(dsn, directory, tmp_path / "out")
        assert (report.status, report.differences) == ("complete", ())
        model.check(tmp_path / "out")


def test_a_kill_in_place_leaves_each_file_as_it_was_or_up_to_date(
    installation: tuple[str, Path], tmp_path: Path, server_dsn: str
) -> None:
    directory = shutil.copytree(installation[1], tmp_path / "data")
    with fresh_database(server_dsn) as dsn:
        migrate_complete(dsn, directory)
        with alone(directory, dsn) as db:
            model = Alone(directory, db, seed=13)
            model.write(60)
        started = time.monotonic()
        assert run_program("rollback", directory, "--in-place", "--dry-run", "--dsn", dsn).returncode == 0
        whole = time.monotonic() - started
        for part in (0.8, 1.0):
            kill_after(part * whole, "rollback", directory, "--in-place", "--dsn", dsn)
        assert roll_back_in_place(dsn, directory).status == "complete"
        model.check(directory)
