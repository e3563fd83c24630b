"""The functions of the extension sqlite-vec on SQLite connections, also where Python cannot load extensions.

Many builds of Python leave out ``enable_load_extension``. SQLite itself then takes the extension as an automatic one:
each connection that is opened while it is registered has its functions. It is registered only while connections that
need it are opened, so that no other connection of the application is touched.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

import sqlite_vec

from iceburg.errors import UsageError

_CAN_LOAD: Final = hasattr(sqlite3.Connection, "enable_load_extension")
_SUFFIX: Final = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_HINT: Final = "Use a Python whose sqlite3 has enable_load_extension, or one that links SQLite as a shared library."

_lock = threading.Lock()
_openings = 0


@contextmanager
def loading_vectors() -> Iterator[None]:
    """Give the functions to the connections that any thread opens within the block.

    Does nothing where `prepare_vectors` can load them into an open connection. May be nested, and used by several
    threads at once.

    Raises
    ------
    UsageError
        This Python's SQLite does not take the extension.
    """
    global _openings
    if _CAN_LOAD:
        yield
        return
    library, entry = _library()
    with _lock:
        if not _openings and library.sqlite3_auto_extension(entry):
            raise _unusable("SQLite has no memory to register it")
        _openings += 1
    try:
        yield
    finally:
        with _lock:
            _openings -= 1
            if not _openings:
                library.sqlite3_cancel_auto_extension(entry)


def prepare_vectors(connection: sqlite3.Connection) -> None:
    """Make sure that a connection has the functions: load them if this Python can, else see that they are there.

    Raises
    ------
    UsageError
        The connection does not have them: it was opened outside of `loading_vectors`, or nothing can load them.
    """
    if _CAN_LOAD:
        _load(connection)
    try:
        connection.execute("SELECT vec_version()").fetchone()
    except sqlite3.OperationalError as error:
        raise _unusable(f"{error}: the connection was not opened within loading_vectors()") from error


def _load(connection: sqlite3.Connection) -> None:
    try:
        connection.enable_load_extension(True)
        try:
            sqlite_vec.load(connection)
        finally:
            connection.enable_load_extension(False)
    except (sqlite3.OperationalError, sqlite3.NotSupportedError) as error:
        raise _unusable(str(error)) from error


@cache
def _library() -> tuple[ctypes.CDLL, ctypes.c_void_p]:
    """Return the SQLite that Python's own module uses, and the extension's entry point."""
    try:
        # Symbols are looked up in the libraries that the module is linked to as well.
        library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
        for function in (library.sqlite3_auto_extension, library.sqlite3_cancel_auto_extension):
            function.argtypes = [ctypes.c_void_p]
            function.restype = ctypes.c_int
        extension = ctypes.CDLL(sqlite_vec.loadable_path() + _SUFFIX)
        return library, ctypes.cast(extension.sqlite3_vec_init, ctypes.c_void_p)
    except (OSError, AttributeError) as error:
        raise _unusable(str(error)) from error


def _after_fork_in_child() -> None:
    global _lock, _openings  # a thread that is not here may have held the one and counted in the other
    _lock = threading.Lock()
    _openings = 0


os.register_at_fork(after_in_child=_after_fork_in_child)


def _unusable(why: str) -> UsageError:
    return UsageError(f"the SQLite extension sqlite-vec cannot be used ({why})", where="embeddings", hint=_HINT)
