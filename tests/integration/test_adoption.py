"""Chroma directories taken into ``vectors.db``: all of it, once, and nothing written to them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iceburg.database import adoption
from iceburg.database.adoption import Adopted, adopt_chroma
from iceburg.database.sqlite_session import SqliteSession
from iceburg.database.sqlite_vectors import VECTORS_SCHEMA, SqliteVectors, loading_vectors, prepare_vectors
from iceburg.database.vector_tables import insert_records
from iceburg.errors import SourceError
from iceburg.records import ChromaRecord, Store
from iceburg.sources.chroma import ChromaStore
from tests.fixtures.chroma.unpack import unpack
from tests.support import change, migrate_fully, rows, snapshot

VERSIONS = ["0.4.24", "0.6.3", "1.5.9"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("stores", tmp_path_factory.mktemp("chroma")) / "stores"


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("damaged", tmp_path_factory.mktemp("chroma")) / "damaged"


@pytest.fixture
def vectors(tmp_path: Path) -> Iterator[SqliteVectors]:
    session = SqliteSession(
        tmp_path / "vectors.db", schema=VECTORS_SCHEMA, prepare=prepare_vectors, opening=loading_vectors
    )
    yield SqliteVectors(session)
    session.close()


def store_of(path: Path, name: str = "data/chroma") -> Store:
    return Store("chroma", path, name)


def read(path: Path) -> dict[str, list[ChromaRecord]]:
    with ChromaStore(path) as directory:
        return {
            info.id: [record for batch in directory.reader(info).batches(size=7) for record in batch.records]
            for info in directory.collections()
        }


def check(path: Path, vectors: SqliteVectors, adopted: list[Adopted]) -> None:
    """Compare what was adopted with the directory, by another way than the adoption does."""
    with closing(sqlite3.connect(vectors.session.path)) as file:
        origins = dict(file.execute("SELECT name, adopted_from FROM collections").fetchall())
    found = read(path)
    assert len(adopted) == len(found)
    for one in adopted:
        records = found[origins[one.collection].rpartition("/")[2]]
        copies = vectors.get(one.collection)
        assert [copy.id for copy in copies] == [record.id for record in records]
        assert one.records == len(records) == vectors.count(one.collection)
        assert one.without_vector == sum(record.vector is None for record in records)
        for copy, record in zip(copies, records, strict=True):
            assert copy.document == record.document
            assert repr(copy.metadata) == repr(record.metadata)
            raw = None if copy.vector is None else np.array(copy.vector, "<f4").tobytes()
            assert raw == record.vector


@pytest.mark.parametrize("version", VERSIONS)
def test_all_of_a_directory_comes_once(stores: Path, vectors: SqliteVectors, version: str) -> None:
    path = stores / version
    before = snapshot(path)
    adopted = adopt_chroma(vectors, store_of(path))
    assert adopted
    check(path, vectors, adopted)
    assert adopt_chroma(vectors, store_of(path)) == []
    assert snapshot(path) == before
    with ChromaStore(path) as directory:
        infos = {f"data/chroma/{info.id}": info for info in directory.collections()}
    with closing(sqlite3.connect(vectors.session.path)) as file:
        described = file.execute("SELECT adopted_from, name, dimension, distance FROM collections").fetchall()
    assert len(described) == len(infos)
    for origin, name, dimension, distance in described:
        assert (dimension, distance) == (infos[origin].dimension, infos[origin].distance)
        info = infos[origin]
        places = ("", "@data/chroma", f"@data/chroma/{info.tenant}/{info.database}")
        assert name in [info.name + place for place in places]
        if (info.tenant, info.database) == ("default_tenant", "default_database"):
            assert name == info.name


def test_every_damaged_directory_comes_as_far_as_it_can_be_read(damaged: Path, vectors: SqliteVectors) -> None:
    lost = 0
    for path in sorted(damaged.iterdir()):
        before = snapshot(path)
        adopted = adopt_chroma(vectors, store_of(path, path.name))
        check(path, vectors, adopted)
        lost += sum(one.without_vector for one in adopted)
        assert snapshot(path) == before
    assert lost
    (row,) = vectors.session.select(
        "SELECT count(*) FROM collection_1 WHERE vector IS NULL AND vector_origin <> 'missing'"
    )
    assert row == (0,)


def test_adopted_vectors_are_found(stores: Path, vectors: SqliteVectors) -> None:
    adopt_chroma(vectors, store_of(stores / "1.5.9"))
    searched = 0
    for collection in vectors.collections():
        for record in vectors.get(collection.name, limit=3):
            if record.vector is not None and any(record.vector):
                hits = vectors.query(collection.name, record.vector, vectors.count(collection.name))
                searched += 1
                assert record.id in [hit.id for hit in hits]
                if collection.distance != "ip":
                    assert hits[0].distance == pytest.approx(0, abs=1e-12)
    assert searched > 3


def test_equal_names_in_several_directories(damaged: Path, vectors: SqliteVectors) -> None:
    path = damaged / "1.5.9-base"
    first = adopt_chroma(vectors, store_of(path, "a"))
    second = adopt_chroma(vectors, store_of(path, "b/c"))
    assert [one.collection for one in first] == [one.name for one in first]
    assert [one.collection for one in second] == [f"{one.name}@b/c" for one in second]
    vectors.create(f"{first[0].name}@d")
    third = adopt_chroma(vectors, store_of(path, "d"))
    assert third[0].collection.startswith(f"{first[0].name}@d/")
    assert adopt_chroma(vectors, store_of(path, "d")) == []
    check(path, vectors, third)


def after_the_copy(monkeypatch: pytest.MonkeyPatch, act: Callable[[sqlite3.Connection, str], None]) -> None:
    """Have something done once the first batch is copied."""
    done: list[int] = []

    def insert(connection: sqlite3.Connection, table: str, records: Any) -> None:
        insert_records(connection, table, records)
        if not done:
            done.append(1)
            act(connection, table)

    monkeypatch.setattr(adoption, "insert_records", insert)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {} SET document = coalesce(document, '') || ' ' WHERE row_id = 2",
        "UPDATE {} SET metadata = '{{}}' WHERE row_id = 2",
        "UPDATE {} SET vector = zeroblob(length(vector)) WHERE row_id = 2",
        "UPDATE {} SET vector_origin = 'x' WHERE row_id = 2",
        "UPDATE {} SET record_id = record_id || 'x' WHERE row_id = 2",
        "UPDATE {} SET row_id = -1 WHERE row_id = 2",
        "DELETE FROM {} WHERE row_id = (SELECT max(row_id) FROM {})",
        "INSERT INTO {} (record_id) VALUES ('more')",
    ],
)
def test_a_copy_that_differs_is_taken_back(
    damaged: Path, vectors: SqliteVectors, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    path = damaged / "1.5.9-base"

    def spoil(connection: sqlite3.Connection, table: str) -> None:
        assert connection.execute(statement.replace("{}", table)).rowcount == 1

    with monkeypatch.context() as patch:
        after_the_copy(patch, spoil)
        with pytest.raises(SourceError, match=r"copied|copy"):
            adopt_chroma(vectors, store_of(path))
    collections = vectors.collections()
    # The others came, and the next call goes on.
    whole = adopt_chroma(vectors, store_of(path))
    assert len(whole) == 1
    assert len(vectors.collections()) == len(collections) + 1
    with ChromaStore(path) as directory:
        assert len(directory.collections()) == len(collections) + 1


def test_a_directory_that_is_written_to_meanwhile(
    tmp_path: Path, vectors: SqliteVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = unpack("damaged", tmp_path) / "damaged" / "0.4.24-base"

    def write(connection: sqlite3.Connection, table: str) -> None:
        change(path / "chroma.sqlite3", "UPDATE embedding_metadata SET string_value = string_value || '!'")

    with monkeypatch.context() as patch:
        after_the_copy(patch, write)
        with pytest.raises(SourceError, match="try again"):
            adopt_chroma(vectors, store_of(path))
    assert adopt_chroma(vectors, store_of(path))
    assert adopt_chroma(vectors, store_of(path)) == []


def test_what_cannot_be_read(tmp_path: Path, vectors: SqliteVectors) -> None:
    with pytest.raises(SourceError, match="no such directory"):
        adopt_chroma(vectors, store_of(tmp_path / "absent"))
    assert vectors.collections() == []


def test_what_was_adopted_is_migrated(tmp_path: Path, database: str, vectors: SqliteVectors, stores: Path) -> None:
    adopted = adopt_chroma(vectors, store_of(stores / "1.5.9"))
    migrate_fully(database, tmp_path)
    assert rows(database, "SELECT count(*) FROM embeddings") == [(sum(one.records for one in adopted),)]
    assert rows(database, "SELECT count(*) FROM embedding_collections") == [(len(adopted),)]
