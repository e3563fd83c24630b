"""The contract, held by the asyncio form; and what is its own: cancelling, context, closing, forks."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import SecretStr

from iceburg.config import Settings
from iceburg.database import protocol
from iceburg.database.async_db import (
    AsyncConversations,
    AsyncEmbeddings,
    AsyncMatrix,
    AsyncTelemetry,
    AsyncUnifiedDatabase,
)
from iceburg.database.protocol import Adapter
from iceburg.database.unified_db import UnifiedDatabase
from iceburg.errors import UsageError
from tests.contract.conversations import ConversationContract
from tests.contract.embeddings import EmbeddingContract
from tests.contract.matrix import MatrixContract
from tests.contract.telemetry import TelemetryContract
from tests.support import environment, rows


class Loop:
    """An event loop in a thread of its own, for callers that know nothing of it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def result(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def close(self) -> None:
        self.result(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Store:
    """An asynchronous store, its methods called as if they were not."""

    def __init__(self, loop: Loop, store: object) -> None:
        self._loop = loop
        self._store = store

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._store, name)
        return lambda *args, **kwargs: self._loop.result(method(*args, **kwargs))


class Synchronous:
    """An `AsyncUnifiedDatabase` as an `Adapter`."""

    def __init__(self, settings: Settings) -> None:
        self._loop = Loop()
        self._database = AsyncUnifiedDatabase(settings)
        self.conversations = Store(self._loop, self._database.conversations)
        self.matrix = Store(self._loop, self._database.matrix)
        self.embeddings = Store(self._loop, self._database.embeddings)
        self.telemetry = Store(self._loop, self._database.telemetry)

    def close(self) -> None:
        self._loop.result(self._database.close())
        self._loop.close()


@pytest.fixture
def adapter(tmp_path: Path) -> Iterator[Adapter]:
    # What the sides do below is held elsewhere; here it is the way there and back.
    made = Synchronous(Settings(data_dir=tmp_path))
    yield cast("Adapter", made)
    made.close()


class TestConversations(ConversationContract):
    pass


class TestMatrix(MatrixContract):
    pass


class TestEmbeddings(EmbeddingContract):
    pass


class TestTelemetry(TelemetryContract):
    pass


# What it has beyond the contract


def opened(tmp_path: Path, threads: int = 8) -> AsyncUnifiedDatabase:
    return AsyncUnifiedDatabase(Settings(data_dir=tmp_path), threads=threads)


def saved(tmp_path: Path) -> list[str]:
    with closing(sqlite3.connect(tmp_path / "conversations.db")) as connection:
        return [text for (text,) in connection.execute("SELECT user_message FROM conversations ORDER BY 1")]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a SQLite file locked, as another program would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@pytest.mark.parametrize(
    ("store", "wanted"),
    [
        (AsyncConversations, protocol.ConversationStore),
        (AsyncMatrix, protocol.MatrixStore),
        (AsyncEmbeddings, protocol.EmbeddingStore),
        (AsyncTelemetry, protocol.TelemetryStore),
    ],
)
def test_each_store_has_the_methods_of_the_protocol(store: type[Any], wanted: type[Any]) -> None:
    def methods(of: type[Any]) -> dict[str, inspect.Signature]:
        found = {name: method for name, method in vars(of).items() if not name.startswith("_") and callable(method)}
        return {name: inspect.signature(method) for name, method in found.items()}

    assert methods(store) == methods(wanted)
    assert all(inspect.iscoroutinefunction(getattr(store, name)) for name in methods(store))
    assert all(getattr(store, name).__doc__ for name in methods(store))


def test_it_is_a_context_manager(tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(tmp_path) as db:
            assert db.mode == "embedded"
            assert (await db.status())["mode"] == "embedded"
            assert db.shadow_mismatches == ()
            number = await db.save_conversation("c", "q", "a", "agent", "mode", {"b": 1, "a": [2]})
            (found,) = await db.get_conversations("c", limit=5)
            assert (found["id"], found["metadata"]) == (number, '{"a": [2], "b": 1}')
            assert await db.get_conversations() == [found] == db.database.get_conversations()
        with pytest.raises(UsageError, match="closed"):
            await db.get_conversations()
        with pytest.raises(UsageError, match="closed"):
            await db.conversations.newest()
        await db.close()

    asyncio.run(run())


def test_a_database_that_was_given_stays_open(tmp_path: Path) -> None:
    async def run(given: UnifiedDatabase) -> None:
        async with AsyncUnifiedDatabase(given) as db:
            await db.save_conversation("c", "q", "a")
        assert len(given.get_conversations()) == 1

    with UnifiedDatabase(Settings(data_dir=tmp_path)) as given:
        asyncio.run(run(given))
        assert len(given.get_conversations()) == 1


def test_the_file_may_be_given(tmp_path: Path) -> None:
    async def run() -> None:
        async with AsyncUnifiedDatabase(tmp_path / "own.db") as db:
            await db.save_conversation("c", "q", "a")

    asyncio.run(run())
    assert (tmp_path / "own.db").exists()


def test_a_thread_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 1 thread, not 0"):
        opened(tmp_path, threads=0)


def test_many_calls_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(tmp_path, threads=3) as db:
            numbers = await asyncio.gather(*(db.conversations.save("c", f"{n:02}", "a") for n in range(60)))
            assert len(set(numbers)) == 60
            names = {thread.name for thread in threading.enumerate() if thread.name.startswith("iceburg-async")}
            assert 1 <= len(names) <= 3

    asyncio.run(run())
    assert saved(tmp_path) == [f"{n:02}" for n in range(60)]


@pytest.mark.parametrize("dual_write", [True, False])
def test_both_sides_at_once(tmp_path: Path, database: str, dual_write: bool) -> None:
    async def use(db: AsyncUnifiedDatabase, n: int) -> None:
        name = f"n{n}"
        number = await db.conversations.save(name, "q", "a")
        found = await db.conversations.get(number)
        assert found is not None
        assert found.conversation_id == name
        await db.matrix.put(protocol.Entity(name, name, "person"))
        assert [one.entity_id for one in await db.matrix.search(name)][:1] == [name]
        await db.embeddings.upsert("c", [name], [[1.0, float(n)]])
        assert (await db.embeddings.query("c", [1.0, float(n)], 1))[0].id == name
        await db.telemetry.append({"event_type": name})
        assert len(await db.telemetry.newest(name)) == 1

    async def run() -> None:
        settings = Settings(
            data_dir=tmp_path,
            use_postgres=True,
            dual_write=dual_write,
            database_url=SecretStr(database),
            postgres_timeout=30,
        )
        async with AsyncUnifiedDatabase(settings) as db:
            assert db.mode == ("dual" if dual_write else "postgres")
            await asyncio.gather(*(use(db, n) for n in range(12)))
            assert sum((await db.matrix.count_by_type()).values()) == 12
            assert not db.database.breaker.is_open

    asyncio.run(run())
    assert rows(database, "SELECT count(*) FROM conversations") == [(12,)]
    assert (len(saved(tmp_path)) == 12) == dual_write


def test_an_error_reaches_the_one_who_awaits(tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(tmp_path) as db:
            with pytest.raises(UsageError, match="no field 'nothing'"):
                await db.conversations.update(1, {"nothing": 1})

    asyncio.run(run())


def test_the_context_variables_are_the_callers(tmp_path: Path) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    async def one(db: AsyncUnifiedDatabase, value: str) -> str:
        variable.set(value)
        return await db._threads.run(variable.get)

    async def run() -> None:
        async with opened(tmp_path, threads=2) as db:
            values = [str(n) for n in range(20)]
            assert await asyncio.gather(*(one(db, value) for value in values)) == values

    asyncio.run(run())


def test_the_event_loop_goes_on_while_a_file_is_locked(tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(tmp_path) as db:
            await db.conversations.save("c", "first", "a")
            with locked(tmp_path / "conversations.db"):
                task = asyncio.create_task(db.conversations.save("c", "second", "a"))
                longest, last = 0.0, time.monotonic()
                for _ in range(30):
                    await asyncio.sleep(0.01)
                    longest, last = max(longest, time.monotonic() - last), time.monotonic()
                assert not task.done()
            await task
            assert longest < 0.25

    asyncio.run(run())
    assert saved(tmp_path) == ["first", "second"]


def test_a_cancelled_write_is_whole_or_not_done(tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(tmp_path, threads=1) as db:
            await db.conversations.save("c", "first", "a")
            with locked(tmp_path / "conversations.db"):
                begun = asyncio.create_task(db.conversations.save("c", "begun", "a"))
                waiting = asyncio.create_task(db.conversations.save("c", "waiting", "a"))
                await asyncio.sleep(0.2)
                started = time.monotonic()
                for task in (begun, waiting):
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                assert time.monotonic() - started < 1
            await db.conversations.save("c", "last", "a")

    asyncio.run(run())
    assert saved(tmp_path) == ["begun", "first", "last"]


def test_closing_waits_for_what_was_cancelled(tmp_path: Path) -> None:
    async def run() -> None:
        db = opened(tmp_path)
        await db.conversations.save("c", "first", "a")
        with locked(tmp_path / "conversations.db"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await db.conversations.save("c", "begun", "a")
            closing_it = asyncio.create_task(db.close())
            await asyncio.sleep(0.2)
            assert not closing_it.done()
        await closing_it

    asyncio.run(run())
    assert saved(tmp_path) == ["begun", "first"]


def test_the_failure_of_what_was_cancelled_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    go_on = threading.Event()

    def fail() -> None:
        go_on.wait()
        raise UsageError("it has failed")

    async def run() -> None:
        async with opened(tmp_path) as db:
            task = asyncio.create_task(db._threads.run(fail))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert [record.getMessage() for record in caplog.records] == [
        "fail, whose await was cancelled, has failed: it has failed"
    ]


def test_several_event_loops(tmp_path: Path) -> None:
    db = opened(tmp_path)

    async def run(n: int) -> None:
        await asyncio.gather(*(db.conversations.save("c", f"{n}{m}", "a") for m in range(10)))

    threads = [threading.Thread(target=functools.partial(asyncio.run, run(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(db.close())
    assert len(saved(tmp_path)) == 40


def test_a_child_has_threads_of_its_own(tmp_path: Path) -> None:
    db = opened(tmp_path)

    async def save(text: str) -> None:
        await asyncio.gather(*(db.conversations.save("c", f"{text} {n}", "a") for n in range(5)))

    asyncio.run(save("parent"))
    child = os.fork()
    if not child:
        try:
            asyncio.run(asyncio.wait_for(save("child"), 10))
            asyncio.run(db.close())
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    asyncio.run(save("again"))
    asyncio.run(db.close())
    assert saved(tmp_path) == [f"{text} {n}" for text in ("again", "child", "parent") for n in range(5)]


@pytest.mark.parametrize("mode", ["embedded", "dual"])
@pytest.mark.parametrize(
    "ending", ["await db.close()", "pass", "asyncio.create_task(db.conversations.save('c', 'q', 'a'))"]
)
def test_a_program_ends_in_silence(request: pytest.FixtureRequest, tmp_path: Path, mode: str, ending: str) -> None:
    variables = {"ICEBURG_DATA_DIR": str(tmp_path)}
    if mode == "dual":
        variables |= {"ICEBURG_USE_POSTGRES": "1", "DATABASE_URL": request.getfixturevalue("database")}
    program = f"""
        import asyncio
        from iceburg.database import AsyncUnifiedDatabase

        async def main():
            db = AsyncUnifiedDatabase()
            await db.conversations.save("c", "q", "a")
            await db.matrix.count_by_type()
            print(db.mode, len(await db.conversations.newest()))
            {ending}

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(program)],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{mode} 1\n", "")
