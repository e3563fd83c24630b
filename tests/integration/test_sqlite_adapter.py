"""The embedded side beside the application's own code on the same files, and with values that only they can hold."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iceburg.database import sqlite_matrix
from iceburg.database.layout import Layout
from iceburg.database.protocol import Conversation, Entity, Relationship
from iceburg.database.sqlite_adapter import SqliteAdapter
from iceburg.errors import SourceBusyError, SourceError, UsageError
from tests.support import CONVERSATIONS, ENTITIES, RELATIONSHIPS, change

MADE = "2026-03-01 12:00:00"
SAVE = "INSERT INTO conversations (conversation_id, timestamp, user_message, assistant_message) VALUES (?, ?, ?, ?)"


def adapter(tmp_path: Path) -> SqliteAdapter:
    return SqliteAdapter(Layout.of(tmp_path), busy_timeout=0.2)


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def test_files_are_made_on_first_use_with_iceburgs_tables(tmp_path: Path) -> None:
    with adapter(tmp_path) as made:
        assert list(tmp_path.iterdir()) == []
        made.conversations.newest()
        made.matrix.get("a")
        made.telemetry.newest()
        assert sorted(path.name for path in tmp_path.glob("*.db")) == ["conversations.db", "matrix.db"]
        made.telemetry.append({})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conversations.db", "matrix.db", "telemetry"]
    assert (tmp_path / "telemetry" / "events.jsonl").exists()
    names = "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
    assert rows(tmp_path / "conversations.db", names) == [
        ("conversations",), ("idx_conversation_id",), ("idx_timestamp",)
    ]  # fmt: skip
    assert rows(tmp_path / "matrix.db", names) == [
        ("entities",), ("idx_entities_name",), ("idx_entities_source",), ("idx_entities_type",), ("idx_rel_source",),
        ("idx_rel_target",), ("relationships",),
    ]  # fmt: skip


def test_conversations_of_the_application_are_read_and_ours_are_read_by_it(tmp_path: Path) -> None:
    path = tmp_path / "conversations.db"
    change(path, CONVERSATIONS)
    change(path, SAVE, ("c", "2026-03-01T12:00:00.000001", "q", "a"), ("d", "2026-03-01T11:00:00.000001", "q2", "a2"))
    change(
        path, "UPDATE conversations SET metadata = ?, mode = 'chat' WHERE id = 1", ('{"score": NaN, "x": "\\u00fc"}',)
    )
    with adapter(tmp_path) as made:
        first, second = made.conversations.newest()
        assert (first.id, first.mode, first.metadata["x"], second.metadata) == (1, "chat", "ü", None)
        assert made.conversations.save("c", "warum", "darum", "agent", "chat", {"x": "ü", "y": [1.0]}, MADE) == 3
        change(path, SAVE, ("c", "2026-03-02", "q", "a"))
        assert made.conversations.newest("c")[0].id == 4
        assert made.conversations.delete(4)
    columns = "conversation_id, timestamp, user_message, assistant_message, agent_used, mode, metadata"
    assert rows(path, f"SELECT {columns} FROM conversations WHERE id = 3") == [
        ("c", MADE, "warum", "darum", "agent", "chat", '{"x": "\\u00fc", "y": [1.0]}')
    ]
    assert rows(path, "SELECT created_at GLOB '????-??-?? ??:??:??' FROM conversations WHERE id = 3") == [(1,)]
    assert rows(path, "SELECT seq FROM sqlite_sequence WHERE name = 'conversations'") == [(4,)]
    assert rows(path, "SELECT typeof(metadata), typeof(agent_used) FROM conversations WHERE id = 2") == [
        ("null", "null")
    ]


def test_the_matrix_of_the_application_is_read_and_ours_is_read_by_it(tmp_path: Path) -> None:
    path = tmp_path / "matrix.db"
    change(path, ENTITIES + RELATIONSHIPS)
    put = "INSERT OR REPLACE INTO entities (entity_id, name, entity_type, properties, countries) VALUES (?, ?, ?, ?, ?)"
    change(
        path,
        put,
        ("osanc_1", "Ann", "person", '{"a": [1, 1.0, 100000000000000000000]}', ""),
        ("2", "Bo", "x", "{", None),
    )
    with adapter(tmp_path) as made:
        found = made.matrix.get("1")
        assert found is not None
        assert (found.properties, found.countries) == ({"a": [1, 1.0, 10**20]}, "")
        assert [type(one) for one in found.properties["a"]] == [int, float, int]
        assert made.matrix.search("bo")[0].properties == "{"
        made.matrix.put(Entity("3", "Müller", "person", None, {"x": "ü"}, [], None, MADE))
        made.matrix.relate([Relationship("r", "3", "4", "owns", None, None, MADE)])
        change(path, put, ("3", "Changed", "person", None, None))
        assert made.matrix.search("chang")[0].entity_id == "3"
        made.matrix.put(Entity("3", "Müller", "person", None, {"x": "ü"}, [], None, MADE))
    assert rows(path, "SELECT * FROM entities WHERE entity_id = '3'") == [
        ("3", "Müller", "person", None, '{"x": "\\u00fc"}', "[]", None, MADE)
    ]
    assert rows(path, "SELECT * FROM relationships") == [("r", "3", "4", "owns", None, None, MADE)]


def test_tables_may_have_more_columns_in_another_order(tmp_path: Path) -> None:
    change(tmp_path / "conversations.db", """
        CREATE TABLE conversations (more TEXT DEFAULT 'more', assistant_message TEXT, user_message TEXT, metadata TEXT,
            timestamp TEXT, conversation_id TEXT, id INTEGER PRIMARY KEY AUTOINCREMENT, agent_used, mode, created_at)
    """)  # fmt: skip
    change(
        tmp_path / "matrix.db",
        ENTITIES.replace("entity_id TEXT", "flag INTEGER DEFAULT 7, entity_id TEXT"),
    )
    with adapter(tmp_path) as made:
        number = made.conversations.save("c", "q", "a", "agent", "mode", [1], MADE)
        found = made.conversations.get(number)
        assert found is not None
        assert found == Conversation(number, "c", MADE, "q", "a", "agent", "mode", [1], found.created_at)
        one = Entity("a", "Ann", "person", "icij", {}, [], [1], MADE)
        made.matrix.put(one)
        assert made.matrix.get("a") == one
        assert made.matrix.relationships("a") == []
    assert rows(tmp_path / "conversations.db", "SELECT more FROM conversations") == [("more",)]
    assert rows(tmp_path / "matrix.db", "SELECT flag FROM entities") == [(7,)]


def test_a_column_more_that_has_to_be_filled(tmp_path: Path) -> None:
    change(tmp_path / "conversations.db", CONVERSATIONS.replace("created_at", "tenant TEXT NOT NULL, created_at"))
    with adapter(tmp_path) as made:
        with pytest.raises(SourceError, match=r"NOT NULL constraint failed: conversations\.tenant"):
            made.conversations.save("c", "q", "a")
        assert made.conversations.newest() == []


def test_values_that_only_sqlite_holds(tmp_path: Path) -> None:
    with adapter(tmp_path) as made:
        made.matrix.get("make the tables")
        made.conversations.newest()
        matrix, conversations = tmp_path / "matrix.db", tmp_path / "conversations.db"
        put = "INSERT INTO entities (entity_id, name, entity_type, source, properties) VALUES (?, ?, ?, ?, ?)"
        change(matrix, put, ("a", b"\x00\xff name", b"kind", 5, b"{}"), (None, "none", "person", None, None))
        change(matrix, put, (None, "none too", "person", None, "1e400"), (b"blob", "blob", "person", None, None))
        broken = "CAST(x'62ff' AS TEXT)"
        change(matrix, f"INSERT INTO entities (entity_id, name, entity_type) VALUES ({broken}, {broken}, {broken})")
        relate = "INSERT INTO relationships (relationship_id, source_id, target_id, relationship_type) VALUES"
        change(matrix, f"{relate} (NULL, 'a', {broken}, 'x'), (NULL, 'a', x'00', 'y'), ({broken}, 'a', 'a', 'z')")
        change(conversations, SAVE, ("c", b"\x01", "blob", "a"), ("c", "2026", "text", "a"))
        change(conversations, f"INSERT INTO conversations VALUES (9, 'c', {broken}, {broken}, 'a', 1, 2.5, 3, 'now')")

        found = made.matrix.get("a")
        assert found == Entity("a", b"\x00\xff name", b"kind", "5", b"{}", created_at=found and found.created_at)  # type: ignore[arg-type]
        assert [one.entity_id for one in made.matrix.search("")] == [None, None, "b\udcff", b"blob"]
        assert [one.name for one in made.matrix.search("none")] == ["none", "none too"]
        kinds = [None, None, "b\udcff"]
        assert [one.relationship_id for one in made.matrix.relationships("a")] == kinds
        assert [one.relationship_id for one in made.matrix.relationships_of(["a", *map(str, range(900))])] == kinds
        walked = made.matrix.network("a", 3)
        assert ([one.entity_id for one in walked.nodes], len(walked.edges)) == (["a"], 1)
        assert made.matrix.count_by_type() == {"person": 3, "b\udcff": 1, b"kind": 1}

        pages = []
        last = None
        while page := made.conversations.newest(limit=1, before=last):
            pages.append(last := page[0])
        assert [one.timestamp for one in pages] == [b"\x01", "b\udcff", "2026"]
        assert (pages[1].agent_used, pages[1].mode, pages[1].metadata, pages[1].created_at) == ("1", "2.5", 3, "now")


def test_nothing_is_written_to_a_locked_file(tmp_path: Path) -> None:
    with adapter(tmp_path) as made:
        made.conversations.save("c", "q", "a")
        made.matrix.put(Entity("a", "Ann", "person"))
        for name, write in (
            ("conversations.db", lambda: made.conversations.save("c", "q", "a")),
            ("matrix.db", lambda: made.matrix.put_many([Entity(str(n), "Ann", "person") for n in range(10)])),
        ):
            with closing(sqlite3.connect(tmp_path / name, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(SourceBusyError, match=name):
                    write()
                other.execute("ROLLBACK")
        assert len(made.conversations.newest()) == 1
        assert made.matrix.count_by_type() == {"person": 1}


def test_nothing_of_a_batch_is_written_to_a_full_disk(tmp_path: Path) -> None:
    with adapter(tmp_path) as made:
        made.matrix.put(Entity("a", "Ann", "person"))
        connection = made.sessions["matrix"].connection()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 5}")
        with pytest.raises(SourceError, match="no space is left"):
            made.matrix.put_many([Entity(f"e{n}", "Ann" * 100, "person") for n in range(1_000)])
        with pytest.raises(SourceError, match="no space is left"):
            made.matrix.relate([Relationship(f"r{n}", "x" * 1_000, "y", "person") for n in range(1_000)])
        assert made.matrix.count_by_type() == {"person": 1}
        assert made.matrix.relationships("y") == []
        connection.execute("PRAGMA max_page_count = 1000000")
        made.matrix.put(Entity("b", "Ann", "person"))
        assert made.matrix.count_by_type() == {"person": 2}
    assert rows(tmp_path / "matrix.db", "PRAGMA integrity_check") == [("ok",)]


def test_a_batch_that_is_wrong_takes_no_lock(tmp_path: Path) -> None:
    with adapter(tmp_path) as made:
        made.matrix.put(Entity("a", "Ann", "person"))
        with closing(sqlite3.connect(tmp_path / "matrix.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(UsageError):
                made.matrix.put_many([Entity("b", "Bo", "person"), Entity("c", "\ud800", "person")])
            other.execute("ROLLBACK")


def test_a_network_is_of_one_snapshot(tmp_path: Path) -> None:
    with adapter(tmp_path) as made:
        made.matrix.put_many([Entity(name, "Name", "person") for name in "abc"])
        made.matrix.relate([Relationship("r1", "a", "b", "x"), Relationship("r2", "b", "c", "x")])
        with made.sessions["matrix"].reading(), pytest.raises(UsageError, match="in a transaction"):
            made.matrix.network("a")
        assert len(made.matrix.network("a").nodes) == 3


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.text("abAB_%ä\\", max_size=6),
            st.sampled_from(["p", "c", "rare"]),
            st.text("abzé🧊", min_size=1, max_size=4),
        ),
        max_size=60,
    ),
    st.lists(
        st.tuples(
            st.text("abAB_%ä\\", max_size=3),
            st.sampled_from([None, "p", "rare"]),
            st.integers(min_value=1, max_value=9),
        ),
        min_size=1,
        max_size=8,
    ),
    st.tuples(st.integers(1, 10), st.integers(10, 30), st.integers(1, 5), st.integers(1, 10)),
)
def test_each_way_of_searching_gives_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    named: list[tuple[str, str, str]],
    searches: list[tuple[str, str | None, int]],
    windows: tuple[int, int, int, int],
) -> None:
    # Windows so small that each way is taken.
    with pytest.MonkeyPatch.context() as patch, adapter(tmp_path_factory.mktemp("data")) as made:
        for constant, value in zip(("_FIRST_WINDOW", "_WINDOW", "_WALK_ON", "_FEW"), windows, strict=True):
            patch.setattr(sqlite_matrix, constant, value)
        made.matrix.put_many([Entity(entity_id, name, kind, created_at=MADE) for name, kind, entity_id in named])
        plain = "SELECT entity_id FROM entities WHERE name LIKE '%' || ? || '%' AND (? IS NULL OR entity_type = ?)"
        for text, kind, limit in searches:
            found = made.sessions["matrix"].select(f"{plain} ORDER BY entity_id", (text, kind, kind))
            assert [(one.entity_id,) for one in made.matrix.search(text, kind, limit)] == found[:limit]


_PROCESS = """
import sys
from pathlib import Path
from iceburg.database.layout import Layout
from iceburg.database.protocol import Entity
from iceburg.database.sqlite_adapter import SqliteAdapter
with SqliteAdapter(Layout.of(Path(sys.argv[1])), busy_timeout=60) as adapter:
    for n in range(10):
        name = f"{sys.argv[2]}.{n}"
        adapter.conversations.save("c", name, "a")
        adapter.matrix.put(Entity(name, name, "person"))
        adapter.telemetry.append_many([{"n": name}, {"n": name}])
        assert adapter.matrix.get(name) is not None
"""


def test_processes_write_at_once(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", _PROCESS, str(tmp_path), str(n)]) for n in range(3)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    expected = sorted(f"{process}.{n}" for process in range(3) for n in range(10))
    with adapter(tmp_path) as made:
        assert sorted(one.user_message for one in made.conversations.newest()) == expected
        assert [one.entity_id for one in made.matrix.search("")] == expected
        assert sorted(event.data["n"] for event in made.telemetry.newest()) == sorted(expected * 2)
    lines = (tmp_path / "telemetry" / "events.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["n"] for line in lines) == sorted(expected * 2)
