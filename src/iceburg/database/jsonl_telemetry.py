"""The telemetry log in its JSONL file."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from iceburg.database import fork_guard
from iceburg.database.arguments import limited
from iceburg.database.fence import is_fenced_file
from iceburg.database.protocol import Aggregate, Event
from iceburg.database.telemetry_events import aggregates, event_of, line_of, stem_of, time_bound, type_bound
from iceburg.database.telemetry_index import TelemetryIndex
from iceburg.errors import FencedError, SourceBusyError, SourceError, UsageError
from iceburg.sources.jsonl import GZIP_MAGIC

_POLL: Final = 0.002
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class JsonlTelemetry:
    """A `protocol.TelemetryStore`.

    Parameters
    ----------
    path
        The file; it and its directory are made on first use.
    busy_timeout
        Seconds to wait for another program that is writing.
    """

    def __init__(self, path: Path, *, busy_timeout: float = 5.0) -> None:
        self._path = path.absolute()
        self._busy_timeout = busy_timeout
        self._stem = stem_of(path)
        self._index = TelemetryIndex(self._path, self._stem)
        self._reading = threading.Lock()
        self._writing = threading.Lock()

    def append(self, event: Mapping[str, Any]) -> None:
        """Append an event; it is durable on return.

        Raises
        ------
        UsageError
            It is not a JSON object.
        SourceError
            The file cannot be written; `SourceBusyError` where another program holds it locked.
        """
        self.append_many([event])

    def append_many(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Append events, all or none, as `append` does."""
        lines = [line_of(event, self._stem) + b"\n" for event in events]
        if not lines:
            return
        with fork_guard.active(), self._writing, self._explained("written"), self._locked() as file:
            size = os.fstat(file).st_size
            if os.pread(file, len(GZIP_MAGIC), 0) == GZIP_MAGIC:
                raise SourceError("is compressed", where=str(self._path), hint="Decompress it, or move it away.")
            # A line that another writer did not finish stays a line of its own.
            torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
            _append(file, size, (b"\n" if torn else b"") + b"".join(lines))

    @contextmanager
    def _locked(self) -> Iterator[int]:
        deadline = time.monotonic() + self._busy_timeout
        while True:
            file = self._open()
            try:
                while not _lock(file):
                    if time.monotonic() > deadline:
                        raise SourceBusyError(
                            f"another program has held it locked for more than {self._busy_timeout:g} s",
                            where=str(self._path),
                            hint="Nothing was written; try again.",
                        )
                    time.sleep(_POLL)
                if _is_at(file, self._path):
                    yield file
                    return
                # Replaced while we waited.
            finally:
                os.close(file)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
        try:
            return os.open(self._path, flags)
        except IsADirectoryError:
            raise self._fenced_or_directory() from None
        except FileNotFoundError:
            new = [parent for parent in self._path.parents if not parent.exists()]
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, flags | os.O_CREAT, 0o600)
            for directory in (self._path.parent, *(parent.parent for parent in new)):
                _sync_directory(directory)
            return file

    def _fenced_or_directory(self) -> SourceError:
        if is_fenced_file(self._path):
            return FencedError(
                "is closed: its events are in PostgreSQL, which alone is written now",
                where=str(self._path),
                hint="Nothing was written to the file.",
            )
        return SourceError("is a directory", where=str(self._path), hint="Move it away.")

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = "Make room and try again." if error.errno in _NO_SPACE else "Check the path and its permissions."
            raise SourceError(f"cannot be {what}: {error.strerror}", where=str(self._path), hint=hint) from error

    def newest(
        self, event_type: str | None = None, since: str | None = None, until: str | None = None, limit: int = 100
    ) -> list[Event]:
        """Return the newest events; see `protocol.TelemetryStore`.

        Raises
        ------
        UsageError
            The limit is negative, or a time is not ISO 8601.
        SourceError
            The file cannot be read.
        """
        first, last = time_bound(since, "since"), time_bound(until, "until")
        limit = limited(limit)
        with self._fresh() as file:
            found = [] if file is None else self._index.newest(file, type_bound(event_type), first, last, limit)
        return [event_of(raw, facts) for raw, facts in found]

    def aggregate(
        self, by: Literal["type", "day"] = "type", since: str | None = None, until: str | None = None
    ) -> list[Aggregate]:
        """Return counts, mean response time and success rate; see `protocol.TelemetryStore`.

        Raises
        ------
        UsageError
            `by` is neither, or a time is not ISO 8601.
        SourceError
            The file cannot be read.
        """
        if by not in ("type", "day"):
            raise UsageError(f"events are aggregated by type or by day, not by {by!r}")
        first, last = time_bound(since, "since"), time_bound(until, "until")
        with self._fresh() as file:
            return [] if file is None else aggregates(self._index.tallies(file, by, first, last))

    @contextmanager
    def _fresh(self) -> Iterator[int | None]:
        with fork_guard.active(), self._reading, self._explained("read"):
            if self._path.is_dir():
                raise self._fenced_or_directory()
            file = self._index.refresh()
            try:
                yield file
            finally:
                if file is not None:
                    os.close(file)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _append(file: int, size: int, content: bytes) -> None:
    """Append to a file of a size, durably; on failure take it back."""
    written = 0
    try:
        while written < len(content):
            written += os.write(file, memoryview(content)[written:])
        os.fsync(file)
    except BaseException:
        # Not if a program that takes no lock has written behind it.
        if os.fstat(file).st_size == size + written:
            os.ftruncate(file, size)
        raise


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
