"""Rows come out of SQLite exactly as they went in, from any position, in batches of any size."""

from __future__ import annotations

import itertools
import sqlite3
import threading
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iceburg.errors import SourceError
from iceburg.records import Key
from iceburg.sources import sqlite_fetch
from iceburg.sources.sqlite import SqliteFile, TableReader
from iceburg.sources.sqlite_sql import quote

INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**63), 2**63 - 1, 2**53 + 1, 0, -1])
FLOATS = st.floats(allow_nan=False) | st.sampled_from([float("inf"), float("-inf"), -0.0, 5e-324, 1e308])
RAW_TEXT = st.binary(max_size=12) | st.sampled_from(
    [b"\0", b"a\0b", b"\xff", b"\xed\xa0\x80", b"caf\xc3\xa9", b"ABC", b"abc"]
)
TEXT = RAW_TEXT.map(lambda raw: raw.decode("utf-8", "surrogateescape"))
VALUES = st.none() | INTEGERS | FLOATS | TEXT | st.binary(max_size=12)
AWKWARD_NAMES = [
    'a "quoted" name',
    "spaces  and\ttabs",
    "[brackets]",
    "SELECT",
    "Größe",
    "名前",
    "semi;colon--",
    "it's",
    "`tick`",
]

relaxed = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(connection: sqlite3.Connection, table: str, rows: list[tuple[Any, ...]]) -> None:
    """Insert rows; text goes in as its bytes, so that what SQLite holds does not depend on Python's idea of text."""
    for row in rows:
        marks = ", ".join("CAST(? AS TEXT)" if isinstance(v, str) else "?" for v in row)
        values = [v.encode("utf-8", "surrogateescape") if isinstance(v, str) else v for v in row]
        connection.execute(f"INSERT OR IGNORE INTO {quote(table)} VALUES ({marks})", values)
    connection.commit()


def held(connection: sqlite3.Connection, table: str, order: str) -> list[tuple[Any, ...]]:
    """What SQLite says it holds: (typeof, bytes of the text or blob, number) of each value."""
    width = len(connection.execute(f"PRAGMA table_xinfo({quote(table)})").fetchall())
    names = [row[1] for row in connection.execute(f"PRAGMA table_xinfo({quote(table)})")]
    columns = ", ".join(
        f"typeof({quote(n)}), CASE WHEN typeof({quote(n)}) IN ('text', 'blob') THEN CAST({quote(n)} AS BLOB) "
        f"ELSE {quote(n)} END"
        for n in names
    )
    rows = connection.execute(f"SELECT {columns} FROM {quote(table)} ORDER BY {order}").fetchall()
    return [tuple((row[2 * i], repr(row[2 * i + 1])) for i in range(width)) for row in rows]


def shape(value: Any) -> tuple[str, str]:
    """The same for a value that the reader gave."""
    if value is None:
        return "null", "None"
    if isinstance(value, str):
        return "text", repr(value.encode("utf-8", "surrogateescape"))
    return {int: "integer", float: "real", bytes: "blob"}[type(value)], repr(value)


def everything(reader: TableReader, size: int = 10_000, after: Key | None = None, upto: Key | None = None) -> list[Any]:
    found: list[Any] = []
    for batch in reader.batches(after=after, upto=upto, size=size):
        assert 0 < len(batch.records) <= size
        assert batch.last == batch.records[-1][: reader.key_width]
        found.extend(batch.records)
    return found


def database(tmp_path: Path, *statements: str) -> tuple[Path, sqlite3.Connection]:
    path = tmp_path / f"{uuid.uuid4().hex}.db"
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    return path, connection


@relaxed
@given(
    rows=st.lists(st.tuples(VALUES, VALUES, VALUES, VALUES), max_size=30),
    types=st.tuples(*[st.sampled_from(["", "TEXT", "INTEGER", "REAL", "NUMERIC", "BLOB", "VARCHAR(3)"])] * 4),
    names=st.lists(st.sampled_from(AWKWARD_NAMES), min_size=5, max_size=5, unique=True),
    size=st.integers(1, 12),
    encoding=st.sampled_from(["UTF-8", "UTF-8", "UTF-8", "UTF-16le", "UTF-16be"]),
)
def test_rows_of_a_rowid_table_come_back_exactly(
    tmp_path: Path,
    rows: list[tuple[Any, ...]],
    types: tuple[str, ...],
    names: list[str],
    size: int,
    encoding: str,
) -> None:
    columns = ", ".join(f"{quote(name)} {kind}" for name, kind in zip(names[1:], types, strict=True))
    path, connection = database(
        tmp_path, f"PRAGMA encoding = '{encoding}'", f"CREATE TABLE {quote(names[0])} ({columns})"
    )
    with closing(connection), SqliteFile(path, "x") as file:
        if encoding != "UTF-8":  # CAST(blob AS TEXT) takes the bytes in the database's encoding
            rows = [tuple(v.encode("ascii", "replace").decode() if isinstance(v, str) else v for v in r) for r in rows]
            connection.executemany(f"INSERT INTO {quote(names[0])} VALUES (?, ?, ?, ?)", rows)
            connection.commit()
        else:
            write(connection, names[0], rows)
        reader = file.reader(file.describe().table(names[0]))
        found = everything(reader, size)
        assert reader.columns == tuple(names[1:])
        assert reader.count() == len(found) == len(rows)
        if encoding == "UTF-8":
            assert [tuple(map(shape, row[1:])) for row in found] == held(connection, names[0], "rowid")
        else:
            plain = connection.execute(f"SELECT * FROM {quote(names[0])} ORDER BY rowid").fetchall()
            assert [tuple(map(repr, row[1:])) for row in found] == [tuple(map(repr, row)) for row in plain]


COLLATIONS = st.sampled_from(["BINARY", "NOCASE", "RTRIM"])
KEY_COLUMN = st.tuples(
    st.sampled_from(["", "TEXT", "BLOB", "NUMERIC"]), COLLATIONS, COLLATIONS, st.sampled_from(["", "DESC"])
)
KEY_VALUES = INTEGERS | FLOATS | TEXT | st.binary(max_size=3) | st.sampled_from(["a", "A", "a ", "b", "B "])


@relaxed
@given(
    keys=st.lists(KEY_COLUMN, min_size=1, max_size=3),
    rows=st.lists(st.tuples(KEY_VALUES, KEY_VALUES, KEY_VALUES, VALUES), max_size=30),
    size=st.integers(1, 12),
    data=st.data(),
    rowid=st.sampled_from(["WITHOUT ROWID", "hidden"]),
)
def test_compound_keys_of_any_collation_and_direction(
    tmp_path: Path,
    keys: list[tuple[str, str, str, str]],
    rows: list[tuple[Any, ...]],
    size: int,
    data: st.DataObject,
    rowid: str,
) -> None:
    """Of tables WITHOUT ROWID, and of tables whose columns have taken all names of the rowid."""
    names = ["rowid", "_rowid_", "oid", "value"] if rowid == "hidden" else ["k 1", "K2", "k3", "value"]
    kinds = [*keys, *[("", "BINARY", "BINARY", "")] * (3 - len(keys))]
    columns = ", ".join(f"{quote(n)} {k[0]} COLLATE {k[1]}" for n, k in zip(names, kinds, strict=False))
    order = ", ".join(f"{quote(n)} COLLATE {k[2]} {k[3]}" for n, k in zip(names, keys, strict=False))
    tail = "" if rowid == "hidden" else "WITHOUT ROWID"
    path, connection = database(tmp_path, f"CREATE TABLE t ({columns}, value, PRIMARY KEY ({order})) {tail}")
    with closing(connection), SqliteFile(path, "x") as file:
        write(connection, "t", rows)
        reader = file.reader(file.describe().table("t"))
        assert reader.key_width == len(keys)
        whole = everything(reader)
        assert [tuple(map(shape, row[reader.key_width :])) for row in whole] == held(connection, "t", order)
        assert everything(reader, size) == whole
        assert reader.partitions(4) == [(None, None)]
        if not whole:
            assert reader.key_range() is None
            return
        assert reader.key_range() == (whole[0][: len(keys)], whole[-1][: len(keys)])
        first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(whole) - 1)] * 2)))
        after, upto = whole[first][: len(keys)], whole[last][: len(keys)]
        assert everything(reader, size, after=after, upto=upto) == whole[first + 1 : last + 1]
        assert everything(reader, size, after=after) == whole[first + 1 :]
        assert everything(reader, size, upto=upto) == whole[: last + 1]


def test_no_batch_needs_a_sort(tmp_path: Path) -> None:
    path, connection = database(
        tmp_path,
        "CREATE TABLE narrow (a, b)",
        "CREATE INDEX covering ON narrow (a, b)",
        "CREATE TABLE clustered (a, b COLLATE NOCASE, c, PRIMARY KEY (a, b DESC, c)) WITHOUT ROWID",
        "CREATE TABLE hidden (rowid COLLATE NOCASE, oid, _rowid_ PRIMARY KEY, UNIQUE (rowid, oid))",
    )
    connection.close()
    statements: list[str] = []
    with SqliteFile(path, "x") as file:
        for table in file.describe().tables:
            reader = file.reader(table)
            key: Key = (1,) * reader.key_width
            for after, upto in itertools.product([None, key], [None, key]):
                statements += [
                    f"SELECT * {s.source} {'WHERE ' * bool(s.conditions)}"
                    f"{' AND '.join(text.replace('?', '1') for text, _ in s.conditions)} ORDER BY {s.order} LIMIT 5"
                    for s in reader._statements(after, upto, "UTF-8")
                ]
        assert len(statements) == 4 + 2 * (1 + 3) + 4
        with file.connect() as connection:
            for statement in statements:
                plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}"))
                assert "TEMP B-TREE" not in plan, (statement, plan)
                assert "WHERE" not in statement or "SEARCH" in plan, (statement, plan)


def test_rowids_at_the_ends_of_their_range(tmp_path: Path) -> None:
    ids = [-(2**63), -(2**63) + 1, -5, 0, 7, 2**63 - 2, 2**63 - 1]
    path, connection = database(tmp_path, "CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    with closing(connection), SqliteFile(path, "x") as file:
        connection.executemany("INSERT INTO t VALUES (?, ?)", [(n, str(n)) for n in ids])
        connection.commit()
        reader = file.reader(file.describe().table("T"))
        for size in (1, 2, 3, 7, 8):
            assert everything(reader, size) == [(n, n, str(n)) for n in ids]
        assert everything(reader, 1, after=(-5,), upto=(2**63 - 1,)) == [(n, n, str(n)) for n in ids[3:]]
        assert reader.key_range() == ((-(2**63),), (2**63 - 1,))
        parts = reader.partitions(3)
        assert parts[0][0] is None
        assert parts[-1][1] is None
        assert [row for after, upto in parts for row in everything(reader, 2, after, upto)] == everything(reader)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_partitions_cover_every_row_once(tmp_path: Path, n: int) -> None:
    path, connection = database(tmp_path, "CREATE TABLE t (v)")
    with closing(connection), SqliteFile(path, "x") as file:
        connection.executemany("INSERT INTO t (rowid, v) VALUES (?, ?)", [(i * 3, i) for i in range(9_000)])
        connection.commit()
        reader = file.reader(file.describe().table("t"))
        parts = reader.partitions(n)
        rows = [everything(reader, 1_000, after, upto) for after, upto in parts]
        assert len(parts) == n
        assert max(map(len, rows)) - min(map(len, rows)) <= 2
        assert [row for part in rows for row in part] == everything(reader)
        connection.execute("INSERT INTO t (rowid, v) VALUES (-1, 'new'), (1000000, 'new')")
        connection.commit()
        assert [row for part in parts for row in everything(reader, 1_000, *part)] == everything(reader)


def test_small_and_empty_tables_are_not_divided(tmp_path: Path) -> None:
    path, connection = database(tmp_path, "CREATE TABLE e (v)", "CREATE TABLE s (v)", "INSERT INTO s VALUES (1), (2)")
    connection.commit()
    connection.close()
    with SqliteFile(path, "x") as file:
        for table in file.describe().tables:
            assert file.reader(table).partitions(4) == [(None, None)]
        assert everything(file.reader(file.describe().table("e"))) == []


def test_generated_columns_are_read_and_hidden_names_of_the_rowid_respected(tmp_path: Path) -> None:
    path, connection = database(
        tmp_path,
        "CREATE TABLE g (a, v AS (a || '!') VIRTUAL, s AS (a || '?') STORED)",
        "INSERT INTO g VALUES ('x')",
        "CREATE TABLE r (rowid, oid)",
        "INSERT INTO r VALUES ('not', 'it')",
        "CREATE TABLE d (id INTEGER PRIMARY KEY DESC)",
        "INSERT INTO d VALUES (77)",
    )
    connection.commit()
    connection.close()
    with SqliteFile(path, "x") as file:
        description = file.describe()
        assert everything(file.reader(description.table("g"))) == [(1, "x", "x!", "x?")]
        assert everything(file.reader(description.table("r"))) == [(1, "not", "it")]
        assert everything(file.reader(description.table("d"))) == [(1, 77)]


def test_a_table_without_any_usable_key_is_refused_by_name(tmp_path: Path) -> None:
    path, connection = database(
        tmp_path,
        "CREATE TABLE bare (rowid, oid, _rowid_)",
        "CREATE TABLE nulls (rowid, oid, _rowid_ PRIMARY KEY)",
        "INSERT INTO nulls VALUES (1, 1, NULL), (2, 2, NULL), (3, 3, 3)",
    )
    connection.commit()
    connection.close()
    with SqliteFile(path, "f.db") as file:
        with pytest.raises(SourceError, match=r"(?s)f\.db, table bare: .*hide the rowid.*RENAME COLUMN"):
            file.reader(file.describe().table("bare"))
        with pytest.raises(SourceError, match=r"f\.db, table nulls: 2 rows have NULL in their primary key"):
            everything(file.reader(file.describe().table("nulls")))


def test_shadow_tables_are_read_like_any_other(tmp_path: Path) -> None:
    path, connection = database(
        tmp_path, "CREATE VIRTUAL TABLE notes USING fts5(body)", "INSERT INTO notes VALUES ('hello')"
    )
    connection.commit()
    connection.close()
    with SqliteFile(path, "x") as file:
        description = file.describe()
        assert [(s.name, s.kind) for s in description.skipped] == [("notes", "virtual table")]
        content = description.table("notes_content")
        assert content.kind == "shadow"
        assert everything(file.reader(content)) == [(1, 1, "hello")]


def test_a_batch_of_large_rows_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_fetch, "BATCH_BYTES", 1_000_000)
    path, connection = database(tmp_path, "CREATE TABLE t (v)")
    connection.executemany("INSERT INTO t VALUES (?)", [(bytes([n]) * 100_000,) for n in range(100)])
    connection.commit()
    connection.close()
    with SqliteFile(path, "x") as file:
        batches = list(file.reader(file.describe().table("t")).batches())
        assert max(len(batch.records) for batch in batches) == 32
        assert [row[1] for batch in batches for row in batch.records] == [bytes([n]) * 100_000 for n in range(100)]


def test_utf16_text_with_lone_surrogates_is_told_apart(tmp_path: Path) -> None:
    """SQLite's own conversion to UTF-8 would join a lone surrogate with the character after it."""
    path, connection = database(
        tmp_path, "PRAGMA encoding = 'UTF-16le'", "CREATE TABLE t (k TEXT PRIMARY KEY, v) WITHOUT ROWID"
    )
    texts = ["\ud800a", "\ud801b", "ok", "\U0001f600"]
    with closing(connection), SqliteFile(path, "x") as file:
        for text in texts:
            raw = text.encode("utf-16-le", "surrogatepass")
            text_literal = f"CAST(x'{raw.hex()}' AS TEXT)"
            connection.execute(f"INSERT INTO t VALUES ({text_literal}, {text_literal})")
        connection.commit()
        for size in (1, 3):
            rows = everything(file.reader(file.describe().table("t")), size)
            assert {row[2].encode("utf-8", "surrogateescape").decode("utf-8", "surrogatepass") for row in rows} == set(
                texts
            )
            assert len(rows) == len(texts)


@pytest.mark.parametrize(
    "ddl",
    [
        "ALTER TABLE t DROP COLUMN b",
        "ALTER TABLE t ADD COLUMN c",
        "ALTER TABLE t RENAME COLUMN b TO c",
        "ALTER TABLE t RENAME TO u",
        "DROP TABLE t",
    ],
)
def test_a_table_that_is_altered_while_it_is_read(tmp_path: Path, ddl: str) -> None:
    """SQLite would read a quoted column that is gone as a string, and a new column would be left out."""
    path, connection = database(tmp_path, "CREATE TABLE t (a, b)", "INSERT INTO t VALUES (1, 2), (3, 4)")
    with closing(connection), SqliteFile(path, "f.db") as file:
        connection.commit()
        batches = file.reader(file.describe().table("t")).batches(size=1)
        assert next(batches).records == [(1, 1, 2)]
        connection.execute(ddl)
        connection.commit()
        with pytest.raises(SourceError, match=r"f\.db, table t: the table was altered, renamed or dropped"):
            next(batches)


def test_threads_can_share_a_reader(tmp_path: Path) -> None:
    path, connection = database(tmp_path, "CREATE TABLE t (v)")
    connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(2_000)])
    connection.commit()
    connection.close()
    results: list[list[Any]] = []
    with SqliteFile(path, "x") as file:
        reader = file.reader(file.describe().table("t"))
        threads = [threading.Thread(target=lambda: results.append(everything(reader, 100))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 4
    assert all(result == [(n + 1, n) for n in range(2_000)] for result in results)


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    path, connection = database(tmp_path, "CREATE TABLE t (v)")
    connection.close()
    with SqliteFile(path, "x") as file:
        reader = file.reader(file.describe().table("t"))
        with pytest.raises(ValueError, match="has 1 values, not 2"):
            everything(reader, after=(1, 2))
        with pytest.raises(ValueError, match="at least one"):
            everything(reader, size=0)
