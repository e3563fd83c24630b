"""Every index of the target is looked through, by however many workers, with amcheck installed or not."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from iceburg.database.connection import connect
from tests.support import assert_identical, change, migrate_complete, rows, run_sql, verify

_INDEXES = """
SELECT count(*) FROM pg_index JOIN pg_class x ON x.oid = indexrelid JOIN pg_class c ON c.oid = indrelid
JOIN pg_am a ON a.oid = x.relam JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE amname IN ('btree', 'gin') AND nspname NOT IN ('pg_catalog', 'pg_toast') AND c.relname <> 'schema_version'
"""
SECRET = "s3cret-word"
_LEFT = """
SELECT (SELECT count(*) FROM pg_extension WHERE extname = 'amcheck'),
       (SELECT count(*) FROM pg_proc WHERE proname IN ('bt_index_check', 'gin_index_check'))
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("one", "two", "three"):
        change(tmp_path / f"{name}.db", "CREATE TABLE t (k TEXT PRIMARY KEY, v TEXT UNIQUE)")
        with closing(sqlite3.connect(tmp_path / f"{name}.db")) as connection, connection:
            connection.executemany("INSERT INTO t VALUES (?, ?)", ((f"k{n}", f"v{n}") for n in range(200)))
    return tmp_path


@pytest.mark.parametrize(("jobs", "installed"), [(1, False), (2, False), (5, False), (2, True)])
def test_all_indexes_are_looked_through(data: Path, database: str, jobs: int, installed: bool) -> None:
    migrate_complete(database, data)
    if installed:
        run_sql(database, "CREATE EXTENSION amcheck")
    before = rows(database, _LEFT)
    report = verify(database, data, jobs=jobs)
    assert_identical(report)
    assert (report.structure.indexes, report.structure.why_not) == (rows(database, _INDEXES)[0][0], "")
    assert report.structure.indexes >= 6
    assert rows(database, _LEFT) == before


@pytest.mark.parametrize("table", ["one", "two", "three"])
def test_an_index_that_lacks_a_row_is_found_whichever_it_is(data: Path, database: str, table: str) -> None:
    """A row that is changed behind the index's back."""
    migrate_complete(database, data)
    (index,) = (
        name
        for (name,) in rows(
            database,
            "SELECT x.relname FROM pg_index JOIN pg_class x ON x.oid = indexrelid"
            " WHERE indrelid = %s::regclass AND NOT indisprimary",
            (f"{table}.t",),
        )
    )
    is_ready = "UPDATE pg_index SET indisready = %s WHERE indexrelid = %s::regclass"
    run_sql(database, is_ready, (False, f"{table}.{index}"))
    run_sql(database, f"UPDATE {table}.t SET v = 'other' WHERE k = 'k7'")
    run_sql(database, f"UPDATE {table}.t SET v = 'v7' WHERE k = 'k7'")
    run_sql(database, is_ready, (True, f"{table}.{index}"))
    report = verify(database, data, jobs=2)
    assert [(d.field, d.found_by) for d in report.differences] == [(f"(index {index})", "structure")]
    assert report.differences[0].dataset == f"{table}.db/t"


@pytest.fixture
def role(database: str) -> Iterator[str]:
    """Name of a role with a password that may read and write everything, and is no superuser."""
    name = f"iceburg_test_{uuid.uuid4().hex}"
    create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE pg_read_all_data, pg_write_all_data")
    with closing(connect(database, autocommit=True)) as admin:
        admin.execute(create.format(sql.Identifier(name), SECRET))
        yield name
        admin.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def test_a_role_that_is_no_superuser_is_told_why_no_index_was_looked_through(
    data: Path, database: str, role: str
) -> None:
    migrate_complete(database, data)
    theirs = make_conninfo(database, user=role, password=SECRET)
    report = verify(theirs, data, jobs=2)
    assert_identical(report)
    assert report.structure.indexes == 0
    assert report.structure.why_not == "needs the extension amcheck, or a superuser who can make it"
    run_sql(database, "CREATE EXTENSION amcheck")
    assert "may not call" in verify(theirs, data, jobs=2).structure.why_not
    # The role may be allowed to.
    allow = "GRANT EXECUTE ON FUNCTION bt_index_check(regclass, boolean), gin_index_check(regclass) TO {}"
    run_sql(database, sql.SQL(allow).format(sql.Identifier(role)).as_string())
    report = verify(theirs, data, jobs=2)
    assert (report.structure.indexes, report.structure.why_not) == (rows(database, _INDEXES)[0][0], "")
