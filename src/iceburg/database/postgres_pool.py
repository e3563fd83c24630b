"""The connections of this process to one PostgreSQL: a pool, what of it is alive, and what its failures mean."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Final, TypeVar

import psycopg
from psycopg import sql
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from iceburg.config import mask_dsn
from iceburg.database import metrics
from iceburg.database.attempts import POOL_NAME, Attempts
from iceburg.database.connection import configure_session, connection_options
from iceburg.database.connection_failures import explain_failure
from iceburg.database.postgres_failures import LostError
from iceburg.database.prompt_read import PromptReader
from iceburg.database.target_table import prepare_loaders
from iceburg.errors import TargetError

T = TypeVar("T")

# Said by a server that works and has something against the statement: deadlocks, failed locks.
_ITS_WORD: Final = ("40", "55")
_CANCELLED: Final = "57014"
# A connection that had ended before says so at once; one that ends later was cut because it took too long.
AT_ONCE: Final = 0.25

_IDLE: Final = psycopg.pq.TransactionStatus.IDLE
# After so many seconds the pool is asked again, which ends connections that are old, or more than are needed.
_LEASE: Final = 10.0
# Whoever waits looks after so many seconds whether there is a server; then, while there is none, again and again.
_LOOKS: Final = (0.02, 0.04, 0.08)
_LOOK_AGAIN: Final = 1.0

# A commit of the applier and its position are lost together, and applied again; what is pruned from a log is durable.
# One plan for all values: planning a read of one record takes longer than the read.
_SETTINGS: Final = "SET statement_timeout = {}; SET synchronous_commit = off; SET plan_cache_mode = force_generic_plan"


class PostgresPool:
    """The connections of this process to one target.

    Parameters
    ----------
    dsn
        Connection string.
    pool_min, pool_max
        Connections kept, and at most.
    timeout
        Seconds to wait for a server to answer, and for a connection of the pool.
    statement_timeout
        Seconds after which the server ends a statement.
    at_once
        Whether a call is not to wait for a server that takes no connection: there is another side to ask.
    """

    def __init__(
        self,
        dsn: str,
        *,
        pool_min: int = 1,
        pool_max: int = 10,
        timeout: float = 10.0,
        statement_timeout: float = 60.0,
        at_once: bool = False,
    ) -> None:
        self.description = mask_dsn(dsn)
        self._dsn = dsn
        self._timeout = timeout
        self._statement_timeout = statement_timeout
        self._at_once = at_once
        self._lock = threading.Lock()
        self._mine = threading.local()
        self._attempts = Attempts()
        self._opened = False
        self._process = os.getpid()
        # See `give_back`.
        self._spare: deque[psycopg.Connection[Any]] = deque()
        self._waiting = 0
        self._renewals = 0
        self.pool: ConnectionPool[psycopg.Connection[Any]] = ConnectionPool(
            dsn,
            connection_class=self._attempts.connection_class(),
            kwargs={**connection_options(dsn, timeout=timeout), "autocommit": True},
            min_size=pool_min,
            max_size=pool_max,
            open=False,
            timeout=timeout,
            # It would try again after a second, two, four, whether somebody waits or not: here who waits has it try.
            reconnect_timeout=0.0,
            configure=self._configure,
            name=POOL_NAME,
        )
        metrics.POOLS.add(self)

    def _configure(self, connection: psycopg.Connection[Any]) -> None:
        configure_session(connection)
        connection.execute(sql.SQL(_SETTINGS).format(sql.Literal(int(self._statement_timeout * 1000))))
        connection.prepare_threshold = 0
        prepare_loaders(connection)

    def connection(self, patience: float | None = None) -> AbstractContextManager[psycopg.Connection[Any]]:
        """Borrow a connection, in autocommit mode; within `in_snapshot` or `pinned` it is that one.

        Parameters
        ----------
        patience
            Seconds to wait for one, if not the session's own time.

        Raises
        ------
        TargetError
            No connection in time, or the server has ended it or cannot work; `LostError` where it has ended.
        """
        return _Loan(self, self._timeout if patience is None else patience)

    def lent(self, connection: psycopg.Connection[Any]) -> None:
        """Note that somebody begins to use a connection."""

    def returned(self, connection: psycopg.Connection[Any]) -> None:
        """Note that this use of it is over."""

    def borrow(self, patience: float) -> psycopg.Connection[Any]:
        """Take a connection from the pool; see `connection`, which gives it back."""
        if not self._opened:
            with self._lock:
                if not self._opened:
                    self.pool.open()
                    self._opened = True
        deadline: float | None = None
        while True:
            try:
                borrowed = self._spare.pop()
            except IndexError:
                deadline = deadline or time.monotonic() + patience
                borrowed = self._take(deadline - time.monotonic())
            if self.reader(borrowed).is_quiet():
                return borrowed
            # The server has ended it meanwhile: the pool makes another.
            borrowed.close()
            self.pool.putconn(borrowed)

    def _take(self, patience: float) -> psycopg.Connection[Any]:
        with self._lock:
            self._waiting += 1
        try:
            with contextlib.suppress(IndexError):
                # Whoever gives back one that is not waited for looks whether it is now.
                return self._spare.pop()
            renewals = self._renewals
            borrowed = self._wait(patience)
        except PoolTimeout as error:
            raise self._no_connection() from error
        except PoolClosed as error:
            raise TargetError("The session is closed.", where=self.description) from error
        finally:
            with self._lock:
                self._waiting -= 1
        self.reader(borrowed).lease = renewals, time.monotonic() + _LEASE
        return borrowed

    def _wait(self, patience: float) -> psycopg.Connection[Any]:
        """Wait for a connection of the pool, which makes one where it has fewer than it may."""
        began = time.monotonic()
        looks = iter(_LOOKS)
        while True:
            left = began + patience - time.monotonic()
            # Who looks goes to the end of those who wait: not again and again where only connections are scarce.
            look = next(looks, left if self._attempts.refused is None else _LOOK_AGAIN)
            try:
                return self.pool.getconn(timeout=min(look, left))
            except PoolTimeout:
                if look >= left or (self._at_once and self._attempts.are_vain_since(began)):
                    raise

    def give_back(self, connection: psycopg.Connection[Any]) -> None:
        """Give back a connection, to be lent again at once.

        One is kept beside the pool for a while, because the pool takes as long to find one as PostgreSQL does to find
        a record; not where somebody waits for one, or connections are to be made anew.
        """
        renewals, until = self.reader(connection).lease
        if (
            self._waiting
            or self._spare
            or renewals != self._renewals
            or connection.pgconn.transaction_status != _IDLE
            or time.monotonic() > until
        ):
            self.pool.putconn(connection)
            return
        self._spare.append(connection)
        if self._waiting or renewals != self._renewals or self.pool.closed:
            self._clear_spare()

    def _clear_spare(self) -> None:
        while True:
            try:
                connection = self._spare.pop()
            except IndexError:
                return
            self.pool.putconn(connection)

    def use(self) -> metrics.PoolUse | None:
        """See `iceburg.database.metrics.Pool`."""
        if not self._opened or self.pool.closed or self._process != os.getpid():
            return None
        stats = self.pool.get_stats()
        idle = stats["pool_available"] + len(self._spare)
        return metrics.PoolUse(max(0, stats["pool_size"] - idle), idle, self._waiting)

    def reader(self, connection: psycopg.Connection[Any]) -> PromptReader:
        """Return what reads on a borrowed connection; each connection has one."""
        found: PromptReader | None = getattr(connection, "prompt_reader", None)
        if found is None:
            found = PromptReader(connection)
            connection.prompt_reader = found  # type: ignore[attr-defined]
        return found

    def _no_connection(self) -> TargetError:
        refused = self._attempts.refused
        if refused is not None:
            return explain_failure(refused, self._dsn)
        return TargetError(
            f"No connection to PostgreSQL within {self._timeout:g} s.",
            where=self.description,
            hint="Is the server running? Are ICEBURG_POOL_MAX connections enough?",
        )

    def explained(self, error: psycopg.OperationalError, *, ended: bool) -> TargetError | None:
        """Return what an error on a connection means; None where the server works, and has something against it."""
        state = error.sqlstate or ""
        reason = str(error).strip().partition("\n")[0]
        if state == _CANCELLED:
            return TargetError(f"PostgreSQL has ended a statement: {reason}.", where=self.description)
        if ended:
            return LostError(
                f"The connection to PostgreSQL has ended: {reason}.", where=self.description, hint="Try again."
            )
        if state.startswith(_ITS_WORD):
            return None
        return TargetError(f"PostgreSQL cannot do it now: {reason}.", where=self.description)

    def renew(self) -> None:
        """Replace all connections, each once it is given back: the server has types that they do not know."""
        self.pool.drain()
        self._renewals += 1
        self._clear_spare()

    def close(self) -> None:
        """Close all connections."""
        if self._opened:
            self.pool.close()
            self._clear_spare()

    @property
    def pinned_connection(self) -> psycopg.Connection[Any] | None:
        """The one that this thread uses for everything; None where there is none."""
        found: psycopg.Connection[Any] | None = getattr(self._mine, "pinned", None)
        return found

    @property
    def is_pinned(self) -> bool:
        """Whether this thread uses one connection for everything."""
        return self.pinned_connection is not None

    def in_snapshot(self, call: Callable[[], T]) -> T:
        """Return what a call returns of which every read, in this thread, sees the same state."""
        if self.is_pinned:
            return call()
        return self.again_if_lost(lambda: self._in_new_snapshot(call))

    def _in_new_snapshot(self, call: Callable[[], T]) -> T:
        with self.connection() as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", prepare=False)
            try:
                with self.pinned(connection):
                    return call()
            finally:
                # Nothing was written; psycopg would forget prepared statements after ROLLBACK.
                with contextlib.suppress(psycopg.OperationalError):  # it is the connection that has ended
                    connection.execute("COMMIT", prepare=False)

    @contextmanager
    def pinned(self, connection: psycopg.Connection[Any]) -> Iterator[None]:
        """Have every use of a connection, in this thread, be of this one, which is in a transaction."""
        self._mine.pinned = connection
        try:
            yield
        finally:
            self._mine.pinned = None

    def again_if_lost(self, call: Callable[[], T]) -> T:
        """Return what a call returns, called once more if its connection turned out to have ended before."""
        started = time.monotonic()
        try:
            return call()
        except LostError:
            if self.is_pinned or time.monotonic() - started > AT_ONCE:
                raise
        return call()


class _Loan:
    """A use of a connection; a class, because every read goes through it, and a generator costs more."""

    __slots__ = ("_borrowed", "_connection", "_patience", "_pool")

    def __init__(self, pool: PostgresPool, patience: float) -> None:
        self._pool = pool
        self._patience = patience

    def __enter__(self) -> psycopg.Connection[Any]:
        pool = self._pool
        pinned = pool.pinned_connection
        self._borrowed = pinned is None
        self._connection = pool.borrow(self._patience) if pinned is None else pinned
        pool.lent(self._connection)
        return self._connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pool, connection = self._pool, self._connection
        pool.returned(connection)
        if not self._borrowed:
            return
        ended = connection.closed
        pool.give_back(connection)
        if isinstance(error, psycopg.OperationalError):
            explained = pool.explained(error, ended=ended)
            if explained is not None:
                raise explained from error
