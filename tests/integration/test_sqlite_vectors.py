"""The embeddings in SQLite: the contract, and what only this side has."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from iceburg.database.layout import Layout
from iceburg.database.nearest import measure
from iceburg.database.protocol import Adapter, Distance, EmbeddingRecord
from iceburg.database.sqlite_adapter import SqliteAdapter
from iceburg.database.sqlite_session import SqliteSession
from iceburg.database.sqlite_vectors import VECTORS_SCHEMA, SqliteVectors, loading_vectors, prepare_vectors
from iceburg.errors import IceburgError, UsageError
from tests.contract.embeddings import EmbeddingContract, singles
from tests.strategies import floats32
from tests.support import change

_INSERT = "INSERT INTO collection_1 (record_id, document, metadata, vector, vector_origin) VALUES (?, ?, ?, ?, ?)"


@pytest.fixture
def adapter(tmp_path: Path) -> Iterator[Adapter]:
    with SqliteAdapter(Layout.of(tmp_path)) as made:
        yield made


@pytest.fixture
def vectors(tmp_path: Path) -> Iterator[SqliteVectors]:
    session = SqliteSession(
        tmp_path / "vectors.db", schema=VECTORS_SCHEMA, prepare=prepare_vectors, opening=loading_vectors
    )
    yield SqliteVectors(session)
    session.close()


class TestContract(EmbeddingContract):
    pass


class TestFile:
    def test_the_tables_are_ordinary_ones(self, tmp_path: Path, vectors: SqliteVectors) -> None:
        vectors.add("a", ["x"], [[1, -0.5]], ["é"], [{"ü": 1}])
        vectors.create("b", "ip", 3)
        with closing(sqlite3.connect(tmp_path / "vectors.db")) as file:
            collections = file.execute("SELECT name, table_name, dimension, distance, adopted_from FROM collections")
            assert collections.fetchall() == [
                ("a", "collection_1", 2, "cosine", None),
                ("b", "collection_2", 3, "ip", None),
            ]
            assert file.execute("SELECT * FROM collection_1").fetchall() == [
                (1, "x", "é", '{"\\u00fc": 1}', floats32(1, -0.5), "index")
            ]
            assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            kinds = file.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND NOT rootpage").fetchone()
            assert kinds == (0,)

    def test_numbers_of_rows_are_never_used_again(self, tmp_path: Path, vectors: SqliteVectors) -> None:
        vectors.add("a", ["x", "y"], [[1], [2]])
        vectors.delete("a", ["y"])
        vectors.add("a", ["y"], [[2]])
        vectors.upsert("a", ["x", "y"], [[3], [4]])
        with closing(sqlite3.connect(tmp_path / "vectors.db")) as file:
            assert file.execute("SELECT row_id, record_id FROM collection_1").fetchall() == [(1, "x"), (3, "y")]

    def test_a_name_of_a_table_that_is_taken(self, tmp_path: Path, vectors: SqliteVectors) -> None:
        change(
            tmp_path / "vectors.db",
            "CREATE TABLE collection_1 (mine TEXT); CREATE INDEX collection_3 ON collection_1 (mine)",
        )
        vectors.create("a")
        vectors.create("b")
        with closing(sqlite3.connect(tmp_path / "vectors.db")) as file:
            tables = file.execute("SELECT table_name FROM collections").fetchall()
        assert tables == [("collection_2",), ("collection_4",)]

    def test_what_others_write(self, tmp_path: Path, vectors: SqliteVectors) -> None:
        vectors.add("a", ["good"], [[1, 0]])
        change(
            tmp_path / "vectors.db",
            _INSERT,
            ("short", None, "{}", floats32(1), "index"),
            ("long", None, "[1]", floats32(1, 2, 3), "index"),
            ("torn", None, "{", b"\0\0\0\0\0", "index"),
            ("empty", None, "", b"", "index"),
            ("text", "", "null", "abcdefgh", "index"),
            ("nan", None, '{"a": NaN}', floats32(float("nan"), 1), "index"),
            ("infinite", None, None, floats32(float("inf"), 1), "index"),
            ("lost", b"blob", 5, None, "missing"),
        )
        change(
            tmp_path / "vectors.db",
            "INSERT INTO collection_1 (record_id, document, vector)"
            " VALUES (CAST(x'FF61' AS TEXT), CAST(x'62FE' AS TEXT), x'000000000000803F')",
        )
        for distance in ("cosine", "l2", "ip"):
            change(tmp_path / "vectors.db", f"UPDATE collections SET distance = '{distance}'")
            assert [hit.id for hit in vectors.query("a", [1, 0])] == ["good", "\udcffa"]
        assert vectors.get("a", ["\udcffa"]) == [EmbeddingRecord("\udcffa", "b\udcfe", None, (0.0, 1.0))]
        assert vectors.get("a", ["nan"])[0].metadata is not None
        assert vectors.get("a", ["torn", "lost"]) == [
            EmbeddingRecord("torn", None, None, None),
            EmbeddingRecord("lost", None, None, None),
        ]
        assert len(vectors.get("a", where={"a": {"$ne": 1}})) == 10
        assert vectors.get("a", where={"a": {"$gt": 0}}) == []
        assert vectors.delete("a", ["\udcffa", "short"]) == 2
        assert vectors.count("a") == 8

    def test_vectors_that_the_extension_measures_wrongly(self, vectors: SqliteVectors) -> None:
        # Squares that overflow or underflow in single precision, beside plain ones: enough to fill a page of either.
        style = np.random.default_rng(3)
        scales = style.choice([1e-44, 1e-30, 1e-21, 1e-13, 1.0, 1.0, 1e13, 1e20, 3e37], 600)
        found = (style.standard_normal((600, 6)) * scales[:, None]).astype("<f4")
        ids = [f"{n:03}" for n in range(600)]
        names: list[Distance] = ["cosine", "l2", "ip"]
        for distance in names:
            vectors.create(distance, distance)
            vectors.add(distance, ids, list(found))
            for query in (found[0], found[1], style.standard_normal(6).astype("<f4"), np.full(6, 1e11, "<f4")):
                distances = measure(distance, found, query)[0].tolist()
                wanted = sorted(zip(distances, ids, strict=True))[:20]
                assert [(hit.distance, hit.id) for hit in vectors.query(distance, query.tolist(), 20)] == wanted

    def test_inner_products_of_long_and_short_vectors(self, vectors: SqliteVectors) -> None:
        # The error of a product grows with the norms: that of the long ones exceeds all differences.
        style = np.random.default_rng(4)
        found = style.standard_normal((800, 48))
        found[:400] *= 1e6 / np.linalg.norm(found[:400], axis=1)[:, None]
        found[:, 0] = style.uniform(0.9, 1.1, 800)
        ids = [f"{n:03}" for n in range(800)]
        vectors.create("ip", "ip")
        vectors.add("ip", ids, list(found))
        query = np.array([1.0] + [0.0] * 47, "f4")
        distances = measure("ip", found.astype("<f4"), query)[0].tolist()
        wanted = sorted(zip(distances, ids, strict=True))[:8]
        assert [(hit.distance, hit.id) for hit in vectors.query("ip", query.tolist())] == wanted

    def test_searches_of_several_threads_see_whole_writes(self, vectors: SqliteVectors) -> None:
        vectors.add("a", ["x", "y"], [[1, 0], [1, 0]], metadatas=[{"n": 0}] * 2)
        stop = threading.Event()
        seen: list[list[object]] = []

        def search() -> None:
            while not stop.is_set():
                seen.append([None if hit.metadata is None else hit.metadata["n"] for hit in vectors.query("a", [1, 0])])

        threads = [threading.Thread(target=search) for _ in range(3)]
        for thread in threads:
            thread.start()
        for n in range(60):
            vectors.upsert("a", ["x", "y"], [[1, n], [1, n]], metadatas=[{"n": n}] * 2)
        stop.set()
        for thread in threads:
            thread.join()
        assert seen
        assert all(len(found) == 2 and found[0] == found[1] for found in seen)


class TestFunctions:
    def test_only_connections_opened_within_have_them(self) -> None:
        with loading_vectors(), loading_vectors(), closing(sqlite3.connect(":memory:")) as connection:
            prepare_vectors(connection)
            (version,) = connection.execute("SELECT vec_version()").fetchone()
            assert version.startswith("v")
        with closing(sqlite3.connect(":memory:")) as connection, pytest.raises(sqlite3.OperationalError):
            connection.execute("SELECT vec_version()")

    @pytest.mark.skipif(
        hasattr(sqlite3.Connection, "enable_load_extension"), reason="this Python can load them at any time"
    )
    def test_a_connection_without_them_is_refused(self) -> None:
        with closing(sqlite3.connect(":memory:")) as connection, pytest.raises(UsageError, match="sqlite-vec"):
            prepare_vectors(connection)

    def test_threads_may_load_them_at_once(self) -> None:
        errors: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(50):
                    with loading_vectors(), closing(sqlite3.connect(":memory:")) as connection:
                        prepare_vectors(connection)
            except (sqlite3.Error, IceburgError) as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        with closing(sqlite3.connect(":memory:")) as connection, pytest.raises(sqlite3.OperationalError):
            connection.execute("SELECT vec_version()")

    def test_distances_are_those_of_float32(self, vectors: SqliteVectors) -> None:
        vectors.add("a", ["x"], [[0.1, 0.2, 0.3]])
        (hit,) = vectors.query("a", [0.3, 0.2, 0.1])
        a, b = singles([0.1, 0.2, 0.3]), singles([0.3, 0.2, 0.1])
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        assert hit.distance == pytest.approx(1 - dot / sum(x * x for x in a), abs=1e-15)
        assert hit.distance != pytest.approx(1 - 0.10 / 0.14, abs=1e-10)
