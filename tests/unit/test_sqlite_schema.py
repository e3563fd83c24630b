"""Descriptions of SQLite tables: keys, collations, options, references, and what is left out."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from iceburg.errors import SourceError
from iceburg.sources.sqlite import SqliteFile
from iceburg.sources.sqlite_schema import Column, DatabaseDescription, ForeignKey, Index, IndexColumn, Skipped
from iceburg.sources.sqlite_sql import quote, table_options, tokens, unquote


def describe(tmp_path: Path, script: str) -> DatabaseDescription:
    path = tmp_path / "some.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    with SqliteFile(path, "some.db") as file:
        return file.describe()


def test_columns(tmp_path: Path) -> None:
    table = describe(
        tmp_path,
        """CREATE TABLE t (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            "a ""b"" (c), d" varchar(10) NOT NULL DEFAULT 'it''s, (ok)' COLLATE nocase CHECK ("a ""b"" (c), d" <> ')'),
            bare, -- a comment, with a comma ( and a bracket
            [COLLATE] TEXT COLLATE /* RTRIM */ RTRIM,
            n DECIMAL(10, 2) DEFAULT (1 + 2),
            v TEXT GENERATED ALWAYS AS (bare || ',' COLLATE NOCASE) VIRTUAL,
            s AS (bare) STORED COLLATE NOCASE,
            CONSTRAINT u UNIQUE (bare, n) CHECK (n > 0)
        )""",
    ).table("t")
    assert table.columns == (
        Column("id", "INTEGER", False, None, 1, "", "BINARY"),
        Column('a "b" (c), d', "varchar(10)", True, "'it''s, (ok)'", 0, "", "NOCASE"),
        Column("bare", "", False, None, 0, "", "BINARY"),
        Column("COLLATE", "TEXT", False, None, 0, "", "RTRIM"),
        Column("n", "DECIMAL(10, 2)", False, "1 + 2", 0, "", "BINARY"),
        Column("v", "TEXT", False, None, 0, "virtual", "BINARY"),
        Column("s", "", False, None, 0, "stored", "NOCASE"),
    )
    assert table.autoincrement
    assert table.integer_primary_key == "id"
    assert table.primary_key == ("id",)


@pytest.mark.parametrize(
    ("definition", "column"),
    [
        ("x INTEGER PRIMARY KEY", "x"),
        ("x integer primary key asc", "x"),
        ('"x" INTEGER, PRIMARY KEY (x)', "x"),
        ("x INTEGER, PRIMARY KEY (x DESC)", "x"),
        ("x INTEGER PRIMARY KEY DESC", None),
        ("x INT PRIMARY KEY", None),
        ("x INTEGER, y INTEGER, PRIMARY KEY (x, y)", None),
        ("x TEXT PRIMARY KEY", None),
        ("x INTEGER UNIQUE", None),
    ],
)
def test_which_key_is_the_rowid(tmp_path: Path, definition: str, column: str | None) -> None:
    """As SQLite itself says: the rowid of a row is the value of the column, or it is not."""
    path = tmp_path / "k.db"
    with closing(sqlite3.connect(path)) as connection, SqliteFile(path, "k.db") as file:
        connection.execute(f"CREATE TABLE t ({definition})")
        table = file.describe().table("t")
        assert table.integer_primary_key == column
        assert table.rowid == "rowid"
        connection.execute("INSERT INTO t (x) VALUES (4711)")
        assert (connection.execute("SELECT rowid FROM t").fetchone()[0] == 4711) == (column is not None)


def test_rowid_names(tmp_path: Path) -> None:
    description = describe(
        tmp_path,
        """CREATE TABLE a (ROWID TEXT); CREATE TABLE b (rowid, _ROWID_); CREATE TABLE c (oid, rowid, _rowid_);
        CREATE TABLE d (k PRIMARY KEY) WITHOUT ROWID; CREATE TABLE e (rowid INTEGER PRIMARY KEY);
        CREATE TABLE f (k INTEGER PRIMARY KEY) STRICT, WITHOUT ROWID;
        CREATE TABLE "WITHOUT ROWID" ("AUTOINCREMENT" TEXT DEFAULT 'STRICT') -- WITHOUT ROWID
        """,
    )
    assert {t.name: t.rowid for t in description.tables} == {
        "a": "_rowid_",
        "b": "oid",
        "c": None,
        "d": None,
        "e": "_rowid_",
        "f": None,
        "WITHOUT ROWID": "rowid",
    }
    assert [t.name for t in description.tables if t.without_rowid] == ["d", "f"]
    assert [t.name for t in description.tables if t.strict] == ["f"]
    assert not any(t.autoincrement for t in description.tables)
    assert description.table("f").integer_primary_key is None


def test_sequences(tmp_path: Path) -> None:
    description = describe(
        tmp_path,
        """CREATE TABLE used (id INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO used VALUES (41); DELETE FROM used;
        CREATE TABLE fresh (id INTEGER PRIMARY KEY AUTOINCREMENT); CREATE TABLE plain (id INTEGER PRIMARY KEY);
        CREATE TABLE late (id INTEGER, PRIMARY KEY (id AUTOINCREMENT)); INSERT INTO late VALUES (9223372036854775807);
        """,
    )
    assert {t.name: (t.autoincrement, t.sequence) for t in description.tables} == {
        "used": (True, 41),
        "fresh": (True, None),
        "plain": (False, None),
        "late": (True, 2**63 - 1),
    }


def test_foreign_keys(tmp_path: Path) -> None:
    table = describe(
        tmp_path,
        """CREATE TABLE parent (a, b, c UNIQUE, PRIMARY KEY (b, a));
        CREATE TABLE child (
            x REFERENCES parent (c) ON DELETE CASCADE ON UPDATE SET NULL, y, z REFERENCES missing,
            FOREIGN KEY (x, y) REFERENCES PARENT, FOREIGN KEY (y, x) REFERENCES parent (a, b)
        )""",
    ).table("child")
    assert table.foreign_keys == (
        ForeignKey(("x",), "parent", ("c",), "SET NULL", "CASCADE"),
        ForeignKey(("z",), "missing", (), "NO ACTION", "NO ACTION"),
        ForeignKey(("x", "y"), "PARENT", ("b", "a"), "NO ACTION", "NO ACTION"),
        ForeignKey(("y", "x"), "parent", ("a", "b"), "NO ACTION", "NO ACTION"),
    )


def test_indexes(tmp_path: Path) -> None:
    table = describe(
        tmp_path,
        """CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT COLLATE NOCASE UNIQUE, b);
        CREATE INDEX "i 1" ON t (a DESC, b COLLATE RTRIM, id);
        CREATE UNIQUE INDEX i2 ON t (lower(a), b) WHERE b > 0;
        """,
    ).table("t")
    assert table.indexes == (
        Index("sqlite_autoindex_t_1", True, "u", False, (IndexColumn("a", False, "NOCASE"),), None),
        Index(
            "i 1",
            False,
            "c",
            False,
            (IndexColumn("a", True, "NOCASE"), IndexColumn("b", False, "RTRIM"), IndexColumn("id", False, "BINARY")),
            'CREATE INDEX "i 1" ON t (a DESC, b COLLATE RTRIM, id)',
        ),
        Index(
            "i2",
            True,
            "c",
            True,
            (IndexColumn(None, False, "BINARY"), IndexColumn("b", False, "BINARY")),
            "CREATE UNIQUE INDEX i2 ON t (lower(a), b) WHERE b > 0",
        ),
    )


def test_what_is_left_out_and_what_is_named(tmp_path: Path) -> None:
    description = describe(
        tmp_path,
        """CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, v); INSERT INTO t (v) VALUES (1);
        CREATE INDEX i ON t (v); ANALYZE;
        CREATE VIEW w AS SELECT * FROM t;
        CREATE VIRTUAL TABLE f USING fts5(x);
        CREATE TRIGGER g AFTER INSERT ON t BEGIN DELETE FROM t WHERE id = new.id; END;
        CREATE TABLE _iceburg_changes (seq INTEGER PRIMARY KEY);
        CREATE TRIGGER _iceburg_t_insert AFTER INSERT ON t BEGIN INSERT INTO _iceburg_changes VALUES (NULL); END;
        """,
    )
    assert [t.name for t in description.tables if t.kind == "table"] == ["t"]
    assert {t.name for t in description.tables if t.kind == "shadow"} == {
        "f_data",
        "f_idx",
        "f_content",
        "f_docsize",
        "f_config",
    }
    assert [(s.name, s.kind) for s in description.skipped] == [("w", "view"), ("f", "virtual table")]
    assert all(isinstance(s, Skipped) and s.why for s in description.skipped)
    assert [name for name, _ in description.table("t").triggers] == ["g"]
    names = [item.name for item in description.schema_sql]
    assert names[:4] == ["t", "i", "w", "f"]
    assert names[-1] == "g"
    assert not any(name.startswith(("sqlite_", "_iceburg_")) for name in names)


def test_the_schema_can_be_made_again_from_its_sql(tmp_path: Path) -> None:
    script = """CREATE TABLE "A b" (x, y UNIQUE); CREATE INDEX "I" ON "A b" (x); CREATE VIEW v AS SELECT x FROM "A b";
    CREATE TRIGGER tr DELETE ON "A b" BEGIN SELECT 1; END; CREATE TABLE w (k PRIMARY KEY) WITHOUT ROWID;"""
    first = describe(tmp_path, script)
    (tmp_path / "some.db").unlink()
    second = describe(tmp_path, ";\n".join(item.sql for item in first.schema_sql))
    assert second == first


def test_facts_about_the_database(tmp_path: Path) -> None:
    description = describe(
        tmp_path,
        """PRAGMA encoding = 'UTF-16be'; PRAGMA page_size = 8192; PRAGMA auto_vacuum = 2; PRAGMA user_version = -7;
        PRAGMA application_id = 252; CREATE TABLE t (x); PRAGMA journal_mode = WAL; INSERT INTO t VALUES (1);
        """,
    )
    assert (description.encoding, description.page_size, description.auto_vacuum) == ("UTF-16be", 8192, 2)
    assert (description.user_version, description.application_id) == (-7, 252)
    assert description.journal_mode == "wal"
    (tmp_path / "some.db").unlink()
    assert describe(tmp_path, "CREATE TABLE t (x)").journal_mode == "delete"


def test_names_are_found_as_sqlite_compares_them(tmp_path: Path) -> None:
    description = describe(tmp_path, 'CREATE TABLE Ärger (x); CREATE TABLE "Two Words" (x)')
    assert description.table("two words").name == "Two Words"
    assert description.table("ÄRGER").name == "Ärger"
    with pytest.raises(KeyError):
        description.table("ärger")  # SQLite folds ASCII letters only


def test_a_schema_with_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (x DEFAULT 'caf#')")
        connection.execute("CREATE TABLE q (y# TEXT)".replace("#", "Ω"))
        connection.commit()
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"caf#", b"caf\xe9").replace("yΩ".encode(), b"y\xff\xfe"))
    with SqliteFile(path, "some.db") as file:
        description = file.describe()
        assert description.table("t").columns[0].default == "'caf\udce9'"
        with pytest.raises(SourceError, match="not UTF-8"):
            file.reader(description.table("q"))


@pytest.mark.parametrize("name", ["plain", 'a"b', "a`b", "a]b", "a'b", "", "select", "a b", "Ω"])
def test_quoting(name: str) -> None:
    assert unquote(quote(name)) == name
    assert tokens(f"SELECT {quote(name)} , 1") == ["SELECT", quote(name), ",", "1"]


def test_options_of_a_table_made_from_a_query(tmp_path: Path) -> None:
    table = describe(tmp_path, "CREATE TABLE t AS SELECT 1 AS a, 'x' AS [b c]").table("t")
    assert [column.name for column in table.columns] == ["a", "b c"]
    assert table_options(table.sql).collations == ("BINARY", "BINARY")


def test_a_column_added_later(tmp_path: Path) -> None:
    table = describe(
        tmp_path, "CREATE TABLE t (a, CHECK (a > 0)); ALTER TABLE t ADD COLUMN b TEXT COLLATE NOCASE DEFAULT ','"
    ).table("t")
    assert [(column.name, column.collation) for column in table.columns] == [("a", "BINARY"), ("b", "NOCASE")]
