"""Opening a ``chroma.sqlite3`` without changing a byte beside it, whatever state it was left in.

A sound database is opened read-only where it is. One that SQLite would have to repair first (a hot journal, a
write-ahead log) is copied into a private directory and opened there; of one that is cut or malformed, the readable rows
are salvaged into a private database.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from iceburg.errors import SourceBusyError, SourceError
from iceburg.sources.chroma_salvage import Salvage, salvage_database
from iceburg.sources.pacing import Pacing

_Result = TypeVar("_Result")
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})
_NEEDS_RECOVERY = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})
_WAL_FORMAT = b"\x02"
#: Times that a copy is begun again because the files changed while they were copied.
_COPY_ATTEMPTS = 5
#: How often this process has each file open, by device and inode. Closing any other handle of a file would drop the
#: locks that SQLite holds on it (https://www.sqlite.org/howtocorrupt.html, 2.2), so its header is read only when there
#: are none.
_OPEN: Counter[tuple[int, int]] = Counter()
_LOCK = threading.Lock()


class NoCatalogueError(Exception):
    """There is no database, or nothing in it can be read."""


class ChromaDatabase:
    """One connection for reading, with one short transaction a read.

    Parameters
    ----------
    path
        The file ``chroma.sqlite3``.
    name
        What messages call the store.
    timeout
        Seconds to wait for a lock.
    pacing
        What reads keep to; None: as fast as they can.

    Raises
    ------
    NoCatalogueError
        There is no database, or nothing in it can be read.
    SourceBusyError
        It stayed locked.
    SourceError
        It cannot be read for another reason.
    """

    def __init__(self, path: Path, name: str, timeout: float, pacing: Pacing | None = None) -> None:
        self.path = path
        self.pacing = pacing
        self.salvage: Salvage | None = None
        self._name = name
        self._timeout = timeout
        self._private: tempfile.TemporaryDirectory[str] | None = None
        self._generation = 0
        self._counted = False
        try:
            stat = path.stat()
        except FileNotFoundError as error:
            raise NoCatalogueError("chroma.sqlite3 is missing") from error
        if stat.st_size == 0:
            raise NoCatalogueError("chroma.sqlite3 is empty")
        self._inode = stat.st_dev, stat.st_ino
        try:
            self._connection = self._open()
        except BaseException as error:
            self._forget()
            if isinstance(error, sqlite3.Error | OSError):
                raise self._translate(error) from error
            raise

    def close(self) -> None:
        """Close the connection and delete private copies."""
        self._connection.close()
        self._forget()

    def _forget(self) -> None:
        if self._counted:
            with _LOCK:
                _OPEN[self._inode] -= 1
            self._counted = False
        if self._private is not None:
            self._private.cleanup()
            self._private = None

    def read(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Run `work` on one snapshot of the database; again, on what can be salvaged, if it proves to be malformed."""
        if self.pacing is not None:
            with self.pacing.reading():
                return self._read(work)
        return self._read(work)

    def _read(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        try:
            return self._in_transaction(work)
        except sqlite3.DatabaseError as error:
            if _primary(error) not in _DAMAGED or self.salvage is not None:
                raise self._translate(error) from error
        self._connection.close()
        self._connection = self._open_salvaged()
        try:
            return self._in_transaction(work)
        except sqlite3.DatabaseError as error:
            raise self._translate(error) from error

    def version(self, connection: sqlite3.Connection) -> tuple[int, int]:
        """Return what changes with every commit of another program; to be called within `read`."""
        return self._generation, int(connection.execute("PRAGMA data_version").fetchone()[0])

    def _in_transaction(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        connection = self._connection
        connection.execute("BEGIN")
        try:
            # A deferred transaction begins with its first read.
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return work(connection)
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _open(self) -> sqlite3.Connection:
        if self._in_wal_mode():
            # Even a read-only connection would make a -shm file beside a database in WAL mode.
            return self._open_copy()
        connection = self._connect(f"{self.path.absolute().as_uri()}?mode=ro")
        try:
            whole = self._is_whole(connection)
        except sqlite3.DatabaseError as error:
            connection.close()
            if _primary(error) in _NEEDS_RECOVERY and self._journal().exists():
                return self._open_copy()
            if _primary(error) in _DAMAGED:
                return self._open_salvaged()
            raise
        if not whole:
            connection.close()
            return self._open_salvaged()
        return connection

    def _is_whole(self, connection: sqlite3.Connection) -> bool:
        """Tell whether the file has whole pages: SQLite reads what is cut off the last one as zeros."""
        connection.execute("BEGIN")
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            # The read lock now held keeps a writer from being half way through growing the file.
            (page_size,) = connection.execute("PRAGMA page_size").fetchone()
            return self.path.stat().st_size % int(page_size) == 0
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _open_copy(self) -> sqlite3.Connection:
        copy = self._copy_private()
        connection = self._connect(copy.as_uri())
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.DatabaseError as error:
            connection.close()
            if _primary(error) in _DAMAGED:
                return self._open_salvaged()
            raise
        return connection

    def _open_salvaged(self) -> sqlite3.Connection:
        self._generation += 1
        target = self._private_directory() / "salvaged.sqlite3"
        connection = self._connect(target.as_uri())
        self.salvage = salvage_database(self.path, connection)
        if not self.salvage.tables:
            connection.close()
            raise NoCatalogueError("nothing in chroma.sqlite3 can be read")
        return connection

    def _connect(self, uri: str) -> sqlite3.Connection:
        connection = sqlite3.connect(uri, uri=True, timeout=self._timeout, isolation_level=None)
        connection.text_factory = _text
        connection.execute("PRAGMA trusted_schema = OFF")
        return connection

    def _in_wal_mode(self) -> bool:
        """Read the mode from the header, unless this process has the file open already and knows."""
        with _LOCK:
            if not _OPEN[self._inode]:
                with self.path.open("rb") as file:
                    if file.read(20)[18:19] == _WAL_FORMAT:
                        return True
            _OPEN[self._inode] += 1
            self._counted = True
        return False

    def _journal(self) -> Path:
        return self.path.with_name(self.path.name + "-journal")

    def _private_directory(self) -> Path:
        if self._private is None:
            # Made for its owner alone, and deleted even if nobody closes the store.
            self._private = tempfile.TemporaryDirectory(prefix="iceburg-chroma-")
        return Path(self._private.name)

    def _copy_private(self) -> Path:
        """Copy the database and what SQLite needs to repair it, all of one moment."""
        directory = self._private_directory()
        sources = [self.path, self._journal(), self.path.with_name(self.path.name + "-wal")]
        for _ in range(_COPY_ATTEMPTS):
            before = [_stamp(p) for p in sources]
            for source, stamp in zip(sources, before, strict=True):
                target = directory / source.name
                target.unlink(missing_ok=True)
                if stamp is not None:
                    shutil.copyfile(source, target)
            if before == [_stamp(p) for p in sources]:
                return directory / self.path.name
            time.sleep(0.2)
        raise SourceBusyError(
            "the database kept changing while it was copied for repair",
            where=self._name,
            hint="Stop the application that writes it, or run the command again.",
        )

    def _translate(self, error: sqlite3.Error | OSError) -> SourceError:
        if isinstance(error, sqlite3.Error) and _primary(error) in _BUSY:
            return SourceBusyError(
                f"chroma.sqlite3 stayed locked for {self._timeout:g} s",
                where=self._name,
                hint="Another program holds it; run the command again when it has finished writing.",
            )
        return SourceError(
            f"chroma.sqlite3 cannot be read: {error}",
            where=self._name,
            hint="Check the file and its permissions; the other stores are not affected.",
        )


def _primary(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
