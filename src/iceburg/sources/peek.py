"""Raw reads of files that SQLite may have open in this same process.

POSIX record locks belong to the process: closing *any* descriptor of a file drops every lock that the process holds on
it, SQLite's included (https://www.sqlite.org/howtocorrupt.html, section 2.2). A plain ``open``, read and ``close`` of
a database would thus take the read lock away from a query that runs in another thread, or the write lock from the
application. So descriptors of databases opened here are kept open and used again.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

SQLITE_MAGIC = b"SQLite format 3\x00"
"""The first 16 bytes of every SQLite database (https://www.sqlite.org/fileformat2.html, section 1.3.1)."""

# Far below the usual limit of 1,024 descriptors a process; past it the least recently used one is closed.
_KEPT_DESCRIPTORS = 256
# Byte 128 of a -shm: every connection to a database in WAL mode holds a shared lock on it (os_unix.c, UNIX_SHM_DMS).
_SHM_PRESENCE_BYTE = 128
_COPY_CHUNK = 1 << 20

_kept: OrderedDict[tuple[int, int], int] = OrderedDict()
_lock = threading.Lock()


def _keep(path: Path) -> int:
    """Return a descriptor of the file that stays open; call with the lock held."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    identity = (status.st_dev, status.st_ino)
    if identity in _kept:
        _kept.move_to_end(identity)
        return _kept[identity]
    # Without O_NONBLOCK a fifo put in the file's place would make us wait for its writer.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise OSError(f"{path} is not a regular file")
    _kept[(status.st_dev, status.st_ino)] = fd
    while len(_kept) > _KEPT_DESCRIPTORS:
        os.close(_kept.popitem(last=False)[1])
    return fd


def read_database(path: Path, length: int) -> bytes:
    """Read the first bytes of a file that is, or may be, a SQLite database.

    Raises
    ------
    OSError
        The file is missing, not a regular file or not readable.
    """
    with _lock:
        return os.pread(_keep(path), length, 0)


def read_head(path: Path, length: int) -> bytes:
    """Read the first bytes of any regular file; keep its descriptor only where it is a SQLite database."""
    with _lock:
        fd = _keep(path)
        head = os.pread(fd, length, 0)
        if not head.startswith(SQLITE_MAGIC):
            status = os.fstat(fd)
            del _kept[(status.st_dev, status.st_ino)]
            os.close(fd)
        return head


def stamp(path: Path) -> tuple[object, ...] | None:
    """Return what changes with each commit to a SQLite database in a rollback journal mode; None where nothing does.

    The bytes 18 to 27 of the file are its write version, 1 for a rollback journal, and its change counter
    (https://www.sqlite.org/fileformat2.html, section 1.3). A commit in WAL mode changes neither.
    """
    try:
        with _lock:
            fd = _keep(path)
            head = os.pread(fd, 28, 0)
        status = os.fstat(fd)
    except OSError:
        return None
    if len(head) < 28 or head[18] != 1:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, head[24:]


def journal_is_live(path: Path) -> bool:
    """Tell whether the rollback journal of a database, if there is one, may hold pages of a transaction.

    A writer in journal mode TRUNCATE leaves an empty one behind, one in PERSIST a journal whose header is zeroed;
    SQLite takes both for none (https://www.sqlite.org/pragma.html#pragma_journal_mode).

    Raises
    ------
    OSError
        The journal cannot be read.
    """
    try:
        # SQLite holds no locks on journals that closing this descriptor could drop.
        with path.with_name(path.name + "-journal").open("rb") as file:
            return file.read(1) not in (b"", b"\0")
    except FileNotFoundError:
        return False


def copy_database(path: Path, to: BinaryIO) -> None:
    """Copy a SQLite database file, as it is on disk, without dropping this process's locks on it."""
    offset = 0
    while True:
        with _lock:
            chunk = os.pread(_keep(path), _COPY_CHUNK, offset)
        if not chunk:
            return
        to.write(chunk)
        offset += len(chunk)


def shm_is_held(path: Path) -> bool:
    """Tell whether any connection, of any process, has this ``-shm`` file open.

    Where the system cannot say, or we may not ask, the answer is True.
    """
    if sys.platform == "linux":
        query = struct.pack("@hhqqi", fcntl.F_WRLCK, os.SEEK_SET, _SHM_PRESENCE_BYTE, 1, 0)
        try:
            with _lock:
                # The lock of an open file description conflicts with this process's own record locks as well.
                answer = fcntl.fcntl(_keep(path), fcntl.F_OFD_GETLK, query)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return bool(struct.unpack("@hhqqi", answer)[0] != fcntl.F_UNLCK)
    return True
