"""SIGKILL at any moment of `verify --repair`: what was mended stays, the next run mends the rest."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iceburg.demo.generator import generate
from tests.databases import fresh_database
from tests.faults.test_rollback_kill import kill_after
from tests.support import assert_identical, migrate_complete, rows, run_program, run_sql, verify

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


def test_a_repair_that_is_killed_again_and_again_ends_the_same(
    installation: Path, damaged: str, server_dsn: str
) -> None:
    arguments = ("verify", installation, "--dsn", damaged, "--repair")
    # How long the whole takes, on a target that is damaged in the same way.
    with fresh_database(server_dsn) as other:
        migrate_complete(other, installation)
        damage(other)
        started = time.monotonic()
        assert run_program("verify", installation, "--dsn", other, "--repair").returncode == 0
        whole = time.monotonic() - started
    rng = random.Random(2)
    killed = sum(kill_after(rng.uniform(0.3, 0.9) * whole, *arguments) for _ in range(KILLS))
    assert killed
    outcome = run_program(*arguments, "--json")
    assert (outcome.returncode, json.loads(outcome.stdout)["status"]) == (0, "identical"), outcome.stderr
    assert_identical(verify(damaged, installation, recheck=True))
    # Each is noted once it is mended, or not at all.
    assert rows(damaged, "SELECT count(*) > 0 FROM iceburg_migration.repairs") == [(True,)]
