"""One store as a follower sees it: whether it may have changed, and what is to be done about it.

Most looks are at the files' status alone, which disturbs nobody. Two commits within one tick of the file system's clock
leave the same status, so that one that is very new is looked at again; and now and then the log is asked in any case.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import psycopg

from iceburg.database.applied import Applied
from iceburg.database.applier import SqliteApplier
from iceburg.database.catalogue import Catalogue
from iceburg.database.jsonl_applier import JsonlApplier, jsonl_state
from iceburg.database.positions import BEING_MIGRATED, find_position
from iceburg.database.schema import SchemaNames
from iceburg.errors import SourceError
from iceburg.migration.live import STEP
from iceburg.migration.live_preparation import StoreApplier, applier_of
from iceburg.records import Store
from iceburg.sources.fingerprint import fingerprint

# Longer than a tick of any usual kernel (1 to 10 ms).
_TICK_NS: Final = 50_000_000
_ASK_EVERY: Final = {"sqlite": 1.0, "jsonl": 5.0, "chroma": 15.0}
_LOOK_AT_RESTING_EVERY: Final = 10.0
# A last line that has been unfinished for so long is taken in as it is.
_UNFINISHED_FOR: Final = 2.0
_SUSPEND_BEYOND: Final = 50_000
_FIRST_RETRY: Final = 0.5
_LAST_RETRY: Final = 30.0


class FollowedStore:
    """A store that is followed.

    Parameters
    ----------
    store
        Which.
    names
        Of the target's schemas.

    Attributes
    ----------
    applied
        Records applied so far.
    pending
        Entries that are known and not applied.
    problem
        Why it is not followed now.
    waiting_since
        When a change was first seen that is not applied yet, by the monotonic clock; None where there is none.
    """

    def __init__(self, store: Store, names: SchemaNames) -> None:
        self.store = store
        self._names = names
        self.applier: StoreApplier | None = None
        self._opened = False
        self.applied = 0
        self.pending = 0
        self.problem: str | None = None
        self.waiting_since: float | None = None
        self.in_steps = False
        self._status: tuple[object, ...] = ()
        self._looked = self._asked = self._retry_at = time.monotonic()
        self._retry_after = _FIRST_RETRY
        self._known: tuple[int, str] | None = None
        self._rest_seen: tuple[int, float] | None = None
        self._unsettled = True

    def open(self) -> None:
        """Find out how it can be followed.

        Raises
        ------
        SourceError
            It cannot be read.
        """
        if not self._opened:
            self.applier = applier_of(self.store, self._names)
            self._opened = True

    def close(self) -> None:
        """Close its files."""
        if self.applier is not None:
            self.applier.close()
        self.applier, self._opened = None, False

    def forget(self) -> None:
        """Look at everything again: PostgreSQL may have lost what it had."""
        self._known = None
        self._unsettled = True
        self._asked = 0.0

    # Looking

    def wants_attention(self) -> bool:
        """Whether it may have changed; the files are only looked at from outside."""
        now = time.monotonic()
        if now < self._retry_at:
            return False
        status = self._read_status()
        before, self._status = self._status, status
        newest = max((part for part in status if isinstance(part, int)), default=0)
        recent = 0 <= time.time_ns() - newest < _TICK_NS
        due = now - self._asked >= _ASK_EVERY[self.store.kind]
        if status != before or recent or due or self._unsettled:
            if (status != before or recent) and self.waiting_since is None:
                # It may have been written at any time since the last look.
                self.waiting_since = self._looked
            self._looked = now
            return True
        self._looked = now
        return False

    def _read_status(self) -> tuple[object, ...]:
        path = self.store.path
        if self.store.kind == "chroma":
            return _times(path / "chroma.sqlite3")
        if self.store.kind == "jsonl":
            return _times(path)
        return (*_times(path), *_times(path.with_name(path.name + "-wal")))

    # Applying

    def apply(self, connection: psycopg.Connection) -> Applied | None:
        """Apply what is pending, or a step of it; None where there is nothing.

        Raises
        ------
        NotReadyError, SourceError, psycopg.Error
            As the applier says; `NeedsCopyError` where a part of it has to be copied.
        """
        self.open()
        self._asked = time.monotonic()
        if isinstance(self.applier, SqliteApplier):
            applied = self._apply_file(connection, self.applier)
        elif isinstance(self.applier, JsonlApplier):
            applied = self._apply_lines(connection, self.applier)
        elif self.applier is not None:
            copied = self._is_copied(connection)
            applied = self.applier.advance(connection, STEP) if copied else self.applier.apply(connection)
        else:
            applied = None
        self.problem, self._retry_after = None, _FIRST_RETRY
        if applied is None or applied.settled:
            self.pending, self.waiting_since, self._unsettled = 0, None, False
        else:
            self._unsettled = True
        if applied is not None:
            self.applied += applied.changes
        return applied

    def _is_copied(self, connection: psycopg.Connection) -> bool:
        position = find_position(connection, self._names, self.store.name)
        return position is not None and position.log_id == BEING_MIGRATED

    def _apply_file(self, connection: psycopg.Connection, applier: SqliteApplier) -> Applied | None:
        if self._known is None and not self.in_steps:
            position = find_position(connection, self._names, self.store.name)
            if position is None:
                applier.attach(connection)
            elif position.log_id == BEING_MIGRATED:
                self.in_steps = True
            else:
                self._known = position.position, position.structure
        if not self.in_steps:
            # What comes between this look and the applier's own is seen by the next one.
            last, version = applier.look()
            if self._known == (last, version):
                return None
            self.pending = 0 if self._known is None else max(0, last - self._known[0])
            if self.pending <= _SUSPEND_BEYOND:
                applied = applier.apply(connection)
                self._known = applied.position, version
                return applied
            applier.suspend(connection)
            self.in_steps = True
        applied = applier.advance(connection, STEP)
        self.pending = applier.pending(applied.position)
        self.in_steps, self._known = not applied.settled, None
        return applied

    def _apply_lines(self, connection: psycopg.Connection, applier: JsonlApplier) -> Applied | None:
        state = jsonl_state(self.store.path)
        if state is None:
            raise SourceError("is gone", where=self.store.name)
        known = state.end, state.log_id
        applied = None
        if self._known != known:
            applied = applier.advance(connection)
            self.pending = max(0, state.end - applied.position)
            self._known = known if applied.settled and applied.position == state.end else None
        if self._known == known:
            self._take_in_rest(connection, applier, state.end)
        return applied

    def _take_in_rest(self, connection: psycopg.Connection, applier: JsonlApplier, position: int) -> None:
        """Take in an unfinished last line that has not grown for a while."""
        size = self.store.path.stat().st_size
        if size == position:
            self._rest_seen = None
        elif self._rest_seen is None or self._rest_seen[0] != size:
            self._rest_seen = size, time.monotonic()
        elif 0 <= self._rest_seen[1] < time.monotonic() - _UNFINISHED_FOR:
            applier.take_in_rest(connection)
            self._rest_seen = size, -1.0

    def is_as_it_was(self, connection: psycopg.Connection) -> bool:
        """Whether a store without a log is still as it was when it was copied; asked for real from time to time."""
        self._retry_at = time.monotonic() + _LOOK_AT_RESTING_EVERY
        source = Catalogue(connection, self._names).source(self.store.name, self.store.kind)
        return source.complete and source.fingerprint == fingerprint(self.store)

    # Failing

    def note_problem(self, problem: str) -> None:
        """Note that it cannot be followed now; it is tried again later, and then less and less often."""
        self.problem = problem
        self._retry_at = time.monotonic() + self._retry_after
        self._retry_after = min(self._retry_after * 2, _LAST_RETRY)


def _times(path: Path) -> tuple[object, ...]:
    try:
        status = path.stat()
    except OSError as error:
        return (error.strerror,)
    return (str(status.st_ino), str(status.st_size), status.st_mtime_ns)
