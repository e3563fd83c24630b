"""Walking b-trees against SQLite itself, and past pages that SQLite stops at."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iceburg.sources.chroma_pages import Cell, PageFile, RawText, TreeDamage, UnreadableError
from iceburg.sources.chroma_salvage import parse_columns, salvage_database

VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=600),
    st.binary(max_size=3000),
)


def plain(cell: Cell) -> object:
    return cell.data.decode() if isinstance(cell, RawText) else cell


def make(path: Path, page_size: int, rows: list[tuple[int, object, object]]) -> tuple[int, int]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {page_size}")
        connection.execute("CREATE TABLE t (a, b)")
        connection.execute("CREATE INDEX i ON t (a, b)")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO t (rowid, a, b) VALUES (?, ?, ?)", rows)
        connection.execute("COMMIT")
        roots = dict(connection.execute("SELECT name, rootpage FROM sqlite_master"))
    return roots["t"], roots["i"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.dictionaries(st.integers(-(2**63), 2**63 - 1), st.tuples(VALUES, VALUES), max_size=60),
    page_size=st.sampled_from([512, 1024, 4096, 65536]),
)
def test_every_row_and_index_entry_is_found(
    tmp_path: Path, rows: dict[int, tuple[object, object]], page_size: int
) -> None:
    path = tmp_path / "test.sqlite3"
    path.unlink(missing_ok=True)
    table, index = make(path, page_size, [(rowid, a, b) for rowid, (a, b) in rows.items()])
    pages = PageFile(path)
    damage = TreeDamage()
    found = [(rowid, *map(plain, row)) for rowid, row in pages.table(table, damage)]
    entries = [tuple(map(plain, row)) for row in pages.index(index, damage)]
    pages.close()
    assert not damage
    assert [row[0] for row in found] == sorted(rows)
    assert {row[0]: row[1:] for row in found} == rows
    assert sorted(entry[2] for entry in entries if isinstance(entry[2], int)) == sorted(rows)


def test_a_lost_page_is_a_gap_and_the_rows_around_it_are_read(tmp_path: Path) -> None:
    path = tmp_path / "test.sqlite3"
    table, _ = make(path, 512, [(n, f"text {n}", "x" * 50) for n in range(1, 201)])
    pages = PageFile(path)
    whole = {rowid for rowid, _ in pages.table(table, TreeDamage())}
    pages.close()
    data = bytearray(path.read_bytes())
    leaf = next(at for at in range(2048, len(data), 512) if data[at] == 13)
    data[leaf : leaf + 512] = bytes(512)
    path.write_bytes(data)
    pages = PageFile(path)
    damage = TreeDamage()
    left = {rowid for rowid, _ in pages.table(table, damage)}
    pages.close()
    (gap,) = damage.gaps
    assert damage.pages == [leaf // 512 + 1]
    assert whole - left == set(range(gap.after + 1, gap.before or 201))
    assert len(whole - left) > 1


def test_a_tree_that_bites_its_tail_ends(tmp_path: Path) -> None:
    path = tmp_path / "test.sqlite3"
    table, _ = make(path, 512, [(n, "x" * 100, None) for n in range(1, 100)])
    data = bytearray(path.read_bytes())
    root = (table - 1) * 512
    assert data[root] == 5
    data[root + 8 : root + 12] = table.to_bytes(4, "big")
    path.write_bytes(data)
    pages = PageFile(path)
    damage = TreeDamage()
    assert len(list(pages.table(table, damage))) < 100
    pages.close()
    assert table in damage.pages


@given(data=st.binary(min_size=1, max_size=40), at=st.integers(0, 8000))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_noise_never_stops_the_walk(tmp_path: Path, data: bytes, at: int) -> None:
    path = tmp_path / "test.sqlite3"
    path.unlink(missing_ok=True)
    table, index = make(path, 1024, [(n, f"text {n}", "x" * (n * 20)) for n in range(1, 60)])
    content = bytearray(path.read_bytes())
    at = 100 + at % (len(content) - 100)
    content[at : at + len(data)] = data
    path.write_bytes(content)
    pages = PageFile(path)
    for _ in pages.table(table, TreeDamage()):
        pass
    for _ in pages.index(index, TreeDamage()):
        pass
    pages.close()


@pytest.mark.parametrize(
    "data", [b"", b"SQLite format 3\0", b"x" * 200, b"SQLite format 3\0" + b"\x03\xe7" + bytes(90)]
)
def test_a_file_without_a_header_is_unreadable(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "test.sqlite3"
    path.write_bytes(data)
    with pytest.raises(UnreadableError):
        PageFile(path)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as target:
        assert salvage_database(path, target).tables == {}


def test_columns_are_read_without_running_the_statement() -> None:
    sql = """CREATE TABLE IF NOT EXISTS "embeddings" (
        id INTEGER PRIMARY KEY, -- the row, its number
        segment_id TEXT NOT NULL,
        "value" REAL DEFAULT (1 + 2), odd,
        FOREIGN KEY (segment_id) REFERENCES segments(id),
        UNIQUE (segment_id, id)
    )"""
    columns = [(c.name, c.affinity, c.is_rowid) for c in parse_columns(sql)]
    assert columns == [
        ("id", "INTEGER", True),
        ("segment_id", "TEXT", False),
        ("value", "REAL", False),
        ("odd", "", False),
    ]
    assert parse_columns("CREATE TABLE x AS SELECT randomblob(1000000000)") == []
