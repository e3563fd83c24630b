"""A Chroma directory that is written to is followed: PostgreSQL equals it at every moment at which it was looked at."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import psycopg
import pytest

from iceburg.database import chroma_applier
from iceburg.database.applied import NeedsCopyError, NotReadyError
from iceburg.database.chroma_applier import ChromaApplier, chroma_state
from iceburg.database.connection import connect
from iceburg.database.positions import find_position
from iceburg.database.schema import schema_names
from iceburg.database.target_table import prepare_loaders
from iceburg.errors import SourceError
from iceburg.sources.discovery import discover
from tests.fixtures.chroma.moments import MOMENTS, VERSIONS, Directory
from tests.fixtures.chroma.unpack import unpack
from tests.support import assert_identical, meanwhile, migrate_complete, migrate_live, rows, run_sql, verify

NAMES = schema_names(None)
_ROWS = "SELECT id, row_id, record_id, text, embedding::text, vector_origin, metadata FROM embeddings ORDER BY id"


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("following", tmp_path_factory.mktemp("following"))


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with closing(connect(database, autocommit=True)) as found:
        prepare_loaders(found)
        yield found


@pytest.fixture(params=VERSIONS)
def directory(request: pytest.FixtureRequest, moments: Path, tmp_path: Path) -> Directory:
    found = Directory(moments / request.param, tmp_path)
    found.be_at(0)
    return found


def applier_for(data: Path) -> ChromaApplier:
    (store,) = discover(data)
    return ChromaApplier(store, NAMES)


def test_every_moment_arrives(
    directory: Directory, tmp_path: Path, database: str, connection: psycopg.Connection
) -> None:
    migrate_complete(database, tmp_path)
    applier = applier_for(tmp_path)
    for moment in MOMENTS:
        directory.be_at(moment)
        applier.apply(connection)
        assert applier.apply(connection).changes == 0
        assert_identical(verify(database, tmp_path))


@pytest.mark.parametrize("last", [3, 7, 10])
def test_moments_may_be_left_out(
    directory: Directory, tmp_path: Path, database: str, connection: psycopg.Connection, last: int
) -> None:
    """After an outage the queue has been pruned: the tables tell."""
    migrate_complete(database, tmp_path)
    applier = applier_for(tmp_path)
    applier.attach(connection)
    directory.be_at(last)
    applier.apply(connection)
    assert_identical(verify(database, tmp_path))


def test_applying_again_changes_nothing(
    directory: Directory, tmp_path: Path, database: str, connection: psycopg.Connection
) -> None:
    directory.be_at(4)
    migrate_complete(database, tmp_path)
    applier = applier_for(tmp_path)
    applier.attach(connection)
    before = find_position(connection, NAMES, "chroma")
    assert before is not None
    directory.be_at(6)
    applier.apply(connection)
    contents = rows(database, _ROWS)
    run_sql(
        database,
        "UPDATE iceburg_migration.positions SET position = %s, structure = %s",
        (before.position, before.structure),
    )
    applier.apply(connection)
    assert rows(database, _ROWS) == contents


def test_an_older_copy_that_was_put_back_is_read_anew(
    directory: Directory, tmp_path: Path, database: str, connection: psycopg.Connection
) -> None:
    directory.be_at(8)
    migrate_complete(database, tmp_path)
    applier = applier_for(tmp_path)
    applier.attach(connection)
    directory.be_at(2)
    applier.apply(connection)
    assert_identical(verify(database, tmp_path))


def test_a_directory_that_postgresql_does_not_have_is_read_whole(
    directory: Directory, tmp_path: Path, database: str, connection: psycopg.Connection
) -> None:
    migrate_complete(database, tmp_path)
    directory.be_at(5)
    applier = applier_for(tmp_path)
    applier.apply(connection)
    assert_identical(verify(database, tmp_path))


def test_too_much_at_once_is_to_be_copied(
    directory: Directory,
    tmp_path: Path,
    database: str,
    connection: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    migrate_complete(database, tmp_path)
    applier = applier_for(tmp_path)
    applier.attach(connection)
    directory.be_at(10)
    monkeypatch.setattr(chroma_applier, "MAX_RECORDS_READ_AT_ONCE", 5)
    with pytest.raises(NeedsCopyError, match="more has changed"):
        applier.apply(connection)
    report = migrate_live(database, tmp_path, batch_size=10)
    assert report.status == "complete"
    assert_identical(verify(database, tmp_path))


def test_what_changes_while_it_is_copied_is_caught_up_with(directory: Directory, tmp_path: Path, database: str) -> None:
    directory.be_at(3)
    steps = [partial(directory.be_at, moment) for moment in (4, 5, 6, 7)]
    report = migrate_live(database, tmp_path, batch_size=4, listener=meanwhile(*steps))
    assert report.problems == ()
    for dataset in report.datasets:
        assert dataset.source_rows == dataset.target_rows + dataset.quarantined_rows, dataset
    assert_identical(verify(database, tmp_path))


def test_a_replaced_directory_is_not_applied(
    directory: Directory, tmp_path: Path, database: str, connection: psycopg.Connection
) -> None:
    migrate_complete(database, tmp_path)
    applier = applier_for(tmp_path)
    applier.attach(connection)
    shutil.copyfile(directory.path / "chroma.sqlite3", tmp_path / "other")
    (tmp_path / "other").replace(directory.path / "chroma.sqlite3")
    run_sql(database, "UPDATE iceburg_migration.positions SET log_id = ''")
    with pytest.raises(NotReadyError, match="being migrated"):
        applier.apply(connection)


def test_a_damaged_directory_has_no_position(directory: Directory, tmp_path: Path) -> None:
    database = directory.path / "chroma.sqlite3"
    database.write_bytes(database.read_bytes()[: database.stat().st_size // 2])
    (store,) = discover(tmp_path)
    with pytest.raises(SourceError, match="damaged"):
        chroma_state(store)
