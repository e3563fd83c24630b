"""Short reads: what is kept beside rows, or defined anew, by others is seen by the next read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from iceburg.config import Settings
from iceburg.database import Entity, Relationship, UnifiedDatabase, conversion
from iceburg.database.catalogue import Catalogue, Dataset
from iceburg.database.connection import check_server, connect
from iceburg.database.network import walk
from iceburg.database.postgres_failures import BehindError
from iceburg.database.postgres_session import PostgresSession
from iceburg.database.prompt_read import PromptReader
from iceburg.database.protocol import Conversation
from iceburg.database.schema import apply_schema, schema_files, schema_names
from iceburg.database.short_records import written_time
from iceburg.database.sqlite_matrix import other_id
from tests.support import rows, run_sql

STATE = "iceburg_migration"
WHEN = "2026-01-31 10:11:12"


@pytest.fixture
def pair(tmp_path: Path, database: str) -> Iterator[tuple[UnifiedDatabase, UnifiedDatabase]]:
    settings = Settings(data_dir=tmp_path, use_postgres=True, dual_write=False, database_url=SecretStr(database))
    with UnifiedDatabase(settings) as one, UnifiedDatabase(settings) as other:
        yield one, other


def regular(dsn: str) -> dict[str, bool]:
    return dict(rows(dsn, f"SELECT name, regular FROM {STATE}.datasets"))


def whole_way(self: PostgresSession, *rest: Any, **more: Any) -> None:
    raise AssertionError("a whole read")


def test_regular_datasets_are_read_in_the_short_way(
    pair: tuple[UnifiedDatabase, UnifiedDatabase], monkeypatch: pytest.MonkeyPatch
) -> None:
    db, _ = pair
    number = db.conversations.save("c", "q", "a", metadata={"n": 1})
    entities = [Entity(name, f"Name of {name}", "person") for name in ("a", "osanc_b")]
    db.matrix.put_many(entities)
    db.matrix.relate([Relationship("r", "a", "osanc_b", "knows")])
    monkeypatch.setattr(PostgresSession, "ask", whole_way)
    exchange = db.conversations.get(number)
    assert exchange is not None
    assert db.conversations.newest() == db.conversations.newest("c") == [exchange]
    assert db.conversations.newest(before=exchange) == []
    assert db.matrix.get("a") == db.matrix.search("of a")[0]
    assert [one.relationship_id for one in db.matrix.relationships("osanc_b")] == ["r"]
    assert db.matrix.relationships_of(["a", "osanc_b"]) == db.matrix.relationships("a")
    found = db.matrix.network("a")
    assert [node.entity_id for node in found.nodes] == ["a", "osanc_b"]
    assert found.edges == tuple(db.matrix.relationships("a"))


def test_what_others_keep_beside_the_rows_is_seen(pair: tuple[UnifiedDatabase, UnifiedDatabase], database: str) -> None:
    """One has read in the short way before; what the other writes PostgreSQL cannot hold as it is."""
    one, other = pair
    other.matrix.put_many([Entity("e", "plain", "person"), Entity("f", "plain", "person")])
    other.matrix.relate([Relationship("r", "e", "f", "knows")])
    other.conversations.save("c", "q", "a")
    assert one.matrix.get("e") == other.matrix.get("e")
    assert len(one.matrix.search("plain")) == 2
    assert len(one.matrix.network("e").edges) == len(one.matrix.relationships("e")) == len(one.conversations.newest())
    assert set(regular(database).values()) == {True}

    other.matrix.put(Entity("e", "pl\0ain", "person"))
    found = one.matrix.get("e")
    assert found is not None
    assert found.name == "pl\0ain"
    assert [entity.entity_id for entity in one.matrix.search("plain")] == ["f"]
    assert one.matrix.network("e").nodes[0].name == "pl\0ain"
    assert regular(database) == {**regular(database), "matrix.db/entities": False, "matrix.db/relationships": True}

    other.matrix.relate([Relationship("r", "e", "f", "kn\0ows")])
    assert [relationship.relationship_type for relationship in one.matrix.relationships("e")] == ["kn\0ows"]
    assert one.matrix.network("f").edges[0].relationship_type == "kn\0ows"
    other.conversations.save("c\0", "q\0", "a")
    assert [exchange.user_message for exchange in one.conversations.newest()] == ["q\0", "q"]
    assert one.conversations.newest("c\0") == one.conversations.newest()[:1]
    assert not regular(database)["conversations.db/conversations"]


def test_records_with_originals_are_read_in_the_short_way(
    pair: tuple[UnifiedDatabase, UnifiedDatabase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the dataset is known to be irregular; what decides, such as a name, is given apart."""
    db, _ = pair
    entities = [Entity(name, f"Name of {name}\0", "person", f"\0{name}", "\0", created_at=WHEN) for name in "abcde"]
    plain = [Entity(name, f"Name of {name}", "person", created_at=WHEN) for name in "fgh"]
    edges = [Relationship("r1", "a", "f", "kn\0ows", created_at=WHEN), Relationship("r2", "f", "g", "knows")]
    db.matrix.put_many(entities + plain)
    db.matrix.relate(edges)
    stamps = ["2026-01-31 10:00:00", "2026-01-31T10:00:01.5", "2026-01-31T10:00:00", "yesterday"]
    numbers = [db.conversations.save(f"c{n % 2}", f"q\0{n}", "a", timestamp=stamp) for n, stamp in enumerate(stamps)]
    assert (db.matrix.get("a"), len(db.matrix.relationships("f")), len(db.conversations.newest())) == (
        entities[0],
        2,
        4,
    )

    monkeypatch.setattr(PostgresSession, "ask", whole_way)
    assert [db.matrix.get(one.entity_id) for one in entities + plain] == entities + plain
    for _ in range(2):
        assert db.matrix.search("name") == entities + plain
        for limit in range(1, 9):
            assert db.matrix.search("NAME", limit=limit) == (entities + plain)[:limit]
            assert db.matrix.search("of ", "person", limit=min(limit, 8)) == (entities + plain)[:limit]
    assert [one.relationship_type for one in db.matrix.relationships("f")] == ["kn\0ows", "knows"]
    found = db.matrix.network("a")
    assert list(found.nodes) == [entities[0], *plain[:2]]
    assert found.edges == tuple(db.matrix.relationships("f"))
    assert [db.conversations.get(number).user_message for number in numbers] == [f"q\0{n}" for n in range(4)]  # type: ignore[union-attr]
    newest = db.conversations.newest()
    assert [one.timestamp for one in newest] == sorted(stamps, reverse=True)
    for limit in range(1, 5):
        assert db.conversations.newest(limit=limit) == newest[:limit]
        assert db.conversations.newest(limit=limit, before=newest[2]) == newest[3 : limit + 3]
    assert db.conversations.newest("c1") == [one for one in newest if one.conversation_id == "c1"]


def test_a_walk_sees_what_is_kept_beside_the_entities(pair: tuple[UnifiedDatabase, UnifiedDatabase]) -> None:
    """None of them is read in another way meanwhile, which would find out."""
    one, other = pair
    other.matrix.put_many([Entity("e", "plain", "person"), Entity("f", "plain", "person")])
    other.matrix.relate([Relationship("r", "e", "f", "knows")])
    for name in ("plain", "pl\0ain", "other", "pl\0other"):
        other.matrix.put(Entity("f", name, "person"))
        assert [node.name for node in one.matrix.network("e").nodes] == ["plain", name]


@pytest.mark.parametrize("name", ["é", 'q"', "b\\", "\\u00e9", "d\x7f", "n\0", "\n"])
def test_keys_that_do_not_follow_from_their_rows(pair: tuple[UnifiedDatabase, UnifiedDatabase], name: str) -> None:
    db, _ = pair
    entities = [Entity(one, "na\0me", "person", created_at=WHEN) for one in sorted(("a", "z", "n", name))]
    db.matrix.put_many(entities)
    edges = [Relationship(f"r{end}", name, end, "kn\0ows", created_at=WHEN) for end in ("a", "z", name)]
    edges.append(Relationship(name, "z", "a", "kn\0ows", created_at=WHEN))
    db.matrix.relate(edges)
    for _ in range(2):
        assert [db.matrix.get(one.entity_id) for one in entities] == entities
        assert db.matrix.search("na") == entities
        assert len(db.matrix.relationships("n")) == 0
        for end in ("a", "z", name):
            around = [one for one in edges if end in (one.source_id, one.target_id)]
            assert db.matrix.relationships(end) == sorted(around, key=lambda one: one.relationship_id.encode())
            found = db.matrix.network(end)
            assert (len(found.nodes), len(found.edges)) == (3, 4)


def test_more_are_apart_than_can_be_given(pair: tuple[UnifiedDatabase, UnifiedDatabase]) -> None:
    db, _ = pair
    for count in (99, 100, 101, 102):
        entities = [Entity(f"e{n:03}", f"name \0{n}", "person", created_at=WHEN) for n in range(count)]
        db.matrix.put_many([*entities, Entity("z", "name", "person", created_at=WHEN)])
        for _ in range(2):
            assert db.matrix.search("name", limit=count) == entities
            assert [one.entity_id for one in db.matrix.search("name", limit=1_000)][-1] == "z"


@pytest.mark.parametrize(("pause", "tried"), [(1_000.0, 0), (0.0, 1)])
def test_what_was_refused_is_not_tried_again_at_once(
    pair: tuple[UnifiedDatabase, UnifiedDatabase], monkeypatch: pytest.MonkeyPatch, pause: float, tried: int
) -> None:
    monkeypatch.setattr("iceburg.database.postgres_session._REFUSED", pause)
    db, _ = pair
    db.matrix.put_many([Entity("n\0", "name", "person"), Entity("a", "name", "person")])
    asked: list[bytes] = []
    fetch = PromptReader.fetch

    def noted(self: PromptReader, statement: bytes, *rest: Any) -> Any:
        asked.append(statement)
        return fetch(self, statement, *rest)

    for _ in range(2):  # the first finds that it is irregular
        assert len(db.matrix.search("name")) == 2
    monkeypatch.setattr(PromptReader, "fetch", noted)
    assert len(db.matrix.search("name")) == 2
    assert sum(b" AS refused" in statement for statement in asked) == tried


def test_with_a_file_what_is_in_quarantine_is_read_from_it(tmp_path: Path, database: str) -> None:
    options = Settings(data_dir=tmp_path, use_postgres=True, database_url=SecretStr(database))
    with UnifiedDatabase(options) as db:
        db.conversations.save("c", "one\0", "a")
        db.matrix.put_many([Entity(name, "name\0", "person", created_at=WHEN) for name in "ab"])
        db.matrix.relate([Relationship("r", "a", "b", "knows", created_at=WHEN)])
        assert len(db.conversations.newest()) == 1
        assert len(db.matrix.network("a").nodes) == len(db.matrix.search("name")) == 2
        run_sql(database, "DELETE FROM conversations; DELETE FROM matrix_entities WHERE entity_id = 'b'")
        run_sql(
            database,
            f"INSERT INTO {STATE}.quarantine (dataset_id, record_key, record, reason)"
            f" SELECT dataset_id, '[1]', '', 'r' FROM {STATE}.datasets WHERE name ~ 'conversations$|entities$'",
        )
        for _ in range(2):
            assert len(db.conversations.newest()) == 1
            assert len(db.matrix.network("a").nodes) == len(db.matrix.search("name")) == 2


def test_an_original_counts_from_its_commit_on(pair: tuple[UnifiedDatabase, UnifiedDatabase], database: str) -> None:
    db, _ = pair
    db.matrix.put(Entity("e", "before", "person"))
    with closing(psycopg.connect(database)) as connection:
        connection.execute(
            f"INSERT INTO {STATE}.originals (dataset_id, record_key, field, storage_class, value, reason)"
            f" SELECT dataset_id, '[\"e\"]', 'name', 'text', 'kept', 'r' FROM {STATE}.datasets"
            " WHERE name = 'matrix.db/entities'"
        )
        found = db.matrix.get("e")
        assert found is not None
        assert found.name == "before"
        connection.commit()
    found = db.matrix.get("e")
    assert found is not None
    assert found.name == "kept"


def test_a_quarantined_record_makes_a_dataset_irregular(database: str) -> None:
    with connect(database, autocommit=True) as connection:
        check_server(connection)
        apply_schema(connection, schema_names(None))
    run_sql(database, f"INSERT INTO {STATE}.sources (name, kind) VALUES ('s', 'sqlite')")
    for name in "ab":
        run_sql(
            database,
            f"INSERT INTO {STATE}.datasets (source_id, name, target_schema, target_table, definition)"
            f" SELECT source_id, '{name}', 's', 't', '{{}}' FROM {STATE}.sources",
        )
    quarantined = f"INSERT INTO {STATE}.quarantine (dataset_id, record_key, record, reason) SELECT dataset_id, '[1]',"
    run_sql(database, f"{quarantined} '', 'r' FROM {STATE}.datasets WHERE FALSE")
    assert regular(database) == {"a": True, "b": True}
    run_sql(database, f"{quarantined} '', 'r' FROM {STATE}.datasets WHERE name = 'b'")
    assert regular(database) == {"a": True, "b": False}


def test_a_target_of_before_knows_what_it_keeps(database: str) -> None:
    names = schema_names(None)
    with connect(database, autocommit=True) as connection:
        check_server(connection)
        apply_schema(connection, names)
        newest = schema_files()[-1]
        assert newest.name == "0009_regular.sql"
        for statement in (
            "DROP FUNCTION {state}.note_kept CASCADE",
            "ALTER TABLE {state}.datasets DROP COLUMN regular, DROP COLUMN generation",
            "DELETE FROM {state}.schema_version WHERE number = 9",
            "INSERT INTO {state}.sources (name, kind) VALUES ('s', 'sqlite')",
        ):
            connection.execute(names.format(statement))
        for name in "abc":
            connection.execute(
                names.format(
                    "INSERT INTO {state}.datasets (source_id, name, target_schema, target_table, definition)"
                    " SELECT source_id, %s, 's', 't', '{{}}' FROM {state}.sources"
                ),
                (name,),
            )
        connection.execute(
            names.format(
                "INSERT INTO {state}.originals (dataset_id, record_key, field, storage_class, value, reason)"
                " SELECT dataset_id, '[1]', 'f', 'text', 'x', 'r' FROM {state}.datasets WHERE name = 'a'"
            )
        )
        connection.execute(
            names.format(
                "INSERT INTO {state}.quarantine (dataset_id, record_key, record, reason)"
                " SELECT dataset_id, '[1]', '', 'r' FROM {state}.datasets WHERE name = 'b'"
            )
        )
        apply_schema(connection, names)
    assert regular(database) == {"a": False, "b": False, "c": True}


@pytest.mark.parametrize("name", ["name", "na\0me"], ids=["regular", "irregular"])
def test_another_definition_is_looked_at_anew(
    pair: tuple[UnifiedDatabase, UnifiedDatabase], database: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    db, _ = pair
    db.matrix.put(Entity("e", name, "person"))
    assert db.matrix.get("e") is not None  # and finds that it is not regular
    found = db.matrix.get("e")
    assert found is not None
    looks = []
    datasets = Catalogue.datasets

    def look(self: Catalogue, source_id: int | None = None) -> list[Dataset]:
        looks.append(source_id)
        return datasets(self, source_id)

    monkeypatch.setattr(Catalogue, "datasets", look)
    for expected in (0, 1, 1):
        assert db.matrix.get("e") == found
        assert len(looks) == expected
        if not looks:
            with connect(database) as connection:
                catalogue = Catalogue(connection, schema_names(None))
                (dataset,) = [d for d in datasets(catalogue) if d.name == "matrix.db/entities"]
                catalogue.redefine(dataset.dataset_id, dataset.definition)
    # In the short way again, after it was looked at once.
    run_sql(database, "UPDATE matrix_entities SET created_at = '2026-01-31 10:11:12.5'")
    found = db.matrix.get("e")
    assert found is not None
    assert found.created_at == "2026-01-31 10:11:12.500000"
    run_sql(database, f"DELETE FROM {STATE}.datasets WHERE name = 'matrix.db/entities'")
    with pytest.raises(BehindError, match="PostgreSQL does not have it yet"):
        db.matrix.get("e")


def test_a_time_that_python_has_not_is_refused(pair: tuple[UnifiedDatabase, UnifiedDatabase], database: str) -> None:
    db, _ = pair
    db.matrix.put(Entity("e", "name", "person"))
    for time in ("infinity", "0044-03-15 BC"):
        run_sql(database, f"UPDATE matrix_entities SET created_at = '{time}'")
        with pytest.raises(BehindError, match="changed by another program"):
            db.matrix.get("e")


def test_entities_without_an_id_are_put_where_sqlite_has_them(
    pair: tuple[UnifiedDatabase, UnifiedDatabase], database: str
) -> None:
    """Such a one is regular, and its place among the others is not PostgreSQL's."""
    db, _ = pair
    db.matrix.put_many([Entity(name, "name", "person") for name in "ab"])
    run_sql(database, "UPDATE matrix_entities SET entity_data = entity_data - 'entity_id' WHERE entity_id = 'b'")
    assert set(regular(database).values()) == {True}
    assert [entity.entity_id for entity in db.matrix.search("name")] == [None, "a"]


def test_a_search_of_a_type_goes_along_the_ids_once(
    pair: tuple[UnifiedDatabase, UnifiedDatabase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there it finds too few, those of the type are counted and looked through, and nothing else."""
    db, _ = pair
    db.matrix.put_many(
        [Entity(name, f"Name of {name}", kind) for name, kind in (("ap", "p"), ("bc", "c"), ("cp", "p"), ("dp", "p"))]
    )
    asked: list[str] = []
    ask = PostgresSession.ask

    def noted(self: PostgresSession, name: str, body: Any, *rest: Any, **more: Any) -> Any:
        asked.append(body)
        return ask(self, name, body, *rest, **more)

    monkeypatch.setattr(PostgresSession, "ask", noted)
    assert [entity.entity_id for entity in db.matrix.search("name", "p")] == ["ap", "cp", "dp"]
    assert ["count(*)" in body for body in asked] == [True, False]
    assert "LIMIT 20000" not in "".join(asked)


class Graph:
    """What a walk takes, held in memory."""

    def __init__(self, entities: list[str], ties: list[tuple[str, str]]) -> None:
        self.entities = {name: Entity(name, f"Name of {name}", "person", created_at=WHEN) for name in entities}
        self.ties = [Relationship(f"r{n}", one, other, "knows", created_at=WHEN) for n, (one, other) in enumerate(ties)]

    def get(self, entity_id: str) -> Entity | None:
        return self.entities.get(entity_id) or self.entities.get(other_id(entity_id))

    def get_many(self, entity_ids: Sequence[str]) -> dict[str, Entity]:
        return {one: self.entities[one] for one in entity_ids if one in self.entities}

    def relationships_of(self, entity_ids: Sequence[str]) -> list[Relationship]:
        found = [one for one in self.ties if {one.source_id, one.target_id} & set(entity_ids)]
        return sorted(found, key=lambda one: one.relationship_id)

    def put(self, db: UnifiedDatabase) -> None:
        db.matrix.put_many(list(self.entities.values()))
        db.matrix.relate(self.ties)


NODES = [*"abcdef", "osanc_a", "gone"]


def test_walks_over_any_graph(pair: tuple[UnifiedDatabase, UnifiedDatabase], database: str) -> None:
    db, _ = pair
    assert db.matrix.network("a").center is None

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.sampled_from(NODES[:-1]), unique=True),
        st.lists(st.tuples(st.sampled_from(NODES), st.sampled_from(NODES)), max_size=12),
        st.integers(0, 4),
        st.integers(1, 8),
    )
    def check(entities: list[str], ties: list[tuple[str, str]], depth: int, limit: int) -> None:
        run_sql(database, "DELETE FROM matrix_relationships; DELETE FROM matrix_entities")
        graph = Graph(entities, ties)
        graph.put(db)
        for node in ("a", "b", "osanc_a"):
            assert db.matrix.network(node, depth, limit) == walk(graph, node, depth, limit)

    check()


@pytest.mark.parametrize("many", [198, 199, 200, 201, 450])
def test_walks_by_way_of_a_hub(pair: tuple[UnifiedDatabase, UnifiedDatabase], many: int) -> None:
    """Around as many as two levels are asked for at once, and one more: with that of the center itself."""
    db, _ = pair
    leaves = [f"leaf{n:03}" for n in range(many)]
    graph = Graph(["center", "hub", *leaves[::2]], [("center", "hub"), *(("hub", leaf) for leaf in leaves)])
    graph.put(db)
    for node in ("center", "hub", leaves[0], leaves[1]):
        for depth, limit in ((1, 1_000), (2, 1_000), (3, 1_000), (2, 100)):
            assert db.matrix.network(node, depth, limit) == walk(graph, node, depth, limit)


def test_times_as_postgresql_prints_them(database: str) -> None:
    with closing(connect(database)) as connection:

        @given(st.datetimes())
        def check(time: datetime) -> None:
            found = connection.execute("SELECT %s::timestamp::text", (time,)).fetchone()
            assert found is not None
            assert written_time(found[0]) == time.isoformat(" ")

        check()


VALUES = st.one_of(st.none(), st.text(), st.integers(), st.lists(st.integers()))


@given(st.lists(VALUES, min_size=9, max_size=9))
def test_records_made_quickly_are_those_of_the_class(values: list[Any]) -> None:
    assert conversion.quick_conversation(*values) == Conversation(*values)
    assert conversion.quick_entity(*values[:8]) == Entity(*values[:8])
    assert conversion.quick_relationship(*values[:7]) == Relationship(*values[:7])
    assert repr(conversion.quick_entity(*values[:8])) == repr(Entity(*values[:8]))


def test_records_made_quickly_are_frozen() -> None:
    made = conversion.quick_relationship("r", "a", "b", "k", None, None, None)
    with pytest.raises(AttributeError):
        made.source = "x"  # type: ignore[misc]
