"""A SQLite file, read while its application goes on writing, and never written to.

How a file is opened depends on what lies beside it, because SQLite itself writes more than one would think: a
read-only connection to a database in WAL mode creates ``-wal`` and ``-shm`` where they are missing and leaves them.

======================================  ==========================================================================
found                                   read
======================================  ==========================================================================
rollback journal modes                  in place, ``mode=ro``; SHARED lock for the length of one batch
the same, with a hot journal            from a private copy of database and journal, in which SQLite rolls back
WAL, held by a live application         in place, ``mode=ro``; takes read marks and locks in the ``-shm``, the one
                                        change beside the source, which the application's own readers make as well
WAL, nobody has it open, nothing in     in place, ``immutable=1``; a batch during which the file changed is thrown
the ``-wal``                            away and read again
WAL, nobody has it open, a ``-wal``     from a private copy of database and ``-wal``
with content (after a crash)
WAL, ``-shm`` not ours to write         from a private copy, as above
empty file                              as an empty database, without being opened
======================================  ==========================================================================

An application that closes its last connection in the very moment in which we open ours may find us where it leaves: an
empty ``-wal`` and its ``-shm`` then stay behind, as they would with any other reader.

Private copies lie in a new directory of mode 0700 below the system's temporary directory (``TMPDIR``), are renewed when
the source changes, and are deleted by `SqliteFile.close`.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar
from urllib.parse import quote as quote_uri

from iceburg.errors import SourceBusyError, SourceError
from iceburg.sources import peek
from iceburg.sources.pacing import Pacing
from iceburg.sources.sqlite_fetch import lenient_text
from iceburg.sources.sqlite_header import Header, header_problem, read_header
from iceburg.sources.sqlite_rows import TableReader
from iceburg.sources.sqlite_schema import DatabaseDescription, Table, describe

__all__ = ["SqliteFile", "TableReader", "lenient_text"]

Result = TypeVar("Result")
_State: TypeAlias = tuple[tuple[int, int, int] | None, ...]

# How often a read is begun again because the file changed under it, where no lock can keep it still.
_ATTEMPTS = 5
# How long a file that has to rest for a moment is waited for, in seconds.
_PATIENCE = 10.0
# Longer than a tick of any usual kernel (1 to 10 ms).
_CLOCK_TICK_NS = 20_000_000
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_UNREADABLE = {
    sqlite3.SQLITE_CORRUPT: "the database is malformed",
    sqlite3.SQLITE_NOTADB: "is encrypted or not a SQLite database",
    sqlite3.SQLITE_IOERR: "the system could not read the file",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened",
    sqlite3.SQLITE_PERM: "permission denied",
    sqlite3.SQLITE_READONLY: "the database cannot be read without repairing it first",
    sqlite3.SQLITE_FULL: "no space left for a temporary file",
    sqlite3.SQLITE_FORMAT: "the database has a format that this SQLite does not know",
}
# What a read-only connection says when it would have to write before it can read (hot journal, missing -shm).
_WOULD_WRITE = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})


def source_error(error: sqlite3.Error, where: str) -> SourceError | None:
    """Say in our words what SQLite met in the file; None where the error is not about the file."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _BUSY:
        return SourceBusyError(
            f"another program keeps the database locked ({error})",
            where=where,
            hint="Run again when it has finished its transaction, or wait longer with a larger busy timeout.",
        )
    if code in _UNREADABLE:
        hint = (
            "Make a copy, try `sqlite3 FILE .recover` on it and migrate the result."
            if code == sqlite3.SQLITE_CORRUPT
            else ""
        )
        return SourceError(f"{_UNREADABLE[code]} ({error})", where=where, hint=hint)
    return None


@dataclass(frozen=True, slots=True)
class _Copy:
    state: _State
    directory: tempfile.TemporaryDirectory[str]
    path: Path


@dataclass(frozen=True, slots=True)
class _Way:
    """How to read a file: in place; immutable, as long as it has a state; or from the copy at a path."""

    route: Literal["in place", "immutable", "copy"]
    state: _State | None = None
    path: Path | None = None


class SqliteFile:
    """One SQLite file; safe to use from several threads at once.

    Parameters
    ----------
    path
        The file.
    name
        What it is called in messages.
    busy_timeout
        Seconds to wait for a lock that another program holds.
    pacing
        What reads keep to; None: as fast as they can.
    """

    def __init__(self, path: Path, name: str, *, busy_timeout: float = 10.0, pacing: Pacing | None = None) -> None:
        # SQLite keeps the -wal and the -journal beside the file that a symbolic link points to.
        self.path = path.resolve()
        self.name = name
        self.busy_timeout = busy_timeout
        self.pacing = pacing
        self._copies: list[_Copy] = []
        self._lock = threading.Lock()

    def __enter__(self) -> SqliteFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the private copies; nothing else is held between two reads."""
        with self._lock:
            while self._copies:
                self._copies.pop().directory.cleanup()

    def describe(self) -> DatabaseDescription:
        """Read the schema.

        Raises
        ------
        SourceBusyError
            Another program holds the file locked for longer than `busy_timeout`.
        SourceError
            It cannot be read; the message says why.
        """

        def read(connection: sqlite3.Connection) -> DatabaseDescription:
            connection.text_factory = lenient_text
            connection.execute("BEGIN")
            header = self._header()
            mode: Literal["wal", "delete"] = "wal" if header is not None and header.wal else "delete"
            return describe(connection, mode, self.name, empty_file=header is None)

        return self.run(read)

    def reader(self, table: Table) -> TableReader:
        """Return a reader of the rows of a table that `describe` found.

        Raises
        ------
        SourceError
            The table's rows cannot be told apart by any key.
        """
        return TableReader(self, table)

    def run(self, read: Callable[[sqlite3.Connection], Result], *, table: str = "") -> Result:
        """Call `read` with a fresh connection, again where the file changed under it, and return its result.

        `read` must have fetched all it wants when it returns, and may be called more than once. The connection is
        read-only and in autocommit mode.
        """
        if self.pacing is not None:
            with self.pacing.reading():
                return self._run(read, table)
        return self._run(read, table)

    def _run(self, read: Callable[[sqlite3.Connection], Result], table: str) -> Result:
        where = f"{self.name}, table {table}" if table else self.name
        last: sqlite3.Error | None = None
        for _ in range(_ATTEMPTS):
            try:
                with self._opened() as (connection, guard):
                    result = read(connection)
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _WOULD_WRITE:
                    raise self.explain(error, where) from error
                last = error  # a journal may have become hot between opening and reading
                continue
            last = None
            if guard is None or guard == self._state():
                return result
        if last is not None:
            raise self.explain(last, where) from last
        raise SourceBusyError(
            f"the file changed during each of {_ATTEMPTS} attempts to read it",
            where=where,
            hint="Run again when the application is quieter.",
        )

    @staticmethod
    def explain(error: sqlite3.Error, where: str) -> SourceError:
        """Say in our words what SQLite met in a file."""
        return source_error(error, where) or SourceError(f"SQLite says: {error}", where=where)

    @contextmanager
    def connect(self) -> Iterator[sqlite3.Connection]:
        """Give a read-only connection for queries of one's own, such as a census.

        It is in autocommit mode: a single SELECT is its own short transaction. In journal mode DELETE the application
        cannot commit while a SELECT is half read, so fetch results at once. TEXT is decoded leniently. A copy or an
        unguarded file is as of the time of opening.

        Raises
        ------
        SourceBusyError, SourceError
            As `describe`; also for what SQLite says about the file within the ``with`` block.
        """
        try:
            with self._opened() as (connection, guard):
                connection.text_factory = lenient_text
                yield connection
        except sqlite3.DatabaseError as error:
            known = source_error(error, self.name)
            if known is None:
                raise
            raise known from error
        if guard is not None and guard != self._state():
            raise SourceBusyError(
                "the application opened the file and changed it while it was being read",
                where=self.name,
                hint="Run again.",
            )

    @contextmanager
    def _opened(self) -> Iterator[tuple[sqlite3.Connection, _State | None]]:
        """Open the file in the way its surroundings ask for; the state is what must not have changed afterwards."""
        if self._header() is None:
            with self._connection("file::memory:") as connection:
                yield connection, None
            return
        way, opened = self._way(), False
        if way.route == "in place":
            try:
                with self._connection(_uri(self.path, "mode=ro")) as connection:
                    # Meets a hot journal or a -shm that we may not write to, before anything is read.
                    connection.execute("PRAGMA schema_version").fetchone()
                    opened = True
                    yield connection, None
            except sqlite3.OperationalError as error:
                if opened or error.sqlite_errorcode & 0xFF not in _WOULD_WRITE:
                    raise
            if opened:
                return
            way = self._way(in_place=False)
        if way.route == "immutable":
            with self._connection(_uri(self.path, "mode=ro&immutable=1")) as connection:
                yield connection, way.state
        elif way.path is not None:
            with self._connection(_uri(way.path, "mode=rw")) as connection:
                yield connection, None

    def _way(self, *, in_place: bool = True) -> _Way:
        """Find the way to read the file, and what it needs.

        An application that opens or leaves the file meanwhile changes the way, so it is asked for again with each
        attempt: a file in use is read in place, and its writer, who may never rest, is not waited for.
        """
        deadline = time.monotonic() + _PATIENCE
        while True:
            header = self._header()
            wal_bytes = self._size("-wal")
            held = wal_bytes is not None and peek.shm_is_held(self._beside("-shm"))
            if in_place and (held or (not wal_bytes and (header is None or not header.wal))):
                return _Way("in place")
            state = self._settled_state()
            if state is not None and in_place and not wal_bytes:
                if state[1] is None or not state[1][1]:
                    return _Way("immutable", state)
            elif state is not None:
                copy = self._copy(state)
                if copy is not None:
                    return _Way("copy", path=copy)
            if time.monotonic() > deadline:
                raise SourceBusyError(
                    f"the files have changed for {_PATIENCE:.0f} s whenever they were to be read or copied",
                    where=self.name,
                    hint="Run again when the application is quieter.",
                )

    @contextmanager
    def _connection(self, uri: str) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(
            uri, uri=True, timeout=self.busy_timeout, isolation_level=None, check_same_thread=False
        )
        with closing(connection):
            connection.execute("PRAGMA query_only = ON")
            # Finds damage in a page before it is read as something else (https://www.sqlite.org/security.html).
            connection.execute("PRAGMA cell_size_check = ON")
            connection.execute("PRAGMA trusted_schema = OFF")
            yield connection

    def _header(self) -> Header | None:
        """Read and judge the header; None for an empty file."""
        try:
            header = read_header(self.path)
            problem = header_problem(self.path)
        except IsADirectoryError as error:
            raise SourceError("is a directory, not a SQLite file", where=self.name) from error
        except OSError as error:
            raise SourceError(
                f"cannot be read: {error.strerror or error}",
                where=self.name,
                hint="Check the path and its permissions.",
            ) from error
        if problem:
            raise SourceError(problem, where=self.name)
        return header

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _size(self, suffix: str) -> int | None:
        try:
            return self._beside(suffix).stat().st_size
        except FileNotFoundError:
            return None

    def _state(self) -> _State:
        """Tell what a copy or an unlocked read depends on: identity, size and time of the files."""
        found: list[tuple[int, int, int] | None] = []
        for suffix in ("", "-wal", "-journal"):
            try:
                status = self._beside(suffix).stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(found)

    def _settled_state(self) -> _State | None:
        """Return a state that any later change will alter; None, after a tick, if the file has just been written.

        A file system's clock ticks every few milliseconds: two writes within one tick leave the same time.
        """
        state = self._state()
        newest = max((entry[2] for entry in state if entry is not None), default=0)
        if not 0 <= time.time_ns() - newest < _CLOCK_TICK_NS:
            return state
        time.sleep(_CLOCK_TICK_NS / 1e9)
        return None

    def _copy(self, state: _State) -> Path | None:
        """Return the path of a private copy of a state; None if the files changed meanwhile."""
        with self._lock:
            for copy in self._copies:
                if copy.state == state:
                    return copy.path
            try:
                copy = self._make_copy(state)
            except OSError as error:
                raise SourceError(
                    f"no private copy could be made of a database that needs one to be read ({error})",
                    where=self.name,
                    hint="Point TMPDIR to a directory with enough free space.",
                ) from error
            if self._state() == state:
                self._copies.append(copy)
                return copy.path
            copy.directory.cleanup()
            return None

    def _make_copy(self, state: _State) -> _Copy:
        directory = tempfile.TemporaryDirectory(prefix="iceburg-")
        path = Path(directory.name) / "copy.db"
        try:
            with path.open("xb") as target:
                peek.copy_database(self.path, target)
            for suffix in ("-wal", "-journal"):
                if self._size(suffix) is not None:
                    shutil.copyfile(self._beside(suffix), path.with_name(path.name + suffix))
        except BaseException:
            directory.cleanup()
            raise
        return _Copy(state, directory, path)


def _uri(path: Path, parameters: str) -> str:
    return f"file://{quote_uri(os.fsencode(path.absolute()))}?{parameters}"
