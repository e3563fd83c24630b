"""Any SQLite file comes back as it was: tables of every form, holding anything."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iceburg.records import Value
from tests.acceptance.compare_installations import compare_sqlite
from tests.databases import fresh_database
from tests.strategies import VALUES
from tests.support import migrate, roll_back

TYPES = ["", "TEXT", "INTEGER", "REAL", "NUMERIC", "BLOB", "BOOLEAN", "DATETIME", "DATE", "VARCHAR(10)", "JSON"]
NAMES = ["plain", 'with "quotes"', "Größe", "select", "a b", "xmin", "rowid", "100%", "{x}"]


@dataclass(frozen=True)
class OddTable:
    """A table: its statements and its rows."""

    name: str
    statements: tuple[str, ...]
    width: int
    rows: tuple[tuple[Value, ...], ...]
    deletes: bool


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@st.composite
def odd_tables(draw: st.DrawFn, number: int) -> OddTable:
    """Tables with every kind of key, columns of any type, indexes of any kind."""
    name = f"t{number} {draw(st.sampled_from(NAMES))}"
    columns = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=4, unique=True))
    declared = [f"{quote(c)} {draw(st.sampled_from(TYPES))}" for c in columns]
    form = draw(st.sampled_from(["none", "number", "counted", "text", "compound", "desc", "unique"]))
    tail = ""
    if form in ("number", "counted"):
        declared[0] = f"{quote(columns[0])} INTEGER PRIMARY KEY{' AUTOINCREMENT' if form == 'counted' else ''}"
    elif form == "text":
        declared[0] = f"{quote(columns[0])} TEXT PRIMARY KEY"
    elif form == "compound":
        declared.append(f"PRIMARY KEY ({quote(columns[1])} DESC, {quote(columns[0])})")
        tail = " WITHOUT ROWID"
    elif form == "desc":
        declared.append(f"PRIMARY KEY ({quote(columns[0])}, {quote(columns[1])} DESC)")
    elif form == "unique":
        declared.append(f"UNIQUE ({quote(columns[0])} COLLATE NOCASE)")
    if draw(st.booleans()):
        declared.insert(len(columns), f"made AS (length({quote(columns[1])})) {draw(st.sampled_from(['', 'STORED']))}")
    statements = [f"CREATE TABLE {quote(name)} ({', '.join(declared)}){tail} -- a comment: ü"]
    for kind in draw(st.lists(st.sampled_from(["plain", "partial", "expression", "unique"]), max_size=2, unique=True)):
        unique = "UNIQUE " if kind == "unique" else ""
        what = {"expression": f"length({quote(columns[0])})"}.get(kind, f"{quote(columns[-1])} DESC")
        where = f" WHERE {quote(columns[-1])} IS NOT NULL" if kind == "partial" else ""
        statements.append(f"CREATE {unique}INDEX {quote(f'{kind} {number}')} ON {quote(name)} ({what}){where}")
    rows = draw(st.lists(st.tuples(*[VALUES] * len(columns)), max_size=8))
    return OddTable(name, tuple(statements), len(columns), tuple(rows), draw(st.booleans()))


@dataclass(frozen=True)
class OddFile:
    """A file."""

    settings: tuple[str, ...]
    tables: tuple[OddTable, ...]
    after: tuple[str, ...]


@st.composite
def odd_files(draw: st.DrawFn) -> OddFile:
    """Files of several tables, in any encoding, with views, triggers, a full-text index and other settings."""
    tables = [draw(odd_tables(number)) for number in range(draw(st.integers(1, 4)))]
    chosen = [
        f"PRAGMA encoding = '{draw(st.sampled_from(['UTF-8', 'UTF-8', 'UTF-16le', 'UTF-16be']))}'",
        f"PRAGMA page_size = {draw(st.sampled_from([512, 4096, 65536]))}",
        f"PRAGMA auto_vacuum = {draw(st.sampled_from([0, 1, 2]))}",
        f"PRAGMA user_version = {draw(st.integers(-(2**31), 2**31 - 1))}",
        f"PRAGMA application_id = {draw(st.integers(0, 2**31 - 1))}",
        f"PRAGMA journal_mode = {draw(st.sampled_from(['DELETE', 'WAL']))}",
    ]
    first = quote(tables[0].name)
    after = draw(
        st.lists(
            st.sampled_from(
                [
                    f"CREATE VIEW seen AS SELECT * FROM {first}",
                    f"CREATE TRIGGER noted AFTER DELETE ON {first} BEGIN SELECT 1; END",
                    "CREATE VIRTUAL TABLE words USING fts5(a, b)",
                    "ANALYZE",
                ]
            ),
            unique=True,
        )
    )
    return OddFile(tuple(chosen), tuple(tables), tuple(after))


def write(file: OddFile, path: Path) -> None:
    """Write a file; rows that its constraints do not take are left out."""
    path.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in file.settings:
            connection.execute(statement).fetchall()
        encoding = connection.execute("PRAGMA encoding").fetchone()[0]
        for table in file.tables:
            for statement in table.statements:
                connection.execute(statement)
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({quote(table.name)})")]
            names = ", ".join(quote(name) for name in columns)
            for row in table.rows:
                written = [_literal(value, encoding) for value in row]
                texts = ", ".join(text for text, _ in written)
                values = [value for _, bound in written for value in bound]
                insert = f"INSERT OR IGNORE INTO {quote(table.name)} ({names}) VALUES ({texts})"
                # A key may be no integer, or the highest rowid taken.
                with suppress(sqlite3.IntegrityError, sqlite3.OperationalError):
                    connection.execute(insert, values)
            if table.deletes:
                hidden = {name.lower() for name in columns} >= {"rowid"}
                condition = f"{quote(columns[0])} IS NOT NULL" if hidden else "1"
                connection.execute(
                    f"DELETE FROM {quote(table.name)} WHERE {condition} AND {quote(columns[0])} = (SELECT"
                    f" max({quote(columns[0])}) FROM {quote(table.name)})"
                )
        for statement in file.after:
            connection.execute(statement)


def _literal(value: Value, encoding: str) -> tuple[str, list[Any]]:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            if encoding != "UTF-8":
                return "?", [value.encode("utf-8", "replace").decode()]
            return "CAST(? AS TEXT)", [value.encode("utf-8", "surrogateescape")]
    return "?", [value]


# `make rollback-campaign` asks for more.
EXAMPLES = int(os.environ.get("ICEBURG_ROLLBACK_EXAMPLES", "10"))


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(file=odd_files())
def test_any_file_comes_back_as_it_was(server_dsn: str, file: OddFile) -> None:
    with tempfile.TemporaryDirectory() as folder, fresh_database(server_dsn) as dsn:
        path = Path(folder, "data", "odd.db")
        write(file, path)
        report = migrate(dsn, path.parent)
        assert report.problems == ()
        rolled = roll_back(dsn, path.parent, Path(folder, "out"))
        assert (rolled.problems, rolled.differences, rolled.status) == ((), (), "complete")
        assert compare_sqlite(path, Path(folder, "out", "odd.db")) == []
