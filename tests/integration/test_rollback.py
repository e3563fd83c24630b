"""Rolling back: everything comes home, from a state of PostgreSQL that is said, over nothing that is there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from iceburg.demo.generator import generate
from tests.acceptance import compare_installations
from tests.faults.alone import Alone, alone
from tests.support import fresh_database, migrate_fully, roll_back


@pytest.fixture(scope="module")
def installation(server_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    directory = tmp_path_factory.mktemp("rollback") / "data"
    generate(directory, entities=300, vectors=60, metadata_rows=30, seed=7)
    with fresh_database(server_dsn) as dsn:
        migrate_fully(dsn, directory)
        yield dsn, directory


def test_an_installation_comes_back_as_it_was(installation: tuple[str, Path], tmp_path: Path) -> None:
    dsn, directory = installation
    report = roll_back(dsn, directory, tmp_path / "out", jobs=2)
    assert (report.status, report.problems, report.differences) == ("complete", (), ())
    assert compare_installations.compare(directory, tmp_path / "out") == []
    for dataset in report.datasets:
        assert dataset.restored_rows == dataset.target_rows + dataset.quarantined_rows == dataset.compared_rows


def test_what_was_written_to_postgresql_alone_comes_back(
    installation: tuple[str, Path], tmp_path: Path, server_dsn: str
) -> None:
    directory = shutil.copytree(installation[1], tmp_path / "data")
    with fresh_database(server_dsn) as dsn:
        migrate_fully(dsn, directory)
        with alone(directory, dsn) as db:
            model = Alone(directory, db, seed=3)
            model.write(300)
        report = roll_back(dsn, directory, tmp_path / "out")
        assert (report.status, report.problems, report.differences) == ("complete", (), ())
        model.check(tmp_path / "out")
