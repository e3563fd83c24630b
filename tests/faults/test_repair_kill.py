"""SIGKILL at any moment of `verify --repair`: what was mended stays, the next run mends the rest."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iceburg.demo.generator import generate
from tests.databases import fresh_database
from tests.faults.test_kill import children, wait_until_gone
from tests.support import assert_identical, migrate_complete, rows, run_program, run_sql, start_program, verify

KILLS = 2
# Of every store something: changed, gone and surplus rows, kept values, and what holds the structure together.
DAMAGE = (
    "UPDATE matrix_entities SET entity_data = entity_data || '{\"name\": \"damaged\"}' WHERE id::text < '8'",
    "DELETE FROM matrix_relationships WHERE id::text < '4'",
    "INSERT INTO matrix_entities (id, dataset_id, entity_type, entity_data)"
    " SELECT gen_random_uuid(), dataset_id, entity_type, entity_data FROM matrix_entities LIMIT 100",
    "UPDATE conversations SET query = query || '.'",
    "DELETE FROM telemetry WHERE id::text < '8'",
    "DELETE FROM iceburg_migration.originals WHERE record_key < '[\"m'",
    "DROP INDEX matrix_entities_by_name",
)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mended") / "data"
    generate(directory, entities=600, metadata_rows=20, vectors=0, lines=300, seed=13)
    return directory


def damage(dsn: str) -> None:
    for statement in DAMAGE:
        assert run_sql(dsn, statement), statement


@pytest.fixture
def damaged(installation: Path, server_dsn: str) -> Iterator[str]:
    with fresh_database(server_dsn) as dsn:
        migrate_complete(dsn, installation)
        damage(dsn)
        yield dsn


def kill_while_mending(seconds: float, *arguments: str | Path) -> None:
    """Start the program, and kill it so many seconds after it has begun to mend."""
    program = start_program(*arguments)
    assert program.stderr is not None
    while (line := program.stderr.readline()) and line != "mending\n":
        pass
    assert line, "there was nothing to mend"
    time.sleep(seconds)
    below = children(program.pid)
    os.killpg(program.pid, signal.SIGKILL)
    program.communicate()
    assert not wait_until_gone(below, 10)


def test_a_repair_that_is_killed_again_and_again_ends_the_same(installation: Path, damaged: str) -> None:
    arguments = ("verify", installation, "--dsn", damaged, "--repair")
    rng = random.Random(2)
    for _ in range(KILLS):
        kill_while_mending(rng.uniform(0, 0.5), *arguments)
    outcome = run_program(*arguments, "--json")
    assert (outcome.returncode, json.loads(outcome.stdout)["status"]) == (0, "identical"), outcome.stderr
    assert_identical(verify(damaged, installation, recheck=True))
    # Each is noted once it is mended, or not at all.
    assert rows(damaged, "SELECT count(*) > 0 FROM iceburg_migration.repairs") == [(True,)]
