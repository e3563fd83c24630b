"""The applier: what has changed in a SQLite file since PostgreSQL's position, applied in one transaction.

It locks the position, reads all later changes and the rows as they are now in one short read transaction of the file,
writes the rows and moves the position. So PostgreSQL always equals the file as of some position, and applying a change
again changes nothing. Whoever gets the lock applies everything that is pending; the others find it done.

What a copy has left to be applied, or a large backlog, is applied in steps (`SqliteApplier.advance`): each is short on
both sides, and none is believed before the last, which reads the rest and leaves a position like any other.

Rejected: applying the entries one by one as they were made, which takes the values into the log and each change twice
over the disk; and reading rows in another transaction than the log, which mixes two states of the file.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import psycopg

from iceburg.database import change_log
from iceburg.database.applied import Ahead, Applied, NeedsCopyError, NotReadyError
from iceburg.database.catalogue import Catalogue
from iceburg.database.changed_rows import ChangedRows, RowQuery, TrackedTable, read_changed, read_current, tracked_table
from iceburg.database.datasets import reconcile, set_constraints_aside
from iceburg.database.kept import count_quarantined
from iceburg.database.positions import (
    BEING_MIGRATED,
    CopyMark,
    Mark,
    Position,
    find_position,
    lock_position,
    mark_copy,
    move_copy,
    move_position,
    set_position,
    settle_position,
)
from iceburg.database.quick_apply import QuickApply, SingleChange
from iceburg.database.record_writer import RecordWriter
from iceburg.database.schema import SchemaNames
from iceburg.database.sqlite_session import SqliteSession
from iceburg.errors import SourceBusyError
from iceburg.records import Store
from iceburg.sources import peek
from iceburg.sources.fingerprint import fingerprint
from iceburg.sources.sqlite_fetch import text_encoding

# A file with more rows than this is not copied by the applier, in one transaction: that is what `migrate` is for.
MAX_ROWS_READ_WHOLE: Final = 50_000
_ATTEMPTS: Final = 5
_PRUNE_STEP: Final = 1_000
PRUNE_STEP: Final = _PRUNE_STEP
"""Entries that are deleted from a log in one transaction."""
# Entries that a write of one record may leave.
_QUICK: Final = 6
_WAIT: Final = "Wait for `migrate` to end."
# Seconds for which a writer may be kept waiting so that rows are counted.
_LONGEST_COUNT: Final = 0.5


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
        self._marked: tuple[tuple[object, ...] | None, Mark | None] | None = None
        self._at: Position | None = None
        self._quick: dict[str, tuple[QuickApply, RowQuery]] = {}
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
        found = self._begin(connection, read_whole=True) or find_position(connection, self._names, self.store.name)
        assert found is not None  # noqa: S101 - it was begun
        return found

    def resume(self, connection: psycopg.Connection) -> Position | None:
        """Return the position if there is one, or one can begin without anything being read; else None."""
        return self._begin(connection, read_whole=False)

    def _begin(self, connection: psycopg.Connection, *, read_whole: bool) -> Position | None:
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
                if not read_whole:
                    return None
                raise NotReadyError("it is being migrated", where=self.store.name, hint=_WAIT)
            if source.complete and source.fingerprint == state.basis and old is None:
                set_position(connection, self._names, source.source_id, state.log_id, 0, "")
                set_constraints_aside(connection, Catalogue(connection, self._names), source.source_id)
            elif read_whole:
                self._begin_anew(connection, source.source_id, state)
            else:
                return None
        return find_position(connection, self._names, self.store.name)

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
        # Looked at first: should somebody write in between, it is not the one that is found the next time.
        stamp = peek.stamp(self._session.path)
        known = self._marked
        if stamp is not None and known is not None and known[0] == stamp:
            return known[1]
        state = self._session_state()
        mark = None if state is None else Mark(state.log_id, state.last)
        self._marked = stamp, mark
        return mark

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
                raise NeedsCopyError(
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
        raise self._restless()

    def _apply_one(self, connection: psycopg.Connection) -> Applied | None:
        """Apply a single changed record in one statement; None where it is not just one, or anything is unusual."""
        at = self._at
        if at is None:
            return None
        with self._session.reading() as file:
            single = self._single(file, at)
        if single is None or not single[0].apply(connection, at, single[1]):
            return None
        return self._note(at, single[1])

    def ahead(self, file: sqlite3.Connection) -> Callable[[psycopg.Connection], Ahead | None] | None:
        """Look at the one record that a write transaction leaves, before its commit; return what begins to apply it.

        Nobody else can write to the file meanwhile, so that it will be as it is seen here. What is returned waits for
        nothing, and may be called while the commit is under way, or after it; not if it fails. Its connection is to
        the target, in autocommit mode, and not to be used until `Ahead.end`.

        Parameters
        ----------
        file
            In the write transaction.
        """
        at = self._at
        single = None if at is None else self._single(file, at)
        if at is None or single is None:
            return None
        quick, change = single

        def begin(connection: psycopg.Connection) -> Ahead | None:
            begun = quick.begin(connection, at, change)
            return None if begun is None else Ahead(begun, lambda: self._note(at, change))

        return begin

    def _note(self, at: Position, change: SingleChange) -> Applied:
        with self._lock:
            if self._at is at:
                self._at = replace(at, position=change.last)
        return Applied(change.last, change.entries)

    def _single(self, file: sqlite3.Connection, at: Position) -> tuple[QuickApply, SingleChange] | None:
        """Return the one record that has changed since a position, and what applies it."""
        with self._lock:
            tables = self._tables
        changes = change_log.pending_of(file, at.log_id, at.position, _QUICK + 1)
        table = tables.get(changes[0].table) if 0 < len(changes) <= _QUICK else None
        if table is None or any(change.op != "t" or change.table != table.name for change in changes):
            return None
        if str(file.execute("PRAGMA schema_version").fetchone()[0]) != at.structure:
            return None
        known = self._quick.get(table.name)
        if known is None:
            known = QuickApply(self._names, table.dataset), RowQuery(table, text_encoding(file))
            self._quick[table.name] = known
        quick, rows = known
        if not quick.suited:
            return None
        one = rows.read(file, changes)
        if one is None:
            there, gone = read_current(file, table, changes)
            if len(there) + len(gone) != 1:
                return None
            one = (there or gone)[0], bool(there)
        if table.counts and not one[1]:
            return None  # AUTOINCREMENT's counter is to be kept as well
        return quick, SingleChange(*one, changes[-1].seq, len(changes))

    def advance(self, connection: psycopg.Connection, limit: int) -> Applied:
        """Apply the next entries of a source that was copied, or suspended; the last step leaves it settled.

        Parameters
        ----------
        connection
            As for `apply`.
        limit
            Entries a step.

        Raises
        ------
        NotReadyError
            It is neither, or its copy is not done.
        SourceError, psycopg.Error
            As for `apply`; nothing was applied.
        """
        source = Catalogue(connection, self._names).source(self.store.name, "sqlite")
        for _ in range(_ATTEMPTS):
            with connection.transaction():
                position = lock_position(connection, self._names, source.source_id)
                if position is not None and position.log_id != BEING_MIGRATED:
                    return Applied(position.position, 0)
                if position is None or position.copied is None or not source.complete:
                    raise NotReadyError("it is being migrated", where=self.store.name, hint=_WAIT)
                done = self._apply_locked(connection, position, position.copied, limit)
                if done is not None:
                    return done
        raise self._restless()

    def account(self, connection: psycopg.Connection) -> None:
        """Apply everything that is pending, and count both sides as of the same position; see `Catalogue.set_counts`.

        A table that takes longer to count than an application should wait is not counted.

        Raises
        ------
        NotReadyError, SourceError, psycopg.Error
            As for `apply`.
        """
        known = self.attach(connection)
        for _ in range(_ATTEMPTS):
            with connection.transaction():
                position = lock_position(connection, self._names, known.source_id)
                if position is not None and self._apply_locked(connection, position, count=True) is not None:
                    return
        raise self._restless()

    def suspend(self, connection: psycopg.Connection) -> None:
        """Have the backlog applied in steps: reads of the source come from SQLite until the last."""
        with connection.transaction():
            source = Catalogue(connection, self._names).source(self.store.name, "sqlite")
            position = lock_position(connection, self._names, source.source_id)
            if position is not None and position.log_id != BEING_MIGRATED:
                mark = CopyMark(position.log_id, position.position, position.structure)
                mark_copy(connection, self._names, source.source_id, mark)

    def _restless(self) -> SourceBusyError:
        return SourceBusyError(
            "its structure changes again and again", where=self.store.name, hint="Try again when the DDL is done."
        )

    def _apply_locked(
        self,
        connection: psycopg.Connection,
        locked: Position,
        copied: CopyMark | None = None,
        limit: int | None = None,
        *,
        count: bool = False,
    ) -> Applied | None:
        """Apply in the transaction that holds the position; None where the structure has changed meanwhile.

        With a mark of a copy, from there, and at most so many entries.
        """
        position = locked
        if copied is not None:
            position = replace(
                locked, log_id=copied.log_id, position=copied.position, structure=copied.structure, copied=None
            )
        state, version = self._state_and_version()
        # A log that ends before the position is that of an older copy, which was put back.
        if state is None or state.log_id != position.log_id or state.last < position.position:
            raise NotReadyError(
                "it is being migrated"
                if position.log_id == BEING_MIGRATED
                else "its log is not the one applied so far",
                where=self.store.name,
                hint="Run `iceburg-db migrate`; until then SQLite answers.",
            )
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
            entries = change_log.pending(file, position.position, limit)
            settled = limit is None or len(entries) < limit
            if copied is not None:
                entries = [replace(e, op="n") if e.op == "r" and e.seq <= copied.whole else e for e in entries]
            self._refuse_large(file, {*anew, *(entry.table for entry in entries if entry.op == "r")} & tables.keys())
            changed = read_changed(file, tables, entries, position.position, anew)
            counts = change_log.count_quickly(file, tuple(tables), _LONGEST_COUNT) if count else {}
        try:
            self._write(connection, tables, changed)
        finally:
            changed.spool.close()
        for name, number in changed.counters.items():
            Catalogue(connection, self._names).note_number(position.source_id, name, number)
        if count:
            self._note_counts(connection, tables, counts)
        if copied is not None:
            self._move_copy(connection, position, changed, version, redefined=redefined, settled=settled)
            return Applied(changed.last, changed.changes, settled)
        with self._lock:
            # The next one may be a single record. After a change of the definitions the epoch is another.
            self._at = None if redefined else replace(position, position=changed.last, structure=version)
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

    def _note_counts(
        self, connection: psycopg.Connection, tables: dict[str, TrackedTable], counts: dict[str, int]
    ) -> None:
        """Keep how many records there are on both sides; of a file's table that was not counted, as many as here."""
        for name, table in tables.items():
            number = table.dataset.dataset_id
            rows = table.dataset.target().count(connection)
            here = rows + count_quarantined(connection, self._names, number)
            Catalogue(connection, self._names).set_counts(number, counts.get(name, here), rows)

    def _move_copy(
        self,
        connection: psycopg.Connection,
        position: Position,
        changed: ChangedRows,
        version: str,
        *,
        redefined: bool,
        settled: bool,
    ) -> None:
        mark = CopyMark(position.log_id, changed.last, version)
        move_copy(connection, self._names, position, mark, redefined=redefined, applied=changed.changes)
        if settled:
            set_constraints_aside(connection, Catalogue(connection, self._names), position.source_id)
            set_position(connection, self._names, position.source_id, mark.log_id, mark.position, mark.structure)

    def _refuse_large(self, file: sqlite3.Connection, whole: set[str]) -> None:
        if whole and change_log.count_rows(file, tuple(whole), MAX_ROWS_READ_WHOLE + 1) > MAX_ROWS_READ_WHOLE:
            raise NeedsCopyError(
                f"{', '.join(sorted(whole))}: to be read whole, and too large for one read",
                where=self.store.name,
                hint="`iceburg-db follow` does it, or `iceburg-db migrate --live`; until then SQLite answers.",
            )

    def _state_and_version(self) -> tuple[change_log.LogState | None, str]:
        with self._session.reading() as file:
            state = change_log.log_state(file)
            return state, str(file.execute("PRAGMA schema_version").fetchone()[0])

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

    def look(self) -> tuple[int, str]:
        """Return the number of the last entry, and what the structure is known by, in one short read.

        Raises
        ------
        NotReadyError
            It has no log: it is another file, or the log was taken out.
        SourceError
            It cannot be read now.
        """
        state, version = self._state_and_version()
        if state is None:
            raise NotReadyError("it has no change log", where=self.store.name, hint="Run `iceburg-db migrate --live`.")
        return state.last, version

    def prune(self, connection: psycopg.Connection, *, steps: int | None = None) -> int:
        """Delete entries that PostgreSQL has for good, in small steps, at most so many; return how many entries."""
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
            steps = None if steps is None else steps - 1
            if step < _PRUNE_STEP or steps == 0:
                break
        return count


def open_applier(store: Store, path: Path, names: SchemaNames) -> SqliteApplier:
    """Return an applier with a session of its own."""
    return SqliteApplier(store, SqliteSession(path), names)
