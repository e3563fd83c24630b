"""The journal that the layer keeps beside a SQLite file: what it spares, what it promises, and who else may write."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from iceburg.database.sqlite_session import SqliteSession

COUNT = "SELECT count(*) FROM t"


@pytest.fixture
def session(tmp_path: Path) -> Iterator[SqliteSession]:
    made = SqliteSession(tmp_path / "a.db", schema="CREATE TABLE IF NOT EXISTS t (a, b TEXT)", busy_timeout=0.2)
    yield made
    made.close()


def insert(session: SqliteSession) -> None:
    with session.writing() as connection:
        connection.execute("INSERT INTO t VALUES (1, 'x')")


def test_a_file_in_wal_mode_that_nobody_has_open_stays_so(session: SqliteSession) -> None:
    insert(session)
    session.close()
    with closing(sqlite3.connect(session.path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    again = SqliteSession(session.path)
    insert(again)
    again.close()
    assert session.path.read_bytes()[18:20] == b"\x02\x02"


def kept_journal(path: Path) -> Path:
    return path.with_name(path.name + "-journal")


def test_the_journal_is_kept_between_commits_and_removed_at_the_end(session: SqliteSession) -> None:
    """Its removal would be the end of the commit, and SQLite does not sync that; zeroing its header it does."""
    insert(session)
    assert kept_journal(session.path).read_bytes()[:28] == bytes(28)
    session.close()
    assert not kept_journal(session.path).exists()


def test_a_kept_journal_is_no_larger_than_a_mebibyte(session: SqliteSession) -> None:
    for _ in range(2):
        with session.writing() as connection:
            connection.executemany("INSERT INTO t VALUES (?, ?)", ((None, "x" * 1_000) for _ in range(10_000)))
            connection.execute("UPDATE t SET b = b || 'y'")
    with session.writing() as connection:
        connection.execute("UPDATE t SET b = b || 'z'")
    assert kept_journal(session.path).stat().st_size <= 1 << 20


def test_a_journal_that_others_use_is_left_to_them(session: SqliteSession) -> None:
    insert(session)
    with closing(sqlite3.connect(session.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE t SET b = 'theirs'")
        session.close()
        assert kept_journal(session.path).exists()
        other.execute("ROLLBACK")
        assert other.execute("SELECT b FROM t").fetchone() != ("theirs",)
        other.execute("UPDATE t SET b = 'theirs'")
    assert not kept_journal(session.path).exists()  # in journal mode DELETE, as ever


def test_writers_in_several_journal_modes_take_turns(session: SqliteSession) -> None:
    insert(session)
    with ExitStack() as all_of_them:
        others = []
        for mode in ("DELETE", "TRUNCATE", "PERSIST"):
            other = all_of_them.enter_context(closing(sqlite3.connect(session.path, isolation_level=None)))
            other.execute(f"PRAGMA journal_mode = {mode}")
            others.append(other)
        for number in range(30):
            others[number % 3].execute("INSERT INTO t VALUES (NULL, 'theirs')")
            insert(session)
            others[number % 2].execute("BEGIN IMMEDIATE")
            others[number % 2].execute("DELETE FROM t")
            others[number % 2].execute("ROLLBACK")
        assert session.select(COUNT) == [(61,)]
        assert session.select("PRAGMA integrity_check") == [("ok",)]


def test_a_process_that_is_killed_in_a_transaction_leaves_nothing_of_it(session: SqliteSession) -> None:
    insert(session)
    before = session.select("SELECT * FROM t")
    program = (
        "import os, pathlib, sys\n"
        "from iceburg.database.sqlite_session import SqliteSession\n"
        "session = SqliteSession(pathlib.Path(sys.argv[1]))\n"
        "with session.writing() as connection:\n"
        "    connection.execute('PRAGMA cache_size = 1')\n"
        "    connection.executemany('INSERT INTO t VALUES (NULL, ?)', (('x' * 900,) for _ in range(900)))\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(session.path)], check=False).returncode == -9
    assert kept_journal(session.path).read_bytes()[:1] != b"\0"  # it is hot
    assert session.select("SELECT * FROM t") == before
    assert session.select("PRAGMA integrity_check") == [("ok",)]
