"""What is written in dual mode is applied while its commit is on its way to the disk, and only if that arrives."""

from __future__ import annotations

import os
import select
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from iceburg.config import Settings
from iceburg.database import Entity, UnifiedDatabase, synchroniser
from iceburg.database.connection import connect
from iceburg.database.sqlite_adapter import SqliteAdapter
from iceburg.database.sqlite_session import SqliteSession
from iceburg.database.synchroniser import Synchroniser
from iceburg.database.uncommitted import Uncommitted
from iceburg.errors import SourceBusyError, SourceError
from tests.support import rows, run_sql


@pytest.fixture
def db(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[UnifiedDatabase]:
    """A database in dual mode that has applied something of each store, and does nothing in the background."""
    monkeypatch.setattr(synchroniser, "_AT_HAND", 5.0)
    monkeypatch.setattr(Synchroniser, "start", lambda self: None)
    settings = Settings(data_dir=tmp_path, use_postgres=True, database_url=SecretStr(database))
    with UnifiedDatabase(settings) as made:
        for n in range(3):
            made.conversations.save("c", f"before {n}", "a")
            made.matrix.put(Entity("e", f"before {n}", "person"))
        yield made


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Note each source that is caught up with, as it is when nothing was applied ahead."""
    found: list[str] = []
    catch_up = Synchroniser.catch_up

    def noted(self: Synchroniser, source: str, upto: int | None = None) -> bool:
        found.append(source)
        return catch_up(self, source, upto)

    with monkeypatch.context() as patch:
        patch.setattr(Synchroniser, "catch_up", noted)
        yield found


@contextmanager
def at_begin(monkeypatch: pytest.MonkeyPatch, happen: Callable[[], Any]) -> Iterator[list[bool]]:
    """Have something happen once PostgreSQL has begun, before the embedded side commits; note whether it had begun."""
    begun: list[bool] = []
    begin_ahead = Synchroniser.begin_ahead

    def begin(self: Synchroniser, source: str, *rest: Any) -> Callable[[bool], None] | None:
        end = begin_ahead(self, source, *rest)
        begun.append(end is not None)
        happen()
        return end

    with monkeypatch.context() as patch:
        patch.setattr(Synchroniser, "begin_ahead", begin)
        yield begun


def settle(db: UnifiedDatabase) -> None:
    """Wait for commits that were not waited for."""
    assert db._dual is not None
    for source in db._dual.appliers:
        db._dual.synchroniser.settle(source)


def names(dsn: str) -> list[str]:
    return [name for (name,) in rows(dsn, "SELECT name FROM matrix_entities ORDER BY entity_id")]


WRITES: dict[str, Callable[[UnifiedDatabase, int], Any]] = {
    "save": lambda db, n: db.conversations.save("c", f"q{n}", "a", metadata={"n": n}),
    "update": lambda db, n: db.conversations.update(1, {"user_message": f"changed {n}"}),
    "put a new one": lambda db, n: db.matrix.put(Entity(f"new {n}", "one", "person", properties={"n": n})),
    "put one over": lambda db, n: db.matrix.put(Entity("e", f"name {n}", "person")),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_single_records_are_applied_ahead(
    db: UnifiedDatabase, monkeypatch: pytest.MonkeyPatch, write: Callable[[UnifiedDatabase, int], Any]
) -> None:
    with counting(monkeypatch) as caught_up:
        for n in range(10):
            write(db, n)
    assert caught_up == []


def test_everything_applied_ahead_is_there(db: UnifiedDatabase, database: str) -> None:
    for n in range(10):
        for write in WRITES.values():
            write(db, n)
    for n in range(0, 10, 2):
        assert db.matrix.delete(f"new {n}")
    db.close()
    assert names(database) == ["name 9", *["one"] * 5]
    assert rows(database, "SELECT count(*), max(metadata ->> 'n') FROM conversations") == [(13, "9")]
    assert rows(database, "SELECT query FROM conversations WHERE row_id = 1") == [("changed 9",)]


def test_what_the_file_could_not_commit_is_not_in_postgresql(
    db: UnifiedDatabase, database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Somebody reads for longer than a commit waits."""
    db.embedded.close()
    db.embedded = SqliteAdapter(db.layout, busy_timeout=0.2)
    settings = Settings(data_dir=tmp_path, use_postgres=True, database_url=SecretStr(database))
    with closing(sqlite3.connect(db.layout.matrix, check_same_thread=False)) as reader, UnifiedDatabase(settings) as db:
        db.embedded.sessions["matrix"]._busy_timeout = 0.2
        db.matrix.put(Entity("e", "known", "person"))

        def read() -> None:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM entities").fetchall()

        with at_begin(monkeypatch, read) as begun, pytest.raises(SourceBusyError):
            db.matrix.put(Entity("e", "refused", "person"))
        assert begun == [True]
        assert names(database) == ["known"]
        reader.rollback()
        found = db.matrix.get("e")
        assert found is not None
        assert found.name == "known"
        with counting(monkeypatch) as caught_up:
            db.matrix.put(Entity("e", "afterwards", "person"))
        assert caught_up == []
    assert names(database) == ["afterwards"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_is_on_neither_side(
    db: UnifiedDatabase, database: str, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupt() -> None:
        raise error

    with at_begin(monkeypatch, interrupt) as begun, pytest.raises(error):
        db.matrix.put(Entity("e", "interrupted", "person"))
    assert begun == [True]
    with closing(sqlite3.connect(db.layout.matrix)) as file:
        assert file.execute("SELECT name FROM entities").fetchall() == [("before 2",)]
    assert names(database) == ["before 2"]
    with counting(monkeypatch) as caught_up:
        db.matrix.put(Entity("e", "afterwards", "person"))
    assert caught_up == []
    db.close()
    assert names(database) == ["afterwards"]


# With the helper


@pytest.fixture
def helped(db: UnifiedDatabase) -> Iterator[UnifiedDatabase]:
    """The same, with the thread that works while the disk does."""
    assert db._dual is not None
    helper = db._dual.synchroniser._helper
    helper.start()
    yield db
    helper.stop(10)


def test_the_helper_has_it_begun(helped: UnifiedDatabase, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    begin = Uncommitted.begin.__func__  # type: ignore[attr-defined]

    def noted(cls: type[Uncommitted], *given: Any) -> Uncommitted | None:
        threads.append(threading.current_thread().name)
        made: Uncommitted | None = begin(cls, *given)
        return made

    monkeypatch.setattr(Uncommitted, "begin", classmethod(noted))
    # Long enough for the helper, however busy the machine is.
    commit = SqliteSession._transaction

    @contextmanager
    def slow(self: SqliteSession, statement: str) -> Iterator[sqlite3.Connection]:
        with commit(self, statement) as connection:
            yield connection
            deadline = time.monotonic() + 30
            while statement == "BEGIN IMMEDIATE" and len(threads) <= done and time.monotonic() < deadline:
                time.sleep(0.001)

    monkeypatch.setattr(SqliteSession, "_transaction", slow)
    with counting(monkeypatch) as caught_up:
        for done in range(5):
            helped.matrix.put(Entity("e", f"helped {done}", "person"))
    assert threads == ["iceburg-helper"] * 5
    assert caught_up == []
    helped.close()
    assert names(database) == ["helped 4"]


def test_a_helper_that_does_not_come_to_it_is_not_waited_for(
    helped: UnifiedDatabase, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert helped._dual is not None
    busy, go_on = threading.Event(), threading.Event()

    def work() -> None:
        busy.set()
        go_on.wait(60)

    helped._dual.synchroniser._helper.hand_over(work)
    assert busy.wait(30)
    with counting(monkeypatch) as caught_up:
        for n in range(5):
            helped.matrix.put(Entity("e", f"alone {n}", "person"))
    assert caught_up == []
    settle(helped)
    assert names(database) == ["alone 4"]
    with at_begin(monkeypatch, _fail) as begun, pytest.raises(ZeroDivisionError):
        helped.matrix.put(Entity("e", "refused", "person"))
    assert begun == [True]
    go_on.set()
    helped.matrix.put(Entity("e", "afterwards", "person"))
    helped.close()
    assert names(database) == ["afterwards"]


def _fail() -> None:
    raise ZeroDivisionError


def test_what_the_helper_has_begun_is_given_up_with_the_write(
    helped: UnifiedDatabase, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert helped._dual is not None
    synchroniser = helped._dual.synchroniser
    begun = threading.Event()
    begin = Synchroniser._begin

    def noted(self: Synchroniser, *given: Any) -> Any:
        found = begin(self, *given)
        begun.set()
        return found

    def fail() -> None:
        assert begun.wait(30)
        raise ZeroDivisionError

    monkeypatch.setattr(Synchroniser, "_begin", noted)
    with at_begin(monkeypatch, fail), pytest.raises(ZeroDivisionError):
        helped.matrix.put(Entity("e", "refused", "person"))
    assert synchroniser._locks["matrix.db"].acquire(blocking=False)
    synchroniser._locks["matrix.db"].release()
    helped.matrix.put(Entity("e", "afterwards", "person"))
    helped.close()
    assert names(database) == ["afterwards"]


# Events


def events(dsn: str) -> list[tuple[str, int]]:
    return rows(dsn, "SELECT event_type, count(*) FROM telemetry GROUP BY 1 ORDER BY 1")


def test_events_are_applied_by_whoever_reads_them(
    db: UnifiedDatabase, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counting(monkeypatch) as caught_up:
        for n in range(20):
            db.telemetry.append({"event_type": "e", "n": n})
    assert caught_up == []
    assert events(database) == []
    assert [event.data["n"] for event in db.telemetry.newest(limit=3)] == [19, 18, 17]
    assert events(database) == [("e", 20)]


def test_events_that_nobody_has_read_are_applied_at_the_end(db: UnifiedDatabase, database: str) -> None:
    db.telemetry.append_many([{"event_type": "e", "n": n} for n in range(20)])
    db.close()
    assert events(database) == [("e", 20)]


def test_events_that_nobody_has_read_are_applied_in_the_background(tmp_path: Path, database: str) -> None:
    settings = Settings(data_dir=tmp_path, use_postgres=True, database_url=SecretStr(database))
    with UnifiedDatabase(settings) as db:
        db.matrix.put(Entity("e", "makes the tables", "person"))
        db.telemetry.append({"event_type": "e"})
        deadline = time.monotonic() + 60
        while not (found := events(database)) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert found == [("e", 1)]


def test_a_line_that_is_not_durable_is_on_neither_side(
    db: UnifiedDatabase, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.telemetry.append({"event_type": "before"})
    before = db.layout.telemetry.read_bytes()

    def full(file: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SourceError, match="No space"):
            db.telemetry.append({"event_type": "lost"})
    assert db.layout.telemetry.read_bytes() == before
    db.telemetry.append({"event_type": "afterwards"})
    db.close()
    assert events(database) == [("afterwards", 1), ("before", 1)]


def test_a_session_that_ends_meanwhile_costs_nothing(
    db: UnifiedDatabase, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_sessions() -> None:
        run_sql(
            database,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )

    with at_begin(monkeypatch, end_sessions) as begun:
        db.matrix.put(Entity("e", "saved", "person"))
    assert begun == [True]
    found = db.matrix.get("e")
    assert found is not None
    assert found.name == "saved"
    db.close()
    with closing(sqlite3.connect(db.layout.matrix)) as file:
        assert file.execute("SELECT name FROM entities").fetchall() == [("saved",)]


def test_another_position_than_was_believed_is_found_out(db: UnifiedDatabase, tmp_path: Path, database: str) -> None:
    """Two processes write in turns: each finds that the other has moved the position."""
    settings = Settings(data_dir=tmp_path, use_postgres=True, database_url=SecretStr(database))
    with UnifiedDatabase(settings) as other:
        for n in range(6):
            (other if n % 2 else db).matrix.put(Entity("e", f"turn {n}", "person"))
            assert names(database) == [f"turn {n}"]


def test_a_large_record_goes_the_ordinary_way(
    db: UnifiedDatabase, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counting(monkeypatch) as caught_up:
        db.matrix.put(Entity("e", "n" * 100_000, "person"))
    assert caught_up == ["matrix.db"]
    assert names(database) == ["n" * 100_000]


def test_what_postgresql_cannot_hold_goes_the_ordinary_way(
    db: UnifiedDatabase, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_sql(database, "ALTER TABLE matrix_entities ADD CHECK (name <> 'refused') NOT VALID")
    with counting(monkeypatch) as caught_up:
        db.matrix.put(Entity("e", "a\0b", "person"))
        db.matrix.put(Entity("other", "refused", "person"))
    assert caught_up == ["matrix.db", "matrix.db"]
    assert rows(database, "SELECT field FROM iceburg_migration.originals") == [("name",)]
    assert rows(database, "SELECT record_key FROM iceburg_migration.quarantine") == [('["other"]',)]


# The statement itself


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with closing(connect(database, autocommit=True)) as made:
        made.execute("CREATE TABLE t (a integer CHECK (a < 100))")
        yield made


ONE = b"WITH w AS (INSERT INTO t SELECT $1::integer WHERE $1::integer > 0 RETURNING 1) SELECT count(*) FROM w"


def begin(connection: psycopg.Connection, value: object) -> Uncommitted:
    begun = Uncommitted.begin(connection, ONE, [value])
    assert begun is not None
    return begun


def held(database: str) -> list[int]:
    return [a for (a,) in rows(database, "SELECT a FROM t ORDER BY a")]


def test_it_is_there_once_it_is_committed(connection: psycopg.Connection, database: str) -> None:
    for n in (1, 2, 3):  # prepared by the first
        begun = begin(connection, n)
        assert held(database) == list(range(1, n))
        assert begun.commit()
        begun.end()
        assert held(database) == list(range(1, n + 1))
    assert connection.execute("SELECT 1").fetchone() == (1,)


def test_it_is_not_there_when_it_is_rolled_back(connection: psycopg.Connection, database: str) -> None:
    for n in (1, 2):
        begin(connection, n).roll_back()
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert held(database) == []


@pytest.mark.parametrize("value", [-1, 100, "no number"])
def test_what_was_not_done_is_not_committed(connection: psycopg.Connection, database: str, value: object) -> None:
    for _ in range(2):
        assert not begin(connection, value).commit()
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    begun = begin(connection, 5)
    assert begun.commit()
    begun.end()
    assert held(database) == [5]


def test_a_statement_that_cannot_be_prepared_is_an_error(connection: psycopg.Connection, database: str) -> None:
    for _ in range(2):
        begun = Uncommitted.begin(connection, b"SELECT count(*) FROM nowhere", [])
        assert begun is not None
        with pytest.raises(psycopg.errors.UndefinedTable):
            begun.commit()
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    run_sql(database, "CREATE TABLE nowhere AS SELECT 1")
    begun = Uncommitted.begin(connection, b"SELECT count(*) FROM nowhere", [])
    assert begun is not None
    assert begun.commit()
    begun.end()


def test_a_failed_statement_before_it_is_its_error(connection: psycopg.Connection, database: str) -> None:
    begun = Uncommitted.begin(connection, ONE, [7], [b"SET LOCAL work_mem = '1MB'", b"SELECT nothing"])
    assert begun is not None
    with pytest.raises(psycopg.errors.UndefinedColumn):
        begun.commit()
    assert held(database) == []


def test_a_connection_that_ended_is_an_error_and_closed(connection: psycopg.Connection, database: str) -> None:
    begun = begin(connection, 7)
    select.select([connection.fileno()], [], [], 10)
    run_sql(database, "SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
    # What the statement did was said before the session ended.
    assert begun.commit()
    with pytest.raises(psycopg.OperationalError):
        begun.end()
    assert connection.closed
    assert held(database) == []
