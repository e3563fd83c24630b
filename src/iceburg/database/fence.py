"""The fence: what keeps writers out of files whose state PostgreSQL has taken over.

A late writer, such as old code that was forgotten, must hear of it instead of writing into a dead file.

- In a SQLite file each table has triggers that refuse every insert, update and delete, with a message that says why.
  They are made in one transaction, under the file's write lock: what was committed before is in the log, and nothing is
  committed after. DDL cannot be refused.
- In a Chroma directory the tables have them that chromadb writes first. It goes on reading.
- A JSONL file changes places, in one step, with a directory of its name that holds a note. Nobody can append to a
  directory, whatever rights they have. Who still has the file open is waited for.

Rejected: taking away write permission, which does not concern root, nor anybody who has the file open; renaming SQLite
files, which old code would make anew.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sqlite3
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from iceburg.database import change_log
from iceburg.database.sqlite_failures import FENCED
from iceburg.errors import SourceBusyError, SourceError
from iceburg.sources.discovery import CLOSED_NOTE, CLOSED_SUFFIX
from iceburg.sources.sqlite_sql import quote

_TRIGGER: Final = "_iceburg_fence_"
_TABLE: Final = "_iceburg_fence"
_CREATE: Final = f"CREATE TABLE IF NOT EXISTS {_TABLE} (since TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP)"
_EVENTS: Final = ("INSERT", "UPDATE", "DELETE")
# What chromadb writes before anything else; what follows from it in other tables it may go on doing.
_CHROMA: Final[Mapping[str, tuple[str, ...]]] = {
    "embeddings_queue": ("INSERT",),
    "collections": _EVENTS,
    "collection_metadata": _EVENTS,
    "segments": _EVENTS,
    "databases": _EVENTS,
    "tenants": _EVENTS,
}
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_POLL: Final = 0.02
_QUIET: Final = 1.0


def message(since: str) -> str:
    """Return what a writer is told.

    Parameters
    ----------
    since
        When the file was fenced.
    """
    return (
        f"{FENCED}this file is closed since {since}: its data is in PostgreSQL, which alone is written now."
        " `iceburg-db status` says where."
    )


def fence_tables(connection: sqlite3.Connection, where: str, since: str) -> None:
    """Refuse every write to a SQLite file from now on, within the caller's write transaction."""
    tables = dict.fromkeys(change_log.table_names(connection, where), _EVENTS)
    _fence(connection, tables, since)


def fence_chroma(connection: sqlite3.Connection, since: str) -> None:
    """Refuse every write to a Chroma directory from now on, within the caller's write transaction on its database."""
    there = {name for (name,) in connection.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")}
    _fence(connection, {table: events for table, events in _CHROMA.items() if table in there}, since)


def _fence(connection: sqlite3.Connection, tables: Mapping[str, tuple[str, ...]], since: str) -> None:
    unfence(connection)
    text = "'" + message(since).replace("'", "''") + "'"
    connection.execute(_CREATE)
    for number, (table, events) in enumerate(tables.items()):
        for event in events:
            name = quote(f"{_TRIGGER}{number}_{event.lower()}")
            connection.execute(
                f"CREATE TRIGGER {name} BEFORE {event} ON {quote(table)} BEGIN SELECT RAISE(ABORT, {text}); END"
            )


def unfence(connection: sqlite3.Connection) -> bool:
    """Let writers in again, within the caller's write transaction; return whether they were kept out."""
    rows = connection.execute(
        "SELECT name FROM main.sqlite_master WHERE type = 'trigger' AND name LIKE ? ESCAPE '\\'",
        (_TRIGGER.replace("_", "\\_") + "%",),
    ).fetchall()
    for (name,) in rows:
        connection.execute(f"DROP TRIGGER {quote(name)}")
    connection.execute(f"DROP TABLE IF EXISTS {_TABLE}")
    return bool(rows)


def is_fenced(connection: sqlite3.Connection) -> bool:
    """Whether a SQLite file is fenced."""
    found = connection.execute("SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = ?", (_TABLE,))
    return found.fetchone() is not None


def closed_path(path: Path) -> Path:
    """Return where a JSONL file is once it is fenced."""
    return path.with_name(path.name + CLOSED_SUFFIX)


def is_fenced_file(path: Path) -> bool:
    """Whether there is a fence in the place of a JSONL file."""
    return (path / CLOSED_NOTE).is_file()


def fence_lines(path: Path, since: str, *, patience: float) -> None:
    """Fence a JSONL file; on return nobody on this machine can write to it.

    Parameters
    ----------
    path
        The file.
    since
        For the note.
    patience
        Seconds to wait for those who have it open.

    Raises
    ------
    SourceBusyError
        Another program holds it locked, or keeps it open for writing; nothing was changed.
    SourceError
        It cannot be moved.
    """
    closed = closed_path(path)
    deadline = time.monotonic() + patience
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _lock(file, path, deadline)
            _make_note(closed, since)
            _exchange(path, closed)
            try:
                _wait_for_writers(file, closed, deadline)
            except BaseException:
                unfence_lines(path)
                raise
        finally:
            os.close(file)
    except OSError as error:
        raise SourceError(f"cannot be fenced: {error.strerror or error}", where=str(path)) from error


def unfence_lines(path: Path) -> bool:
    """Put a JSONL file back in its place; return whether it was fenced."""
    closed = closed_path(path)
    if is_fenced_file(path):
        _exchange(path, closed)
    if not is_fenced_file(closed):
        return False
    (closed / CLOSED_NOTE).unlink()
    closed.rmdir()
    return True


def _make_note(directory: Path, since: str) -> None:
    if is_fenced_file(directory):
        return
    directory.mkdir()
    (directory / CLOSED_NOTE).write_text(message(since).removeprefix(FENCED) + "\n", "utf-8")


def _lock(file: int, path: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise SourceBusyError("another program holds it locked", where=str(path), hint="Try again.") from None
            time.sleep(_POLL)
        else:
            return


def _exchange(path: Path, closed: Path) -> None:
    """Have a file and a directory change places."""
    if _exchange_at_once(path, closed):
        return
    # For a moment there is nothing in its place: what is written then is put behind the rest.
    aside = closed.with_name(closed.name + ".aside")
    closed.rename(aside)
    path.rename(closed)
    while True:
        try:
            aside.rename(path)
        except (FileExistsError, NotADirectoryError):
            with closed.open("ab") as file:
                file.write(path.read_bytes())
            path.unlink()
        else:
            return


def _exchange_at_once(one: Path, other: Path) -> bool:
    """Exchange two names in one step; return whether the system can."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(one))


def _wait_for_writers(file: int, closed: Path, deadline: float) -> None:
    """Wait until no process has the file open for writing: one that opened it before may yet write."""
    while True:
        proved = _nobody_writes(file)
        if proved:
            return
        if proved is None:
            _wait_until_quiet(file)
            return
        if time.monotonic() > deadline:
            who = ", ".join(_writers(file)) or "another program"
            raise SourceBusyError(
                f"is kept open for writing by {who}",
                where=str(closed).removesuffix(CLOSED_SUFFIX),
                hint="Stop it, or have it open the file for each line. Nothing was changed.",
            )
        time.sleep(_POLL)


def _nobody_writes(file: int) -> bool | None:
    """Whether nobody has a file open for writing; None where the system cannot say.

    The kernel grants a lease for reading only then.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return None
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK) else None
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def _wait_until_quiet(file: int) -> None:
    size = -1
    while size != (now := os.fstat(file).st_size):
        size = now
        time.sleep(_QUIET)


def _writers(file: int) -> list[str]:
    """Name the processes that have a file open for writing, as far as they can be seen."""
    wanted = os.fstat(file)
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        for descriptor in _descriptors(process):
            try:
                same = os.path.samestat(descriptor.stat(), wanted)
                flags = (process / "fdinfo" / descriptor.name).read_text().split("flags:")[1].split()[0]
                if same and int(flags, 8) & os.O_ACCMODE:
                    name = (process / "comm").read_text().strip()
                    found.append(f"process {process.name} ({name})")
            except (OSError, IndexError, ValueError):
                continue  # it has ended, or is not ours to look at
    return sorted(set(found))


def _descriptors(process: Path) -> list[Path]:
    try:
        return list((process / "fd").iterdir())
    except OSError:
        return []
