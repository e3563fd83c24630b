"""The applier: what has changed in a SQLite file since PostgreSQL's position, applied in one transaction.

It locks the position, reads all later changes and the rows as they are now in one short read transaction of the file,
writes the rows and moves the position. So PostgreSQL always equals the file as of some position, and applying a change
again changes nothing. Whoever gets the lock applies everything that is pending; the others find it done.

Rejected: applying the entries one by one as they were made, which takes the values into the log and each change twice
over the disk; and reading rows in another transaction than the log, which mixes two states of the file.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psycopg

from iceburg.database import change_log
from iceburg.database.catalogue import Catalogue
from iceburg.database.changed_rows import ChangedRows, TrackedTable, read_changed, read_current, tracked_table
from iceburg.database.datasets import reconcile, set_constraints_aside
from iceburg.database.positions import (
    BEING_MIGRATED,
    Mark,
    Position,
    find_position,
    lock_position,
    move_position,
    set_position,
    settle_position,
)
from iceburg.database.quick_apply import QuickApply
from iceburg.database.record_writer import RecordWriter
from iceburg.database.schema import SchemaNames
from iceburg.database.sqlite_session import SqliteSession
from iceburg.errors import SourceBusyError, TargetError
from iceburg.records import Store
from iceburg.sources.fingerprint import fingerprint

# A file with more rows than this is not copied by the applier, in one transaction: that is what `migrate` is for.
MAX_ROWS_READ_WHOLE: Final = 50_000
_ATTEMPTS: Final = 5
_PRUNE_STEP: Final = 1_000
# Entries that a write of one record may leave.
_QUICK: Final = 6


class NotReadyError(TargetError):
    """A source whose changes cannot be applied yet, because PostgreSQL does not have it."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What an applier did.

    Attributes
    ----------
    position
        The position now.
    changes
        How many entries were applied, by this call.
    """

    position: int
    changes: int


class SqliteApplier:
    """Applies the changes of one SQLite file; safe to use from several threads and processes at once.

    Parameters
    ----------
    store
        The file.
    session
        Its connections.
    names
        Of the target's schemas.
    """

    def __init__(self, store: Store, session: SqliteSession, names: SchemaNames) -> None:
        self.store = store
        self._session = session
        self._names = names
        self._tables: dict[str, TrackedTable] = {}
        self._known: tuple[int, int] | None = None
        self._at: Position | None = None
        self._quick: dict[str, QuickApply] = {}
        self._lock = threading.Lock()

    def attach(self, connection: psycopg.Connection) -> Position:
        """Arm the file if it is not, and begin its position if it has none.

        Where PostgreSQL has the file as it was when it was armed, the position begins there. Where it has not, all
        tables are entered to be read whole, if they are small enough.

        Parameters
        ----------
        connection
            To the target, in autocommit mode.

        Raises
        ------
        NotReadyError
            PostgreSQL does not have the file as it is, and it is too large to be copied here.
        SourceError
            The file cannot be armed.
        """
        state = self._session_state()
        if state is not None:
            found = find_position(connection, self._names, self.store.name)
            if found is not None and found.log_id == state.log_id:
                return found
        if state is None:
            state = self._arm()
        with connection.transaction():
            source = Catalogue(connection, self._names).source(self.store.name, "sqlite")
            old = lock_position(connection, self._names, source.source_id)
            if old is not None and old.log_id == state.log_id:
                return old
            if old is not None and old.log_id == BEING_MIGRATED:
                raise NotReadyError("it is being migrated", where=self.store.name, hint="Wait for `migrate` to end.")
            if source.complete and source.fingerprint == state.basis and old is None:
                set_position(connection, self._names, source.source_id, state.log_id, 0, "")
                set_constraints_aside(connection, Catalogue(connection, self._names), source)
            else:
                self._begin_anew(connection, source.source_id, state)
        position = find_position(connection, self._names, self.store.name)
        assert position is not None  # noqa: S101 - written above
        return position

    def arm(self) -> None:
        """Arm the file if it is not; PostgreSQL is not needed for it.

        Raises
        ------
        SourceError
            The file cannot be armed.
        """
        if self._session_state() is None:
            self._arm()

    def mark(self) -> Mark | None:
        """Return where the file is; None if it is not armed."""
        state = self._session_state()
        return None if state is None else Mark(state.log_id, state.last)

    def _session_state(self) -> change_log.LogState | None:
        with self._session.reading() as file:
            return change_log.log_state(file)

    def _arm(self) -> change_log.LogState:
        with self._session.writing() as file:
            # Within the lock: nobody writes between this look and the first trigger.
            change_log.install(file, self.store.name, fingerprint(self.store))
            state = change_log.log_state(file)
        assert state is not None  # noqa: S101 - just made
        return state

    def _begin_anew(self, connection: psycopg.Connection, source_id: int, state: change_log.LogState) -> None:
        with self._session.writing() as file:
            tables = change_log.table_names(file, self.store.name)
            rows = change_log.count_rows(file, tables, MAX_ROWS_READ_WHOLE + 1)
            if rows > MAX_ROWS_READ_WHOLE:
                raise NotReadyError(
                    "PostgreSQL does not have it as it is now",
                    where=self.store.name,
                    hint="Run `iceburg-db migrate`; until then SQLite answers.",
                )
            change_log.resync(file, tables)
        set_position(connection, self._names, source_id, state.log_id, state.last, "")

    def pending(self, position: int) -> int:
        """Return the number of entries after a position."""
        with self._session.reading() as file:
            return change_log.count_pending(file, position)

    def apply(self, connection: psycopg.Connection) -> Applied:
        """Apply everything that is pending.

        Parameters
        ----------
        connection
            To the target, in autocommit mode, with `prepare_loaders`.

        Raises
        ------
        NotReadyError
            The file is not attached, or is being migrated.
        SourceError
            The file cannot be read now.
        psycopg.Error
            PostgreSQL cannot write now; nothing was applied.
        """
        quick = self._apply_one(connection)
        if quick is not None:
            return quick
        known = find_position(connection, self._names, self.store.name)
        if known is None:
            known = self.attach(connection)
        for _ in range(_ATTEMPTS):
            with connection.transaction():
                position = lock_position(connection, self._names, known.source_id)
                done = None if position is None else self._apply_locked(connection, position)
                if done is not None:
                    return done
            if position is None:
                known = self.attach(connection)
        raise SourceBusyError(
            "its structure changes again and again", where=self.store.name, hint="Try again when the DDL is done."
        )

    def _apply_one(self, connection: psycopg.Connection) -> Applied | None:
        """Apply a single changed record in one statement; None where it is not just one, or anything is unusual."""
        with self._lock:
            at, tables = self._at, self._tables
        if at is None:
            return None
        with self._session.reading() as file:
            state = change_log.log_state(file)
            if state is None or state.log_id != at.log_id or not 0 < state.last - at.position <= _QUICK:
                return None
            if str(file.execute("PRAGMA schema_version").fetchone()[0]) != at.structure:
                return None
            changes = change_log.pending(file, at.position)
            table = tables.get(changes[0].table) if changes else None
            if table is None or any(change.op != "t" or change.table != table.name for change in changes):
                return None
            quick = self._quick.get(table.name)
            if quick is None:
                quick = self._quick[table.name] = QuickApply(self._names, table.dataset)
            if not quick.suited:
                return None
            there, gone = read_current(file, table, changes)
        if len(there) + len(gone) != 1 or (gone and table.counts):
            return None
        last = changes[-1].seq
        if not quick.apply(connection, at, last, len(changes), (there or gone)[0], there=bool(there)):
            return None
        with self._lock:
            if self._at is at:
                self._at = replace(at, position=last)
        return Applied(last, len(changes))

    def _apply_locked(self, connection: psycopg.Connection, position: Position) -> Applied | None:
        """Apply in the transaction that holds the position; None where the structure has changed meanwhile."""
        state = self._session_state()
        # A log that ends before the position is that of an older copy, which was put back.
        if state is None or state.log_id != position.log_id or state.last < position.position:
            raise NotReadyError(
                "it is being migrated"
                if position.log_id == BEING_MIGRATED
                else "its log is not the one applied so far",
                where=self.store.name,
                hint="Run `iceburg-db migrate`; until then SQLite answers.",
            )
        version = self._version()
        anew: list[str] = []
        redefined = version != position.structure
        if redefined:
            version = self._rearm(by_rowid=position.structure != "")
            source, anew = reconcile(connection, self._names, self.store)
            if not source.complete:
                Catalogue(connection, self._names).update_source(
                    source.source_id, fingerprint=None, complete=True, problem=None
                )
        with self._lock:
            tables = self._tables_at(connection, position, anew=redefined)
        with self._session.reading() as file:
            if str(file.execute("PRAGMA schema_version").fetchone()[0]) != version:
                return None
            changed = read_changed(file, tables, change_log.pending(file, position.position), position.position, anew)
        try:
            self._write(connection, tables, changed)
        finally:
            changed.spool.close()
        for name, number in changed.counters.items():
            Catalogue(connection, self._names).note_number(position.source_id, name, number)
        with self._lock:
            # The next one may be a single record. After a change of the definitions the epoch is another.
            settled = replace(position, position=changed.last, structure=version)
            self._at = None if redefined else settled
        if changed.changes or redefined:
            move_position(
                connection,
                self._names,
                position,
                changed.last,
                structure=version,
                redefined=redefined,
                applied=changed.changes,
            )
        return Applied(changed.last, changed.changes)

    def _version(self) -> str:
        with self._session.reading() as file:
            return str(file.execute("PRAGMA schema_version").fetchone()[0])

    def _rearm(self, *, by_rowid: bool) -> str:
        """Bring the triggers up to the tables; return what the structure is known by then.

        VACUUM leaves no other trace than a new schema version, and may have given new rowids to the records that are
        known by nothing else: these tables are read whole.
        """
        with self._session.writing() as file:
            change_log.install(file, self.store.name, "")
            if by_rowid:
                change_log.resync(file, change_log.tables_by_rowid(file, self.store.name))
        return self._version()

    def _tables_at(self, connection: psycopg.Connection, position: Position, *, anew: bool) -> dict[str, TrackedTable]:
        known = (position.source_id, position.epoch)
        if anew or self._known != known:
            datasets = Catalogue(connection, self._names).datasets(position.source_id)
            self._tables = {table.name: table for table in map(tracked_table, datasets)}
            self._known = None if anew else known
            self._quick = {}
        return self._tables

    def _write(self, connection: psycopg.Connection, tables: dict[str, TrackedTable], changed: ChangedRows) -> None:
        writers = {
            name: RecordWriter(connection, self._names, tables[name].dataset)
            for name in {*changed.whole, *changed.gone}
        }
        for name in changed.whole:
            writers[name].clear()
        for name, gone in changed.gone.items():
            writers[name].write((), gone)
        for name, records in changed.spool.batches():
            if name in changed.whole:
                writers[name].append(records)
            else:
                writers[name].write(records)

    def close(self) -> None:
        """Close the connections to the file."""
        self._session.close()

    def prune(self, connection: psycopg.Connection) -> int:
        """Delete entries that PostgreSQL has for good, in small steps; return how many."""
        state = self._session_state()
        known = find_position(connection, self._names, self.store.name)
        if state is None or known is None:
            return 0
        through = settle_position(connection, self._names, known.source_id, state.log_id)
        count = 0
        while through is not None:
            with self._session.writing() as file:
                step = change_log.prune(file, through, _PRUNE_STEP)
            count += step
            if step < _PRUNE_STEP:
                break
        return count


def open_applier(store: Store, path: Path, names: SchemaNames) -> SqliteApplier:
    """Return an applier with a session of its own."""
    return SqliteApplier(store, SqliteSession(path), names)
