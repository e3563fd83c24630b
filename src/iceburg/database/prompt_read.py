"""A read of PostgreSQL by a prepared statement, whose answer is watched for before it is waited for.

A server on the same machine reads a record in less time than it takes to wake whoever has slept meanwhile, on a
processor that sleeps, too. So the socket is watched for a moment, in which other threads and programs may go first; an
answer that takes longer is waited for as ever, and a statement whose answers do is no longer watched for, but now and
then; nor is any while there are more programs to run than processors.

It speaks to libpq itself (https://www.postgresql.org/docs/current/libpq-async.html): a cursor waits in its own way.

Rejected: asking only a thread that is kept awake (each read would be handed over twice); reading ahead, or keeping
answers (nothing says in PostgreSQL alone that they still count).
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg
from psycopg import generators, pq
from psycopg.adapt import PyFormat, Transformer

# Long enough for a read of some records on the same machine; seconds.
_MOMENT: Final = 0.0002
# Whoever is not run for so long while it watches has a processor to share. It would be put aside again and again, where
# one that sleeps is run as soon as its answer is there; so it sleeps for a while. Seconds.
_PUT_ASIDE: Final = 0.0005
_REST: Final = 1.0
# After so many answers in a row that took longer, one is not watched for, after the next two, and so on up to so many.
_SLOW, _PASSED_OVER = 4, 64
_BINARY: Final = pq.Format.BINARY
_TUPLES_OK: Final = pq.ExecStatus.TUPLES_OK


class _Prepared:
    """A statement of a connection.

    Attributes
    ----------
    name
        Its name there.
    slow
        How many answers in a row took longer than a moment, of those that were watched for.
    passed_over
        How many of the next ones are not watched for.
    """

    __slots__ = ("name", "passed_over", "slow")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.slow = self.passed_over = 0

    def note_slow(self) -> None:
        """Note that an answer took longer."""
        self.slow += 1
        if self.slow >= _SLOW:
            self.passed_over = min(2 ** min(self.slow - _SLOW, 16), _PASSED_OVER)


class PromptReader:
    """The reads of one connection, made of its own adapters; for one thread at a time.

    Parameters
    ----------
    connection
        In autocommit mode or in a transaction, with no statement under way whenever `fetch` is called.

    Attributes
    ----------
    lease
        For whoever lends the connection: see `iceburg.database.postgres_pool`.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._transformer = Transformer(connection)
        self._prepared: dict[tuple[bytes, tuple[int, ...]], _Prepared] = {}
        self._count = 0
        self.lease = 0, 0.0
        self._resting = 0.0
        self._poll = select.poll()
        self._poll.register(self._pgconn.socket, select.POLLIN)

    def is_quiet(self) -> bool:
        """Whether nothing came while no statement was under way: what comes then is the server's farewell."""
        return not self._poll.poll(0)

    def fetch(
        self, statement: bytes, values: Sequence[Any], meanwhile: Callable[[], None] | None = None
    ) -> list[tuple[Any, ...]]:
        """Return the rows of a SELECT; its parameters are $1, $2.

        Parameters
        ----------
        statement, values
            What is asked.
        meanwhile
            Called while the answer is on its way; what it raises is raised once that has come.

        Raises
        ------
        psycopg.Error
            As of a cursor. The connection is closed where it cannot be used any more.
        """
        transformer, pgconn = self._transformer, self._pgconn
        given: Sequence[Any] = ()
        types: tuple[int, ...] = ()
        formats = None
        if values:
            given = transformer.dump_sequence(values, [PyFormat.AUTO] * len(values))
            types, formats = transformer.types or (), transformer.formats
        try:
            prepared = self._prepared.get((statement, types)) or self._prepare(statement, types)
            pgconn.send_query_prepared(prepared.name, given, formats, _BINARY)
            try:
                if meanwhile is not None:
                    meanwhile()
            finally:
                result = self._result(prepared)
        except BaseException:
            if pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                self._connection.close()
            raise
        if result.status != _TUPLES_OK:
            raise self._failure(result)
        transformer.set_pgresult(result, format=_BINARY)
        rows: list[tuple[Any, ...]] = transformer.load_rows(0, result.ntuples, tuple)
        return rows

    def _result(self, prepared: _Prepared) -> pq.abc.PGresult:
        """Wait for the one result of a statement."""
        pgconn = self._pgconn
        results: list[pq.abc.PGresult] = []
        if self._is_there(prepared):
            while not pgconn.is_busy():
                if (result := pgconn.get_result()) is None:
                    return results[0]
                results.append(result)
        results += self._connection.wait(generators.execute(pgconn))
        return results[0]

    def _prepare(self, statement: bytes, types: tuple[int, ...]) -> _Prepared:
        self._count += 1
        prepared = _Prepared(b"iceburg_read_%d" % self._count)
        self._pgconn.send_prepare(prepared.name, statement, types)
        (result,) = self._connection.wait(generators.execute(self._pgconn))
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise self._failure(result)
        self._prepared[statement, types] = prepared
        return prepared

    def _is_there(self, prepared: _Prepared) -> bool:
        """Watch for the answer for a moment; return whether something of it is there."""
        pgconn = self._pgconn
        if pgconn.flush():
            return False  # not all of the question is on its way
        if prepared.passed_over:
            prepared.passed_over -= 1
            return False
        poll, now = self._poll.poll, time.perf_counter
        last = now()
        if last < self._resting:
            return False
        until = last + _MOMENT
        while not poll(0):
            if last > until:
                prepared.note_slow()
                return False
            os.sched_yield()
            before, last = last, now()
            if last - before > _PUT_ASIDE:
                self._resting = last + _REST
        prepared.slow = 0
        pgconn.consume_input()
        return True

    def _failure(self, result: pq.abc.PGresult) -> psycopg.Error:
        error = psycopg.errors.error_from_result(result)
        if isinstance(error, psycopg.errors.InvalidSqlStatementName):
            # What was prepared on the connection was forgotten meanwhile.
            self._prepared.clear()
        elif isinstance(error, psycopg.errors.FeatureNotSupported):
            # A statement is prepared for columns of other types.
            self._connection.close()
        return error
