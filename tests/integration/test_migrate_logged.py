"""Migrating files whose changes are logged: the log goes on where the copy began."""

from __future__ import annotations

from pathlib import Path

import pytest

from iceburg.database.applied import NotReadyError
from iceburg.database.applier import open_applier
from iceburg.database.connection import connect
from iceburg.database.schema import schema_names
from iceburg.database.target_table import prepare_loaders
from iceburg.sources.discovery import discover
from tests.support import (
    ENTITIES,
    Listener,
    assert_identical,
    change,
    migrate,
    migrate_fully,
    rows,
    some_entities,
    verify,
)

_POSITION = "SELECT position FROM iceburg_migration.positions"


def _write_entities(path: Path, count: int, start: int = 0) -> None:
    change(
        path,
        "INSERT INTO entities (entity_id, name, entity_type, properties) VALUES (?, ?, ?, ?)",
        *some_entities(count, start),
    )


def test_a_logged_file_is_migrated_and_followed_from_where_its_log_was(tmp_path: Path, database: str) -> None:
    path = tmp_path / "matrix.db"
    change(path, ENTITIES)
    (store,) = discover(tmp_path)
    applier = open_applier(store, path, schema_names(None))
    applier.arm()
    _write_entities(path, 30)
    migrate_fully(database, tmp_path)
    assert rows(database, _POSITION) == [(30,)]
    with connect(database, autocommit=True) as connection:
        prepare_loaders(connection)
        change(path, "DELETE FROM entities WHERE rowid <= 10; UPDATE entities SET name = 'x' WHERE rowid = 11")
        assert applier.apply(connection).changes == 11
        assert_identical(verify(database, tmp_path))
        assert applier.apply(connection).changes == 0
        # A single record, by the short way.
        change(path, "UPDATE entities SET name = 'y' WHERE rowid = 12")
        assert applier.apply(connection).changes == 1
        change(path, "DELETE FROM entities WHERE rowid = 13")
        assert applier.apply(connection).changes == 1
        assert_identical(verify(database, tmp_path))
        applier.prune(connection)
    applier.close()
    assert_identical(verify(database, tmp_path))


def test_what_is_written_while_it_is_copied_is_applied_afterwards(tmp_path: Path, database: str) -> None:
    path = tmp_path / "matrix.db"
    change(path, ENTITIES)
    (store,) = discover(tmp_path)
    applier = open_applier(store, path, schema_names(None))
    applier.arm()
    _write_entities(path, 30)
    wrote: list[int] = []

    def write(_event: object) -> None:
        if len(wrote) < 3:
            wrote.append(1)
            _write_entities(path, 5, 100 * len(wrote))
            change(path, f"DELETE FROM entities WHERE rowid = {len(wrote)}")

    assert migrate(database, tmp_path, batch_size=10, listener=Listener(write)).status == "complete"
    with connect(database, autocommit=True) as connection:
        prepare_loaders(connection)
        applier.apply(connection)
    applier.close()
    assert_identical(verify(database, tmp_path))


def test_nothing_is_applied_while_a_migration_is_unfinished(tmp_path: Path, database: str) -> None:
    path = tmp_path / "matrix.db"
    change(path, ENTITIES)
    _write_entities(path, 30)
    seen: list[int] = []
    listener = Listener(lambda _: seen.append(1))
    migrate(database, tmp_path, batch_size=10, listener=listener, stopping=lambda: bool(seen))
    (store,) = discover(tmp_path)
    applier = open_applier(store, path, schema_names(None))
    with connect(database, autocommit=True) as connection:
        prepare_loaders(connection)
        with pytest.raises(NotReadyError, match="being migrated"):
            applier.apply(connection)
        with pytest.raises(NotReadyError, match="being migrated"):
            applier.attach(connection)
        assert rows(database, "SELECT log_id FROM iceburg_migration.positions") == [("",)]
        change(path, "UPDATE entities SET name = 'written meanwhile' WHERE rowid = 2")
        migrate_fully(database, tmp_path)
        applier.apply(connection)
    applier.close()
    assert_identical(verify(database, tmp_path))
