"""Rows that cannot be decoded at first leave nothing behind on the connection."""

from __future__ import annotations

import gc
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from iceburg.sources.sqlite_fetch import Statement, fetch


@pytest.fixture
def without_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collection")
def test_text_that_is_not_utf8_does_not_keep_the_file_locked(tmp_path: Path) -> None:
    """The first attempt fails in the middle of a statement, which held its lock until the collector came by."""
    path = tmp_path / "a.db"
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as reader,
        closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as writer,
    ):
        writer.execute("CREATE TABLE t (v TEXT)")
        writer.execute("INSERT INTO t VALUES ('a'), (CAST(x'66ff' AS TEXT)), ('c')")
        reader.execute("BEGIN")
        found = fetch(reader, ["v"], [Statement("FROM t", "rowid")], 10, "UTF-8")
        reader.execute("COMMIT")
        assert found.rows == [("a",), ("f\udcff",), ("c",)]
        writer.execute("INSERT INTO t VALUES ('written')")
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (4,)
