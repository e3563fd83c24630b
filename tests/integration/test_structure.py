"""The structure of tables that are migrated one to one: types, keys, defaults, indexes, references, sequences."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from iceburg.database.connection import Target
from iceburg.database.schema import schema_names
from iceburg.migration.forget import forget_source
from tests.databases import fresh_database
from tests.support import change, dataset, migrate, migrate_fully, rows, run_sql


def columns(dsn: str, schema: str, table: str) -> dict[str, str]:
    return dict(
        rows(
            dsn,
            "SELECT attname, format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' not null' ELSE '' END"
            " FROM pg_attribute WHERE attrelid = format('%%I.%%I', %s::text, %s::text)::regclass AND attnum > 0",
            (schema, table),
        )
    )


def indexes(dsn: str, schema: str) -> dict[str, str]:
    return dict(rows(dsn, "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = %s", (schema,)))


def constraints(dsn: str, schema: str, table: str) -> list[str]:
    found = rows(
        dsn,
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = format('%%I.%%I', %s::text, %s::text)::regclass AND contype <> 'n' ORDER BY 1",
        (schema, table),
    )
    return [text for (text,) in found]


TYPES: dict[str, tuple[str, list[Any], str]] = {
    "integers": ("INTEGER", [1, -(2**63), 2**63 - 1], "bigint"),
    "beyond 2^53": ("INT", [10010000000000001], "bigint"),
    "floats of 8 bytes": ("REAL", [0.1, 1e300], "double precision"),
    "numbers of both kinds in an INTEGER": ("INTEGER", [1, 2.5], "numeric"),
    "decimals": ("DECIMAL(10,2)", [1.25, 3], "numeric"),
    "text": ("TEXT", ["a", "é"], "text"),
    "varchar keeps what is longer": ("VARCHAR(3)", ["abcdef"], "text"),
    "text in an INTEGER column": ("INTEGER", ["a", "b", "c", 1], "text"),
    "JSON is left as text": ("JSON", ['{"a": 1}'], "text"),
    "bytes": ("BLOB", [b"a", b""], "bytea"),
    "booleans": ("BOOLEAN", [0, 1, None], "boolean"),
    "booleans that are not": ("BOOLEAN", [0, 1, 7], "bigint"),
    "nothing in a BOOLEAN": ("BOOLEAN", [], "boolean"),
    "dates": ("DATE", ["2025-06-01"], "date"),
    "moments": ("TIMESTAMP", ["2025-06-01 12:00:00"], "timestamp without time zone"),
    "moments of ISO": ("DATETIME", ["2025-06-01T12:00:00.000001"], "timestamp without time zone"),
    "moments with Z": ("TIMESTAMP", ["2025-06-01T12:00:00Z"], "timestamp with time zone"),
    "seconds in a date column": ("TIMESTAMP", [1748779200, 1748779201], "timestamp without time zone"),
    "milliseconds in a date column": ("TIMESTAMP", [1748779200123], "timestamp without time zone"),
    "seconds that are not declared a date": ("INTEGER", [1748779200], "bigint"),
    "fractional seconds": ("REAL", [1748779200.5], "double precision"),
    "dates in a TEXT column": ("TEXT", ["2025-06-01"], "text"),
    "no type, numbers": ("", [1, 2], "bigint"),
    "no type, texts": ("", ["a", 1], "text"),
    "nothing": ("INTEGER", [], "bigint"),
    "only NULL": ("REAL", [None], "double precision"),
}


@pytest.fixture(scope="module")
def typed(server_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("types")
    for number, (declared, values, _) in enumerate(TYPES.values()):
        change(directory / "types.db", f"CREATE TABLE t{number} (v {declared})")
        if values:
            change(directory / "types.db", f"INSERT INTO t{number} VALUES (?)", *((value,) for value in values))
    with fresh_database(server_dsn) as dsn:
        migrate_fully(dsn, directory)
        yield dsn


@pytest.mark.parametrize("case", TYPES)
def test_a_type_follows_from_the_declaration_and_the_values(typed: str, case: str) -> None:
    assert columns(typed, "types", f"t{list(TYPES).index(case)}")["v"] == TYPES[case][2]


def test_keys_and_constraints_come_along(tmp_path: Path, database: str) -> None:
    change(
        tmp_path / "s.db",
        """
        CREATE TABLE a (id INTEGER PRIMARY KEY, u TEXT UNIQUE, x TEXT NOT NULL, y INT, UNIQUE (x, y));
        CREATE TABLE b (x TEXT, y INT NOT NULL, PRIMARY KEY (y, x)) WITHOUT ROWID;
        CREATE TABLE c (x TEXT);
        CREATE TABLE d (k TEXT PRIMARY KEY, v);
        INSERT INTO a VALUES (1, NULL, 'x', NULL), (2, NULL, 'x', NULL), (3, 'u', 'x', 1);
        INSERT INTO d VALUES (NULL, 1), (NULL, 2), ('k', 3);
        """,
    )
    report = migrate_fully(database, tmp_path)
    assert constraints(database, "s", "a") == ["PRIMARY KEY (id)", "UNIQUE (u)", "UNIQUE (x, y)"]
    assert columns(database, "s", "a") == {"id": "bigint not null", "u": "text", "x": "text not null", "y": "bigint"}
    assert constraints(database, "s", "b") == ["PRIMARY KEY (y, x)"]
    assert constraints(database, "s", "c") == ["PRIMARY KEY (_iceburg_rowid)"]
    # A key that holds NULLs cannot be PostgreSQL's; it stays unique.
    assert constraints(database, "s", "d") == ["PRIMARY KEY (_iceburg_rowid)", "UNIQUE (k)"]
    assert any("primary key" in note for note in dataset(report, "s.db/d").notes)


def test_defaults_come_along_or_are_noted(tmp_path: Path, database: str) -> None:
    change(
        tmp_path / "s.db",
        """
        CREATE TABLE t (id INTEGER PRIMARY KEY, s TEXT DEFAULT 'it''s', n INT DEFAULT -5, r REAL DEFAULT 1e3,
            p DECIMAL DEFAULT 2.50, b BOOLEAN DEFAULT TRUE, d DATE DEFAULT CURRENT_DATE, x BLOB DEFAULT x'00',
            m TIMESTAMP DEFAULT CURRENT_TIMESTAMP, t TEXT DEFAULT CURRENT_TIMESTAMP, e INT DEFAULT (1 + 1),
            v TEXT DEFAULT NULL,
            q TEXT DEFAULT "quoted", w TEXT DEFAULT (('deep')), o TEXT NOT NULL DEFAULT '');
        """,
    )
    report = migrate_fully(database, tmp_path)
    run_sql(database, "INSERT INTO s.t DEFAULT VALUES")
    with closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        connection.execute("INSERT INTO t DEFAULT VALUES")
        theirs = connection.execute("SELECT id, s, n, r, p, b, v, q, w, o, length(t) FROM t").fetchone()
    ours = rows(database, "SELECT id, s, n, r, p, b::int, v, q, w, o, length(t) FROM s.t")[0]
    assert [float(v) if i == 4 else v for i, v in enumerate(ours)] == list(theirs)
    assert rows(
        database, "SELECT d = current_date, abs(extract(epoch FROM m - now() AT TIME ZONE 'UTC')) < 100 FROM s.t"
    ) == [(True, True)]
    notes = dataset(report, "s.db/t").notes
    assert [note for note in notes if "default" in note] == [
        "default of x (x'00') is not carried over",
        "default of e (1 + 1) is not carried over",
    ]


def test_indexes_come_along_or_are_noted(tmp_path: Path, database: str) -> None:
    change(
        tmp_path / "s.db",
        """
        CREATE TABLE t (a TEXT, b INT, c REAL, CHECK (b > 0));
        CREATE INDEX plain ON t(a);
        CREATE INDEX "Two Ways" ON t(b DESC, a ASC);
        CREATE UNIQUE INDEX only_once ON t(c);
        CREATE INDEX some ON t(a) WHERE b > 1;
        CREATE INDEX computed ON t(lower(a));
        CREATE TRIGGER watch AFTER INSERT ON t BEGIN SELECT 1; END;
        INSERT INTO t VALUES ('x', 1, 1.5), ('y', NULL, NULL), ('z', 2, NULL);
        """,
    )
    report = migrate_fully(database, tmp_path)
    found = indexes(database, "s")
    assert found["plain"].endswith("USING btree (a NULLS FIRST)")
    assert found["Two Ways"].endswith("USING btree (b DESC NULLS LAST, a NULLS FIRST)")
    assert found["only_once"].startswith("CREATE UNIQUE INDEX")
    assert found.keys() == {"plain", "Two Ways", "only_once", "t_pkey"}
    notes = " | ".join(dataset(report, "s.db/t").notes)
    for word in ("some", "computed", "CHECK", "watch"):
        assert word in notes


def test_an_index_that_has_the_name_of_something_of_ours_is_not_lost(tmp_path: Path, database: str) -> None:
    change(
        tmp_path / "s.db",
        """
        CREATE TABLE t (id TEXT PRIMARY KEY, a TEXT UNIQUE, n INT);
        CREATE TABLE u (id INTEGER PRIMARY KEY, a TEXT);
        CREATE INDEX t_pkey ON u(a);
        CREATE INDEX t_a_key ON t(n);
        CREATE INDEX u_id_seq ON t(n, a);
        """,
    )
    report = migrate_fully(database, tmp_path)
    on = rows(
        database,
        "SELECT tablename, count(*) FROM pg_indexes WHERE schemaname = 's' GROUP BY 1 ORDER BY 1",
    )
    notes = [note for part in report.datasets for note in part.notes]
    assert on == [("t", 4), ("u", 2)], (indexes(database, "s"), notes)


def test_what_is_unique_only_in_sqlite_is_noted(tmp_path: Path, database: str) -> None:
    change(
        tmp_path / "s.db",
        """
        CREATE TABLE t (id INTEGER PRIMARY KEY, u TEXT UNIQUE);
        INSERT INTO t VALUES (1, CAST(x'ff' AS TEXT)), (2, CAST(x'fe' AS TEXT));
        """,
    )
    report = migrate_fully(database, tmp_path)
    assert any("not carried over" in note for note in dataset(report, "s.db/t").notes)
    assert constraints(database, "s", "t") == ["PRIMARY KEY (id)"]


def test_references_come_along_valid_or_not(tmp_path: Path, database: str) -> None:
    change(
        tmp_path / "s.db",
        """
        CREATE TABLE p (id INTEGER PRIMARY KEY, k TEXT UNIQUE);
        CREATE TABLE good (id INTEGER PRIMARY KEY, p INT REFERENCES p(id) ON DELETE CASCADE ON UPDATE SET NULL);
        CREATE TABLE bad (id INTEGER PRIMARY KEY, p INT REFERENCES p, k TEXT REFERENCES p(k));
        CREATE TABLE lost (id INTEGER PRIMARY KEY, x INT REFERENCES nowhere(id));
        CREATE TABLE mixed (id INTEGER PRIMARY KEY, k INT REFERENCES p(k));
        CREATE TABLE tree (id INTEGER PRIMARY KEY, up INT REFERENCES tree(id));
        INSERT INTO p VALUES (1, 'a');
        INSERT INTO good VALUES (1, 1), (2, NULL);
        INSERT INTO bad VALUES (1, 99, 'a');
        INSERT INTO lost VALUES (1, 5);
        INSERT INTO tree VALUES (1, 2), (2, 1);
        """,
    )
    report = migrate_fully(database, tmp_path)
    assert constraints(database, "s", "good") == [
        "FOREIGN KEY (p) REFERENCES s.p(id) ON UPDATE SET NULL ON DELETE CASCADE",
        "PRIMARY KEY (id)",
    ]
    assert constraints(database, "s", "bad") == [
        "FOREIGN KEY (k) REFERENCES s.p(k)",
        "FOREIGN KEY (p) REFERENCES s.p(id) NOT VALID",
        "PRIMARY KEY (id)",
    ]
    assert constraints(database, "s", "tree") == ["FOREIGN KEY (up) REFERENCES s.tree(id)", "PRIMARY KEY (id)"]
    for name in ("bad", "lost", "mixed"):
        assert dataset(report, f"s.db/{name}").notes
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        run_sql(database, "INSERT INTO s.bad VALUES (2, 98, NULL)")


NEXT: dict[str, tuple[str, int]] = {
    "after the highest": ("CREATE TABLE t (id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (5, 0), (41, 0)", 42),
    "after one that was deleted": (
        "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, v); INSERT INTO t VALUES (41, 0); DELETE FROM t;"
        " INSERT INTO t VALUES (3, 0)",
        42,
    ),
    "empty, with a past": (
        "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, v); INSERT INTO t VALUES (41, 0); DELETE FROM t;",
        42,
    ),
    "empty, without one": ("CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, v)", 1),
    "empty, plain": ("CREATE TABLE t (id INTEGER PRIMARY KEY, v)", 1),
    "beyond 2^31": ("CREATE TABLE t (id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (3000000000, 0)", 3000000001),
    "only negative": ("CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, v); INSERT INTO t VALUES (-5, 0)", 1),
}


@pytest.fixture(scope="module")
def numbered(server_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    path = tmp_path_factory.mktemp("numbers") / "s.db"
    for number, (script, _) in enumerate(NEXT.values()):
        change(path, script.replace(" t ", f" t{number} ").replace("FROM t;", f"FROM t{number};"))
    with fresh_database(server_dsn) as dsn:
        migrate_fully(dsn, path.parent)
        yield dsn, path


@pytest.mark.parametrize("case", NEXT)
def test_the_next_row_gets_the_next_number(numbered: tuple[str, Path], case: str) -> None:
    dsn, path = numbered
    table, following = f"t{list(NEXT).index(case)}", NEXT[case][1]
    assert rows(dsn, f"INSERT INTO s.{table} (v) VALUES (NULL) RETURNING id") == [(following,)]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute(f"INSERT INTO {table} (v) VALUES (NULL) RETURNING id").fetchone() == (following,)


def test_the_sequence_follows_a_refresh(tmp_path: Path, database: str) -> None:
    change(tmp_path / "s.db", "CREATE TABLE t (id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (5, 0)")
    migrate_fully(database, tmp_path)
    change(tmp_path / "s.db", "INSERT INTO t VALUES (100, 0)")
    migrate_fully(database, tmp_path)
    assert rows(database, "INSERT INTO s.t (v) VALUES (NULL) RETURNING id") == [(101,)]


def test_names_of_every_kind_come_along(tmp_path: Path, database: str) -> None:
    long = "n" * 70
    change(
        tmp_path / "My Öwn.db",
        f"""
        CREATE TABLE "odd ""name"" 100%" ("select" INTEGER PRIMARY KEY, "per%cent" TEXT, "{{brace}}" TEXT, "ctid" TEXT);
        CREATE INDEX "odd index %s" ON "odd ""name"" 100%"("per%cent");
        CREATE TABLE {long}1 ({long}a TEXT, {long}b TEXT);
        CREATE TABLE {long}2 (_iceburg_rowid TEXT);
        INSERT INTO "odd ""name"" 100%" VALUES (1, '%s', '{{}}', 'c');
        INSERT INTO {long}1 VALUES ('a', 'b');
        INSERT INTO {long}2 VALUES ('r');
        """,
    )
    migrate_fully(database, tmp_path)
    assert rows(database, 'SELECT "select", "per%cent", "{brace}", "ctid_" FROM "My Öwn"."odd ""name"" 100%"') == [
        (1, "%s", "{}", "c")
    ]
    assert "odd index %s" in indexes(database, "My Öwn")
    change(tmp_path / "My Öwn.db", """UPDATE "odd ""name"" 100%" SET "per%cent" = '%%'""")
    migrate_fully(database, tmp_path)


def test_a_table_of_more_columns_than_postgresql_has_costs_no_other(tmp_path: Path, database: str) -> None:
    change(
        tmp_path / "wide.db",
        f"CREATE TABLE wide ({', '.join(f'c{n}' for n in range(1700))}); INSERT INTO wide (c0) VALUES (1)",
    )
    change(tmp_path / "other.db", "CREATE TABLE t (a); INSERT INTO t VALUES (1)")
    report = migrate(database, tmp_path)
    assert report.status == "incomplete"
    assert [problem.source for problem in report.problems] == ["wide.db"]
    assert dataset(report, "other.db/t").target_rows == 1


def test_a_row_too_wide_for_a_page_is_quarantined_alone(tmp_path: Path, database: str) -> None:
    names = [f"c{n}" for n in range(1500)]
    change(
        tmp_path / "wide.db",
        f"CREATE TABLE wide ({', '.join(f'{n} REAL' for n in names)}); INSERT INTO wide (c0) VALUES (1)",
    )
    change(tmp_path / "wide.db", f"INSERT INTO wide VALUES ({', '.join('?' * 1500)})", [0.5] * 1500)
    report = migrate_fully(database, tmp_path)
    assert (report.datasets[0].target_rows, report.datasets[0].quarantined_rows) == (1, 1)


def test_a_schema_is_named_after_its_file_again_when_that_comes_back(tmp_path: Path, database: str) -> None:
    change(tmp_path / "keep.db", "CREATE TABLE t (a)")
    change(tmp_path / "shop.db", "CREATE TABLE t (a); INSERT INTO t VALUES (1)")
    migrate_fully(database, tmp_path)
    (tmp_path / "shop.db").rename(tmp_path / "elsewhere")
    aside = (tmp_path / "elsewhere").read_bytes()
    (tmp_path / "elsewhere").unlink()
    forget_source(Target(database, "test", embedded=False), schema_names(None), "shop.db", {"keep.db"})
    (tmp_path / "shop.db").write_bytes(aside)
    assert dataset(migrate_fully(database, tmp_path), "shop.db/t").target == "shop.t"
