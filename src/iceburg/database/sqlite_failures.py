"""What SQLite says when it fails, as this package's errors: what, where, and what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iceburg.errors import FencedError, IceburgError, SourceBusyError, SourceError

_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_NO_ACCESS = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH})
# What the triggers of a fence say begins so: see `iceburg.database.fence`.
FENCED = "iceburg: "
_READONLY_DBMOVED = sqlite3.SQLITE_READONLY | (4 << 8)


@contextmanager
def explained(path: Path, busy_timeout: float) -> Iterator[None]:
    """Turn SQLite's errors within the block into a `SourceError` that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:  # the module's own: a wrong use of it, not a failure of the file
            raise
        raise explain(error, code, path, busy_timeout) from error


def explain(error: sqlite3.Error, code: int, path: Path, busy_timeout: float) -> IceburgError:
    """Return the error to raise for one of SQLite's, by its (extended) code."""
    kind = code & 0xFF
    where = str(path)
    if code == sqlite3.SQLITE_CONSTRAINT_TRIGGER and str(error).startswith(FENCED):
        return FencedError(str(error).removeprefix(FENCED), where=where, hint="Nothing was written to the file.")
    if kind in _BUSY:
        return SourceBusyError(
            f"another program has held it locked for more than {busy_timeout:g} s",
            where=where,
            hint="Nothing was written; try again, or see which program has a long transaction on it.",
        )
    if kind == sqlite3.SQLITE_FULL:
        return SourceError(
            "no space is left on the disk", where=where, hint="Nothing was written; make room and try again."
        )
    if code == _READONLY_DBMOVED:
        return SourceError(
            "was replaced or deleted during the write", where=where, hint="Nothing was written; try again."
        )
    if kind == sqlite3.SQLITE_READONLY:
        return SourceError(
            "cannot be written: it is read-only",
            where=where,
            hint="Nothing was written; check the permissions of the file and of its directory.",
        )
    if kind in _NO_ACCESS:
        return SourceError(
            "cannot be opened", where=where, hint="Check the permissions of the file and of its directory."
        )
    if kind == sqlite3.SQLITE_NOTADB:
        return SourceError("is not an SQLite database", where=where, hint="Check the path, or restore the file.")
    if kind == sqlite3.SQLITE_CORRUPT:
        return SourceError(
            f"is damaged ({error})",
            where=where,
            hint="Restore it from a backup, or salvage it with sqlite3's .recover.",
        )
    if kind == sqlite3.SQLITE_IOERR:
        return SourceError(
            f"the system could not read or write it ({error})", where=where, hint="Check the disk, then try again."
        )
    return SourceError(f"SQLite refused: {error}", where=where, hint="Nothing was written.")
