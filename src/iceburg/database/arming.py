"""The change logs of an installation: putting them into its SQLite files, taking them out, and saying how they stand.

Chroma directories and JSONL files have logs of their own and need nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from iceburg.database import change_log
from iceburg.database.chroma_applier import chroma_state
from iceburg.database.jsonl_applier import jsonl_state
from iceburg.database.known_target import KnownPositions
from iceburg.database.positions import BEING_MIGRATED, Position
from iceburg.database.sqlite_session import SqliteSession
from iceburg.errors import SourceError
from iceburg.records import Store, StoreKind
from iceburg.sources.fingerprint import fingerprint
from iceburg.sources.jsonl import GZIP_MAGIC
from iceburg.sources.peek import read_head
from iceburg.sources.sqlite import SqliteFile
from iceburg.sources.sqlite_schema import DatabaseDescription, describe

_ARMED_AT: Final = "SELECT armed_at FROM _iceburg_log"
# By the tables, not by the triggers' names: these are numbered.
_LOGGED: Final = """
SELECT DISTINCT tbl_name FROM main.sqlite_master WHERE type = 'trigger' AND name LIKE '\\_iceburg\\_log\\_%' ESCAPE '\\'
"""
_SHADOW: Final = "SQLite writes it for its virtual table without firing triggers"
_OWN_LOG: Final = {
    "chroma": "the directory's own queue is its log",
    "jsonl": "the file is its own log",
}


@dataclass(frozen=True, slots=True)
class NotLogged:
    """A table of which no changes are logged: its name, its kind, and why not."""

    name: str
    kind: Literal["view", "virtual table", "shadow table"]
    why: str


@dataclass(frozen=True, slots=True)
class InstalledLog:
    """What installing did to one store.

    Attributes
    ----------
    store, kind
        Which store.
    tables
        Those whose changes are logged now.
    new_tables
        Those of them that were not logged before.
    not_logged
        Those that cannot be.
    note
        What log a store has that needs none of ours.
    problem
        Why it is not armed; nothing in it was changed then.
    """

    store: str
    kind: StoreKind
    tables: tuple[str, ...] = ()
    new_tables: tuple[str, ...] = ()
    not_logged: tuple[NotLogged, ...] = ()
    note: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class RemovedLog:
    """What removing did to one store.

    Attributes
    ----------
    store, kind, note
        As of `InstalledLog`.
    removed
        Whether there was a log and it is gone.
    entries
        How many entries were in it.
    pending
        How many of them PostgreSQL did not have; None where that is not known.
    problem
        Why it was left as it is.
    """

    store: str
    kind: StoreKind
    removed: bool = False
    entries: int = 0
    pending: int | None = None
    note: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class LogStatus:
    """How the log of one store stands.

    Attributes
    ----------
    store, kind, tables, not_logged
        As of `InstalledLog`.
    armed
        Whether the changes of a SQLite file are logged; None for stores with a log of their own.
    log_id, armed_at
        The log's name, and when it was made (UTC).
    last
        The number of the last entry ever made; of a JSONL file the offset behind its last finished line, of a Chroma
        directory the number of the last operation in its queue.
    entries
        How many entries are in the log.
    waiting_tables
        Tables made since the file was armed; they are taken in with the next change that is applied.
    position, pending
        Where PostgreSQL is, and how many entries (bytes of a JSONL file) it does not have; None where that is not
        known.
    note
        What log a store has that needs none of ours; or why changes are not applied.
    problem
        Why the store cannot be read.
    """

    store: str
    kind: StoreKind
    armed: bool | None = None
    log_id: str | None = None
    armed_at: str | None = None
    last: int | None = None
    entries: int | None = None
    tables: tuple[str, ...] = ()
    waiting_tables: tuple[str, ...] = ()
    not_logged: tuple[NotLogged, ...] = ()
    position: int | None = None
    pending: int | None = None
    note: str | None = None
    problem: str | None = None


def install_logs(stores: Sequence[Store], stop_if_asked: Callable[[], None]) -> Iterator[InstalledLog]:
    """Arm the SQLite files among the stores, or bring their logs up to their tables; one that fails stops no other."""
    for store in stores:
        stop_if_asked()
        try:
            yield install_log(store)
        except SourceError as error:
            yield InstalledLog(store.name, store.kind, problem=error.without(store.name))


def remove_logs(
    stores: Sequence[Store], known: KnownPositions, *, force: bool, stop_if_asked: Callable[[], None]
) -> Iterator[RemovedLog]:
    """Disarm the SQLite files among the stores.

    Parameters
    ----------
    stores
        The stores.
    known
        Where PostgreSQL is.
    force
        Also where entries are not known to be applied.
    stop_if_asked
        Called between two stores.
    """
    for store in stores:
        stop_if_asked()
        try:
            yield _remove(store, known, force=force)
        except SourceError as error:
            yield RemovedLog(store.name, store.kind, problem=error.without(store.name))


def read_logs(stores: Sequence[Store], known: KnownPositions, stop_if_asked: Callable[[], None]) -> Iterator[LogStatus]:
    """Say how the logs stand; the stores are only read."""
    for store in stores:
        stop_if_asked()
        try:
            yield _status(store, known)
        except SourceError as error:
            yield LogStatus(store.name, store.kind, problem=error.without(store.name))


def is_compressed(store: Store) -> bool:
    """Whether a JSONL file is compressed: then what is appended to it cannot be followed by offsets.

    Raises
    ------
    SourceError
        It cannot be read.
    """
    try:
        return store.kind == "jsonl" and read_head(store.path, len(GZIP_MAGIC)) == GZIP_MAGIC
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror or error}", where=store.name) from error


def _own_log(store: Store) -> str | None:
    """Say what log a store has of its own; None for a SQLite file."""
    if store.kind == "sqlite":
        return None
    return "it is compressed: what is appended to it is not followed" if is_compressed(store) else _OWN_LOG[store.kind]


def _require_readable(store: Store) -> None:
    if store.problem is not None:
        raise SourceError(store.problem, where=store.name)


@contextmanager
def _written(store: Store) -> Iterator[sqlite3.Connection]:
    session = SqliteSession(store.path)
    try:
        with session.writing() as connection:
            yield connection
    finally:
        session.close()


def install_log(store: Store) -> InstalledLog:
    """Arm a SQLite file, or bring its log up to its tables; other stores need nothing.

    Raises
    ------
    SourceError
        It cannot be armed; nothing was changed.
    """
    _require_readable(store)
    note = _own_log(store)
    if note is not None:
        return InstalledLog(store.name, store.kind, note=note)
    with _written(store) as connection:
        # Within the lock: nobody writes between this look at the file and the first trigger.
        new = change_log.install(connection, store.name, fingerprint(store))
        found = describe(connection, "delete", store.name)
    return InstalledLog(store.name, store.kind, _loggable(found), new, _not_logged(found))


def _loggable(found: DatabaseDescription) -> tuple[str, ...]:
    return tuple(table.name for table in found.tables if table.kind == "table")


def _not_logged(found: DatabaseDescription) -> tuple[NotLogged, ...]:
    shadows = (NotLogged(table.name, "shadow table", _SHADOW) for table in found.tables if table.kind == "shadow")
    return (*(NotLogged(skipped.name, skipped.kind, skipped.why) for skipped in found.skipped), *shadows)


def _remove(store: Store, known: KnownPositions, *, force: bool) -> RemovedLog:
    _require_readable(store)
    note = _own_log(store)
    if note is not None:
        return RemovedLog(store.name, store.kind, note=note)
    with SqliteFile(store.path, store.name) as file:
        armed = file.run(change_log.log_state) is not None
    if not armed:
        return RemovedLog(store.name, store.kind)
    with _written(store) as connection:
        state = change_log.log_state(connection)
        if state is None:  # somebody else was quicker
            return RemovedLog(store.name, store.kind)
        entries = change_log.count_pending(connection, 0)
        position = known.by_source.get(store.name)
        pending, why = _pending(connection, state, position, known)
        if pending != 0 and entries and not force:
            raise SourceError(
                f"of the {entries} entries of its log {pending} are not in PostgreSQL yet"
                if why is None
                else f"its log has {entries} entries, and {why}",
                where=store.name,
                hint="Nothing was changed. `iceburg-db migrate` brings PostgreSQL up to date. With --force the log "
                "goes all the same, and PostgreSQL has to be migrated again.",
            )
        change_log.remove(connection)
    return RemovedLog(store.name, store.kind, removed=True, entries=entries, pending=pending)


def _pending(
    connection: sqlite3.Connection, state: change_log.LogState, position: Position | None, known: KnownPositions
) -> tuple[int | None, str | None]:
    """Return how many entries PostgreSQL does not have, and in words what there is to say where that is unusual."""
    if not known.asked:
        why = known.problem or "the installation has none that is known; give --dsn"
        return None, f"whether PostgreSQL has them is not known: {why}"
    if position is None:
        return change_log.count_pending(connection, 0), "its changes are not applied: PostgreSQL has no position of it"
    if position.log_id == BEING_MIGRATED:
        return None, "it is being migrated, or a migration of it was stopped"
    if position.log_id != state.log_id:
        return change_log.count_pending(connection, 0), "its log is not the one applied so far"
    return change_log.count_pending(connection, position.position), None


def _status(store: Store, known: KnownPositions) -> LogStatus:
    _require_readable(store)
    if store.kind == "sqlite":
        with SqliteFile(store.path, store.name) as file:
            return file.run(lambda connection: _status_of_file(connection, store, known))
    note = _own_log(store)
    log_id, last = _own_state(store)
    position = known.by_source.get(store.name)
    if last is None or position is None or position.log_id != log_id:
        return LogStatus(store.name, store.kind, last=last, note=note)
    return LogStatus(
        store.name,
        store.kind,
        log_id=log_id,
        last=last,
        position=position.position,
        pending=max(0, last - position.position),
        note=note,
    )


def _own_state(store: Store) -> tuple[str | None, int | None]:
    """Return the name of the log that a store has of its own, and its end; None where it has none that can be read."""
    if store.kind == "jsonl":
        lines = None if is_compressed(store) else jsonl_state(store.path)
        return (None, None) if lines is None else (lines.log_id, lines.end)
    try:
        state = chroma_state(store)
    except SourceError:
        return None, None
    return state.log_id, state.last


def _status_of_file(connection: sqlite3.Connection, store: Store, known: KnownPositions) -> LogStatus:
    connection.execute("BEGIN")
    state = change_log.log_state(connection)
    found = describe(connection, "delete", store.name)
    if state is None:
        return LogStatus(store.name, store.kind, armed=False, not_logged=_not_logged(found))
    logged = {name for (name,) in connection.execute(_LOGGED)}
    tables = _loggable(found)
    position = known.by_source.get(store.name)
    pending, why = _pending(connection, state, position, known)
    return LogStatus(
        store.name,
        store.kind,
        armed=True,
        log_id=state.log_id,
        armed_at=str(connection.execute(_ARMED_AT).fetchone()[0]),
        last=state.last,
        entries=change_log.count_pending(connection, 0),
        tables=tuple(name for name in tables if name in logged),
        waiting_tables=tuple(name for name in tables if name not in logged),
        not_logged=_not_logged(found),
        position=None if position is None or position.log_id != state.log_id else position.position,
        pending=pending,
        note=why if known.asked else None,
    )
