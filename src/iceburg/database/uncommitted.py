"""A statement that PostgreSQL works on while something else is waited for, and that is committed or not afterwards.

So the applier's statement is done while the disk syncs the embedded side's commit, and costs what its commit costs: one
way to the server and back. It speaks libpq's pipeline mode
(https://www.postgresql.org/docs/current/libpq-pipeline-mode.html), in which what is sent is not waited for.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Final

import psycopg
from psycopg import generators, pq
from psycopg.abc import Transformer
from psycopg.adapt import PyFormat
from psycopg.adapt import Transformer as NewTransformer

from iceburg.database.record_writer import is_fault_of_a_row

# More might fill the socket's buffers, and sending it would have to wait.
_MOST: Final = 64 << 10
_BEGIN: Final = b"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"


def _prepared_on(connection: psycopg.Connection) -> dict[bytes, bytes]:
    """Return the names of the statements that were prepared here on a connection."""
    names: dict[bytes, bytes] | None = getattr(connection, "prepared_here", None)
    if names is None:
        names = {}
        connection.prepared_here = names  # type: ignore[attr-defined]
    return names


def _adapter_of(connection: psycopg.Connection) -> Transformer:
    """Return what writes parameters; it is kept, because finding out how each type is written takes a while."""
    found: Transformer | None = getattr(connection, "adapter_here", None)
    if found is None:
        found = NewTransformer(connection)
        connection.adapter_here = found  # type: ignore[attr-defined]
    return found


def _executing(pgconn: pq.abc.PGconn, statement: bytes) -> Generator[Any, Any, None]:
    pgconn.send_query(statement)
    yield from generators.execute(pgconn)


class Uncommitted:
    """A statement under way, in a transaction of its own."""

    def __init__(self, connection: psycopg.Connection, first: Sequence[bytes]) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._first = (_BEGIN, *first)
        self._newly_prepared: tuple[bytes, bytes] | None = None
        self._worked: pq.abc.PGresult | None = None
        self._failure: psycopg.Error | None = None

    @classmethod
    def begin(
        cls, connection: psycopg.Connection, statement: bytes, parameters: Sequence[Any], first: Sequence[bytes] = ()
    ) -> Uncommitted | None:
        """Send a statement; None where it is too large to be sent at once.

        Parameters
        ----------
        connection
            In autocommit mode, outside a transaction; not to be used until the statement is committed or rolled back.
        statement
            One that returns the number 1 where it did what it is to do, else 0; its parameters are $1, $2.
        parameters
            Their values.
        first
            Statements without parameters to run before it.
        """
        values = _adapter_of(connection).dump_sequence(parameters, [PyFormat.TEXT] * len(parameters))
        if sum(len(value) for value in values if value is not None) > _MOST:
            return None
        found = cls(connection, first)
        try:
            found._send(statement, values)
        except BaseException:
            connection.close()
            raise
        return found

    def _send(self, statement: bytes, values: Sequence[Any]) -> None:
        pgconn, prepared = self._pgconn, _prepared_on(self._connection)
        name = prepared.get(statement)
        pgconn.enter_pipeline_mode()
        for text in self._first:
            pgconn.send_query_params(text, None)
        if name is None:
            name = b"iceburg_%d" % len(prepared)
            self._newly_prepared = statement, name
            pgconn.send_prepare(name, statement)
        pgconn.send_query_prepared(name, values)
        pgconn.send_flush_request()
        pgconn.flush()

    def work(self) -> None:
        """Wait until PostgreSQL has done the statement; `commit` and `roll_back` need not wait then.

        Raises
        ------
        psycopg.Error
            The connection has ended.
        """
        try:
            self._worked = self._result()
        except BaseException:
            self._connection.close()
            raise

    def commit(self) -> bool:
        """Wait for the statement, and have what it did committed, or rolled back where it did not do what it is to do.

        Nothing is waited for after that, until `end`. Returns whether it is being committed.

        Raises
        ------
        psycopg.Error
            PostgreSQL cannot do it now; nothing was written.
        """
        try:
            result = self._result() if self._worked is None else self._worked
            well = result.status == pq.ExecStatus.TUPLES_OK and result.get_value(0, 0) == b"1"
            if not well:
                self._pgconn.pipeline_sync()
                self._leave()
        except BaseException:
            self._connection.close()
            raise
        if well:
            try:
                self._pgconn.send_query_params(b"COMMIT", None)
                self._pgconn.pipeline_sync()
            except psycopg.Error as error:
                # It may be on its way.
                self._failure = error
        if result.status != pq.ExecStatus.TUPLES_OK:
            refused = psycopg.errors.error_from_result(result)
            if isinstance(refused, psycopg.errors.InvalidSqlStatementName):
                # What was prepared on the connection was forgotten meanwhile.
                _prepared_on(self._connection).clear()
            elif not is_fault_of_a_row(refused):
                raise refused
        return well

    def end(self) -> None:
        """Wait until it is committed.

        Raises
        ------
        psycopg.Error
            It was not, unless the connection ended at the very commit.
        """
        try:
            if self._failure is not None:
                raise self._failure
            result = self._next()
            self._leave()
        except BaseException:
            self._connection.close()
            raise
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise psycopg.errors.error_from_result(result)

    def roll_back(self) -> None:
        """Give up what the statement did."""
        try:
            if self._worked is None:
                self._result()
            self._pgconn.pipeline_sync()
            self._leave()
        except BaseException:
            self._connection.close()
            raise

    def _result(self) -> pq.abc.PGresult:
        """Return the statement's result."""
        before = [self._next() for _ in self._first]
        if self._newly_prepared is not None:
            before.append(self._next())
            if before[-1].status == pq.ExecStatus.COMMAND_OK:
                statement, name = self._newly_prepared
                _prepared_on(self._connection)[statement] = name
        result = self._next()
        # Where one of them fails, the others are passed over.
        return next((one for one in before if one.status == pq.ExecStatus.FATAL_ERROR), result)

    def _next(self) -> pq.abc.PGresult:
        """Return the result of the next statement."""
        found = self._fetch()
        if found is None:
            raise psycopg.OperationalError("the connection gave no result")
        self._fetch()  # what ends it
        return found

    def _fetch(self) -> pq.abc.PGresult | None:
        found: pq.abc.PGresult | None = self._connection.wait(generators.fetch(self._pgconn))
        return found

    def _leave(self) -> None:
        """Leave the pipeline, and a transaction that was not committed."""
        found = self._fetch()
        if found is None or found.status != pq.ExecStatus.PIPELINE_SYNC:
            raise psycopg.OperationalError("the connection is out of step")
        self._pgconn.exit_pipeline_mode()
        if self._pgconn.transaction_status != pq.TransactionStatus.IDLE:
            # Not by psycopg, which has all prepared statements forgotten then.
            self._connection.wait(_executing(self._pgconn, b"ROLLBACK"))
