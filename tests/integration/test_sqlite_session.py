"""One SQLite file and its connections: locks, full disks, forks, files that are replaced."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from iceburg.database import fork_guard
from iceburg.database.sqlite_session import SqliteSession
from iceburg.errors import SourceBusyError, SourceError, UsageError

SCHEMA = "CREATE TABLE IF NOT EXISTS t (a, b TEXT); CREATE INDEX IF NOT EXISTS t_a ON t (a);"
COUNT = "SELECT count(*) FROM t"
# Python 3.12 and later warn of a fork while there are threads; here the other threads are at rest or the test's own.
forking = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def session(tmp_path: Path) -> Iterator[SqliteSession]:
    made = SqliteSession(tmp_path / "a.db", schema=SCHEMA, busy_timeout=0.2)
    yield made
    made.close()


def insert(session: SqliteSession, value: object = 1) -> None:
    with session.writing() as connection:
        connection.execute("INSERT INTO t VALUES (?, 'x')", (value,))


def values(session: SqliteSession) -> list[object]:
    return [a for (a,) in session.select("SELECT a FROM t ORDER BY rowid")]


def in_thread(work: Callable[[], object]) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for error in errors:
        raise error


def in_child(work: Callable[[], object]) -> int:
    """Run something in a forked child, and return its exit status: 0, or 1 for an error."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def descriptors(path: Path) -> int:
    """Count this process's open descriptors of a file, also where it is gone from its directory."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found += str(entry.readlink()).removesuffix(" (deleted)") == str(path)
        except FileNotFoundError:
            continue
    return found


def test_a_file_and_its_directory_are_made_for_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "a #1?.db"
    session = SqliteSession(path, schema=SCHEMA)
    assert not path.exists()
    insert(session)
    session.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute(COUNT).fetchone() == (1,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_a_table_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (a INTEGER, b TEXT, more TEXT)")
        connection.execute("CREATE INDEX other_name ON t (a)")
    before = path.read_bytes()
    session = SqliteSession(path, schema=SCHEMA)
    assert session.select(COUNT) == [(0,)]
    session.close()
    assert path.read_bytes() == before


def test_an_empty_file_gets_its_tables(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    session = SqliteSession(tmp_path / "a.db", schema=SCHEMA)
    assert session.select(COUNT) == [(0,)]
    session.close()


def test_a_file_in_wal_mode_stays_so(tmp_path: Path, session: SqliteSession) -> None:
    with closing(sqlite3.connect(session.path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        insert(session)
        assert connection.execute(COUNT).fetchone() == (1,)
        assert session.select("PRAGMA journal_mode") == [("wal",)]
        connection.execute("INSERT INTO t VALUES (2, 'y')")
        connection.commit()
    assert values(session) == [1, 2]


def test_every_commit_is_synced(session: SqliteSession) -> None:
    assert session.connection().execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_transaction_is_all_or_nothing(session: SqliteSession) -> None:
    def work() -> None:
        with session.writing() as connection:
            connection.execute("INSERT INTO t VALUES (1, 'x')")
            assert connection.execute(COUNT).fetchone() == (1,)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert values(session) == []
    insert(session)
    assert values(session) == [1]


def test_a_transaction_that_its_user_has_ended(session: SqliteSession) -> None:
    def work() -> None:
        with session.writing() as connection:
            connection.execute("INSERT INTO t VALUES (1, 'x')")
            connection.execute("ROLLBACK")

    with pytest.raises(SourceError, match="no transaction is active"):
        work()
    assert values(session) == []


def test_reading_is_of_one_snapshot(session: SqliteSession) -> None:
    insert(session)
    with session.reading() as connection:
        assert connection.execute(COUNT).fetchone() == (1,)
        with pytest.raises(SourceBusyError):
            in_thread(lambda: insert(session))
        assert session.select(COUNT) == [(1,)]
    in_thread(lambda: insert(session))
    assert session.select(COUNT) == [(2,)]


@pytest.mark.parametrize("outer", ["reading", "writing"])
@pytest.mark.parametrize("inner", ["reading", "writing"])
def test_transactions_are_not_nested(session: SqliteSession, outer: str, inner: str) -> None:
    with getattr(session, outer)() as connection:
        with pytest.raises(UsageError, match="in a transaction already"), getattr(session, inner)():
            pass
        with pytest.raises(UsageError, match="in a transaction already"):
            session.close()
        assert connection.in_transaction
        assert session.connection() is connection
    insert(session)


def test_each_thread_has_its_own_connection(session: SqliteSession) -> None:
    seen: list[sqlite3.Connection] = [session.connection()]
    in_thread(lambda: seen.append(session.connection()))
    assert seen[0] is not seen[1]
    assert session.connection() is seen[0]


def test_the_connection_of_a_thread_that_has_ended_goes_to_another(session: SqliteSession) -> None:
    seen: list[int] = []
    for _ in range(20):
        in_thread(lambda: seen.append(id(session.connection())))
    gc.collect()
    assert len(set(seen)) == 1
    assert descriptors(session.path) == 1


def test_closing_closes_the_connections_of_every_thread(session: SqliteSession) -> None:
    insert(session)
    in_thread(lambda: insert(session))
    assert descriptors(session.path) == 2
    session.close()
    assert descriptors(session.path) == 0
    session.close()
    for use in (lambda: session.select(COUNT), session.connection, lambda: insert(session)):
        with pytest.raises(UsageError, match="closed"):
            use()


def test_closing_waits_for_transactions(session: SqliteSession) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def write() -> None:
        with session.writing() as connection:
            connection.execute("INSERT INTO t VALUES (1, 'x')")
            begun.set()
            go_on.wait()

    writer = threading.Thread(target=write)
    writer.start()
    begun.wait()
    closer = threading.Thread(target=session.close)
    closer.start()
    time.sleep(0.05)
    assert closer.is_alive()
    go_on.set()
    writer.join()
    closer.join()
    with closing(sqlite3.connect(session.path)) as connection:
        assert connection.execute(COUNT).fetchone() == (1,)


def test_threads_that_write_wait_for_each_other(tmp_path: Path) -> None:
    session = SqliteSession(tmp_path / "a.db", schema=SCHEMA)

    def write() -> None:
        for _ in range(10):
            insert(session)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert session.select(COUNT) == [(80,)]
    session.close()


def test_a_file_that_is_locked(session: SqliteSession) -> None:
    insert(session)
    with closing(sqlite3.connect(session.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SourceBusyError, match=r"a\.db: another program has held it locked") as caught:
            insert(session, 2)
        assert "try again" in caught.value.hint
        assert values(session) == [1]
        other.execute("COMMIT")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SourceBusyError):
            session.select(COUNT)
        other.execute("ROLLBACK")
    insert(session, 2)
    assert values(session) == [1, 2]


def test_a_reader_that_stays_keeps_a_commit_away_and_nothing_is_written(session: SqliteSession) -> None:
    insert(session)
    with closing(sqlite3.connect(session.path, isolation_level=None)) as other:
        reading = other.execute("SELECT a FROM t UNION ALL SELECT 1")
        reading.fetchone()
        with pytest.raises(SourceBusyError):
            insert(session, 2)
        reading.close()
    assert values(session) == [1]
    insert(session, 2)
    assert values(session) == [1, 2]


def test_a_lock_that_is_given_up_in_time_is_waited_for(tmp_path: Path) -> None:
    session = SqliteSession(tmp_path / "a.db", schema=SCHEMA, busy_timeout=10)
    insert(session)
    with closing(sqlite3.connect(session.path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        release = threading.Timer(0.2, other.execute, ("COMMIT",))
        release.start()
        insert(session)
        release.join()
    assert session.select(COUNT) == [(2,)]
    session.close()


def test_a_thread_that_writes_for_long(session: SqliteSession) -> None:
    with session.writing(), pytest.raises(SourceBusyError, match="another thread"):
        in_thread(lambda: insert(session))
    insert(session)
    assert session.select(COUNT) == [(1,)]


def test_a_full_disk(session: SqliteSession) -> None:
    def write_too_much() -> None:
        with session.writing() as connection:
            connection.execute("INSERT INTO t VALUES (2, 'small')")
            connection.execute("INSERT INTO t VALUES (3, ?)", ("x" * 100_000,))

    insert(session)
    ((pages,),) = session.select("PRAGMA page_count")
    session.connection().execute(f"PRAGMA max_page_count = {pages!r}")
    with pytest.raises(SourceError, match="no space is left") as caught:
        write_too_much()
    assert "make room" in caught.value.hint
    assert values(session) == [1]
    session.connection().execute("PRAGMA max_page_count = 1000000")
    insert(session, 2)
    assert values(session) == [1, 2]


def test_what_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"certainly not a database" * 100)
    session = SqliteSession(path, schema=SCHEMA)
    with pytest.raises(SourceError, match="is not an SQLite database"):
        session.select(COUNT)
    with pytest.raises(SourceError, match="is not an SQLite database"):
        insert(session)
    session.close()
    assert descriptors(path) == 0
    assert path.read_bytes() == b"certainly not a database" * 100


def test_a_damaged_file(session: SqliteSession) -> None:
    with session.writing() as connection:
        connection.executemany("INSERT INTO t VALUES (?, ?)", [(n, "x" * 1_000) for n in range(100)])
    session.close()
    content = bytearray(session.path.read_bytes())
    content[4096:-4096] = b"\xff" * (len(content) - 8192)
    session.path.write_bytes(content)
    damaged = SqliteSession(session.path, schema=SCHEMA)
    with pytest.raises(SourceError, match="is damaged"):
        damaged.select("SELECT * FROM t")
    damaged.close()


def test_a_directory_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.db").mkdir()
    session = SqliteSession(tmp_path / "a.db", schema=SCHEMA)
    with pytest.raises(SourceError, match="cannot be opened"):
        session.select(COUNT)
    (tmp_path / "file").touch()
    session = SqliteSession(tmp_path / "file" / "a.db", schema=SCHEMA)
    with pytest.raises(SourceError, match="cannot be made"):
        session.select(COUNT)


def test_a_file_that_may_not_be_written(session: SqliteSession) -> None:
    insert(session)
    # As with a file of others: root may write any.
    session.connection().execute("PRAGMA query_only = ON")
    with pytest.raises(SourceError, match="read-only"):
        insert(session)
    assert values(session) == [1]
    session.connection().execute("PRAGMA query_only = OFF")


def test_a_table_that_is_of_another_form(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute("CREATE TABLE t (other)")
    session = SqliteSession(tmp_path / "a.db", schema=SCHEMA)
    with pytest.raises(SourceError, match="SQLite refused: no such column: a"):
        session.select("SELECT a FROM t")
    session.close()


def test_text_that_is_not_utf_8(session: SqliteSession) -> None:
    with session.writing() as connection:
        connection.execute("INSERT INTO t VALUES (1, CAST(x'4361666520e9' AS TEXT)), (2, 'é')")
    expected = [(1, "Cafe \udce9"), (2, "é")]
    assert session.select("SELECT a, b FROM t ORDER BY a") == expected
    assert session.records("SELECT a AS n, b FROM t WHERE a = 1") == [{"n": 1, "b": "Cafe \udce9"}]
    with session.reading():
        assert session.select("SELECT a, b FROM t ORDER BY a") == expected
    assert session.connection().text_factory is str


@pytest.mark.parametrize("how", ["replaced", "deleted", "moved away"])
def test_a_file_that_is_not_there_any_more_is_opened_anew(session: SqliteSession, how: str) -> None:
    insert(session, "old")
    other = threading.Thread(target=lambda: insert(session, "old"))
    other.start()
    other.join()
    if how == "replaced":
        replacement = session.path.with_name("new.db")
        with closing(sqlite3.connect(replacement)) as connection:
            connection.execute("CREATE TABLE t (a, b)")
            connection.execute("INSERT INTO t VALUES ('new', '')")
            connection.commit()
        replacement.replace(session.path)
    elif how == "deleted":
        session.path.unlink()
    else:
        session.path.rename(session.path.with_name("old.db"))
    insert(session, "newer")
    expected = ["new", "newer"] if how == "replaced" else ["newer"]
    assert values(session) == expected
    in_thread(lambda: insert(session, "newest"))
    with closing(sqlite3.connect(session.path)) as connection:
        assert [a for (a,) in connection.execute("SELECT a FROM t ORDER BY rowid")] == [*expected, "newest"]


@pytest.mark.parametrize("how", ["reading", "writing"])
def test_a_file_that_is_replaced_before_its_lock_is_given_is_opened_anew(tmp_path: Path, how: str) -> None:
    session = SqliteSession(tmp_path / "a.db", schema=SCHEMA)
    insert(session, "old")
    connection = session.connection()
    replacement = tmp_path / "new.db"
    with closing(sqlite3.connect(replacement)) as other:
        other.execute("CREATE TABLE t (a, b)")

    def replace(*_: object) -> int:
        if replacement.exists():
            replacement.replace(session.path)
        return sqlite3.SQLITE_OK

    # Asked for leave to begin, the last thing before the lock.
    connection.set_authorizer(replace)
    with getattr(session, how)() as used:
        assert used is not connection
        assert used.execute(COUNT).fetchone() == (0,)
    insert(session, "new")
    assert values(session) == ["new"]
    session.close()


def test_a_file_that_is_replaced_within_a_transaction_gets_nothing(session: SqliteSession) -> None:
    def work() -> None:
        with session.writing() as connection:
            session.path.rename(session.path.with_name("old.db"))
            connection.execute("INSERT INTO t VALUES ('lost', '')")

    insert(session, "old")
    with pytest.raises(SourceError, match="was replaced or deleted"):
        work()
    assert values(session) == []
    with closing(sqlite3.connect(session.path.with_name("old.db"))) as connection:
        assert connection.execute("SELECT a FROM t").fetchall() == [("old",)]


@forking
def test_a_child_opens_its_own_connection(session: SqliteSession) -> None:
    insert(session)

    def work() -> None:
        assert descriptors(session.path) == 0
        insert(session, 2)
        assert values(session) == [1, 2]

    assert in_child(work) == 0
    insert(session, 3)
    assert values(session) == [1, 2, 3]


@forking
def test_the_locks_of_parent_and_child_keep_each_other_out(session: SqliteSession) -> None:
    insert(session)
    in_child_now, parent_is_done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with session.writing() as connection:
                connection.execute("INSERT INTO t VALUES ('child', '')")
                os.write(in_child_now[1], b"x")
                os.read(parent_is_done[0], 1)
            status = 0
        finally:
            os._exit(status)
    os.read(in_child_now[0], 1)
    with pytest.raises(SourceBusyError):
        insert(session, "parent")
    os.write(parent_is_done[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    insert(session, "parent")
    assert values(session) == [1, "child", "parent"]
    for end in (*in_child_now, *parent_is_done):
        os.close(end)


@forking
def test_a_fork_waits_for_the_transactions_of_other_threads(session: SqliteSession) -> None:
    insert(session)
    begun = threading.Event()

    def write() -> None:
        with session.writing() as connection:
            connection.execute("INSERT INTO t VALUES ('thread', '')")
            begun.set()
            time.sleep(0.3)

    writer = threading.Thread(target=write)
    writer.start()
    begun.wait()
    assert in_child(lambda: insert(session, "child")) == 0
    writer.join()
    assert values(session) == [1, "thread", "child"]


@forking
def test_a_fork_within_a_transaction_leaves_the_transaction_to_the_parent(session: SqliteSession) -> None:
    with session.writing() as connection:
        connection.execute("INSERT INTO t VALUES ('parent', '')")

        def use() -> None:
            with pytest.raises(UsageError, match="forked while a transaction was open"):
                insert(session, "child")
            with pytest.raises(UsageError, match="forked while a transaction was open"):
                session.select(COUNT)

        assert in_child(use) == 0
        assert connection.in_transaction
    assert values(session) == ["parent"]


_FORKED_WITHIN = """
import os, sys
from pathlib import Path
from iceburg.database.sqlite_session import SqliteSession
from iceburg.errors import UsageError
session = SqliteSession(Path(sys.argv[1]), schema="CREATE TABLE IF NOT EXISTS t (a)")
child = None
try:
    with session.writing() as connection:
        connection.execute("INSERT INTO t VALUES (1)")
        child = os.fork()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (1,)
except UsageError as error:
    assert not child and "in the process that began it" in str(error)
    sys.exit(7)  # with all that an interpreter does at its end
assert session.select("SELECT count(*) FROM t") == [(1,)]
session.close()
"""


def test_a_child_that_leaves_the_transaction_neither_commits_nor_rolls_back(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    done = subprocess.run(
        [sys.executable, "-c", _FORKED_WITHIN, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (1,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@forking
def test_a_fork_that_has_lost_its_patience(session: SqliteSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_guard, "PATIENCE", 0.05)
    begun, go_on = threading.Event(), threading.Event()

    def write() -> None:
        with session.writing() as connection:
            connection.execute("INSERT INTO t VALUES ('thread', '')")
            begun.set()
            go_on.wait()

    writer = threading.Thread(target=write)
    writer.start()
    begun.wait()

    def use() -> None:
        with pytest.raises(UsageError, match="forked while a transaction was open"):
            insert(session, "child")

    assert in_child(use) == 0
    go_on.set()
    writer.join()
    assert values(session) == ["thread"]


_WRITER = """
import sys
from pathlib import Path
from iceburg.database.sqlite_session import SqliteSession
session = SqliteSession(Path(sys.argv[1]), schema="CREATE TABLE IF NOT EXISTS t (a)", busy_timeout=60)
for n in range(int(sys.argv[2])):
    with session.writing() as connection:
        connection.execute("INSERT INTO t VALUES (?)", (n,))
    print(n, flush=True)
session.close()
"""


def test_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    command = [sys.executable, "-c", _WRITER, str(path), "25"]
    writers = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT a, count(*) FROM t GROUP BY a").fetchall() == [(n, 3) for n in range(25)]


def test_what_a_killed_process_was_told_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(path), "100000"], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(20)]
        writer.send_signal(signal.SIGKILL)
        told += [int(line) for line in writer.stdout.read().split()]
    session = SqliteSession(path)
    found = [a for (a,) in session.select("SELECT a FROM t ORDER BY a")]
    assert found[: len(told)] == told
    assert len(found) <= len(told) + 1
    insert_more = "INSERT INTO t VALUES (-1)"
    with session.writing() as connection:
        connection.execute(insert_more)
    session.close()


def test_a_connection_is_prepared_before_anything_else(tmp_path: Path) -> None:
    prepared: list[sqlite3.Connection] = []

    def prepare(connection: sqlite3.Connection) -> None:
        connection.create_function("twice", 1, lambda x: 2 * x)
        prepared.append(connection)

    schema = "CREATE TABLE IF NOT EXISTS t (a, b); CREATE VIEW IF NOT EXISTS v AS SELECT twice(a) AS a FROM t"
    session = SqliteSession(tmp_path / "a.db", schema=schema, prepare=prepare)
    insert(session, 21)
    assert session.select("SELECT a FROM v") == [(42,)]
    in_thread(lambda: session.select("SELECT a FROM v"))
    assert len(prepared) == 3  # one is for the schema
    session.close()
