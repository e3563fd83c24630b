"""The feature flag: the environment's word, or that of a file whose change running processes take up."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from iceburg.config import Settings, parse_flag
from iceburg.errors import UsageError

_LOOK_EVERY: Final = 0.25
_log = logging.getLogger(__name__)


class Flag:
    """Whether PostgreSQL is used; cheap to ask.

    Parameters
    ----------
    settings
        ``use_postgres`` counts where there is no flag file.

    Raises
    ------
    UsageError
        The flag file holds something else than a flag.
    """

    def __init__(self, settings: Settings) -> None:
        self._default = settings.use_postgres
        self._path = settings.flag_file
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._next_look = 0.0
        self._value = self._default
        if self._path is not None:
            try:
                self._look()
            except ValueError as error:
                raise UsageError(str(error), where=str(self._path), hint="Write true or false into it.") from error

    def __bool__(self) -> bool:
        """Return the flag as it is now, or was a quarter of a second ago."""
        if self._path is not None and time.monotonic() >= self._next_look and self._lock.acquire(blocking=False):
            try:
                self._look()
            except ValueError as error:
                # A running process must not stop for a typing error: what was true stays true.
                _log.error("%s: %s; the flag stays %s", self._path, error, str(self._value).lower())
            finally:
                self._lock.release()
        return self._value

    def _look(self) -> None:
        assert self._path is not None  # noqa: S101 - the callers have seen to it
        self._next_look = time.monotonic() + _LOOK_EVERY
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._seen, self._value = None, self._default
            return
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen == self._seen:
            return
        with contextlib.suppress(FileNotFoundError):  # removed at this moment: the next look says so
            text = self._path.read_text("utf-8", "replace")
            self._seen = seen
            self._value = parse_flag(text) if text.strip() else self._default


def write_flag(path: Path, value: bool) -> None:
    """Write a flag file, whole or not at all, readable for its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{str(value).lower()}\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
