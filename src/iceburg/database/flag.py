"""The feature flag: the environment's word, or that of a file whose change running processes take up."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
import time
import uuid
from pathlib import Path
from typing import Final

from iceburg.config import Settings, parse_flag
from iceburg.database import fork_guard
from iceburg.errors import UsageError

_LOOK_EVERY: Final = 0.25
_LONGEST: Final = 64
_log = logging.getLogger(__name__)


class Flag:
    """Whether PostgreSQL is used; cheap to ask.

    Parameters
    ----------
    settings
        ``use_postgres`` counts where there is no flag file, or nothing in it.

    Raises
    ------
    UsageError
        The flag file cannot be read, or holds something else than a flag.
    """

    def __init__(self, settings: Settings) -> None:
        self._default = settings.use_postgres
        self._path = settings.flag_file
        self._lock = threading.Lock()
        self._next_look = 0.0
        self._emptied = False
        self._text = ""
        self._problem = ""
        self._value = self._default
        if self._path is not None:
            hint = "Write true or false into it."
            try:
                self._take(_content(self._path))
            except OSError as error:
                raise UsageError(f"cannot be read: {error.strerror}", where=str(self._path), hint=hint) from error
            except ValueError as error:
                raise UsageError(str(error), where=str(self._path), hint=hint) from error
            fork_guard.register(self)

    def __bool__(self) -> bool:
        """Return the flag as it is now, or was a quarter of a second ago."""
        if self._path is not None and time.monotonic() >= self._next_look and self._lock.acquire(blocking=False):
            try:
                self._look(self._path)
                self._problem = ""
            except (OSError, ValueError) as error:
                # A running process must not stop for a typing error: what was true stays true.
                if str(error) != self._problem:
                    _log.error("%s: %s; the flag stays %s", self._path, error, str(self._value).lower())
                self._problem = str(error)
            finally:
                self._lock.release()
        return self._value

    def _look(self, path: Path) -> None:
        self._next_look = time.monotonic() + _LOOK_EVERY
        # Read each time: a file that is written again within one tick of the clock has the same status.
        text = _content(path)
        if not text and self._text and not self._emptied:
            # Perhaps it is just being written: the next look tells.
            self._emptied = True
            return
        self._emptied = False
        self._take(text)

    def _take(self, text: str) -> None:
        value = parse_flag(text) if text else self._default
        self._text, self._value = text, value

    def before_fork(self) -> None:
        """See `fork_guard.ForkAware`."""

    def after_fork_in_child(self) -> None:
        """See `fork_guard.ForkAware`."""
        # Another thread may have been looking.
        self._lock = threading.Lock()


def _content(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_LONGEST).strip()
    except FileNotFoundError:
        return ""


def write_flag(path: Path, value: bool) -> None:
    """Write a flag file, whole or not at all, durably; one that is there keeps its owner and permissions."""
    # The application may run as another user: whoever may read files made here may read the flag.
    write_text(path, f"{str(value).lower()}\n")


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all, durably; one that is there keeps its owner and permissions.

    A new one can be read by everybody.
    """
    path = path.resolve()  # a link stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(descriptor, "w") as file:
            with contextlib.suppress(FileNotFoundError):
                there = path.stat()
                os.fchmod(descriptor, stat.S_IMODE(there.st_mode))
                if (there.st_uid, there.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, there.st_uid, there.st_gid)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
