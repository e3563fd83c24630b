"""Writes where PostgreSQL is alone: two processes at once, and what the short way of one record must not do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from iceburg.config import Settings
from iceburg.database import Entity, UnifiedDatabase
from iceburg.database.postgres_session import PostgresSession
from tests.support import rows, run_sql


@pytest.fixture
def pair(tmp_path: Path, database: str) -> Iterator[tuple[UnifiedDatabase, UnifiedDatabase]]:
    settings = Settings(data_dir=tmp_path, use_postgres=True, dual_write=False, database_url=SecretStr(database))
    with UnifiedDatabase(settings) as one, UnifiedDatabase(settings) as other:
        yield one, other


def test_numbers_are_given_once(pair: tuple[UnifiedDatabase, UnifiedDatabase], database: str) -> None:
    """Each guesses the next number from what it gave itself."""
    numbers = [pair[n // 2 % 2].conversations.save("c", f"question {n}", "a") for n in range(12)]
    assert numbers == list(range(1, 13))
    assert rows(database, "SELECT row_id, query FROM conversations ORDER BY row_id") == [
        (n + 1, f"question {n}") for n in range(12)
    ]


def test_events_keep_their_order(pair: tuple[UnifiedDatabase, UnifiedDatabase], database: str) -> None:
    for n in range(12):
        pair[n // 2 % 2].telemetry.append({"event_type": "x", "n": n})
    found = rows(database, "SELECT event_data -> 'n' FROM telemetry ORDER BY byte_offset")
    assert [n for (n,) in found] == list(range(12))


def test_threads_and_processes_lose_nothing(pair: tuple[UnifiedDatabase, UnifiedDatabase], database: str) -> None:
    saved: list[int] = []

    def save(db: UnifiedDatabase, name: str) -> None:
        for n in range(25):
            saved.append(db.conversations.save("c", f"{name} {n}", "a"))
            db.telemetry.append({"event_type": name, "n": n})

    threads = [threading.Thread(target=save, args=(pair[n % 2], f"thread {n}")) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(saved) == list(range(1, 101))
    assert rows(database, "SELECT count(*), count(DISTINCT row_id), count(DISTINCT query) FROM conversations") == [
        (100, 100, 100)
    ]
    assert rows(database, "SELECT count(DISTINCT (event_type, event_data -> 'n')) FROM telemetry") == [(100,)]


def test_a_single_record_goes_the_short_way(
    pair: tuple[UnifiedDatabase, UnifiedDatabase], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = pair
    one.conversations.save("c", "the first", "a")
    one.telemetry.append({"event_type": "the first"})

    def long_way(self: PostgresSession, *rest: Any) -> None:
        raise AssertionError("the long way")

    monkeypatch.setattr(PostgresSession, "change", long_way)
    for n in range(3):
        one.conversations.save("c", f"{n}", "a")
        one.matrix.put(Entity("e", f"{n}", "person"))
        one.telemetry.append({"event_type": "x", "n": n})


def test_originals_go_with_the_value_that_they_were_of(
    pair: tuple[UnifiedDatabase, UnifiedDatabase], database: str
) -> None:
    one, other = pair
    one.matrix.put(Entity("e", "a\0b", "person"))
    assert rows(database, "SELECT count(*) FROM iceburg_migration.originals") == [(1,)]
    other.matrix.put(Entity("e", "plain", "person"))
    assert rows(database, "SELECT count(*) FROM iceburg_migration.originals") == [(0,)]
    found = one.matrix.get("e")
    assert found is not None
    assert found.name == "plain"


def test_an_update_sees_what_others_wrote_before(pair: tuple[UnifiedDatabase, UnifiedDatabase], database: str) -> None:
    """One reads a record to change a field of it, while others put it whole."""
    one, other = pair
    number = one.conversations.save("c", "q", "a", metadata={"n": 0})
    stop = threading.Event()

    def put() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            other.conversations.save("c", f"other {n}", "a")

    thread = threading.Thread(target=put)
    thread.start()
    try:
        for n in range(30):
            assert one.conversations.update(number, {"assistant_message": f"a{n}"})
    finally:
        stop.set()
        thread.join()
    assert rows(database, f"SELECT query, response FROM conversations WHERE row_id = {number}") == [("q", "a29")]
    ((count, numbers),) = rows(database, "SELECT count(*), count(DISTINCT row_id) FROM conversations")
    assert count == numbers


def test_a_lost_session_before_the_write_is_not_noticed(
    pair: tuple[UnifiedDatabase, UnifiedDatabase], database: str
) -> None:
    one, _ = pair
    one.conversations.save("c", "before", "a")
    run_sql(
        database,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    assert one.conversations.save("c", "after", "a") == 2
    assert rows(database, "SELECT count(*) FROM conversations") == [(2,)]
