"""Reads at the level of libpq: the same rows as a cursor gives, and what goes wrong."""

from __future__ import annotations

import datetime
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceburg.database import prompt_read
from iceburg.database.connection import connect
from iceburg.database.prompt_read import _PASSED_OVER, _REST, _SLOW, PromptReader
from tests.support import run_sql


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with closing(connect(database, autocommit=True)) as made:
        yield made


@pytest.fixture
def reader(connection: psycopg.Connection) -> PromptReader:
    return PromptReader(connection)


VALUES = st.tuples(
    st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
    st.one_of(st.none(), st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))),
    st.one_of(st.none(), st.datetimes()),
    st.lists(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))),
    st.booleans(),
)
SAME = b"SELECT $1::bigint, $2::text, $3::timestamp, $4::text[], $5::boolean FROM generate_series(1, 2)"


def test_rows_are_those_of_a_cursor(reader: PromptReader, connection: psycopg.Connection) -> None:
    @given(VALUES)
    def check(values: tuple[Any, ...]) -> None:
        with psycopg.RawCursor(connection) as cursor:
            expected = cursor.execute(SAME, values, binary=True).fetchall()
        assert reader.fetch(SAME, values) == expected == [values] * 2

    check()


def test_statements_of_any_kind_of_answer(reader: PromptReader) -> None:
    assert reader.fetch(b"SELECT 1 WHERE FALSE", []) == []
    assert reader.fetch(b"SELECT", []) == [()]
    assert reader.fetch(b"SELECT $1::date", [datetime.date(2026, 1, 2)]) == [(datetime.date(2026, 1, 2),)]
    long = reader.fetch(b"SELECT n, repeat('x', 1000) FROM generate_series(1, 20000) AS n", [])
    assert [n for n, _ in long] == list(range(1, 20_001))
    question = "y" * 5_000_000  # does not fit into the socket's buffers
    assert reader.fetch(b"SELECT $1::text", [question]) == [(question,)]


def test_a_statement_is_prepared_once(reader: PromptReader, connection: psycopg.Connection) -> None:
    for n in range(5):
        assert reader.fetch(b"SELECT $1::bigint", [n]) == [(n,)]
    found = connection.execute("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'iceburg_read%'").fetchone()
    assert found == (1,)


def test_an_answer_that_takes_long_is_waited_for(reader: PromptReader) -> None:
    assert reader.fetch(b"SELECT pg_sleep(0.05)::text, 7", []) == [("", 7)]


def test_answers_that_take_long_are_seldom_watched_for(reader: PromptReader, monkeypatch: pytest.MonkeyPatch) -> None:
    statement = b"SELECT pg_sleep($1)::text"
    monkeypatch.setattr(prompt_read, "_MOMENT", -1.0)
    passed_over = []
    for _ in range(130):
        reader.fetch(statement, [0.0005])
        (prepared,) = reader._prepared.values()
        passed_over.append(prepared.passed_over)
    # Watched for, and too late, where the number rises.
    assert [n for before, n in pairwise([0, *passed_over]) if n > before] == [1, 2, 4, 8, 16, 32, 64]
    assert max(passed_over) == _PASSED_OVER
    assert passed_over[: _SLOW - 1] == [0] * (_SLOW - 1)
    monkeypatch.setattr(prompt_read, "_MOMENT", 60.0)
    while prepared.passed_over:
        reader.fetch(statement, [0.0])
    assert prepared.slow
    reader.fetch(statement, [0.0])  # watched for, and there
    assert not prepared.slow


def test_who_has_to_share_the_processor_sleeps(reader: PromptReader, monkeypatch: pytest.MonkeyPatch) -> None:
    yielded: list[float] = []

    def put_aside() -> None:
        yielded.append(time.perf_counter())
        time.sleep(0.002)

    monkeypatch.setattr(prompt_read, "_MOMENT", 60.0)
    monkeypatch.setattr(os, "sched_yield", put_aside)
    statement = b"SELECT pg_sleep(0.02)::text"
    reader.fetch(statement, [])
    assert yielded
    assert yielded[-1] < reader._resting <= time.perf_counter() + _REST
    seen = len(yielded)
    reader.fetch(statement, [])
    assert len(yielded) == seen
    reader._resting = 0.0
    reader.fetch(statement, [])
    assert len(yielded) > seen


def test_errors_leave_the_connection_as_it_was(reader: PromptReader, connection: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        reader.fetch(b"SELECT * FROM nowhere", [])
    with pytest.raises(psycopg.errors.DivisionByZero):
        reader.fetch(b"SELECT 1 / $1::integer", [0])
    with pytest.raises(psycopg.DataError):
        reader.fetch(b"SELECT $1::text", ["a\0b"])
    assert not connection.closed
    assert reader.fetch(b"SELECT 1 / $1::integer", [1]) == [(1,)]


def test_statements_that_were_forgotten_are_prepared_anew(reader: PromptReader, connection: psycopg.Connection) -> None:
    assert reader.fetch(b"SELECT 1", []) == [(1,)]
    connection.execute("DEALLOCATE ALL")
    with pytest.raises(psycopg.errors.InvalidSqlStatementName):
        reader.fetch(b"SELECT 1", [])
    assert reader.fetch(b"SELECT 1", []) == [(1,)]


def test_other_columns_close_the_connection(reader: PromptReader, connection: psycopg.Connection) -> None:
    connection.execute("CREATE TABLE t AS SELECT 1 AS a")
    assert reader.fetch(b"SELECT * FROM t", []) == [(1,)]
    connection.execute("ALTER TABLE t ALTER a TYPE text")
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        reader.fetch(b"SELECT * FROM t", [])
    assert connection.closed


def test_a_connection_that_ended_is_an_error(
    reader: PromptReader, connection: psycopg.Connection, database: str
) -> None:
    reader.fetch(b"SELECT 1", [])
    run_sql(database, "SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
    with pytest.raises(psycopg.OperationalError):
        reader.fetch(b"SELECT 1", [])
    assert connection.closed


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_a_read_can_be_interrupted(
    reader: PromptReader, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """While the answer is watched for, or waited for."""
    if not seconds:
        monkeypatch.setattr(prompt_read, "_MOMENT", 60.0)
        seconds = 0.1
    threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        reader.fetch(b"SELECT pg_sleep(30)", [])
    assert time.monotonic() - started < 25
    if not connection.closed:
        assert reader.fetch(b"SELECT 1", []) == [(1,)]


def test_something_is_done_while_the_answer_is_on_its_way(reader: PromptReader, connection: psycopg.Connection) -> None:
    seen = []

    def look() -> None:
        seen.append(connection.info.transaction_status)

    assert reader.fetch(b"SELECT 1", [], look) == [(1,)]
    assert seen == [psycopg.pq.TransactionStatus.ACTIVE]


def test_what_goes_wrong_meanwhile_is_said_once_the_answer_is_there(
    reader: PromptReader, connection: psycopg.Connection
) -> None:
    def fail() -> None:
        raise LookupError("meanwhile")

    for statement in (b"SELECT pg_sleep(0.05)::text", b"SELECT 1 / 0"):
        with pytest.raises(LookupError, match="meanwhile"):
            reader.fetch(statement, [], fail)
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert reader.fetch(b"SELECT 2", []) == [(2,)]
