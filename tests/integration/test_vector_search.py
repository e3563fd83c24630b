"""Vector indexes of either kind, changed later, and searched through ``nearest_embeddings`` as they were measured."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import psycopg
import pytest

from iceburg.demo.chroma_writer import Collection, Operation, write_chroma
from tests.support import assert_identical, migrate, migrate_complete, rows, verify

_DIMENSION = 16
_VECTORS = np.random.default_rng(1).standard_normal((300, _DIMENSION), dtype=np.float32)
_QUERY = np.random.default_rng(2).standard_normal(_DIMENSION, dtype=np.float32)


def write(directory: Path, distance: str) -> None:
    operations = [Operation("add", f"id{n}", vector, {"chroma:document": f"{n}"}) for n, vector in enumerate(_VECTORS)]
    collection = Collection("c", _DIMENSION, distance, operations)
    write_chroma(directory / "chroma", "1.5", [collection], random.Random(0))


def expected(distance: str) -> np.ndarray:
    """Return Chroma's distance of each vector from the query."""
    vectors, query = _VECTORS.astype(np.float64), _QUERY.astype(np.float64)
    if distance == "l2":
        return np.asarray(((vectors - query) ** 2).sum(axis=1))
    if distance == "ip":
        return np.asarray(1 - vectors @ query)
    return np.asarray(1 - vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query))


def kind(dsn: str) -> tuple[str, list[str]]:
    """Return the kind that is recorded, and the methods of the indexes that are there."""
    ((recorded,),) = rows(dsn, "SELECT vector_index->>'kind' FROM embedding_collections")
    found = rows(
        dsn,
        "SELECT a.amname FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE c.relname ~ '^embeddings_(ivf|hnsw)'",
    )
    return recorded, [method for (method,) in found]


@pytest.mark.parametrize("distance", ["cosine", "l2", "ip"])
def test_the_nearest_and_their_distances_are_those_of_chroma(tmp_path: Path, database: str, distance: str) -> None:
    write(tmp_path, distance)
    migrate_complete(database, tmp_path)
    wanted = expected(distance)
    found = rows(
        database,
        "SELECT record_id, document, distance FROM nearest_embeddings((SELECT collection_id FROM"
        " embedding_collections), %s::vector, 8)",
        [str([float(x) for x in _QUERY])],
    )
    nearest = np.argsort(wanted)[:8]
    assert [record for record, _, _ in found] == [f"id{n}" for n in nearest]
    assert [document for _, document, _ in found] == [str(n) for n in nearest]
    np.testing.assert_allclose([d for _, _, d in found], wanted[nearest], rtol=1e-5, atol=1e-5)


def test_an_index_of_another_kind_takes_its_place(tmp_path: Path, database: str) -> None:
    write(tmp_path, "cosine")
    migrate_complete(database, tmp_path)
    assert kind(database) == ("ivfflat", ["ivfflat"])
    assert migrate(database, tmp_path, vector_index="hnsw").unchanged is False
    assert kind(database) == ("hnsw", ["hnsw"])
    report = verify(database, tmp_path)
    assert_identical(report)
    (recall,) = report.recall
    assert (recall.kind, recall.recall) == ("hnsw", 1.0)
    assert migrate(database, tmp_path).unchanged
    assert kind(database) == ("hnsw", ["hnsw"])
    migrate(database, tmp_path, vector_index="none")
    assert kind(database) == ("none", [])
    assert verify(database, tmp_path).recall[0].recall is None


def test_a_collection_that_is_not_there_is_named(tmp_path: Path, database: str) -> None:
    write(tmp_path, "cosine")
    migrate_complete(database, tmp_path)
    with pytest.raises(psycopg.errors.RaiseException, match="no collection 99"):
        rows(database, "SELECT * FROM nearest_embeddings(99, '[1]', 8)")
