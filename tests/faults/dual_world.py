"""What the model of dual write runs in: a server that can be killed, logical time, places where code can be stopped.

Nothing here replaces a database. Wrapped functions do what they did, and say that they were reached; the thread that
has a plan for that place then crashes, or does something else first.
"""

from __future__ import annotations

import functools
import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from iceburg.database import applier, breaker, change_log, flag, jsonl_applier, positions, synchroniser
from iceburg.database.applier import SqliteApplier
from iceburg.database.embedded import EmbeddedServer
from iceburg.database.jsonl_applier import JsonlApplier
from iceburg.database.jsonl_telemetry import JsonlTelemetry
from iceburg.database.quick_apply import QuickApply
from iceburg.database.sqlite_session import SqliteSession
from iceburg.database.synchroniser import AheadOfCommit, Synchroniser

# An immediate stop loses every asynchronous commit since the last synchronous one: nothing else writes the log of
# PostgreSQL out, for a long time.
LOSING = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_writer_delay": "10s",
    "wal_writer_flush_after": "1GB",
    "autovacuum": "off",
    "checkpoint_timeout": "1d",
    "shared_buffers": "64MB",
}


class Crash(BaseException):
    """A process that ends where it stands; no `except Exception` hears of it."""


class Clock:
    """Time that passes when the model says so; stands in for the module `time`."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def monotonic(self) -> float:
        return 1_000.0 + self._ahead

    def time(self) -> float:
        return time.time() + self._ahead

    def pass_by(self, seconds: float) -> None:
        self._ahead += seconds


class Places:
    """Named places in the code. A thread may have one plan: at which place, at the how manyth time, to do what."""

    def __init__(self) -> None:
        self._plans: dict[int, tuple[str, int, Callable[[], None]]] = {}
        self.on_commit: Callable[[Path], None] = lambda path: None
        self.reached_names: set[str] = set()

    def reach(self, name: str) -> None:
        """Note that a place was reached, and do what is planned for it."""
        me = threading.get_ident()
        plan = self._plans.get(me)
        if plan is None or plan[0] != name:
            return
        _, left, action = plan
        if left > 1:
            self._plans[me] = name, left - 1, action
            return
        del self._plans[me]
        self.reached_names.add(name)
        action()

    @contextmanager
    def planned(self, name: str, time: int, action: Callable[[], None]) -> Iterator[None]:
        """Have this thread do something at a place."""
        me = threading.get_ident()
        self._plans[me] = name, time, action
        try:
            yield
        finally:
            self._plans.pop(me, None)


NAMES = (
    "uncommitted",  # the embedded write is done, but not committed
    "begun",  # PostgreSQL has begun with it, the embedded side has not committed
    "durable",  # it has; PostgreSQL was not told
    "committing",  # PostgreSQL was told to commit, nobody has waited for it
    "saved",  # committed and durable, PostgreSQL does not know
    "planned",  # the datasets are known, nothing is read
    "noted",  # the entries are read, the rows are not, in one read transaction
    "read",  # entries and rows are read, nothing is written to PostgreSQL
    "tried",  # the quick way has written, or has not
    "written",  # the rows are written to PostgreSQL, the position has not moved
    "moved",  # it has; the transaction is open
    "applied",  # PostgreSQL has committed, nobody was told
    "settled",  # PostgreSQL has made the position durable; nothing is pruned
    "pruning",  # entries are deleted in a transaction that is open
)


def _before(places: Places, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        places.reach(name)
        return function(*args, **kwargs)

    return wrapped


def _after(places: Places, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        places.reach(name)
        return result

    return wrapped


def _writing(places: Places) -> Callable[..., Any]:
    original = SqliteSession.writing

    @contextmanager
    def writing(self: SqliteSession) -> Iterator[sqlite3.Connection]:
        with original(self) as connection:
            yield connection
            places.reach("uncommitted")

    return writing


def _transaction(places: Places) -> Callable[..., Any]:
    original = SqliteSession._transaction

    @contextmanager
    def transaction(self: SqliteSession, begin: str) -> Iterator[sqlite3.Connection]:
        with original(self, begin) as connection:
            yield connection
        if begin == "BEGIN IMMEDIATE":
            places.on_commit(self.path)
            places.reach("durable")

    return transaction


def _beginning(places: Places) -> Callable[..., Any]:
    original = Synchroniser.begin_ahead

    def begin_ahead(self: Synchroniser, *args: Any) -> Callable[[bool], None] | None:
        end = original(self, *args)
        if end is not None:
            places.reach("begun")
        return end

    return begin_ahead


def _committing(places: Places) -> Callable[..., Any]:
    original = Synchroniser._end_ahead

    def end_ahead(self: Synchroniser, source: str, found: AheadOfCommit, *, committed: bool) -> None:
        original(self, source, found, committed=committed)
        if found.applied:
            places.reach("committing")

    return end_ahead


def _appending(places: Places) -> Callable[..., Any]:
    original = JsonlTelemetry.append_many

    def append_many(self: JsonlTelemetry, events: Any) -> None:
        places.reach("uncommitted")
        original(self, events)
        places.on_commit(self._path)
        places.reach("durable")

    return append_many


@contextmanager
def watched(places: Places, clock: Clock) -> Iterator[None]:
    """Have the layer's code say where it is, take its time from `clock`, and do nothing in the background."""
    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(patch.object(owner, name, value))

        for module in (breaker, flag, synchroniser):
            replace(module, "time", clock)
        replace(Synchroniser, "start", lambda self: None)
        replace(SqliteSession, "writing", _writing(places))
        replace(SqliteSession, "_transaction", _transaction(places))
        replace(Synchroniser, "begin_ahead", _beginning(places))
        replace(Synchroniser, "_end_ahead", _committing(places))
        replace(JsonlTelemetry, "append_many", _appending(places))
        replace(Synchroniser, "catch_up", _before(places, "saved", Synchroniser.catch_up))
        replace(change_log, "pending", _after(places, "noted", change_log.pending))
        replace(SqliteApplier, "_write", _before(places, "read", SqliteApplier._write))
        replace(SqliteApplier, "_tables_at", _after(places, "planned", SqliteApplier._tables_at))
        replace(QuickApply, "apply", _before(places, "read", _after(places, "tried", QuickApply.apply)))
        replace(jsonl_applier, "read_lines", _after(places, "read", jsonl_applier.read_lines))
        for module in (applier, jsonl_applier):
            moving = module.move_position
            replace(module, "move_position", _before(places, "written", _after(places, "moved", moving)))
        replace(SqliteApplier, "apply", _after(places, "applied", SqliteApplier.apply))
        replace(JsonlApplier, "apply", _after(places, "applied", JsonlApplier.apply))
        replace(applier, "settle_position", _after(places, "settled", positions.settle_position))
        replace(change_log, "prune", _after(places, "pruning", change_log.prune))
        # The model's pools begin empty.
        replace(synchroniser, "_AT_HAND", 5.0)
        # A log of a few entries is pruned in several steps.
        replace(applier, "_PRUNE_STEP", 2)
        yield


class Server:
    """A real PostgreSQL that can be killed, with a database for each run."""

    _numbers = itertools.count()

    def __init__(self, home: Path) -> None:
        self._server = EmbeddedServer(home, overrides=LOSING)
        self.admin = self._server.ensure_running()
        self.up = True
        self.kills = 0

    def make_database(self) -> str:
        """Make an empty database and return its DSN."""
        self.start()
        name = f"model{next(self._numbers)}"
        with psycopg.connect(self.admin, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        return make_conninfo(self.admin, dbname=name)

    def drop_database(self, dsn: str) -> None:
        """Destroy a database under whoever uses it."""
        self.start()
        name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
        with psycopg.connect(self.admin, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(str(name))))

    def kill(self) -> None:
        """Kill it: what was not written out is lost."""
        if self.up:
            self._server.stop("immediate")
            self.up, self.kills = False, self.kills + 1

    def start(self) -> None:
        """Start it, unless it runs."""
        if not self.up:
            self._server.ensure_running()
            self.up = True

    def end_sessions(self, dsn: str) -> None:
        """End every session of a database, as an administrator may."""
        name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
        with psycopg.connect(self.admin, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
                (name,),
            )
