"""ICEBURG's own stores over the unified layer: the same calls, the same answers, in each mode."""

from __future__ import annotations

import json
import re
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from iceburg.config import Settings
from iceburg.database import (
    Entity,
    MatrixStore,
    Relationship,
    SearchHit,
    Telemetry,
    UnifiedDatabase,
    VectorStore,
    get_unified_db,
    metrics,
    unified_db,
)
from iceburg.errors import UsageError
from tests.support import rows

ADA: dict[str, Any] = {
    "entity_id": "osanc_a",
    "name": "Ada",
    "entity_type": "person",
    "source": "osanc",
    "properties": {"born": 1815, "x": [1.0, None]},
    "countries": ["gb"],
    "datasets": ["d"],
    "created_at": "2026-01-01 00:00:00",
}
BAB: dict[str, Any] = {
    "entity_id": "b",
    "name": "Bab & Ada",
    "entity_type": "company",
    "source": None,
    "properties": None,
    "countries": [],
    "datasets": "",
    "created_at": "2026-01-02 00:00:00",
}
OWNS: dict[str, Any] = {
    "relationship_id": "r1",
    "source_id": "osanc_a",
    "target_id": "b",
    "relationship_type": "owns",
    "properties": {"share": 0.5},
    "source": "osanc",
    "created_at": "2026-01-01 00:00:00",
}
KNOWS = {**OWNS, "relationship_id": "r2", "source_id": "c", "target_id": "osanc_a", "relationship_type": "knows"}
KNOWS |= {"properties": None, "source": None}


def settings_of(request: pytest.FixtureRequest, data_dir: Path, mode: str) -> Settings:
    if mode == "embedded":
        return Settings(data_dir=data_dir)
    dsn = SecretStr(request.getfixturevalue("database"))
    # A machine under load must not make SQLite answer where PostgreSQL is meant to.
    return Settings(
        data_dir=data_dir, use_postgres=True, dual_write=mode == "dual", database_url=dsn, postgres_timeout=30
    )


@pytest.fixture(params=["embedded", "dual", "postgres"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UnifiedDatabase]:
    """An empty installation in each mode; at the end, the side that is meant to must have answered all reads."""
    before = reads()
    with UnifiedDatabase(settings_of(request, tmp_path, request.param)) as made:
        assert made.mode == request.param
        yield made
    side = "embedded" if request.param == "embedded" else "postgres"
    after = reads()
    assert {name[1] for name, count in after.items() if count != before.get(name, 0)} <= {side}


def reads() -> dict[tuple[str, str], float]:
    """How many reads each side has answered in this process, by operation."""
    writing = ("save", "put", "put_many", "relate", "upsert", "append")
    return {
        (sample.labels["operation"], sample.labels["side"]): sample.value
        for metric in metrics.OPERATIONS.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.labels["outcome"] == "ok"
        if sample.labels["operation"].split(".")[1] not in writing
    }


def letters(texts: list[str]) -> list[list[float]]:
    """Count four letters: a toy of an embedding function."""
    return [[float(text.count(letter)) for letter in "abcd"] for text in texts]


# Conversations


def test_conversations(db: UnifiedDatabase) -> None:
    assert db.get_conversations() == []
    first = db.save_conversation("c1", "q1", "a1", "surveyor", "research", {"z": [1, 1.0, None], "a": "é"})
    second = db.save_conversation("c2", "q2", "a2")
    third = db.save_conversation(
        conversation_id="c1", user_message="q3", assistant_message="a3", agent_used="x", mode="y", metadata={}
    )
    found = db.get_conversations()
    assert [list(one) for one in found] == [
        [
            *("id", "conversation_id", "timestamp", "user_message", "assistant_message"),
            *("agent_used", "mode", "metadata", "created_at"),
        ]
    ] * 3
    assert [one["id"] for one in found] == [third, second, first]
    assert [list(one.values())[3:8] for one in found] == [
        ["q3", "a3", "x", "y", "{}"],
        ["q2", "a2", None, None, None],
        ["q1", "a1", "surveyor", "research", '{"a": "\\u00e9", "z": [1, 1.0, null]}'],
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", one["timestamp"]) for one in found)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", one["created_at"]) for one in found)
    assert db.get_conversations("c1", limit=1) == found[:1]
    assert db.get_conversations(conversation_id="c1") == [found[0], found[2]]
    assert db.get_conversations("none") == []
    json.dumps(found)


@pytest.mark.parametrize("given", ["text", "path"])
def test_the_file_of_the_conversations_may_be_given(tmp_path: Path, given: str) -> None:
    path = tmp_path / "there" / "iceburg_unified.db"
    with UnifiedDatabase(sqlite_path=str(path) if given == "text" else path) as db:
        db.save_conversation("c", "q", "a")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM conversations").fetchone() == (1,)


# The matrix


@pytest.fixture
def matrix(db: UnifiedDatabase) -> MatrixStore:
    made = MatrixStore(db)
    assert made.search("a") == []
    assert made.get_entity("b") is None
    assert made.get_relationships("b") == []
    assert made.get_network("b") == {"nodes": [], "edges": [], "center": None, "depth": 2, "truncated": False}
    db.matrix.put_many(
        [
            Entity(**ADA),
            Entity(**BAB),
            *(Entity(name, name * 3, "person", created_at="2026-01-03 00:00:00") for name in "cde"),
        ]
    )
    at = "2026-01-01 00:00:00"
    db.matrix.relate(
        [
            Relationship(**OWNS),
            Relationship("r2", "c", "osanc_a", "knows", created_at=at),
            Relationship("r3", "c", "d", "knows", created_at=at),
            Relationship("r4", "c", "nobody", "knows", created_at=at),
            Relationship("r5", "d", "e", "knows", created_at=at),
        ]
    )
    return made


def test_search(matrix: MatrixStore) -> None:
    assert matrix.search("ADA") == [BAB, ADA]
    assert matrix.search("ada", limit=1) == [BAB]
    assert matrix.search(query="a_a") == [BAB, ADA]
    assert matrix.search("b & a") == [BAB]
    assert matrix.search("x") == []
    assert list(matrix.search("ada")[0]) == list(BAB)


@pytest.mark.parametrize("limit", [-1, "3", None])
def test_a_limit_that_is_none(matrix: MatrixStore, limit: Any) -> None:
    with pytest.raises(UsageError, match="limit"):
        matrix.search("a", limit=limit)


def test_get_entity(matrix: MatrixStore) -> None:
    assert matrix.get_entity("osanc_a") == ADA
    assert matrix.get_entity("a") == ADA
    assert matrix.get_entity("osanc_b") == BAB
    assert matrix.get_entity("x") is None


def test_get_relationships(matrix: MatrixStore) -> None:
    assert matrix.get_relationships("osanc_a") == [OWNS, KNOWS]
    assert matrix.get_relationships("b") == [OWNS]
    assert matrix.get_relationships("nobody")[0]["relationship_id"] == "r4"
    assert matrix.get_relationships("a") == []
    assert list(matrix.get_relationships("b")[0]) == list(OWNS)


def test_get_network(matrix: MatrixStore) -> None:
    def ids(found: dict[str, Any]) -> tuple[list[str], list[str]]:
        return [n["entity_id"] for n in found["nodes"]], [e["relationship_id"] for e in found["edges"]]

    found = matrix.get_network("a", depth=1)
    assert found["nodes"][:2] == [ADA, BAB]
    assert found["edges"] == [OWNS, KNOWS]
    assert (found["center"], found["depth"], found["truncated"]) == ("osanc_a", 1, False)
    assert ids(found) == (["osanc_a", "b", "c"], ["r1", "r2"])
    assert ids(matrix.get_network("osanc_a")) == (["osanc_a", "b", "c", "d"], ["r1", "r2", "r3"])
    assert ids(matrix.get_network("osanc_a", depth=9)) == (
        ["osanc_a", "b", "c", "d", "e"],
        ["r1", "r2", "r3", "r5"],
    )
    few = matrix.get_network("osanc_a", 9, limit=2)
    assert ids(few) == (["osanc_a", "b"], ["r1"])
    assert few["truncated"] is True
    assert ids(matrix.get_network("b", 0)) == (["b"], [])


# Vectors


def test_add_and_search(db: UnifiedDatabase) -> None:
    store = VectorStore(letters, "notes", db)
    assert store.semantic_search("a") == []
    assert store.add(["aab", "bbb", "cd"], [{"n": 1}, {"n": 2, "t": "x"}, None], ["one", "two", "three"]) == [
        "one",
        "two",
        "three",
    ]
    hits = store.semantic_search("aaaabb", k=2)
    assert [dict(hit) for hit in hits] == [
        {"id": "one", "document": "aab", "metadata": {"n": 1}, "distance": pytest.approx(0.0, abs=1e-12)},
        {"id": "two", "document": "bbb", "metadata": {"n": 2, "t": "x"}, "distance": pytest.approx(1 - 5**-0.5)},
    ]
    for hit in hits:
        assert isinstance(hit, SearchHit)
        assert (hit.id, hit.document, hit.metadata, hit.distance) == tuple(hit.values())
    assert [hit.id for hit in store.semantic_search("a")] == ["one", "three", "two"]
    assert [hit.id for hit in store.semantic_search("a", where={"n": {"$gte": 1}})] == ["one", "two"]
    assert [hit.id for hit in store.semantic_search("a", 8, {"$and": [{"n": 2}, {"t": "x"}]})] == ["two"]
    assert store.semantic_search("d", k=1)[0].metadata is None
    json.dumps(hits)


def test_ids_that_are_not_given(db: UnifiedDatabase) -> None:
    store = VectorStore(letters, database=db)
    assert store.collection == "iceburg"
    first = store.add(["a", "a"])
    assert len({uuid.UUID(name) for name in first}) == 2
    assert {uuid.UUID(name).version for name in first} == {4}
    (own, made) = store.add(["b", "c"], ids=["own", None])
    assert own == "own"
    assert uuid.UUID(made).version == 4
    assert {hit.id for hit in store.semantic_search("abc")} == {*first, own, made}


def test_ids_that_are_there_are_replaced(db: UnifiedDatabase) -> None:
    store = VectorStore(letters, "c", db)
    store.add(["aa", "b"], [{"n": 1}, {"n": 2}], ["x", "y"])
    store.add(["d"], None, ["x"])
    assert [(hit.id, hit.document, hit.metadata) for hit in store.semantic_search("ddd")] == [
        ("x", "d", None),
        ("y", "b", {"n": 2}),
    ]


def test_nothing_is_added(db: UnifiedDatabase) -> None:
    def never(texts: list[str]) -> list[list[float]]:
        raise AssertionError(texts)

    assert VectorStore(never, "c", db).add([]) == []
    assert db.embeddings.collections() == []


@pytest.mark.parametrize("shape", ["arrays", "one array", "tuples"])
def test_what_embedding_functions_return(db: UnifiedDatabase, shape: str) -> None:
    def function(texts: list[str]) -> Any:
        assert type(texts) is list
        made = letters(texts)
        if shape == "one array":
            return np.array(made, "f4")
        return [np.array(vector) if shape == "arrays" else tuple(vector) for vector in made]

    store = VectorStore(function, "c", db)
    store.add(("a", "b"), ids=("x", "y"))
    assert [(hit.id, hit.distance) for hit in store.semantic_search("b")] == [("y", 0.0), ("x", 1.0)]


def test_what_cannot_be_added(db: UnifiedDatabase) -> None:
    store = VectorStore(letters, "c", db)
    store.add(["a"], ids=["there"])
    refused: list[tuple[Any, Any, Any, str]] = [
        (["a", "b"], None, ["x"], "there are 2 texts, and 1 ids"),
        (["a"], [{}, {}], None, "there are 1 texts, and 2 metadatas"),
        (["a", "b"], None, ["x", "x"], "the id occurs twice"),
        ("abc", None, None, "texts is a list of texts, not a text"),
        (["a", 5], None, None, "what is embedded is a text, not 5"),
        (["a"], ["not a dict"], None, "not a dict"),
        (["a"], None, [5], "the id 5 is not a text"),
    ]
    for texts, metadatas, ids, message in refused:
        with pytest.raises(UsageError, match=re.escape(message)):
            store.add(texts, metadatas, ids)
    with pytest.raises(UsageError, match="the embedding function made 1 vectors of 2 texts"):
        VectorStore(lambda texts: [[1.0]], "c", db).add(["a", "b"])
    with pytest.raises(UsageError, match="2 dimensions, not 4"):
        VectorStore(lambda texts: [[1.0, 2.0]] * len(texts), "c", db).add(["a"])
    with pytest.raises(UsageError, match="2 dimensions, not 4"):
        VectorStore(lambda texts: [[1.0, 2.0]] * len(texts), "c", db).semantic_search("a")
    with pytest.raises(UsageError, match="k is"):
        store.semantic_search("a", k=0)
    with pytest.raises(UsageError):
        store.semantic_search("a", where={"n": {"$nothing": 1}})
    assert [hit.id for hit in store.semantic_search("a")] == ["there"]


# Telemetry


def test_telemetry(db: UnifiedDatabase, tmp_path: Path) -> None:
    telemetry = Telemetry(db)
    before = time.time()
    telemetry.write("agent_started", {"x": [1, None, "é"]}, "run", "agent", "task")
    telemetry.write(event_name="agent_done", data=None, run_id=None, task_id="t")
    after = time.time()
    (done, started) = db.telemetry.newest()
    assert (started.event_type, done.event_type) == ("agent_started", "agent_done")
    keys = ["event_type", "timestamp", "agent_id", "task_id", "run_id", "payload", "metadata"]
    assert sorted(started.data) == sorted(keys)
    assert before <= started.data["timestamp"] <= done.data["timestamp"] <= after
    assert {**started.data, "timestamp": 0} == {
        "event_type": "agent_started",
        "timestamp": 0,
        "agent_id": "agent",
        "task_id": "task",
        "run_id": "run",
        "payload": {"x": [1, None, "é"]},
        "metadata": {},
    }
    assert [done.data[key] for key in keys[2:]] == [None, "t", None, None, {}]
    assert [(one.key, one.count) for one in db.telemetry.aggregate()] == [("agent_done", 1), ("agent_started", 1)]
    if db.mode != "postgres":
        lines = (tmp_path / "telemetry" / "events.jsonl").read_text().splitlines()
        assert [list(json.loads(line)) for line in lines] == [keys, keys]
    with pytest.raises(UsageError):
        telemetry.write("x", {"y": object()})


# The process's own database


def test_the_default_is_the_process_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICEBURG_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("ICEBURG_USE_POSTGRES", "false")
    monkeypatch.setattr(unified_db, "_shared", None)
    matrix, vectors, telemetry = MatrixStore(), VectorStore(letters), Telemetry()
    vectors.add(["a"], ids=["x"])
    telemetry.write("e", {})
    with get_unified_db() as shared:
        assert get_unified_db() is shared
        assert matrix.database is vectors.database is telemetry.database is shared
        assert shared.embeddings.count("iceburg") == 1
        assert len(shared.telemetry.newest()) == 1
    assert (tmp_path / "vectors.db").exists()


def test_dual_write_reaches_both_sides(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with UnifiedDatabase(settings_of(request, tmp_path, "dual")) as db:
        db.save_conversation("c", "q", "a")
        VectorStore(letters, "notes", db).add(["ab"], ids=["x"])
        Telemetry(db).write("e", {"n": 1})
        db.matrix.put(Entity(**ADA))
    dsn = request.getfixturevalue("database")
    for table in ("conversations", "embeddings", "telemetry", "matrix_entities"):
        assert rows(dsn, f"SELECT count(*) FROM {table}") == [(1,)], table
    with UnifiedDatabase(Settings(data_dir=tmp_path)) as off:
        assert len(off.get_conversations()) == 1
        assert VectorStore(letters, "notes", off).semantic_search("ab")[0].id == "x"
        assert MatrixStore(off).get_entity("a") == ADA
        assert off.telemetry.newest()[0].data["payload"] == {"n": 1}
