"""What real SQLite tables hold, and the PostgreSQL types and keys that follow."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from iceburg.database.census import (
    ColumnCensus,
    affinity,
    choose_codec,
    choose_key,
    is_boolean,
    is_date,
    misfits,
    plan_columns,
    take_census,
)
from iceburg.mappings.codecs import CODECS
from iceburg.mappings.mapping import UnmappableError
from iceburg.mappings.sqlite_record import SqliteRecord
from iceburg.mappings.table import ColumnPlan, TableMapping
from iceburg.records import Value
from iceburg.sources.sqlite import SqliteFile
from iceburg.sources.sqlite_schema import Column, Table


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in one table."""

    table: Table
    censuses: tuple[ColumnCensus, ...]
    codecs: tuple[str, ...]
    key: tuple[str, ...]
    plans: tuple[ColumnPlan, ...]
    records: list[tuple[Value, ...]]
    key_width: int

    def codec(self, column: str) -> str:
        return self.codecs[self._at(column)]

    def misfits(self, column: str) -> int:
        return misfits(self.codec(column), self.censuses[self._at(column)])

    def _at(self, column: str) -> int:
        return [c.name for c in self.table.columns].index(column)


Look = Callable[..., Found]


@pytest.fixture
def look(tmp_path: Path) -> Look:
    """Make a table, fill it, and take the census of it."""

    def make(ddl: str, rows: Sequence[Sequence[Any]] = ()) -> Found:
        path = tmp_path / "t.db"
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(ddl)
            for row in rows:
                connection.execute(f"INSERT INTO t VALUES ({', '.join('?' * len(row))})", row)
            connection.commit()
        with SqliteFile(path, "t.db") as file:
            (table,) = file.describe().tables
            reader = file.reader(table)
            censuses = take_census(reader, table, reader.key_width)
            records = [record for batch in reader.batches() for record in batch.records]
        codecs = tuple(map(choose_codec, table.columns, censuses))
        key = choose_key(table, censuses, codecs)
        plans = plan_columns(table, censuses, codecs, tuple(column.name for column in table.columns))
        return Found(table, censuses, codecs, key, plans, records, reader.key_width)

    return make


def check_that_all_comes_back(found: Found) -> None:
    """Every record that is not quarantined is restored, and the number of originals is the census's."""
    mapping = TableMapping(found.plans, found.key, found.key_width)
    originals = 0
    for record in found.records:
        row, kept = mapping.convert(record)
        originals += len(kept)
        restored = mapping.restore(row, {o.field: o.value for o in kept})
        assert mapping.differences(record, restored) == []
    # What a class cannot show, such as NUL in text, comes on top.
    assert originals >= sum(map(misfits, found.codecs, found.censuses))


class TestDeclaredTypes:
    @pytest.mark.parametrize(
        ("declared", "values", "codec"),
        [
            ("INTEGER", [1, 2**63 - 1, -(2**63)], "integer"),
            ("BIGINT", [], "integer"),
            ("INTEGER", ["n/a", 1, 2, 3], "integer"),
            ("INTEGER", ["n/a", "x", 1], "text"),
            ("INTEGER", [1, 1.5], "numeric"),
            ("INTEGER", [1.5, 2.5], "real"),
            ("TEXT", ["a", "1"], "text"),
            ("VARCHAR(20)", [], "text"),
            ("TEXT", [b"a", b"b", "c"], "blob"),
            ("TEXT", [b"a", "c"], "text"),
            ("REAL", [1.5, 2], "real"),
            ("DOUBLE PRECISION", [], "real"),
            ("REAL", ["n/a", 1.5, 2.5], "real"),
            ("REAL", [float("inf"), -0.0], "real"),
            ("BLOB", [b"x", "y"], "blob"),
            ("BLOB", [], "blob"),
            ("BLOB", ["x", "y", b"z"], "text"),
            ("DECIMAL(10,2)", [1, 1.5, "1.25"], "numeric"),
            ("NUMERIC", [], "numeric"),
            ("MONEY", [1, 2], "numeric"),
            ("", [], "text"),
            ("", ["a", 1, "b"], "text"),
            ("", [1, 2], "integer"),
            ("", [1.5], "real"),
            ("", [1, 1.5], "numeric"),
            ("", [b"x"], "blob"),
            ("JSON", ['{"a": 1}'], "text"),
            ("BOOLEAN", [0, 1, None], "boolean"),
            ("BOOL", [], "boolean"),
            ("BOOLEAN", [0, 1, 2], "integer"),
            ("BOOLEAN", ["true", "false"], "text"),
            ("BOOLEAN", [0.5, 0.25], "real"),
            ("FLOATING POINT", [1, 2], "integer"),  # SQLite reads INT in it
            ("POINT", [1], "integer"),
        ],
    )
    def test_the_codec(self, look: Look, declared: str, values: list[Value], codec: str) -> None:
        found = look(f"CREATE TABLE t (v {declared})", [[value] for value in values])
        assert found.codec("v") == codec
        check_that_all_comes_back(found)

    @pytest.mark.parametrize(
        ("declared", "values", "codec"),
        [
            ("DATETIME", [], "time:space auto"),
            ("TIMESTAMP", [None], "time:space auto"),
            ("DATE", [], "time:date"),
            ("DATE", ["2024-01-01", "2024-02-29"], "time:date"),
            ("DATETIME", ["2024-01-01"], "time:date"),
            ("DATETIME", ["2024-01-01 12:00:00", "2024-01-01 12:00:00.5"], "text"),
            ("DATETIME", ["2024-01-01 12:00:00", "2024-01-01 12:00:00.500000"], "time:space auto"),
            ("DATETIME", ["2024-01-01 12:00"], "time:space minutes"),
            ("DATETIME", ["2024-01-01T12:00:00"], "time:T auto"),
            ("DATETIME", ["2024-01-01T12:00:00.123"], "time:T milliseconds"),
            ("DATETIME", ["2024-01-01T12:00:00.000000"], "time:T microseconds"),
            ("DATETIME", ["2024-01-01T12:00:00Z", "2024-01-01T12:00:00.123456Z"], "time:T auto Z"),
            ("DATETIME", ["2024-01-01T12:00:00.123Z"], "time:T milliseconds Z"),
            ("TIMESTAMP WITH TIME ZONE", ["2024-01-01 12:00:00+00:00"], "time:space auto +00:00"),
            ("DATETIME", ["2024-01-01 12:00:00+05:00"], "text"),
            ("DATETIME", [1_700_000_000, 1_700_000_001], "time:epoch seconds"),
            ("DATETIME", [1_700_000_000_000], "time:epoch milliseconds"),
            ("DATETIME", [1_700_000_000, 1_700_000_000_000], "integer"),
            ("DATETIME", [1_700_000_000.5], "real"),
            ("DATETIME", ["soon"], "text"),
            ("DATETIME", ["2024-01-01 12:00:00"] * 9 + ["soon"], "time:space auto"),
            ("DATETIME", ["2024-01-01 12:00:00"] * 8 + ["soon"], "text"),
            # Numbers that are not declared a date are numbers.
            ("INTEGER", [1_700_000_000], "integer"),
            ("INTEGER", [1_700_000_000_000], "integer"),
            ("REAL", [1_700_000_000.5], "real"),
            ("TEXT", ["2024-01-01 12:00:00"], "text"),
            ("TIME", ["12:00:00"], "text"),
        ],
    )
    def test_points_in_time(self, look: Look, declared: str, values: list[Value], codec: str) -> None:
        found = look(f"CREATE TABLE t (v {declared})", [[value] for value in values])
        assert found.codec("v") == codec
        check_that_all_comes_back(found)

    def test_every_codec_exists(self, look: Look) -> None:
        for declared in ("INTEGER", "TEXT", "REAL", "NUMERIC", "BLOB", "", "BOOLEAN", "DATE", "DATETIME"):
            assert look(f"CREATE TABLE t (v {declared})").codec("v") in CODECS

    @pytest.mark.parametrize(
        ("declared", "expected"),
        [
            ("INT", "INTEGER"),
            ("unsigned big int", "INTEGER"),
            ("CHARINT", "INTEGER"),
            ("NVARCHAR(100)", "TEXT"),
            ("CLOB", "TEXT"),
            ("BLOB", "BLOB"),
            ("", "BLOB"),
            ("FLOAT", "REAL"),
            ("double", "REAL"),
            ("STRING", "NUMERIC"),
            ("DATE", "NUMERIC"),
            ("XBLOBTEXT", "TEXT"),
        ],
    )
    def test_affinities_are_sqlites(self, look: Look, declared: str, expected: str) -> None:
        (column,) = look(f"CREATE TABLE t (v {declared})").table.columns
        assert affinity(column) == expected
        # SQLite says it itself, by what becomes of a value.
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.execute(f"CREATE TABLE t (v {declared})")
            connection.execute("INSERT INTO t VALUES ('1'), (1.0)")
            kinds = tuple(kind for (kind,) in connection.execute("SELECT typeof(v) FROM t"))
        assert (
            kinds
            == {
                "INTEGER": ("integer", "integer"),
                "NUMERIC": ("integer", "integer"),
                "REAL": ("real", "real"),
                "TEXT": ("text", "text"),
                "BLOB": ("text", "real"),
            }[expected]
        )

    def test_booleans_and_dates_by_name(self) -> None:
        def column(declared: str) -> Column:
            return Column("c", declared, False, None, 0, "", "BINARY")

        assert [is_boolean(column(d)) for d in ("boolean", "BOOL", "TINYINT", "")] == [True, True, False, False]
        assert [is_date(column(d)) for d in ("date", "DateTime", "TIMESTAMPTZ", "TIME", "")] == [
            True,
            True,
            True,
            False,
            False,
        ]


class TestMisfits:
    def test_they_are_counted_and_kept(self, look: Look) -> None:
        found = look(
            "CREATE TABLE t (i INTEGER NOT NULL, r REAL, b BOOLEAN, d DATETIME, n NUMERIC, x BLOB)",
            [
                (1, 1.5, 1, "2024-01-01 12:00:00", 1, b"x"),
                (2, 2.5, 0, "2024-01-01 12:00:00", 1.5, b"x"),
                ("n/a", "?", None, None, "?", "x"),
                (4, b"z", 0, "2024-01-01 12:00:00", 2, None),
            ],
        )
        assert [found.misfits(c) for c in "irbdnx"] == [1, 2, 0, 0, 1, 1]
        check_that_all_comes_back(found)
        # A value without an equivalent must not be refused by the column.
        assert [plan.not_null for plan in found.plans] == [False] * 6

    def test_a_column_that_keeps_its_promise_is_not_null(self, look: Look) -> None:
        found = look("CREATE TABLE t (a INTEGER NOT NULL, b TEXT)", [(1, "x"), (2, None)])
        assert [plan.not_null for plan in found.plans] == [True, False]

    def test_classes_are_counted_in_every_batch(self, look: Look) -> None:
        found = look("CREATE TABLE t (v)", [[value] for value in [1, 1.5, "x", b"x", None] * 3000])
        assert found.censuses[0].classes == {"integer": 3000, "real": 3000, "text": 3000, "blob": 3000, "null": 3000}
        assert found.censuses[0].values == 12_000


class TestKeys:
    @pytest.mark.parametrize(
        ("ddl", "rows", "key"),
        [
            ("CREATE TABLE t (id INTEGER PRIMARY KEY, v)", [(1, 2)], ("id",)),
            ("CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT)", [], ("id",)),
            ("CREATE TABLE t (id TEXT PRIMARY KEY)", [("a",), ("b",)], ("id",)),
            ("CREATE TABLE t (id TEXT PRIMARY KEY)", [("a",), (None,), (None,)], ()),
            ("CREATE TABLE t (id TEXT PRIMARY KEY)", [("a",), (b"a",)], ()),
            ("CREATE TABLE t (id INT PRIMARY KEY)", [(1,), ("n/a",)], ()),
            ("CREATE TABLE t (id BOOLEAN PRIMARY KEY)", [(0,), (1,)], ("id",)),
            ("CREATE TABLE t (id DATETIME PRIMARY KEY)", [("2024-01-01 00:00:00",)], ("id",)),
            (
                "CREATE TABLE t (id DATETIME PRIMARY KEY)",
                [(f"2024-01-{d:02} 00:00:00",) for d in range(1, 20)] + [("?",)],
                (),
            ),
            ("CREATE TABLE t (v, w)", [(1, 2), (1, 2)], ()),
            ("CREATE TABLE t (a TEXT, b INTEGER, PRIMARY KEY (b, a))", [("x", 1)], ("b", "a")),
            ("CREATE TABLE t (a TEXT, b INTEGER, PRIMARY KEY (b, a))", [("x", 1), ("x", None)], ()),
            ("CREATE TABLE t (a TEXT PRIMARY KEY) WITHOUT ROWID", [("x",), (b"x",)], ("a",)),
            ("CREATE TABLE t (id PRIMARY KEY)", [(1,), (2.5,)], ()),
            ("CREATE TABLE t (id DECIMAL PRIMARY KEY)", [(1,), (2.5,)], ("id",)),
            ("CREATE TABLE t (id REAL PRIMARY KEY)", [(1,), (2.5,)], ("id",)),
            ("CREATE TABLE t (rowid TEXT, oid TEXT, _rowid_ TEXT PRIMARY KEY)", [("a", "b", "c")], ("_rowid_",)),
        ],
    )
    def test_what_identifies_a_record(self, look: Look, ddl: str, rows: list[Any], key: tuple[str, ...]) -> None:
        found = look(ddl, rows)
        assert found.key == key
        if found.table.rowid is not None:
            # A rowid is always there to fall back on: no record is quarantined for its key.
            check_that_all_comes_back(found)

    def test_a_typeless_key_of_reals_and_integers(self, look: Look) -> None:
        # As a numeric, 1.0 would come back as 1.
        found = look("CREATE TABLE t (id PRIMARY KEY, v)", [(2, "a"), (1.0, "b"), ("x", "c")])
        assert found.key == ()
        check_that_all_comes_back(found)

    def test_without_a_rowid_misfits_are_quarantined(self, look: Look) -> None:
        found = look("CREATE TABLE t (a TEXT PRIMARY KEY, v) WITHOUT ROWID", [("x", 1), (b"x", 2), ("y", 3)])
        mapping = TableMapping(found.plans, found.key, found.key_width)
        quarantined: list[SqliteRecord] = []
        for record in found.records:
            try:
                mapping.convert(record)
            except UnmappableError:
                quarantined.append(mapping.unpack(mapping.pack(record)))
        assert len(quarantined) == 1
        assert quarantined == [(b"x", b"x", 2)]

    def test_generated_columns_are_columns(self, look: Look) -> None:
        found = look("CREATE TABLE t (a INTEGER PRIMARY KEY, b INTEGER AS (a * 2) STORED, c TEXT AS (a || 'x'))")
        assert [plan.source for plan in found.plans] == ["a", "b", "c"]
        assert found.codecs == ("integer", "integer", "text")

    def test_an_empty_table_has_types_by_its_declarations(self, look: Look) -> None:
        found = look("CREATE TABLE t (a INT, b TEXT, c REAL, d BLOB, e BOOLEAN, f DATE, g DATETIME, h NUMERIC, i)")
        assert found.codecs == (
            *("integer", "text", "real", "blob", "boolean", "time:date", "time:space auto", "numeric", "text"),
        )
