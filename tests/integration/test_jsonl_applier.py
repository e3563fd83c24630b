"""A JSONL file that is not the one that was applied so far, though its inode is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from iceburg.database.connection import connect
from iceburg.database.jsonl_applier import JsonlApplier, jsonl_state
from iceburg.database.schema import schema_names
from iceburg.database.target_table import prepare_loaders
from iceburg.sources.discovery import discover
from tests.support import assert_identical, lines, migrate_complete, verify


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with closing(connect(database, autocommit=True)) as found:
        prepare_loaders(found)
        yield found


@pytest.mark.parametrize(
    "again",
    [b"", lines('{"event_type": "short"}'), lines(*[f'{{"event_type": "later {n}"}}' for n in range(40)])],
    ids=["nothing", "less", "more"],
)
def test_a_file_that_was_emptied_and_filled_again_is_read_anew(
    tmp_path: Path, database: str, connection: psycopg.Connection, again: bytes
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(lines(*[f'{{"event_type": "first {n}"}}' for n in range(10)]))
    migrate_complete(database, tmp_path)
    (store,) = discover(tmp_path)
    applier = JsonlApplier(store, schema_names(None))
    applier.attach(connection)
    before = path.stat().st_ino
    path.write_bytes(again)
    assert path.stat().st_ino == before
    applier.apply(connection)
    assert_identical(verify(database, tmp_path))


def test_the_state_keeps_its_name_while_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"a": 1')
    names = []
    for more in (b"", b"}\n", b'{"b": ', b"2}\n" + b"x" * 10_000 + b"\n"):
        with path.open("ab") as file:
            file.write(more)
        state = jsonl_state(path)
        assert state is not None
        names.append(state.log_id)
    assert names[0] != names[1] == names[2] == names[3]
