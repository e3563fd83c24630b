"""The unified layer's own vectors, migrated: the collections' tables go to the plan's embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from iceburg.database.sqlite_session import SqliteSession
from iceburg.database.sqlite_vectors import VECTORS_SCHEMA, SqliteVectors, loading_vectors, prepare_vectors
from tests.strategies import floats32
from tests.support import Listener, change, dataset, found, migrate, migrate_fully, rows, run_sql, verify

_COLLECTIONS = "SELECT store, name, dimension, distance FROM embedding_collections ORDER BY name"
_PER_COLLECTION = """
SELECT c.name, count(e.id), count(e.embedding) FROM embedding_collections c LEFT JOIN embeddings e USING (collection_id)
GROUP BY c.name ORDER BY c.name
"""
_INDEXES = "SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'embeddings_ivfflat_%'"
_CHECKS = "SELECT count(*) FROM pg_constraint WHERE conname LIKE 'embeddings_dimension_%'"


@pytest.fixture
def vectors(tmp_path: Path) -> Iterator[SqliteVectors]:
    session = SqliteSession(
        tmp_path / "vectors.db", schema=VECTORS_SCHEMA, prepare=prepare_vectors, opening=loading_vectors
    )
    yield SqliteVectors(session)
    session.close()


def fill(vectors: SqliteVectors) -> None:
    vectors.create("memory", "l2")
    vectors.add(
        "iceburg", ["a", "b\0", "c"], [[1, 0], [0.1, -0.0], [1e-45, 3e38]], ["Eis", None, ""], [{"n": 1}, None, {}]
    )
    vectors.add("iceburg", [f"r{n}" for n in range(50)], [[n, 1] for n in range(50)], ["text"] * 50, [{"n": 2.0}] * 50)
    vectors.create("dot", "ip", 3)


def test_there_and_identical(tmp_path: Path, database: str, vectors: SqliteVectors) -> None:
    fill(vectors)
    report = migrate_fully(database, tmp_path)
    assert sorted(d.dataset for d in report.datasets) == [
        "vectors.db/collection_1",
        "vectors.db/collection_2",
        "vectors.db/collection_3",
        "vectors.db/collections",
    ]
    assert rows(database, _COLLECTIONS) == [
        ("vectors.db", "dot", 3, "ip"),
        ("vectors.db", "iceburg", 2, "cosine"),
        ("vectors.db", "memory", None, "l2"),
    ]
    assert rows(database, _PER_COLLECTION) == [("dot", 0, 0), ("iceburg", 53, 53), ("memory", 0, 0)]
    assert rows(database, _INDEXES) == [(1,)]
    assert rows(database, _CHECKS) == [(2,)]
    assert rows(database, "SELECT text, has_text, embedding::text, metadata FROM embeddings WHERE record_id = 'a'") == [
        ("Eis", True, "[1,0]", {"n": 1})
    ]
    assert rows(database, "SELECT name, table_name FROM vectors.collections ORDER BY table_name") == [
        ("memory", "collection_1"),
        ("iceburg", "collection_2"),
        ("dot", "collection_3"),
    ]


def test_changes_in_between(tmp_path: Path, database: str, vectors: SqliteVectors) -> None:
    fill(vectors)
    migrate_fully(database, tmp_path)
    vectors.add("memory", ["m"], [[1, 2, 3, 4]])
    vectors.upsert("iceburg", ["a", "new"], [[5, 5], [6, 6]], ["changed", "new"])
    vectors.delete("iceburg", where={"n": {"$eq": 2}})
    vectors.add("late", ["x"], [[1]])
    report = migrate_fully(database, tmp_path)
    assert dataset(report, "vectors.db/collection_2").target_rows == 4
    assert rows(database, _COLLECTIONS)[2:] == [
        ("vectors.db", "late", 1, "cosine"),
        ("vectors.db", "memory", 4, "l2"),
    ]
    assert rows(database, _PER_COLLECTION) == [("dot", 0, 0), ("iceburg", 4, 4), ("late", 1, 1), ("memory", 1, 1)]
    assert rows(database, "SELECT text FROM embeddings WHERE record_id = 'a'") == [("changed",)]
    assert rows(database, _CHECKS) == [(4,)]


def test_a_stopped_migration_goes_on(tmp_path: Path, database: str, vectors: SqliteVectors) -> None:
    fill(vectors)
    seen: list[int] = []
    listener = Listener(lambda _: seen.append(1))
    migrate(database, tmp_path, batch_size=10, listener=listener, stopping=lambda: len(seen) >= 2)
    assert 0 < rows(database, "SELECT count(*) FROM embeddings")[0][0] < 53
    migrate_fully(database, tmp_path, batch_size=10)


def test_a_collection_that_is_gone(tmp_path: Path, database: str, vectors: SqliteVectors) -> None:
    fill(vectors)
    migrate_fully(database, tmp_path)
    vectors.session.close()
    change(tmp_path / "vectors.db", "DELETE FROM collections WHERE name = 'iceburg'; DROP TABLE collection_2")
    migrate_fully(database, tmp_path)
    assert rows(database, _PER_COLLECTION) == [("dot", 0, 0), ("memory", 0, 0)]
    assert rows(database, _INDEXES) == [(0,)]


def test_a_table_that_is_listed_no_more_is_a_table_like_any(
    tmp_path: Path, database: str, vectors: SqliteVectors
) -> None:
    fill(vectors)
    migrate_fully(database, tmp_path)
    change(tmp_path / "vectors.db", "DELETE FROM collections WHERE name = 'iceburg'")
    migrate_fully(database, tmp_path)
    assert rows(database, "SELECT count(*) FROM vectors.collection_2") == [(53,)]
    assert rows(database, "SELECT count(*) FROM embeddings") == [(0,)]
    change(
        tmp_path / "vectors.db",
        "INSERT INTO collections (name, table_name, distance) VALUES ('again', 'collection_2', 'ip')",
    )
    migrate_fully(database, tmp_path)
    assert rows(database, _PER_COLLECTION) == [("again", 53, 53), ("dot", 0, 0), ("memory", 0, 0)]


def test_what_others_write_comes_along(tmp_path: Path, database: str, vectors: SqliteVectors) -> None:
    fill(vectors)
    insert = "INSERT INTO collection_2 (record_id, document, metadata, vector, vector_origin) VALUES (?, ?, ?, ?, ?)"
    change(
        tmp_path / "vectors.db",
        insert,
        ("short", "x", "{", floats32(1.0), "index"),
        ("text", "x", "[1]", "no vector", "index"),
        ("nan", "x\0", '{"a": NaN}', floats32(float("nan"), 1.0), "queue"),
        ("gone", None, None, None, "missing"),
        (b"blob", b"blob", 7, None, "missing"),
    )
    report = migrate_fully(database, tmp_path)
    assert dataset(report, "vectors.db/collection_2").target_rows == 58
    assert rows(database, _PER_COLLECTION)[1] == ("iceburg", 58, 53)


def test_a_difference_is_found(tmp_path: Path, database: str, vectors: SqliteVectors) -> None:
    fill(vectors)
    migrate_fully(database, tmp_path)
    run_sql(database, "UPDATE embeddings SET embedding = '[1,0.5]' WHERE record_id = 'a'")
    run_sql(database, "UPDATE embeddings SET metadata = '{\"n\": 3}' WHERE record_id = 'r7'")
    run_sql(database, "DELETE FROM embeddings WHERE record_id = 'r9'")
    differences = [(name, key, field) for name, key, field, *_ in found(verify(database, tmp_path))]
    assert sorted(differences) == [
        ("vectors.db/collection_2", "[11]", "metadata"),
        ("vectors.db/collection_2", "[13]", "(record)"),
        ("vectors.db/collection_2", "[1]", "vector"),
    ]
