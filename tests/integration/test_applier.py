"""Changes of a SQLite file, by any writer, come to PostgreSQL through the log: all of them, once, in a prefix."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iceburg.database import change_log
from iceburg.database.applied import NotReadyError
from iceburg.database.applier import SqliteApplier, open_applier
from iceburg.database.connection import connect
from iceburg.database.schema import schema_names
from iceburg.database.target_table import prepare_loaders
from iceburg.errors import SourceError
from iceburg.sources.discovery import discover
from tests.databases import fresh_database, name_of
from tests.support import (
    CONVERSATIONS,
    ENTITIES,
    RELATIONSHIPS,
    assert_identical,
    change,
    migrate_complete,
    rows,
    run_sql,
    some_entities,
    verify,
)

_TABLES = """
CREATE TABLE plain (a INTEGER PRIMARY KEY AUTOINCREMENT, u TEXT UNIQUE, v, UNIQUE (v, u));
CREATE TABLE text_key (k TEXT PRIMARY KEY COLLATE NOCASE, u INT UNIQUE, v TEXT);
CREATE TABLE compound (a TEXT, b INT, v TEXT, PRIMARY KEY (a, b));
CREATE TABLE without (a TEXT, b INT, v TEXT, u INT UNIQUE, PRIMARY KEY (b DESC, a)) WITHOUT ROWID;
CREATE TABLE keyless (v TEXT, w);
CREATE TABLE "odd ""name"" %s" ("a b" TEXT PRIMARY KEY, "select" BLOB);
"""


class Side:
    """An installation with one file, migrated and attached."""

    def __init__(self, dsn: str, data_dir: Path) -> None:
        self.dsn, self.data_dir = dsn, data_dir
        (store,) = discover(data_dir)
        self.path = store.path
        self.applier: SqliteApplier = open_applier(store, store.path, schema_names(None))
        self.connection = connect(dsn, autocommit=True)
        prepare_loaders(self.connection)
        try:
            self.applier.attach(self.connection)
        except BaseException:
            self.close()
            raise

    def apply(self) -> int:
        return self.applier.apply(self.connection).changes

    def close(self) -> None:
        self.connection.close()
        self.applier.close()


@pytest.fixture
def side(tmp_path: Path, database: str) -> Iterator[Side]:
    change(tmp_path / "m.db", ENTITIES + RELATIONSHIPS + CONVERSATIONS + _TABLES)
    change(
        tmp_path / "m.db",
        "INSERT INTO entities (entity_id, name, entity_type, properties) VALUES (?, ?, ?, ?)",
        *some_entities(20),
    )
    migrate_complete(database, tmp_path)
    found = Side(database, tmp_path)
    yield found
    found.close()


def assert_same(side: Side) -> None:
    """The verifier reads every record of both sides; it knows nothing of the log."""
    assert_identical(verify(side.dsn, side.data_dir))


def test_nothing_is_applied_to_a_file_that_is_as_it_was_migrated(side: Side) -> None:
    assert side.apply() == 0
    assert_same(side)


@pytest.mark.parametrize(
    "script",
    [
        "INSERT INTO entities (entity_id, name, entity_type) VALUES ('n', 'New', 'person')",
        "UPDATE entities SET name = 'Other'",
        "UPDATE entities SET entity_id = entity_id || 'x' WHERE rowid % 2",
        "DELETE FROM entities WHERE rowid > 10",
        "INSERT OR REPLACE INTO entities (entity_id, name, entity_type) VALUES ('e000003', 'Replaced', 'company')",
        "INSERT INTO entities (entity_id, name, entity_type) VALUES (NULL, 'A', 'x'), (NULL, 'B', 'x');"
        "DELETE FROM entities WHERE name = 'A'",
        "INSERT INTO plain (u, v) VALUES ('one', 1), ('two', 2);"
        "INSERT OR REPLACE INTO plain (a, u, v) VALUES (7, 'one', 3)",
        "INSERT INTO plain (u, v) VALUES ('one', 1), ('two', 2); UPDATE OR REPLACE plain SET u = 'two' WHERE u = 'one'",
        "INSERT INTO plain (u) VALUES ('a'), ('b'); UPDATE plain SET u = CASE u WHEN 'a' THEN 'c' ELSE 'a' END",
        "INSERT INTO text_key VALUES ('Abc', 1, 'x'); UPDATE text_key SET k = 'aBC'",
        "INSERT INTO text_key VALUES ('Abc', 1, 'x'); REPLACE INTO text_key VALUES ('ABC', 2, 'y')",
        "INSERT INTO text_key VALUES ('a', 1, 'x'), ('b', 2, 'y'); REPLACE INTO text_key VALUES ('c', 1, 'z')",
        "INSERT INTO compound VALUES ('a', 1, 'x'), ('a', 2, 'y'); UPDATE compound SET b = 3 WHERE b = 2;"
        "REPLACE INTO compound VALUES ('a', 1, 'z')",
        "INSERT INTO without VALUES ('a', 1, 'x', 1), ('b', 1, 'y', 2); REPLACE INTO without VALUES ('c', 5, 'z', 2)",
        "INSERT INTO without VALUES ('a', 1, 'x', 1); UPDATE without SET a = 'q', b = 9; DELETE FROM without WHERE 0",
        "INSERT INTO keyless VALUES ('same', 1), ('same', 1); DELETE FROM keyless WHERE rowid = 1",
        "INSERT INTO keyless VALUES ('a', 1), ('b', 1), ('c', 1); DELETE FROM keyless WHERE v = 'a'; VACUUM",
        'INSERT INTO "odd ""name"" %s" VALUES (\'k\', x\'00ff\'); UPDATE "odd ""name"" %s" SET "select" = NULL',
        "INSERT INTO conversations (conversation_id, timestamp, user_message, assistant_message, metadata)"
        " VALUES ('c', '2026-01-01T00:00:00.5', 'q', 'a', '{\"a\": NaN}')",
        "INSERT INTO entities (entity_id, name, entity_type) VALUES (CAST(x'66ff' AS TEXT), 'a' || char(0), 'x');"
        "DELETE FROM entities WHERE name = 'Name 3'",
        "CREATE TABLE later (a INTEGER PRIMARY KEY, b TEXT); INSERT INTO later VALUES (1, 'x'), (2, 'y')",
        "ALTER TABLE plain ADD COLUMN more TEXT DEFAULT 'm'; INSERT INTO plain (u, more) VALUES ('q', 'n')",
        "ALTER TABLE compound RENAME TO renamed; INSERT INTO renamed VALUES ('z', 1, 'v')",
        "DROP TABLE keyless; DROP TABLE relationships",
        "DROP TABLE entities; CREATE TABLE entities (x INTEGER PRIMARY KEY); INSERT INTO entities VALUES (5)",
        "CREATE INDEX late ON entities (name); INSERT INTO keyless VALUES ('i', NULL)",
    ],
)
def test_whatever_a_writer_does_arrives(side: Side, script: str) -> None:
    change(side.path, script)
    side.apply()
    assert side.apply() == 0
    assert_same(side)


def test_a_change_that_is_undone_leaves_no_entry(side: Side) -> None:
    with closing(sqlite3.connect(side.path)) as connection:
        connection.execute("DELETE FROM entities")
        connection.rollback()
    assert side.apply() == 0


def test_applying_again_changes_nothing(side: Side) -> None:
    change(side.path, "UPDATE entities SET name = 'x' WHERE rowid < 5; DELETE FROM entities WHERE rowid = 9")
    side.apply()
    before = rows(side.dsn, "SELECT * FROM matrix_entities ORDER BY id")
    run_sql(side.dsn, "UPDATE iceburg_migration.positions SET position = 0")
    side.apply()
    assert rows(side.dsn, "SELECT * FROM matrix_entities ORDER BY id") == before


def test_what_is_applied_is_pruned_and_what_is_not_is_kept(side: Side) -> None:
    change(side.path, "UPDATE entities SET name = 'x'")
    side.apply()
    change(side.path, "UPDATE entities SET name = 'y' WHERE rowid = 1")
    assert side.applier.prune(side.connection) == 20
    assert side.apply() == 1
    assert side.applier.prune(side.connection) == 1
    change(side.path, "DELETE FROM entities WHERE rowid = 1")
    side.apply()
    assert_same(side)


def test_a_row_that_postgresql_refuses_costs_no_other(side: Side) -> None:
    run_sql(side.dsn, "ALTER TABLE matrix_entities ADD CHECK (name <> 'refused') NOT VALID")
    change(side.path, "UPDATE entities SET name = CASE rowid WHEN 7 THEN 'refused' ELSE 'taken' END")
    side.apply()
    assert rows(side.dsn, "SELECT count(*) FROM matrix_entities WHERE name = 'taken'") == [(19,)]
    assert rows(side.dsn, "SELECT record_key FROM iceburg_migration.quarantine") == [('["e000006"]',)]
    run_sql(side.dsn, "ALTER TABLE matrix_entities DROP CONSTRAINT matrix_entities_name_check")
    change(side.path, "UPDATE entities SET source = 's' WHERE rowid = 7")
    side.apply()
    assert_same(side)


def test_a_replaced_file_is_not_applied(side: Side, tmp_path: Path) -> None:
    side.path.unlink()
    change(side.path, ENTITIES)
    with pytest.raises(NotReadyError, match="not the one applied so far"):
        side.apply()


def test_the_log_is_removed_without_a_trace(side: Side) -> None:
    with closing(sqlite3.connect(side.path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert change_log.remove(connection)
        connection.execute("COMMIT")
        left = connection.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE '\\_iceburg%' ESCAPE '\\'")
        assert left.fetchone() == (0,)


def test_a_file_that_postgresql_does_not_have_is_read_whole(tmp_path: Path, database: str) -> None:
    change(tmp_path / "m.db", ENTITIES + _TABLES)
    migrate_complete(database, tmp_path)
    change(tmp_path / "m.db", "INSERT INTO keyless VALUES ('written before the log', 1)")
    side = Side(database, tmp_path)
    side.apply()
    assert_same(side)
    side.close()


def test_a_unique_index_on_an_expression_cannot_be_logged(tmp_path: Path, database: str) -> None:
    change(tmp_path / "m.db", "CREATE TABLE t (a TEXT); CREATE UNIQUE INDEX i ON t (lower(a))")
    migrate_complete(database, tmp_path)
    with pytest.raises(SourceError, match="unique index i is on an expression"):
        Side(database, tmp_path)
    with closing(sqlite3.connect(tmp_path / "m.db")) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE '_iceburg%'").fetchone() == (0,)


_values = st.sampled_from(["a", "A", "b", "", 1, 2, 1.5, None, b"a"])
_statements = st.lists(
    st.one_of(
        st.tuples(
            st.just("INSERT OR REPLACE INTO plain (a, u, v) VALUES (?, ?, ?)"), st.integers(1, 4), _values, _values
        ),
        st.tuples(st.just("INSERT OR REPLACE INTO text_key VALUES (?, ?, ?)"), _values, st.integers(1, 3), _values),
        st.tuples(
            st.just("INSERT OR REPLACE INTO keyless (rowid, v, w) VALUES (?, ?, ?)"),
            st.integers(1, 4),
            _values,
            _values,
        ),
        st.tuples(st.just("INSERT OR REPLACE INTO compound VALUES (?, ?, ?)"), _values, _values, _values),
        st.tuples(
            st.just("UPDATE OR REPLACE plain SET a = ?, u = ? WHERE a = ?"),
            st.integers(1, 4),
            _values,
            st.integers(1, 4),
        ),
        st.tuples(
            st.just("UPDATE OR REPLACE text_key SET k = ?, u = ? WHERE u = ?"),
            _values,
            st.integers(1, 3),
            st.integers(1, 3),
        ),
        st.tuples(st.just("DELETE FROM plain WHERE u IS ? OR a = ? OR v IS ?"), _values, st.integers(1, 4), _values),
        st.tuples(st.just("DELETE FROM text_key WHERE k IS ? OR v IS ? OR u IS ?"), _values, _values, _values),
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def empty_tables(server_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, bytes, str]]:
    """A directory, the file in it, whose tables are empty, and a database that it was migrated to."""
    folder = tmp_path_factory.mktemp("writes")
    change(folder / "m.db", _TABLES)
    with fresh_database(server_dsn) as dsn:
        migrate_complete(dsn, folder)
        yield folder, (folder / "m.db").read_bytes(), name_of(dsn)


@settings(max_examples=25, deadline=None)
@given(batches=st.lists(_statements, min_size=1, max_size=3))
def test_any_sequence_of_writes_arrives(
    batches: list[list[tuple[Any, ...]]], server_dsn: str, empty_tables: tuple[Path, bytes, str]
) -> None:
    folder, content, template = empty_tables
    (folder / "m.db").write_bytes(content)
    with fresh_database(server_dsn, template) as dsn:
        side = Side(dsn, folder)
        try:
            for batch in batches:
                with closing(sqlite3.connect(folder / "m.db")) as connection:
                    for statement, *values in batch:
                        connection.execute(statement, values)
                    connection.commit()
                side.apply()
                assert_same(side)
        finally:
            side.close()


def test_two_appliers_apply_a_change_once(side: Side) -> None:
    other = Side(side.dsn, side.data_dir)
    change(side.path, "UPDATE entities SET name = 'x'")
    assert sorted((side.apply(), other.apply())) == [0, 20]
    other.close()


def test_nothing_is_half_applied_when_the_server_ends_the_session(side: Side) -> None:
    change(side.path, "UPDATE entities SET name = 'x'; DELETE FROM entities WHERE rowid = 3")
    # A trigger of the target that ends its own session in the middle of the work.
    run_sql(
        side.dsn,
        """
        CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$;
        CREATE TRIGGER die BEFORE INSERT ON matrix_entities FOR EACH ROW WHEN (NEW.entity_data ->> 'name' = 'x')
        EXECUTE FUNCTION die()
        """,
    )
    with pytest.raises(psycopg.OperationalError):
        side.apply()
    run_sql(side.dsn, "DROP TRIGGER die ON matrix_entities")
    assert rows(side.dsn, "SELECT count(*) FROM matrix_entities WHERE name <> 'x'") == [(20,)]
    side.connection.close()
    side.connection = connect(side.dsn, autocommit=True)
    prepare_loaders(side.connection)
    side.apply()
    assert_same(side)
