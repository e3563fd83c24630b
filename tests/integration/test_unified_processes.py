"""One installation used by several processes at once, forked and spawned; and programs that just end."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from iceburg.config import Settings
from iceburg.database import Entity, Telemetry, UnifiedDatabase, VectorStore, get_unified_db, unified_db
from iceburg.errors import UsageError
from tests.support import assert_identical, environment, rows, verify

EACH = 15


@pytest.fixture
def settings(tmp_path: Path, database: str) -> Settings:
    return Settings(
        data_dir=tmp_path, use_postgres=True, database_url=SecretStr(database), postgres_timeout=30, pool_max=4
    )


def work(db: UnifiedDatabase, name: str, count: int = EACH) -> None:
    """Write to every store, and see each write in the next read."""
    for n in range(count):
        number = db.save_conversation(name, f"{name} {n}", "a")
        found = db.conversations.get(number)
        assert found is not None
        assert found.user_message == f"{name} {n}"
        db.matrix.put(Entity(f"{name}-{n}", name, "person"))
        assert db.matrix.get(f"{name}-{n}") is not None
        VectorStore(lambda texts: [[1.0, 2.0]] * len(texts), "notes", db).add([name], ids=[f"{name}-{n}"])
        assert db.embeddings.get("notes", [f"{name}-{n}"])
        Telemetry(db).write(name, {"n": n})
        assert db.telemetry.newest(name, limit=1)[0].data["payload"] == {"n": n}
    assert len(db.get_conversations(name)) == count


def child(settings: Settings, name: str) -> None:
    """Be a child process with a database of its own."""
    with UnifiedDatabase(settings) as db:
        work(db, name)


def forked(db: UnifiedDatabase, name: str) -> None:
    """Be a child process that goes on with its parent's database."""
    work(db, name)
    db.close()


def assert_whole(data_dir: Path, dsn: str, names: list[str]) -> None:
    """See that every write is on both sides, once."""
    expected = sorted(f"{name} {n}" for name in names for n in range(EACH))
    with closing(sqlite3.connect(data_dir / "conversations.db")) as connection:
        found = connection.execute("SELECT user_message FROM conversations").fetchall()
    assert sorted(text for (text,) in found) == expected
    assert sorted(text for (text,) in rows(dsn, "SELECT query FROM conversations")) == expected
    count = len(names) * EACH
    for table in ("matrix_entities", "embeddings", "telemetry"):
        assert rows(dsn, f"SELECT count(*) FROM {table}") == [(count,)], table
    assert_identical(verify(dsn, data_dir))


def backends(dsn: str) -> set[int]:
    """Which server processes work for applications, on this database."""
    statement = """
    SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'iceburg-db'
    """
    return {pid for (pid,) in rows(dsn, statement)}


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_several_processes_write_at_once(settings: Settings, database: str, tmp_path: Path, method: Any) -> None:
    context = multiprocessing.get_context(method)
    names = ["one", "two", "three"]
    with UnifiedDatabase(settings) as db:
        # All is open and in use when the children begin.
        work(db, "before")
        mine = backends(database)
        assert mine
        target: Callable[..., None] = forked if method == "fork" else child
        given = db if method == "fork" else settings
        children = [context.Process(target=target, args=(given, name)) for name in names]
        for process in children:
            process.start()
        work(db, "parent")
        for process in children:
            process.join(120)
        assert [process.exitcode for process in children] == [0] * len(children)
        assert mine <= backends(database)
        assert db.mode == "dual"
        assert not db.breaker.is_open
        assert len(db.get_conversations(limit=1000)) == (len(names) + 2) * EACH
    assert_whole(tmp_path, database, ["before", "parent", *names])


def test_forks_while_other_threads_write(settings: Settings, database: str, tmp_path: Path) -> None:
    with UnifiedDatabase(settings) as db:
        work(db, "before", EACH)
        errors: list[BaseException] = []

        def write(name: str) -> None:
            try:
                work(db, name)
            except BaseException as error:  # noqa: BLE001 - raised below, in the thread of the test
                errors.append(error)

        names = ["thread 1", "thread 2"]
        threads = [threading.Thread(target=write, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        children = []
        for n in range(6):
            name = f"child {n}"
            pid = os.fork()
            if not pid:
                try:
                    work(db, name)
                    db.close()
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(pid)
            names.append(name)
            time.sleep(0.05)
        for thread in threads:
            thread.join()
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * len(children)
        assert errors == []
    assert_whole(tmp_path, database, ["before", *names])


def test_the_process_s_own_database_is_another_in_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICEBURG_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("ICEBURG_USE_POSTGRES", "0")
    monkeypatch.setattr(unified_db, "_shared", None)
    with get_unified_db() as shared, unified_db._shared_lock:
        # Another thread may be making it at the moment of a fork.
        pid = os.fork()
        if not pid:
            try:
                own = get_unified_db()
                own.save_conversation("c", "q", "a")
                os._exit(0 if own is not shared else 2)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert len(shared.get_conversations()) == 1


PROGRAM = """
import os, sys, threading
from iceburg.database import Telemetry, UnifiedDatabase, VectorStore, get_unified_db

def use(db):
    db.save_conversation("c", "q", "a")
    db.matrix.count_by_type()
    VectorStore(lambda texts: [[1.0, 2.0]] * len(texts), database=db).add(["text"])
    Telemetry(db).write("event", {})
    return db.mode, len(db.get_conversations()), len(db.telemetry.newest())
"""
ENDINGS = {
    "closed": "with UnifiedDatabase() as db: print(*use(db))",
    "not closed": "db = UnifiedDatabase(); print(*use(db))",
    "the process's own": "print(*use(get_unified_db()))",
    "in another thread": """
result = []
thread = threading.Thread(target=lambda: result.append(use(get_unified_db())))
thread.start(); thread.join()
print(*result[0])
""",
    "forgotten": """
def run(): print(*use(UnifiedDatabase()))
run()
import gc; gc.collect()
""",
    "two": """
with UnifiedDatabase() as one: use(one)
two = UnifiedDatabase()
print(two.mode, len(two.get_conversations()), len(two.telemetry.newest()))
""",
    "an exit": "print(*use(get_unified_db()), flush=True); sys.exit(0)",
    "a forked child that ends as a program does": """
db = get_unified_db()
found = use(db)
if not os.fork():
    use(db)
    use(get_unified_db())
    sys.exit(0)
os.wait()
print(*found)
""",
    "shadow reads": """
os.environ["ICEBURG_SHADOW_READS"] = "1"
db = UnifiedDatabase(); print(*use(db)); use(db)
assert not db.shadow_mismatches, db.shadow_mismatches
""",
}


# Threads that go on, and reads of both sides.
DUAL_ONLY = ("shadow reads", "forgotten", "two", "in another thread", "not closed")


@pytest.mark.parametrize(
    ("mode", "ending"),
    [("dual", ending) for ending in ENDINGS]
    + [(mode, ending) for mode in ("embedded", "postgres") for ending in ENDINGS if ending not in DUAL_ONLY],
)
def test_a_program_ends_in_silence(request: pytest.FixtureRequest, tmp_path: Path, mode: str, ending: str) -> None:
    variables = {"ICEBURG_DATA_DIR": str(tmp_path), "ICEBURG_POSTGRES_TIMEOUT": "30"}
    if mode != "embedded":
        variables |= {"ICEBURG_USE_POSTGRES": "yes", "DATABASE_URL": request.getfixturevalue("database")}
        variables["ICEBURG_DUAL_WRITE"] = str(mode == "dual")
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM + textwrap.dedent(ENDINGS[ending])],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{mode} 1 1\n", "")
    assert time.monotonic() - started < 30


def test_a_closed_database_stays_closed(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    for dual_write in (True, False):
        db = UnifiedDatabase(
            Settings(
                data_dir=tmp_path / str(dual_write),
                use_postgres=True,
                dual_write=dual_write,
                database_url=SecretStr(request.getfixturevalue("database")),
            )
        )
        db.close()
        for _ in range(2):
            with pytest.raises(UsageError, match="closed"):
                db.get_conversations()
            with pytest.raises(UsageError, match="closed"):
                db.save_conversation("c", "q", "a")
            db.close()
    assert backends(request.getfixturevalue("database")) == set()
