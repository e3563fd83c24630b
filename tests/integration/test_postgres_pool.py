"""The pool, and the connection that is kept beside it: lent to whoever waits, never an old one."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from prometheus_client import REGISTRY
from psycopg import sql
from psycopg.conninfo import make_conninfo

from iceburg.database import metrics, postgres_pool
from iceburg.database.embedded import EmbeddedServer
from iceburg.database.postgres_pool import PostgresPool
from iceburg.errors import TargetError
from tests.conftest import FAST
from tests.support import rows, run_sql


@pytest.fixture
def pool(database: str) -> Iterator[PostgresPool]:
    made = PostgresPool(database, pool_max=1, timeout=5.0)
    yield made
    made.close()


@pytest.fixture
def single(database: str, server_dsn: str) -> Iterator[str]:
    """DSN of a role that may have one connection."""
    name, secret = f"iceburg_test_{uuid.uuid4().hex}", uuid.uuid4().hex
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} CONNECTION LIMIT 1")
        admin.execute(create.format(sql.Identifier(name), secret))
    yield make_conninfo(database, user=name, password=secret)
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def server_process(pool: PostgresPool) -> int:
    with pool.connection() as connection:
        return connection.info.backend_pid


def test_one_connection_is_lent_again(pool: PostgresPool) -> None:
    assert len({server_process(pool) for _ in range(5)}) == 1
    # Beside the pool, which takes it for lent.
    assert pool.pool.get_stats()["pool_available"] == 0
    assert pool.use() == metrics.PoolUse(0, 1, 0)
    with pool.connection():
        assert pool.use() == metrics.PoolUse(1, 0, 0)


def test_who_waits_gets_it(pool: PostgresPool) -> None:
    """With one connection for six threads, each has to be given it while it waits."""
    taken: list[int] = []

    def work() -> None:
        for _ in range(50):
            taken.append(server_process(pool))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 300
    assert len(set(taken)) == 1


def test_one_that_is_in_use_is_waited_for_where_there_is_another_side(database: str) -> None:
    pool = PostgresPool(database, pool_max=1, timeout=30.0, at_once=True)
    try:
        with pool.connection() as connection:
            process = connection.info.backend_pid
            found: list[int] = []
            waiting = threading.Thread(target=lambda: found.append(server_process(pool)))
            waiting.start()
            time.sleep(sum(postgres_pool._LOOKS) + 0.2)
            assert waiting.is_alive()
        waiting.join()
        assert found == [process]
    finally:
        pool.close()


def test_who_has_another_side_does_not_wait_for_a_server_that_refuses(caplog: pytest.LogCaptureFixture) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        port = taken.getsockname()[1]
        pool = PostgresPool(f"host=127.0.0.1 port={port} user=u dbname=d", timeout=30.0, at_once=True)
        try:
            # The second call knows of a refusal, which is not that of its own time.
            for _ in range(2):
                began = time.monotonic()
                with pytest.raises(TargetError, match=r"No PostgreSQL can be reached at 127\.0\.0\.1 port"):
                    server_process(pool)
                assert time.monotonic() - began < 15
            # Who called knows; of each attempt nothing is said.
            assert not [record for record in caplog.records if record.name == "psycopg.pool"]
        finally:
            pool.close()


def test_a_server_that_has_no_room_is_waited_for(single: str) -> None:
    """Whoever holds the last connection of a role may soon give it back."""
    pool = PostgresPool(single, timeout=30.0, at_once=True)
    try:
        with closing(psycopg.connect(single)):
            found: list[int] = []
            waiting = threading.Thread(target=lambda: found.append(server_process(pool)))
            waiting.start()
            deadline = time.monotonic() + 10
            while pool._attempts.refused is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(sum(postgres_pool._LOOKS) + 0.1)
            assert waiting.is_alive()
        waiting.join()
        assert len(found) == 1
    finally:
        pool.close()


def test_a_server_that_comes_back_is_found_by_who_waits(server_home: Path, tmp_path: Path) -> None:
    own_server = EmbeddedServer(server_home, overrides=FAST)
    dsn = own_server.database_for(tmp_path)
    own_server.stop("fast")
    pool = PostgresPool(dsn, timeout=60.0)
    found: list[int] = []
    waiting = threading.Thread(target=lambda: found.append(server_process(pool)))
    waiting.start()
    try:
        deadline = time.monotonic() + 10
        while pool._attempts.refused is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        own_server.ensure_running()
        waiting.join()
        assert len(found) == 1
    finally:
        pool.close()


def test_who_waits_is_counted(pool: PostgresPool) -> None:
    refused: list[str] = []

    def wait() -> None:
        try:
            with pool.connection(patience=0.4):
                pass
        except TargetError as error:
            refused.append(str(error))

    thread = threading.Thread(target=wait)
    with pool.connection():
        thread.start()
        while pool.use() != metrics.PoolUse(1, 0, 1):
            thread.join(0.01)
            assert thread.is_alive()
        thread.join()
    assert len(refused) == 1
    assert pool.use() == metrics.PoolUse(0, 1, 0)


def test_renewed_ones_are_new(pool: PostgresPool) -> None:
    first = server_process(pool)
    pool.renew()
    second = server_process(pool)
    assert second != first
    with pool.connection() as connection:
        pool.renew()
        assert connection.info.backend_pid == second
    assert server_process(pool) != second


def test_one_that_has_ended_is_not_lent(pool: PostgresPool, database: str) -> None:
    ended = server_process(pool)
    run_sql(database, f"SELECT pg_terminate_backend({ended}, 5000)")
    assert server_process(pool) != ended


def test_a_transaction_left_open_does_not_go_on(pool: PostgresPool) -> None:
    with pool.connection() as connection:
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE left_open ()")
    with pool.connection() as connection:
        assert connection.execute("SELECT to_regclass('left_open')").fetchone() == (None,)


def test_the_pool_is_asked_again_after_a_while(pool: PostgresPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_pool, "_LEASE", -1.0)
    server_process(pool)
    assert pool.pool.get_stats()["pool_available"] == 1


def test_closed_is_closed(pool: PostgresPool, database: str) -> None:
    process = server_process(pool)
    with pool.connection() as connection:
        pool.close()
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert pool.use() is None
    deadline = time.monotonic() + 10
    while rows(database, f"SELECT 1 FROM pg_stat_activity WHERE pid = {process}"):
        assert time.monotonic() < deadline, "the connection is still open"
        time.sleep(0.01)
    with pytest.raises(TargetError, match="closed"):
        server_process(pool)


def test_the_metric_adds_up_pools(pool: PostgresPool, database: str) -> None:
    def sample(state: str) -> float:
        found = REGISTRY.get_sample_value("iceburg_pool_connections", {"state": state})
        assert found is not None
        return found

    before = sample("idle")
    server_process(pool)
    other = PostgresPool(database, pool_max=1)
    try:
        server_process(other)
        assert sample("idle") == before + 2
        with other.connection():
            assert sample("idle") == before + 1
    finally:
        other.close()
    assert sample("idle") == before + 1
