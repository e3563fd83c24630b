"""The primary keys of the plan's tables while they are loaded, and after."""

from __future__ import annotations

from pathlib import Path

from tests.support import (
    ENTITIES,
    Listener,
    assert_identical,
    change,
    dataset,
    migrate,
    migrate_fully,
    rows,
    run_sql,
    some_entities,
    verify,
)

_KEYS = """
SELECT count(*) FROM pg_constraint WHERE contype = 'p' AND conrelid = ANY(ARRAY['conversations', 'matrix_entities',
'matrix_relationships', 'embeddings', 'telemetry']::regclass[])
"""
_OPTIONS = "SELECT count(*) FROM pg_class WHERE relname LIKE 'matrix_%' AND reloptions IS NOT NULL"


def _write_entities(path: Path, count: int) -> None:
    change(path, ENTITIES)
    change(
        path,
        "INSERT INTO entities (entity_id, name, entity_type, properties) VALUES (?, ?, ?, ?)",
        *some_entities(count),
    )


def test_the_key_is_away_while_an_empty_table_is_loaded_and_there_in_the_end(tmp_path: Path, database: str) -> None:
    _write_entities(tmp_path / "matrix.db", 100)
    keys: list[int] = []
    migrate(database, tmp_path, batch_size=10, listener=Listener(lambda _: keys.append(rows(database, _KEYS)[0][0])))
    assert set(keys) == {4}
    assert rows(database, _KEYS) == [(5,)]
    assert rows(database, _OPTIONS) == [(0,)]


def test_a_table_that_has_rows_keeps_its_key(tmp_path: Path, database: str) -> None:
    _write_entities(tmp_path / "matrix.db", 20)
    migrate_fully(database, tmp_path)
    _write_entities(tmp_path / "second.db", 100)
    keys: list[int] = []
    migrate(database, tmp_path, batch_size=10, listener=Listener(lambda _: keys.append(rows(database, _KEYS)[0][0])))
    assert set(keys) == {5}
    assert_identical(verify(database, tmp_path))


def test_a_stopped_load_is_continued_without_the_key(tmp_path: Path, database: str) -> None:
    _write_entities(tmp_path / "matrix.db", 100)
    seen: list[int] = []
    listener = Listener(lambda _: seen.append(1))
    migrate(database, tmp_path, batch_size=10, listener=listener, stopping=lambda: len(seen) >= 3)
    assert rows(database, _KEYS) == [(4,)]
    report = migrate_fully(database, tmp_path, batch_size=10)
    assert dataset(report, "matrix.db/entities").copied_rows == 70
    assert rows(database, _KEYS) == [(5,)]
    assert_identical(verify(database, tmp_path))


def test_a_stopped_load_whose_source_has_changed_gets_its_key_first(tmp_path: Path, database: str) -> None:
    _write_entities(tmp_path / "matrix.db", 100)
    seen: list[int] = []
    listener = Listener(lambda _: seen.append(1))
    migrate(database, tmp_path, batch_size=10, listener=listener, stopping=lambda: len(seen) >= 3)
    change(tmp_path / "matrix.db", "UPDATE entities SET name = 'other' WHERE rowid IN (3, 60)")
    migrate_fully(database, tmp_path, batch_size=10)
    assert rows(database, _KEYS) == [(5,)]
    assert rows(database, "SELECT count(*) FROM matrix_entities WHERE name = 'other'") == [(2,)]
    assert_identical(verify(database, tmp_path))


def test_a_record_that_moves_while_it_is_read_is_there_once_with_its_last_values(tmp_path: Path, database: str) -> None:
    path = tmp_path / "matrix.db"
    _write_entities(path, 50)
    moved: list[int] = []

    def move(_event: object) -> None:
        if not moved:
            moved.append(1)
            change(path, "UPDATE entities SET rowid = 1000, name = 'moved' WHERE rowid = 2")

    listener = Listener(move)
    report = migrate(database, tmp_path, batch_size=10, listener=listener)
    assert report.status == "complete"
    assert any("records moved while they were read" in phase for phase in listener.phases)
    assert rows(database, "SELECT count(*), count(DISTINCT id) FROM matrix_entities") == [(50, 50)]
    assert rows(database, "SELECT count(*) FROM matrix_entities WHERE name = 'moved'") == [(1,)]
    assert rows(database, _KEYS) == [(5,)]
    assert_identical(verify(database, tmp_path))


def test_a_row_that_postgresql_refuses_costs_no_other_row_while_the_key_is_away(tmp_path: Path, database: str) -> None:
    _write_entities(tmp_path / "matrix.db", 40)
    seen: list[int] = []
    migrate(
        database, tmp_path, batch_size=10, listener=Listener(lambda _: seen.append(1)), stopping=lambda: len(seen) >= 1
    )
    run_sql(database, "ALTER TABLE matrix_entities ADD CHECK (name <> 'Name 25')")
    report = migrate(database, tmp_path, batch_size=10)
    assert dataset(report, "matrix.db/entities").quarantined_rows == 1
    assert rows(database, "SELECT count(*) FROM matrix_entities") == [(39,)]
    assert rows(database, _KEYS) == [(5,)]
