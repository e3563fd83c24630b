"""One SQLite file as the application uses it: a connection for each thread, kept open; short transactions."""

from __future__ import annotations

import ctypes
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final, TypeAlias

from iceburg.database import fork_guard
from iceburg.database.sqlite_failures import explained
from iceburg.errors import SourceBusyError, SourceError, UsageError
from iceburg.records import Value
from iceburg.sources.sqlite_fetch import lenient_text

Row: TypeAlias = tuple[Value, ...]
Parameters: TypeAlias = "Sequence[Value] | Mapping[str, Value]"
_Identity: TypeAlias = tuple[int, int]
Companion: TypeAlias = Callable[[sqlite3.Connection], Callable[[bool], None] | None]
"""Called before a write transaction is committed; what it returns is called afterwards: was it committed?"""

_ATTEMPTS: Final = 5  # at a file that is replaced while we open it
_STATEMENTS: Final = 256
# Of a journal that is kept, after a transaction that was larger; bytes.
_JOURNAL: Final = 1 << 20
# A file is made by opening it, and closing any descriptor of a file gives up the locks of the whole process on it.
_making: Final = threading.Lock()


class SqliteSession:
    """The connections of this process to one SQLite file.

    Each thread has its own. A file that was replaced or deleted is noticed and opened anew, before each transaction; a
    child process after a fork opens its own.

    Parameters
    ----------
    path
        The file; it and its directory are made on first use.
    schema
        ``CREATE .. IF NOT EXISTS`` statements; run once the file lacks any of the tables that they make.
    busy_timeout
        Seconds to wait for the locks of other programs.
    prepare
        Called with each new connection, before anything else is done with it.
    opening
        Makes a context within which each connection is opened.
    made
        Called when the file was not there and has been made.
    """

    def __init__(
        self,
        path: Path,
        *,
        schema: str = "",
        busy_timeout: float = 5.0,
        prepare: Callable[[sqlite3.Connection], None] | None = None,
        opening: Callable[[], AbstractContextManager[None]] = nullcontext,
        made: Callable[[], None] | None = None,
    ) -> None:
        self.path = path.absolute()
        self._schema = schema
        self._busy_timeout = busy_timeout
        self._prepare = prepare
        self._opening = opening
        self._made = made
        self._tables = self._tables_of_schema()
        self._refusal: str | None = None
        self._start()
        fork_guard.register(self)

    def _start(self) -> None:
        self._mine = threading.local()
        self._idle: deque[_Opened] = deque()
        self._opened: set[_Opened] = set()
        self._lock = threading.Lock()
        # Threads of one process queue here, where they wait without polling.
        self._writer = threading.Lock()

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return self.path.name

    def connection(self) -> sqlite3.Connection:
        """Return this thread's connection, in autocommit mode.

        Finish each statement before anything else is done: `reading` and `writing` keep a fork and `close` away, this
        does not.

        Raises
        ------
        SourceError
            The file cannot be opened.
        """
        with fork_guard.active(), explained(self.path, self._busy_timeout):
            return self._current().connection

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read within one snapshot.

        Raises
        ------
        SourceError
            The file cannot be read; `SourceBusyError` where another program holds it locked.
        UsageError
            This thread is in a transaction already.
        """
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Write, all or nothing: committed and durable at the end, rolled back on any exception.

        Raises
        ------
        SourceError
            The file cannot be written; `SourceBusyError` where another program holds it locked.
        UsageError
            This thread is in a transaction already.
        """
        self._refuse_nested()
        writer = self._writer
        if not writer.acquire(timeout=self._busy_timeout):
            raise SourceBusyError(
                f"another thread has been writing for more than {self._busy_timeout:g} s",
                where=self.name,
                hint="Nothing was written; try again.",
            )
        begin: Companion | None = getattr(self._mine, "companion", None)
        end: Callable[[bool], None] | None = None
        committed = False
        try:
            with self._transaction("BEGIN IMMEDIATE") as connection:
                yield connection
                if begin is not None:
                    end = begin(connection)
            committed = True
        finally:
            writer.release()
            if end is not None:
                end(committed)

    @contextmanager
    def accompanied(self, companion: Companion) -> Iterator[None]:
        """Have this thread's write transactions accompanied."""
        self._mine.companion = companion
        try:
            yield
        finally:
            self._mine.companion = None

    def select(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Run one SELECT, in this thread's transaction if it has one, and return its rows."""
        return self._select(sql, parameters)[1]

    def records(self, sql: str, parameters: Parameters = ()) -> list[dict[str, Value]]:
        """Run one SELECT as `select` does, and return its rows by the columns' names."""
        names, rows = self._select(sql, parameters)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def _select(self, sql: str, parameters: Parameters) -> tuple[list[str], list[Row]]:
        with fork_guard.active(), explained(self.path, self._busy_timeout):
            opened = self._current()
            if opened.busy:
                return fetch_all(opened.connection, sql, parameters)
            with opened.lock:
                self._refuse_closed()
                return fetch_all(opened.connection, sql, parameters)

    def close(self) -> None:
        """Close every thread's connection of this process, for good; waits for transactions to end."""
        self._refuse_nested()
        self._refusal = "the session is closed"
        with fork_guard.active():
            tidy = True
            for opened in self._all():
                with opened.lock:
                    if tidy and opened.identity == self._identity():
                        tidy = not _remove_journal(opened.connection)
                    self._discard(opened)

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        self._refuse_nested()
        process = os.getpid()
        with fork_guard.active(), explained(self.path, self._busy_timeout):
            opened = self._begin(begin)
            connection = opened.connection
            try:
                yield connection
                if os.getpid() == process:
                    connection.execute("COMMIT")
            finally:
                if os.getpid() == process:
                    try:
                        if connection.in_transaction:
                            connection.execute("ROLLBACK")
                    finally:
                        opened.busy = False
                        opened.lock.release()
            if os.getpid() != process:
                raise UsageError("a transaction ends in the process that began it", where=self.name)

    def _begin(self, begin: str) -> _Opened:
        for _ in range(_ATTEMPTS):
            opened = self._current()
            opened.lock.acquire()
            try:
                self._refuse_closed()
                opened.connection.execute(begin)
                # Looked at under the lock, so that nothing but a replacement within the transaction goes unnoticed.
                if opened.identity == self._identity():
                    opened.busy = True
                    return opened
                opened.connection.execute("ROLLBACK")
            finally:
                if not opened.busy:
                    opened.lock.release()
        raise self._restless()

    def _refuse_closed(self) -> None:
        if self._refusal is not None:
            raise UsageError(self._refusal, where=self.name)

    def _refuse_nested(self) -> None:
        lease: _Lease | None = getattr(self._mine, "lease", None)
        if lease is not None and lease.opened is not None and lease.opened.busy:
            raise UsageError("this thread is in a transaction already", where=self.name)

    def _current(self) -> _Opened:
        """Return this thread's connection, to the file that is there now."""
        lease: _Lease | None = getattr(self._mine, "lease", None)
        opened = None if lease is None else lease.opened
        if opened is not None and opened.busy:
            return opened
        self._refuse_closed()
        identity = self._identity()
        if opened is not None:
            if opened.identity == identity and opened in self._opened:
                return opened
            self._discard(opened)
        opened = self._inherit(identity) or self._open()
        if lease is None:
            self._mine.lease = _Lease(opened, self._idle)
        else:
            lease.opened = opened
        return opened

    def _inherit(self, identity: _Identity | None) -> _Opened | None:
        """Return the connection of a thread that has ended."""
        while True:
            try:
                opened = self._idle.popleft()
            except IndexError:
                return None
            if opened.identity == identity and opened in self._opened:
                return opened
            self._discard(opened)

    def _open(self) -> _Opened:
        self._make_file()
        for _ in range(_ATTEMPTS):
            identity = self._identity()
            with self._opening():
                connection = sqlite3.connect(
                    self.path.as_uri() + "?mode=rw",
                    uri=True,
                    timeout=self._busy_timeout,
                    isolation_level=None,
                    check_same_thread=False,
                    cached_statements=_STATEMENTS,
                )
            try:
                if identity is not None and identity == self._identity():
                    self._set_up(connection)
                    opened = _Opened(connection, identity)
                    with self._lock:
                        self._opened.add(opened)
                    return opened
            except BaseException:
                connection.close()
                raise
            connection.close()
        raise self._restless()

    def _make_file(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = False
            with _making, suppress(FileExistsError):  # made by another program at this moment
                if not self.path.exists():
                    os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
                    new = True
            if new and self._made is not None:
                self._made()
        except OSError as error:
            raise SourceError(
                f"cannot be made: {error.strerror}",
                where=str(self.path),
                hint="Check the path, its permissions and the space on the disk.",
            ) from error

    def _set_up(self, connection: sqlite3.Connection) -> None:
        if self._prepare is not None:
            self._prepare(connection)
        connection.execute("PRAGMA synchronous = FULL")
        if connection.execute("PRAGMA journal_mode").fetchone() == ("delete",):
            # Of this connection only; others go on in their own mode beside it. In DELETE the end of a commit, the
            # journal's removal, is not synced (https://www.sqlite.org/pragma.html#pragma_synchronous), and a loss of
            # power may take back what was acknowledged; in PERSIST it is. Nor has a file to be made each time.
            connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL}")
            connection.execute("PRAGMA journal_mode = PERSIST")
        if self._tables and not self._tables <= _tables(connection):
            connection.executescript(f"BEGIN IMMEDIATE;\n{self._schema};\nCOMMIT")

    def _tables_of_schema(self) -> frozenset[str]:
        if not self._schema:
            return frozenset()
        with self._opening():
            connection = sqlite3.connect(":memory:")
        try:
            if self._prepare is not None:
                self._prepare(connection)
            connection.executescript(self._schema)
            return _tables(connection)
        finally:
            connection.close()

    def _identity(self) -> _Identity | None:
        try:
            found = os.stat(self.path)  # noqa: PTH116 - half the time of Path.stat
        except OSError:
            return None  # to be opened, or refused, with its own message
        return found.st_dev, found.st_ino

    def _restless(self) -> SourceBusyError:
        return SourceBusyError(
            "is being replaced again and again", where=self.name, hint="See which program does so, and try again."
        )

    def _all(self) -> list[_Opened]:
        with self._lock:
            return list(self._opened)

    def _discard(self, opened: _Opened) -> None:
        with self._lock:
            self._opened.discard(opened)
        opened.connection.close()

    def before_fork(self) -> None:
        """See `fork_guard.ForkAware`."""
        for opened in self._all():
            if opened.lock.acquire(blocking=False):
                self._discard(opened)

    def after_fork_in_child(self) -> None:
        """See `fork_guard.ForkAware`."""
        for opened in list(self._opened):
            # Not even closed: that would roll back the parent's transaction, in the parent's file.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(opened.connection))
        if self._opened:
            # SQLite believes that this process has the locks that its parent has.
            self._refusal = "the process was forked while a transaction was open in it; fork outside of transactions"
        self._start()


class _Opened:
    """A connection; `busy` while its thread is in a transaction, `lock` held while it is used."""

    __slots__ = ("busy", "connection", "identity", "lock")

    def __init__(self, connection: sqlite3.Connection, identity: _Identity) -> None:
        self.connection = connection
        self.identity = identity
        self.lock = threading.Lock()
        self.busy = False


class _Lease:
    """A thread's hold of a connection; the next thread gets it once the thread has ended."""

    __slots__ = ("_idle", "opened")

    def __init__(self, opened: _Opened, idle: deque[_Opened]) -> None:
        self.opened: _Opened | None = opened
        self._idle = idle

    def __del__(self) -> None:
        if self.opened is not None:
            self._idle.append(self.opened)


def fetch_all(connection: sqlite3.Connection, sql: str, parameters: Parameters = ()) -> tuple[list[str], list[Row]]:
    """Run a SELECT; return the names of its columns and its rows, bytes that are not UTF-8 as lone surrogates."""
    try:
        cursor = connection.execute(sql, parameters)
        rows = cursor.fetchall()
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", None) is not None:
            raise
        # Text that is not UTF-8, said by the module, not by SQLite. Decoding in Python is far slower.
        connection.text_factory = lenient_text
        try:
            cursor = connection.execute(sql, parameters)
            rows = cursor.fetchall()
        finally:
            connection.text_factory = str
    return [column[0] for column in cursor.description], rows


def _remove_journal(connection: sqlite3.Connection) -> bool:
    """Have SQLite remove a journal that is kept and has nothing in it; return whether it is gone, or never was kept."""
    try:
        connection.execute("PRAGMA busy_timeout = 0")
        if connection.execute("PRAGMA journal_mode").fetchone() != ("persist",):
            return True
        return bool(connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",))
    except sqlite3.Error:
        return False  # somebody writes, and needs it, or cannot be asked: what stays is without meaning


def _tables(connection: sqlite3.Connection) -> frozenset[str]:
    found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return frozenset(name for (name,) in found if not name.startswith("sqlite_"))
