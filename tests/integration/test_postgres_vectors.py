"""The embeddings in PostgreSQL: the contract, held by PostgreSQL alone, and the same answers as SQLite's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from iceburg.database.applier import open_applier
from iceburg.database.connection import connect
from iceburg.database.layout import Layout
from iceburg.database.postgres_session import PostgresSession
from iceburg.database.postgres_vectors import PostgresVectors
from iceburg.database.protocol import Collection, Distance, EmbeddingStore
from iceburg.database.schema import schema_names
from iceburg.database.sqlite_adapter import SqliteAdapter
from iceburg.database.target_table import prepare_loaders
from iceburg.errors import TargetError
from iceburg.sources.discovery import discover
from tests.contract.embeddings import EmbeddingContract
from tests.databases import fresh_database, name_of
from tests.strategies import floats32
from tests.support import assert_identical, change, migrate_complete, rows, run_sql, verify

_TABLES = """
SELECT e.value ->> 'name', e.value ->> 'sequence'
FROM iceburg_migration.sources, jsonb_array_elements(description -> 'tables') e ORDER BY 1
"""
_OBJECTS = """
SELECT e.value ->> 'name'
FROM iceburg_migration.sources, jsonb_array_elements(description -> 'schema_sql') e ORDER BY 1
"""


class Alone:
    """PostgreSQL alone, as far as embeddings are concerned."""

    def __init__(self, session: PostgresSession) -> None:
        self.session = session
        self.embeddings = PostgresVectors(session, "vectors.db")


@pytest.fixture(scope="module")
def migrated(server_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a database to which an installation without collections was migrated."""
    directory = tmp_path_factory.mktemp("installation")
    with SqliteAdapter(Layout.of(directory)) as embedded:
        assert embedded.embeddings.collections() == []
    with fresh_database(server_dsn) as dsn:
        migrate_complete(dsn, directory)
        yield name_of(dsn)


@pytest.fixture
def target(server_dsn: str, migrated: str) -> Iterator[str]:
    with fresh_database(server_dsn, migrated) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def shared(server_dsn: str, migrated: str) -> Iterator[str]:
    """A database of which every test leaves nothing."""
    with fresh_database(server_dsn, migrated) as dsn:
        yield dsn


@pytest.fixture
def adapter(target: str) -> Iterator[Alone]:
    with closing(PostgresSession(target, schema_names(None))) as session:
        yield Alone(session)


_EMPTY = """
DELETE FROM embeddings; DELETE FROM embedding_collections; DELETE FROM vectors.collections;
DELETE FROM iceburg_migration.datasets WHERE name <> 'vectors.db/collections';
DELETE FROM iceburg_migration.originals;
"""


class TestContract(EmbeddingContract):
    @pytest.fixture
    def adapter(self, shared: str) -> Iterator[Alone]:
        ((description,),) = rows(shared, "SELECT description::text FROM iceburg_migration.sources")
        with closing(PostgresSession(shared, schema_names(None))) as session:
            yield Alone(session)
        run_sql(shared, _EMPTY)
        run_sql(shared, "UPDATE iceburg_migration.sources SET description = %s::jsonb", (description,))


class TestAlone:
    def test_a_collection_is_described_as_if_it_came_from_a_file(self, adapter: Alone, target: str) -> None:
        adapter.embeddings.create("c", "l2")
        assert rows(target, "SELECT name, dimension, distance FROM embedding_collections") == [("c", None, "l2")]
        adapter.embeddings.add("c", ["a", "b", "d"], [[1, 2]] * 3)
        adapter.embeddings.add("e", ["a"], [[1]])
        assert rows(target, "SELECT name, dimension, distance FROM embedding_collections ORDER BY 1") == [
            ("c", 2, "l2"),
            ("e", 1, "cosine"),
        ]
        assert rows(target, "SELECT name, table_name, dimension, distance FROM vectors.collections ORDER BY 1") == [
            ("c", "collection_1", 2, "l2"),
            ("e", "collection_2", 1, "cosine"),
        ]
        assert rows(target, _TABLES) == [("collection_1", None), ("collection_2", None), ("collections", None)]
        assert rows(target, _OBJECTS) == [("collection_1",), ("collection_2",), ("collections",)]
        assert adapter.embeddings.delete("c", ["b", "d"]) == 2
        assert rows(target, _TABLES)[0] == ("collection_1", "3")
        adapter.embeddings.add("c", ["b"], [[1, 2]])
        assert rows(target, "SELECT record_id, row_id FROM embeddings ORDER BY row_id, record_id") == [
            ("a", 1),
            ("a", 1),
            ("b", 4),
        ]

    def test_a_collection_that_another_process_makes(self, adapter: Alone, target: str) -> None:
        assert adapter.embeddings.collections() == []
        with closing(PostgresSession(target, schema_names(None))) as session:
            other = PostgresVectors(session, "vectors.db")
            assert other.get("c") == []
            adapter.embeddings.create("c", "l2")
            assert other.count("c") == 0
            other.add("c", ["a"], [[1, 2]])
            assert adapter.embeddings.count("c") == 1
            adapter.embeddings.add("d", ["a"], [[1]])
            other.add("d", ["b"], [[2]])
            assert other.collections() == [Collection("c", 2, "l2"), Collection("d", 1, "cosine")]
            assert adapter.embeddings.count("d") == 2

    def test_nothing_is_left_of_a_write_that_fails(self, adapter: Alone, target: str) -> None:
        run_sql(target, "ALTER TABLE embeddings ADD CHECK (text <> 'refused')")
        for _ in range(2):
            with pytest.raises(TargetError, match=r"refuse|cannot hold"):
                adapter.embeddings.add("c", ["a", "b"], [[1], [2]], ["fine", "refused"])
            assert adapter.embeddings.collections() == []
            assert adapter.embeddings.get("c") == []
        adapter.embeddings.add("c", ["a"], [[1]])
        with pytest.raises(TargetError, match=r"refuse|cannot hold"):
            adapter.embeddings.upsert("c", ["a", "b"], [[1], [2]], ["fine", "refused"])
        assert [record.document for record in adapter.embeddings.get("c")] == [None]

    def test_a_search_uses_no_approximate_index(self, adapter: Alone, target: str) -> None:
        style = random.Random(2)
        vectors = [[style.gauss(0, 1), style.gauss(0, 1)] for _ in range(500)]
        adapter.embeddings.add("c", [f"{n:03}" for n in range(500)], vectors)
        before = [(hit.id, hit.distance) for hit in adapter.embeddings.query("c", [1, 1], 30)]
        index = "CREATE INDEX ON embeddings USING ivfflat ((embedding::vector(2)) vector_cosine_ops) WITH (lists = 100)"
        run_sql(target, index)
        name = str(psycopg.conninfo.conninfo_to_dict(target)["dbname"])
        run_sql(target, f"ALTER DATABASE {name} SET enable_seqscan = off")
        with closing(PostgresSession(target, schema_names(None))) as session:
            after = PostgresVectors(session, "vectors.db").query("c", [1, 1], 30)
        assert [(hit.id, hit.distance) for hit in after] == before


class World:
    """An installation with both sides, where the change log's applier brings PostgreSQL up to SQLite."""

    def __init__(self, dsn: str, data_dir: Path) -> None:
        self.dsn, self.data_dir = dsn, data_dir
        self.embedded = SqliteAdapter(Layout.of(data_dir))
        self.sqlite = self.embedded.embeddings
        self.sqlite.create("first", "l2", 3)
        migrate_complete(dsn, data_dir)
        (store,) = discover(data_dir)
        self.applier = open_applier(store, store.path, schema_names(None))
        self.connection = connect(dsn, autocommit=True)
        prepare_loaders(self.connection)
        self.applier.attach(self.connection)
        self.session = PostgresSession(dsn, schema_names(None))
        self.postgres = PostgresVectors(self.session, "vectors.db")

    def catch_up(self) -> None:
        self.applier.apply(self.connection)

    def close(self) -> None:
        self.session.close()
        self.connection.close()
        self.applier.close()
        self.embedded.close()


@pytest.fixture
def world(tmp_path: Path, database: str) -> Iterator[World]:
    made = World(database, tmp_path)
    yield made
    made.close()


def answers(store: EmbeddingStore, style: random.Random) -> list[Any]:
    """Many questions, the same for equal states of the generator."""
    found: list[Any] = [store.collections()]
    filters: list[dict[str, Any]] = [
        {},
        {"where": {"n": {"$gte": 3}}},
        {"where": {"n": 3}},
        {"where": {"n": {"$ne": 3}}},
        {"where": {"t": {"$in": ["a\0", "é"]}}},
        {"where": {"t": {"$nin": ["a\ufffd", "é"]}}},
        {"where": {"l": {"$contains": 1.0}}},
        {"where": {"$or": [{"n": {"$lt": 2}}, {"l": {"$not_contains": "x"}}]}},
        {"where_document": {"$contains": "a"}},
        {"where_document": {"$not_contains": "\0"}},
        {"where": {"n": {"$gt": 0}}, "where_document": {"$contains": "ä"}},
    ]
    for name in ("first", "second", "third", "absent"):
        dimension = next((c.dimension for c in store.collections() if c.name == name), None) or 3
        query = [style.choice([0.0, 1.0, -0.5, 1e-7, style.gauss(0, 1)]) for _ in range(dimension)]
        found.append(store.count(name))
        for conditions in filters:
            found.append(store.get(name, **conditions))
            found.append(store.get(name, limit=2, **conditions))
            found.append(store.query(name, query, style.choice([1, 3, 50]), **conditions))
        found.append(store.get(name, ["r1", "r2\0", "r3\ufffd", "absent"]))
    return found


def write(store: EmbeddingStore, style: random.Random) -> None:
    """Do something, most of it to what others do not touch."""
    name = style.choice(["first", "second", "third"])
    known = next((c for c in store.collections() if c.name == name), None)
    dimension = (known.dimension if known is not None else None) or style.choice([1, 3])
    ids = style.sample(["r1", "r2\0", "r2\ufffd", "r3\ufffd", *(f"r{n}" for n in range(4, 30))], style.randint(1, 6))
    if style.random() < 0.1:
        distances: list[Distance] = ["cosine", "l2", "ip"]
        if known is None:
            store.create(name, style.choice(distances), style.choice([None, dimension]))
        return
    if style.random() < 0.25:
        store.delete(name, ids)
        return
    vectors = [[style.choice([0.0, 1.0, 1.0, style.gauss(0, 1)]) for _ in range(dimension)] for _ in ids]
    documents = [style.choice([None, "", "a", "ä\0a", "b\ufffd"]) for _ in ids]
    metadatas = [
        style.choice(
            [None, {}, {"n": style.randint(0, 5)}, {"n": 3.0, "t": "é"}, {"t": "a\0"}, {"t": "a\ufffd", "n": True},
             {"l": [1, "x"], "n": -0.0}, {"l": [True], "none": None}, {"n": 2**62, "a\0": 1}]
        )
        for _ in ids
    ]  # fmt: skip
    store.upsert(name, ids, vectors, documents, metadatas)


class TestBothSides:
    @pytest.mark.parametrize("seed", range(4))
    def test_both_sides_answer_alike(self, world: World, seed: int) -> None:
        style = random.Random(seed)
        for step in range(40):
            write(world.sqlite, style)
            if step % 8 == 0:
                world.catch_up()
                questions = style.random()
                ours = answers(world.sqlite, random.Random(questions))
                assert answers(world.postgres, random.Random(questions)) == ours
        world.catch_up()
        assert_identical(verify(world.dsn, world.data_dir))

    def test_what_others_write_is_answered_alike(self, world: World) -> None:
        insert = (
            "INSERT INTO collection_1 (record_id, document, metadata, vector, vector_origin) VALUES (?, ?, ?, ?, ?)"
        )
        texts = [
            "{", "[1]", '"n"', "5", "null", "", None, '{"n": 1, "n": 3}',
            '{"n": 3, "n": 1}', '{"n": NaN, "t": "é"}', '{"n": 1e400}',
            '{"\\u006e": 3}', '{"n": 3.0000000000000001}', '{"n": 2.9999999999999999999}', '{"t": "a\\u0000"}',
            '{"t": "\\ud800"}', '{"l": [[1], {"x": 1}]}', '{"n": {"x": 3}}', '{"l": [1e0]}', '{"n": 3}\0',
        ]  # fmt: skip
        vectors = [floats32(1, 2, 3), floats32(1, 2), b"abc", "text", None, floats32(float("nan"), 1, 1), b"",
                   floats32(1e-30, 0, 0), floats32(3e38, 3e38, 3e38), floats32(0, 0, 0)]  # fmt: skip
        change(
            world.data_dir / "vectors.db",
            insert,
            *[(f"t{n}", "a" if n % 2 else None, text, floats32(n, 1, 1), "index") for n, text in enumerate(texts)],
            *[(f"v{n}", None, None, vector, "index") for n, vector in enumerate(vectors)],
            (b"blob", b"a\xff", 7, None, "missing"),
        )
        distances: list[Distance] = ["l2", "cosine", "ip"]
        for distance in distances:
            change(world.data_dir / "vectors.db", f"UPDATE collections SET distance = '{distance}'")
            world.catch_up()
            world.session.forget()
            for seed in range(3):
                ours = repr(answers(world.sqlite, random.Random(seed)))
                assert repr(answers(world.postgres, random.Random(seed))) == ours
