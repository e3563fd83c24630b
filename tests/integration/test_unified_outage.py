"""The layer in dual mode while PostgreSQL hangs, is far behind or is gone, and while the flag changes."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from iceburg.config import Settings
from iceburg.database import Entity, UnifiedDatabase, synchroniser
from iceburg.database.breaker import GRACE
from iceburg.database.embedded import EmbeddedServer
from iceburg.database.flag import write_flag
from iceburg.database.pairs import same
from iceburg.database.postgres_session import PostgresSession
from iceburg.database.shadow import ShadowReads
from iceburg.database.synchroniser import Synchroniser
from iceburg.errors import SourceError, UsageError
from tests.conftest import FAST, make_server_home, remove_server_home
from tests.contract.values import at_once
from tests.support import rows, run_sql


def settings_of(data_dir: Path, dsn: str, **others: Any) -> Settings:
    return Settings(data_dir=data_dir, **{"use_postgres": True, "database_url": SecretStr(dsn), **others})


def answered_by(db: UnifiedDatabase, side: str, within: float) -> bool:
    """Whether a side answers reads before long."""
    deadline = time.monotonic() + within
    asked: list[str] = []
    timed = db._timed

    def noted(operation: str, on: Any, call: Any, adapter: Any) -> Any:
        result = timed(operation, on, call, adapter)
        asked.append(on)
        return result

    db._timed = noted  # type: ignore[method-assign, assignment]
    try:
        while time.monotonic() < deadline:
            db.conversations.newest()
            db.matrix.count_by_type()
            if asked[-2:] == [side] * 2:
                return True
            time.sleep(0.1)
    finally:
        db._timed = timed  # type: ignore[method-assign]
    return False


@contextmanager
def in_step(settings: Settings) -> Iterator[UnifiedDatabase]:
    """Open a database with one exchange in it, which PostgreSQL has and answers for."""
    with UnifiedDatabase(settings) as db:
        db.save_conversation("c", "before", "a")
        assert answered_by(db, "postgres", 20)
        yield db


# A server that hangs


@pytest.fixture(scope="module")
def own_server() -> Iterator[tuple[EmbeddedServer, Path]]:
    home = make_server_home()
    yield EmbeddedServer(home, overrides=FAST), home
    remove_server_home(home)


def processes_of(home: Path) -> list[int]:
    """The server's processes: the first one, and its children."""
    (pid_file,) = home.rglob("postmaster.pid")
    first = int(pid_file.read_text().split()[0])
    found = [first]
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == first:
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
    return found


@contextmanager
def hanging(home: Path) -> Iterator[None]:
    """Have every process of a server stand still: connections stay open, nothing answers."""
    stopped = processes_of(home)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def test_a_server_that_hangs_makes_few_calls_slow(tmp_path: Path, own_server: tuple[EmbeddedServer, Path]) -> None:
    server, home = own_server
    dsn = server.database_for(tmp_path)
    with UnifiedDatabase(settings_of(tmp_path, dsn, postgres_timeout=1.0)) as db:
        db.save_conversation("c", "before", "a")
        db.matrix.put(Entity("e", "before", "person"))
        assert answered_by(db, "postgres", 20)
        took = []
        with hanging(home):
            until = time.monotonic() + 6
            n = 0
            while time.monotonic() < until:
                n += 1
                began = time.monotonic()
                db.save_conversation("c", f"{n}", "a")
                assert db.get_conversations(limit=1)[0]["user_message"] == f"{n}"
                took.append(time.monotonic() - began)
                time.sleep(0.02)
        slow = [seconds for seconds in took if seconds > 0.5]
        # Once to notice; whether it is back is found out in the background, or by a call where that is late.
        assert 1 <= len(slow) <= 3
        assert max(took) < 3
        assert answered_by(db, "postgres", 30)
        assert len(db.get_conversations(limit=10_000)) == n + 1
    assert rows(dsn, "SELECT count(*) FROM conversations") == [(n + 1,)]


def test_a_server_that_is_stopped_makes_no_call_slow(tmp_path: Path, own_server: tuple[EmbeddedServer, Path]) -> None:
    """It refuses connections, which takes no time: none of its thirty seconds is waited."""
    server, _ = own_server
    dsn = server.database_for(tmp_path)
    with in_step(settings_of(tmp_path, dsn, postgres_timeout=30.0)) as db:
        server.stop("immediate")
        longest = 0.0
        for n in range(50):
            began = time.monotonic()
            db.save_conversation("c", f"{n}", "a")
            assert db.get_conversations(limit=1)[0]["user_message"] == f"{n}"
            longest = max(longest, time.monotonic() - began)
            time.sleep(0.05)  # over several pauses of the breaker
        assert longest < 10
        server.ensure_running()
        assert answered_by(db, "postgres", 30)
    assert rows(dsn, "SELECT count(*) FROM conversations") == [(51,)]


def test_that_it_is_back_is_found_out_though_nobody_asks(
    tmp_path: Path, own_server: tuple[EmbeddedServer, Path]
) -> None:
    """Nothing is pending either, so that nothing has to be applied."""
    server, _ = own_server
    dsn = server.database_for(tmp_path)
    with in_step(settings_of(tmp_path, dsn, postgres_timeout=30.0)) as db:
        server.stop("immediate")
        assert len(db.get_conversations()) == 1
        assert db.breaker.is_open
        server.ensure_running()
        deadline = time.monotonic() + 60
        while db.breaker.is_open:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_call_tries_again_only_where_the_background_is_late(tmp_path: Path, database: str) -> None:
    with in_step(settings_of(tmp_path, database)) as db:
        assert db._dual is not None
        db._dual.synchroniser.retire()  # nothing happens in the background any more
        time.sleep(2 * synchroniser._EVERY)
        db.breaker.failed()
        db.breaker._until = time.monotonic()  # the pause is over, and the background has its time
        assert answered_by(db, "embedded", 5)
        db.breaker._until = time.monotonic() - GRACE
        assert answered_by(db, "postgres", 5)


def test_threads_do_not_wait_one_after_the_other(tmp_path: Path, own_server: tuple[EmbeddedServer, Path]) -> None:
    server, home = own_server
    with UnifiedDatabase(settings_of(tmp_path, server.database_for(tmp_path), postgres_timeout=1.0)) as db:
        db.save_conversation("c", "before", "a")
        assert answered_by(db, "postgres", 20)
        with hanging(home):
            began = time.monotonic()
            tasks: list[Callable[[], object]] = [
                lambda n=n: db.save_conversation("c", f"{n}", "a")  # type: ignore[misc]
                for n in range(12)
            ]
            at_once(tasks)
            assert time.monotonic() - began < 5
        assert len(db.get_conversations()) == 13
        assert answered_by(db, "postgres", 30)


# Far behind


def test_what_takes_longer_than_callers_wait_is_done_in_the_background(
    tmp_path: Path, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    with UnifiedDatabase(settings_of(tmp_path, database, postgres_timeout=30)) as db:
        db.save_conversation("c", "q", "a")
        db.matrix.put(Entity("first", "first", "person"))
        db.matrix.count_by_type()
    with UnifiedDatabase(Settings(data_dir=tmp_path)) as off:
        for start in range(0, 30_000, 5_000):
            off.matrix.put_many([Entity(f"e{n}", f"n{n}", "person") for n in range(start, start + 5_000)])
    with UnifiedDatabase(settings_of(tmp_path, database, postgres_timeout=0.3)) as db:
        assert db.matrix.count_by_type() == {"person": 30_001}
        longest = 0.0
        deadline = time.monotonic() + 60
        while rows(database, "SELECT count(*) FROM matrix_entities") != [(30_001,)]:
            began = time.monotonic()
            db.matrix.put(Entity("first", "changed", "person"))
            found = db.matrix.get("first")
            longest = max(longest, time.monotonic() - began)
            assert found is not None
            assert found.name == "changed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert longest < 3
        assert answered_by(db, "postgres", 30)
        assert db.matrix.count_by_type() == {"person": 30_001}
    assert any("cut" in record.getMessage() for record in caplog.records), "it was never too much"


# What is saved is saved


def test_a_write_that_is_saved_is_not_reported_as_failed(
    tmp_path: Path, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    with UnifiedDatabase(settings_of(tmp_path, database)) as db:
        db.save_conversation("c", "q", "a")
        path = tmp_path / "conversations.db"

        def save_and_break(side: Any) -> int:
            number = side.conversations.save("c", "q", "a")
            with closing(sqlite3.connect(path)) as connection:
                assert connection.execute("SELECT count(*) FROM conversations").fetchone() == (2,)
            path.rename(tmp_path / "saved.db")
            path.write_bytes(b"this is no database" * 100)
            return int(number)

        with caplog.at_level(logging.WARNING):
            assert db.write("conversations.save", "conversations.db", save_and_break) == 2
        assert "conversations.db: not applied now" in caplog.text
        with pytest.raises(SourceError):
            db.save_conversation("c", "q", "a")


def test_a_call_that_is_wrong_says_nothing_of_postgres(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody else asks the breaker.
    monkeypatch.setattr(Synchroniser, "start", lambda self: None)
    with UnifiedDatabase(settings_of(tmp_path, database, postgres_timeout=30)) as db:
        db.embeddings.add("c", ["a"], [[1.0, 2.0]])
        assert len(db.embeddings.query("c", [1.0, 2.0])) == 1
        # As after a failure, its pause over.
        db.breaker.failed()
        db.breaker._until = 0.0
        for _ in range(3):
            with pytest.raises(UsageError):
                db.embeddings.query("c", [1.0, 2.0], where={"a": {"$wrong": 1}})
        assert db.breaker.allows()


def test_a_server_that_comes_up_late_is_used_soon(
    tmp_path: Path, server_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded server could not be started at first: that was a failure, and its pause is all that is waited."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    blocked = server_home / "postgresql"
    blocked.write_text("in the way")
    settings = Settings(data_dir=tmp_path, use_postgres=True, home=server_home, postgres_timeout=30)
    with UnifiedDatabase(settings) as db:
        db.save_conversation("c", "q", "a")
        assert len(db.get_conversations()) == 1
        assert db.status()["postgres_available"] is False
        blocked.unlink()
        deadline = time.monotonic() + 60
        while db._open_dual() is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        # Nobody has asked it yet: the first who comes may.
        assert db.breaker.allows()
        db.breaker.not_asked()
        assert answered_by(db, "postgres", 30)


# The flag


def test_the_flag_may_change_at_any_time(tmp_path: Path, database: str) -> None:
    flag = tmp_path / "flag"
    data = tmp_path / "data"
    write_flag(flag, False)
    stop = threading.Event()
    saved: list[str] = []
    errors: list[BaseException] = []
    with UnifiedDatabase(settings_of(data, database, use_postgres=False, flag_file=flag)) as db:

        def save(name: str) -> None:
            try:
                n = 0
                while not stop.is_set():
                    n += 1
                    number = db.save_conversation(name, f"{name} {n}", "a")
                    saved.append(f"{name} {n}")
                    found = db.conversations.get(number)
                    assert found is not None
                    assert found.user_message == f"{name} {n}"
            except BaseException as error:  # noqa: BLE001 - raised below, in the thread of the test
                errors.append(error)

        threads = [threading.Thread(target=save, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        seen = []
        for n in range(8):
            write_flag(flag, n % 2 == 0)
            time.sleep(0.6)
            seen.append(db.mode)
        write_flag(flag, True)
        stop.set()
        for thread in threads:
            thread.join()
        assert errors == []
        assert seen == ["dual", "embedded"] * 4
        time.sleep(0.3)
        assert db.mode == "dual"
        assert answered_by(db, "postgres", 30)
        assert sorted(one.user_message for one in db.conversations.newest(limit=1_000_000)) == sorted(saved)
    assert sorted(text for (text,) in rows(database, "SELECT query FROM conversations")) == sorted(saved)


def test_nothing_is_lost_with_postgres(tmp_path: Path, database: str) -> None:
    with UnifiedDatabase(settings_of(tmp_path, database)) as db:
        for n in range(5):
            db.save_conversation("c", f"{n}", "a")
            db.matrix.put(Entity(f"e{n}", f"{n}", "person"))
        run_sql(database, "DROP SCHEMA iceburg_migration CASCADE; DROP TABLE conversations, matrix_entities CASCADE")
        db.save_conversation("c", "5", "a")
        assert [one["user_message"] for one in db.get_conversations()] == ["5", "4", "3", "2", "1", "0"]
        assert db.matrix.count_by_type() == {"person": 5}
    with UnifiedDatabase(Settings(data_dir=tmp_path)) as off:
        assert [one["user_message"] for one in off.get_conversations()] == ["5", "4", "3", "2", "1", "0"]


# Shadow reads


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (1, 1, True), (1, 1.0, False), (1, True, False), (0.0, -0.0, False), (float("nan"), float("nan"), True),
        ({"a": [float("nan")], "b": 1}, {"b": 1, "a": [float("nan")]}, True), ({"a": 1}, {"a": 1.0}, False),
        ({"a": 1}, {"b": 1}, False), ([1, 2], [2, 1], False), ([1], (1,), False), ([1], [1, 1], False),
        ("a", "a", True), ("a", "b", False), (None, None, True), (None, 0, False),
        (Entity("a", "b", "c", properties={"x": 1}), Entity("a", "b", "c", properties={"x": 1}), True),
        (Entity("a", "b", "c", properties={"x": 1}), Entity("a", "b", "c", properties={"x": 1.0}), False),
    ],
)  # fmt: skip
def test_what_counts_as_the_same(first: Any, second: Any, expected: bool) -> None:
    assert same(first, second) is expected
    assert same(second, first) is expected


def test_shadow_reads_find_what_differs(tmp_path: Path, database: str) -> None:
    with UnifiedDatabase(settings_of(tmp_path, database, shadow_reads=1.0, postgres_timeout=30)) as db:
        db.matrix.put(Entity("e", "name", "person", properties={"n": 1}, countries=[float("nan")]))
        for _ in range(15):
            db.matrix.get("e")
            time.sleep(0.02)
        run_sql(database, "UPDATE matrix_entities SET entity_data = jsonb_set(entity_data, '{properties,n}', '1.0')")
        for _ in range(5):
            db.matrix.get("e")
            time.sleep(0.05)
        assert db._dual is not None
        db._dual.shadow.stop()
        found = db.shadow_mismatches
    assert {(one.operation, one.kind) for one in found} == {("matrix.get", "ab")}
    assert found[0].embedded.properties["n"] == 1
    assert repr(found[0].postgres.properties["n"]) == "1.0"


def test_originals_of_many_records_are_not_read_with_each_of_them(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = PostgresSession.ask

    def noted(self: PostgresSession, *arguments: Any, originals: Any = False, **options: Any) -> Any:
        asked.append(0 if isinstance(originals, bool) else len(originals))
        return ask(self, *arguments, originals=originals, **options)

    monkeypatch.setattr(PostgresSession, "ask", noted)
    with UnifiedDatabase(settings_of(tmp_path, database, postgres_timeout=30)) as db:
        with db.embedded.sessions["conversations"].writing() as file:
            # No form that the column would give back.
            file.executemany(
                "INSERT INTO conversations (conversation_id, timestamp, user_message, assistant_message)"
                " VALUES ('c', '2026-01-01T00:00:00.5', ?, 'a')",
                ((str(n),) for n in range(400)),
            )
        assert db.conversations.newest("c", 100) == db.embedded.conversations.newest("c", 100)
        assert answered_by(db, "postgres", 30)
        asked.clear()
        assert db.conversations.newest("c", 100) == db.embedded.conversations.newest("c", 100)
    assert asked
    assert max(asked) <= 100


def test_stopping_does_not_wait_for_a_long_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iceburg.database.shadow._STOPPING", 0.5)
    go_on = threading.Event()

    def slow(side: Any) -> int:
        go_on.wait(30)
        return 1

    with UnifiedDatabase(Settings(data_dir=tmp_path)) as db:
        shadow = ShadowReads(1.0, db.embedded, db.embedded, lambda source: None)
        for _ in range(200):
            shadow.offer("x.y", "source", slow)
        began = time.monotonic()
        shadow.stop()
        assert time.monotonic() - began < 5
        shadow.offer("x.y", "source", slow)
        go_on.set()
        assert shadow._thread is not None
        shadow._waiting.put(None)
        shadow._thread.join(10)
        assert not shadow._thread.is_alive()
        never = ShadowReads(1.0, db.embedded, db.embedded, lambda source: None)
        never.stop()
        never.offer("x.y", "source", slow)
        assert never._thread is None


def test_a_locked_file_is_not_postgresqls_fault(
    tmp_path: Path, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """While PostgreSQL looks, the file is asked where it is; that may take longer than PostgreSQL is waited for."""
    with (
        UnifiedDatabase(settings_of(tmp_path, database, postgres_timeout=0.4)) as db,
        closing(sqlite3.connect(db.layout.conversations, isolation_level=None, check_same_thread=False)) as other,
    ):
        db.conversations.save("c", "the first", "a")
        assert answered_by(db, "postgres", 10)
        values = "('c', '2026-01-31T10:11:12.000013', 'the second', 'a')"
        other.execute(
            f"INSERT INTO conversations (conversation_id, timestamp, user_message, assistant_message) VALUES {values}"
        )
        other.execute("BEGIN EXCLUSIVE")
        release = threading.Timer(1.2, other.execute, ("ROLLBACK",))
        release.start()
        caplog.clear()  # making the target may have taken longer, too
        with caplog.at_level(logging.WARNING):
            found = db.conversations.newest("c")
        release.join()
        assert {one.user_message for one in found} == {"the first", "the second"}
        assert not db.breaker.is_open
        assert caplog.messages == []
