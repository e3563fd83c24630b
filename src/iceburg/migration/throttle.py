"""Throttling: less is read while writers have to wait for it, and nothing while somebody wants a pause.

How long writers wait is measured, not guessed: a few times a second a transaction is begun that would write
(``BEGIN EXCLUSIVE``), and taken back. It waits for the same locks as the application's own. Where that takes longer
than the limit the share of the time for which files are read is halved; while it does not, the share rises again step
by step. It never falls to nothing: what makes writers wait may be another writer.

Rejected: stopping altogether while the limit is exceeded, which an application that writes much would make for ever;
asking the application, which knows nothing of us.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import quote

from iceburg.errors import SourceError
from iceburg.migration.control import ControlFile
from iceburg.migration.pace import LEAST_SHARE, SHARE
from iceburg.records import Store
from iceburg.sources.sqlite_header import read_header

DEFAULT_LIMIT: Final = 25.0
"""Milliseconds for which a writer may have to wait."""

_EVERY: Final = 0.25
_LOOK_EVERY: Final = 0.1
_LONGEST: Final = 1.0
_REMEMBERED: Final = 8
_FALL: Final = 0.5
_RISE: Final = 1.25


class WriterProbe:
    """Measures how long a writer waits for SQLite files, one after the other.

    Parameters
    ----------
    stores
        The stores; files in WAL mode, whose writers wait for no reader, are left out.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self._stores = [store for store in stores if store.kind == "sqlite" and store.problem is None]
        self._turn = 0
        self._connections: dict[str, sqlite3.Connection] = {}

    def measure(self) -> tuple[str, float] | None:
        """Return the next file and the seconds that a writer waited for it; None where there is none to ask."""
        for _ in range(len(self._stores)):
            store = self._stores[self._turn % len(self._stores)]
            self._turn += 1
            with contextlib.suppress(sqlite3.Error, SourceError, OSError):
                if not _waits_for_readers(store):
                    continue
                return store.name, self._wait_for(store)
        return None

    def _wait_for(self, store: Store) -> float:
        connection = self._connections.get(store.name)
        if connection is None:
            uri = f"file://{quote(str(store.path))}?mode=rw"
            connection = sqlite3.connect(uri, uri=True, timeout=_LONGEST, isolation_level=None, check_same_thread=False)
            self._connections[store.name] = connection
        began = time.monotonic()
        try:
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                self._connections.pop(store.name).close()
                raise
        return time.monotonic() - began

    def close(self) -> None:
        """Close the files."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()


def _waits_for_readers(store: Store) -> bool:
    header = read_header(store.path)
    return header is not None and not header.wal


class Throttle:
    """Says why less is done than could be, and how much.

    Parameters
    ----------
    control
        The control file.
    probe
        Measures what writers wait.
    limit
        Milliseconds for which they may; None for no limit.

    Attributes
    ----------
    share
        The share of the time for which files may be read; never more than `pace.SHARE`.
    paused
        Whether nothing is to be done.
    reason
        Why, in words; empty while there is no reason.
    """

    def __init__(self, control: ControlFile, probe: WriterProbe, limit: float | None) -> None:
        self._control = control
        self._probe = probe
        self._limit = limit
        self._waits: deque[float] = deque(maxlen=_REMEMBERED)
        self._next_look = self._next_probe = 0.0
        self._file = ""
        self.share = SHARE
        self.paused = False
        self.reason = ""
        self._heard: Callable[[str], None] | None = None

    def on_change(self, hear: Callable[[str], None]) -> None:
        """Have somebody hear the reason whenever it is another."""
        self._heard = hear

    def poll(self) -> None:
        """Look again, if it is time to."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY
        self.paused = self._control.is_there
        reason = f"paused by {self._control.path}" if self.paused else self._writers(now)
        if self._heard is not None and bool(reason) != bool(self.reason):
            self._heard(reason or "goes on at its usual pace")
        self.reason = reason

    def _writers(self, now: float) -> str:
        if self._limit is None:
            return ""
        if now >= self._next_probe:
            found = self._probe.measure()
            # After it, so that a probe that waits long is not followed by the next one at once.
            self._next_probe = time.monotonic() + _EVERY
            if found is not None:
                self._file, waited = found
                self._adjust(waited * 1000)
        if self.share >= SHARE:
            return ""
        return (
            f"writers of {self._file} wait {max(self._waits):.0f} ms (limit {self._limit:g} ms):"
            f" reading {self.share:.1%} of the time"
        )

    def _adjust(self, waited: float) -> None:
        assert self._limit is not None  # noqa: S101 - nothing is measured without one
        self._waits.append(waited)
        if waited > self._limit:
            self.share = max(LEAST_SHARE, self.share * _FALL)
        elif max(self._waits) <= self._limit:
            self.share = min(SHARE, self.share * _RISE)

    def close(self) -> None:
        """Close the files."""
        self._probe.close()
