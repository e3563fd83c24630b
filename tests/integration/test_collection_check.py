"""Chroma collections are compared while chromadb writes: what is on its way is no difference, what differs is one."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from pathlib import Path

import pytest

from iceburg.database.chroma_applier import ChromaApplier
from iceburg.database.connection import Target, connect
from iceburg.database.schema import schema_names
from iceburg.database.target_table import prepare_loaders
from iceburg.errors import SourceError
from iceburg.sources.discovery import discover
from iceburg.verification.consistency import ConsistencyCheck
from iceburg.verification.consistency_report import ConsistencyReport
from tests.fixtures.chroma.moments import MOMENTS, VERSIONS, Directory
from tests.fixtures.chroma.unpack import unpack
from tests.support import Listener, meanwhile, migrate_complete, rows, run_sql

NAMES = schema_names(None)


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("following", tmp_path_factory.mktemp("following"))


@pytest.fixture(params=VERSIONS)
def directory(request: pytest.FixtureRequest, moments: Path, tmp_path: Path, database: str) -> Directory:
    """Return a directory that was migrated and is followed."""
    found = Directory(moments / request.param, tmp_path)
    found.be_at(0)
    migrate_complete(database, tmp_path)
    follow(database, tmp_path)
    return found


def follow(database: str, data: Path) -> None:
    with closing(connect(database, autocommit=True)) as connection:
        prepare_loaders(connection)
        (store,) = discover(data)
        ChromaApplier(store, NAMES).apply(connection)


def check(database: str, data: Path, listener: Listener | None = None, patience: float = 0.05) -> ConsistencyReport:
    return ConsistencyCheck(
        Target(database, "test", embedded=False),
        discover(data),
        NAMES,
        limit=100,
        narrowed=False,
        listener=listener or Listener(),
        stopping=lambda: False,
        patience=patience,
        taken_in=0,
    ).run()


def summary(report: ConsistencyReport) -> tuple[str, int, int, tuple[dict[str, str], ...]]:
    unsettled = sum(dataset.unsettled for dataset in report.datasets)
    return report.status, len(report.differences), unsettled, report.problems


IDENTICAL = ("identical", 0, 0, ())


def test_what_nobody_has_applied_yet_is_no_difference(directory: Directory, tmp_path: Path, database: str) -> None:
    for moment in MOMENTS:
        directory.be_at(moment)
        report = check(database, tmp_path)
        assert summary(report) == IDENTICAL, moment
        assert report.datasets
        assert all(d.source_rows == d.target_rows == d.compared_rows for d in report.datasets), moment
        assert all(dataset.position is not None for dataset in report.datasets)


@pytest.mark.parametrize("moment", MOMENTS[:-1])
def test_what_is_written_while_it_is_compared_is_no_difference(
    directory: Directory, tmp_path: Path, database: str, moment: int
) -> None:
    directory.be_at(moment)
    follow(database, tmp_path)
    assert summary(check(database, tmp_path, meanwhile(lambda: directory.be_at(moment + 1)))) == IDENTICAL


@pytest.mark.parametrize("moment", MOMENTS[:-1])
def test_what_is_applied_while_it_is_compared_is_no_difference(
    directory: Directory, tmp_path: Path, database: str, moment: int
) -> None:
    directory.be_at(moment)
    follow(database, tmp_path)

    def write() -> None:
        directory.be_at(moment + 1)
        follow(database, tmp_path)

    assert summary(check(database, tmp_path, meanwhile(write))) == IDENTICAL


def test_a_follower_that_is_late_is_waited_for(directory: Directory, tmp_path: Path, database: str) -> None:
    directory.be_at(3)
    late = threading.Timer(0.5, follow, (database, tmp_path))
    late.start()
    assert summary(check(database, tmp_path, patience=60)) == IDENTICAL
    late.join()


DAMAGE = {
    "text": "UPDATE embeddings SET text = text || '.' WHERE ctid = (SELECT min(ctid) FROM embeddings)",
    "vector": "UPDATE embeddings SET embedding = embedding * array_fill(2, ARRAY[vector_dims(embedding)])::vector"
    " WHERE ctid = (SELECT min(ctid) FROM embeddings WHERE embedding IS NOT NULL)",
    "gone": "DELETE FROM embeddings WHERE ctid = (SELECT min(ctid) FROM embeddings)",
    "surplus": "INSERT INTO embeddings SELECT (e).* FROM (SELECT jsonb_populate_record(e, jsonb_build_object("
    "'id', gen_random_uuid(), 'record_id', 'nobody''s')) AS e FROM embeddings AS e LIMIT 1) AS one",
    "kept": "INSERT INTO iceburg_migration.originals (dataset_id, record_key, field, storage_class, value, reason)"
    " SELECT dataset_id, '[\"nobody''s\"]', 'document', 'text', 'x', 'r' FROM iceburg_migration.datasets LIMIT 1",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("moment", [9])
def test_damage_is_found(directory: Directory, tmp_path: Path, database: str, damage: str, moment: int) -> None:
    directory.be_at(moment)
    follow(database, tmp_path)
    run_sql(database, DAMAGE[damage])
    report = check(database, tmp_path)
    assert report.status == "different"
    assert (len({d.key for d in report.differences}), report.unsettled, report.problems) == (1, (), ())


@pytest.mark.parametrize(("moment", "applied"), [(moment, moment % 2 == 0) for moment in MOMENTS[1:-1]])
def test_damage_is_found_while_others_write(
    directory: Directory, tmp_path: Path, database: str, moment: int, applied: bool
) -> None:
    """Of the records that are written meanwhile it is mended; most are not."""
    directory.be_at(moment)
    follow(database, tmp_path)
    run_sql(database, "UPDATE embeddings SET text = text || '.', has_text = TRUE")

    def write() -> None:
        directory.be_at(moment + 1)
        if applied:
            follow(database, tmp_path)

    report = check(database, tmp_path, meanwhile(write))
    assert report.status == "different"
    still = {key for (key,) in rows(database, "SELECT record_id FROM embeddings WHERE text LIKE '%.'")}
    assert still
    assert still <= {json.loads(difference.key)[0] for difference in report.differences}


def test_a_collection_that_goes_or_gets_another_name_is_not_gone_through_again(
    directory: Directory, tmp_path: Path, database: str
) -> None:
    """The catalogue changes among the moments, at once for all of them."""
    names = set()
    for moment in MOMENTS:
        directory.be_at(moment)
        report = check(database, tmp_path, meanwhile(lambda: directory.be_at(MOMENTS[-1])))
        assert summary(report) == IDENTICAL
        names |= {dataset.dataset for dataset in report.datasets}
        there = rows(database, "SELECT name FROM iceburg_migration.datasets ORDER BY 1")
        assert [(dataset.dataset,) for dataset in report.datasets] == there
    assert names


def test_a_directory_that_cannot_be_read_is_a_problem(directory: Directory, tmp_path: Path, database: str) -> None:
    path = directory.path / "chroma.sqlite3"
    path.write_bytes(path.read_bytes()[:5_000])
    report = check(database, tmp_path)
    assert report.status == "different"
    assert report.problems
    assert isinstance(report.problems[0]["problem"], str)
    with pytest.raises(SourceError):
        follow(database, tmp_path)
