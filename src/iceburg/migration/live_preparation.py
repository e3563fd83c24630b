"""Preparing a store that is written to while it is copied: where its log is, before anything of it is read.

What is copied is read after that position, in short reads at different times; what is written meanwhile is in the log,
and is applied from there. So each record is in the end as it is in the file, whatever happened to it while it was
copied: read before a change, after it, at two places or at none.

Only what moves without an entry has to be read again: records under a rowid that VACUUM may have given anew. The
structure (``PRAGMA schema_version``) changes with it, and with every other DDL.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace

from iceburg.database import change_log
from iceburg.database.applier import SqliteApplier, open_applier
from iceburg.database.arming import install_log, is_compressed
from iceburg.database.catalogue import Dataset
from iceburg.database.chroma_applier import ChromaApplier, chroma_state
from iceburg.database.datasets import taken_schemas
from iceburg.database.jsonl_applier import JsonlApplier, jsonl_state
from iceburg.database.plan import plan_store
from iceburg.database.positions import BEING_MIGRATED, CopyMark, Position, find_position, mark_copy, set_position
from iceburg.database.schema import SchemaNames
from iceburg.errors import SourceError
from iceburg.migration.preparation import sequences_of, take_in
from iceburg.migration.run import Run, Work
from iceburg.records import Store
from iceburg.sources.access import OpenStores
from iceburg.sources.fingerprint import fingerprint
from iceburg.sources.sqlite import SqliteFile

StoreApplier = SqliteApplier | JsonlApplier | ChromaApplier


@dataclass(frozen=True, slots=True)
class _Begin:
    """Where a copy begins: the mark, and what of the known datasets has to be gone through again."""

    mark: CopyMark
    all_again: bool = False
    moved: bool = False
    whole: frozenset[str] = frozenset()

    def again(self, dataset: Dataset) -> bool:
        """Whether a dataset's chunks may not be what the source has had since the mark."""
        table = str(dataset.definition.get("source_table"))
        return self.all_again or table in self.whole or (self.moved and _moves(dataset))


def applier_of(store: Store, names: SchemaNames) -> StoreApplier | None:
    """Return the applier of a store; None if what is written to it cannot be followed.

    Raises
    ------
    SourceError
        It cannot be read.
    """
    if store.kind == "sqlite":
        return open_applier(store, store.path, names)
    if store.kind == "jsonl":
        return None if is_compressed(store) else JsonlApplier(store, names, largest=None)
    try:
        chroma_state(store)
    except SourceError:
        return None  # damaged: it is copied as it rests, and what it has lost is reported
    return ChromaApplier(store, names)


def arm(store: Store) -> None:
    """Have every change of a store logged from now on.

    Raises
    ------
    SourceError
        That is not possible; nothing was changed.
    """
    if store.kind == "sqlite":
        install_log(store)


def is_followed(run: Run, store: Store, applier: StoreApplier | None) -> bool:
    """Whether nothing of a store has to be copied: PostgreSQL has it as of some position, or it rests as it was."""
    source = run.catalogue.source(store.name, store.kind)
    if applier is None:
        return source.complete and source.fingerprint == fingerprint(store)
    if source.complete and find_position(run.connection, run.names, store.name) is None and store.kind == "sqlite":
        arm(store)
    if not source.complete:
        return False
    position = find_position(run.connection, run.names, store.name)
    if position is not None and position.log_id == BEING_MIGRATED:
        begin = None if position.copied is None else _resumed(store, position.copied)
        return begin is not None  # it only has to be caught up with
    return applier.resume(run.connection) is not None


def prepare_copy(
    run: Run, stores: OpenStores, store: Store, applier: StoreApplier | None, *, again: bool, anew: bool
) -> Work:
    """Plan a store's datasets and make their tables; from now on nobody applies, until the copy is caught up with.

    Parameters
    ----------
    run, stores, store, applier
        What is prepared.
    again
        Whether all of it is gone through again, whatever is known of it.
    anew
        Whether its log goes on from now, and not from where it was when a copy was begun before.

    Raises
    ------
    SourceError
        It cannot be read, or its changes cannot be logged.
    """
    arm(store)
    source = run.catalogue.source(store.name, store.kind)
    position = find_position(run.connection, run.names, store.name)
    print_of_store = fingerprint(store)
    begin = None if applier is None else _begin(store, position, anew=anew)
    run.listener.phase(f"{store.name}: looking at what it holds")
    known = {dataset.name: dataset for dataset in run.catalogue.datasets(source.source_id)}
    taken = taken_schemas(run.connection, run.names, run.catalogue, source)
    plan = plan_store(stores, store, run.names, {n: d.definition for n, d in known.items()}, taken)
    run.skipped[store.name] = plan.skipped

    def is_read_again(dataset: Dataset) -> bool:
        if begin is None:
            return again or source.fingerprint != print_of_store
        return again or begin.again(dataset)

    with run.connection.transaction():
        run.ledger.check_fence(run.fence)
        if begin is None:
            set_position(run.connection, run.names, source.source_id, BEING_MIGRATED, 0, "")
        else:
            mark_copy(run.connection, run.names, source.source_id, begin.mark)
        run.ledger.mark_stale([dataset.dataset_id for dataset in known.values() if is_read_again(dataset)])
        take_in(run, stores, store, source, plan, known, is_read_again)
        run.catalogue.update_source(source.source_id, fingerprint=print_of_store, complete=False, problem=None)
        run.catalogue.describe_source(source.source_id, plan.description, plan.losses)
    return Work(
        store,
        source,
        print_of_store,
        run.catalogue.datasets(source.source_id),
        sequences_of(plan),
        copied=None if begin is None else begin.mark,
    )


def has_moved(store: Store, mark: CopyMark | None, print_of_store: str) -> bool:
    """Whether what was copied since the mark may have missed records that no entry names.

    Raises
    ------
    SourceError
        The store cannot be read.
    """
    if mark is None:
        return fingerprint(store) != print_of_store
    if store.kind == "sqlite":
        log_id, _, version, _ = _sqlite_state(store, 0)
        return (log_id, version) != (mark.log_id, mark.structure)
    if store.kind == "jsonl":
        state = jsonl_state(store.path)
        return state is None or state.log_id != mark.log_id or state.end < mark.position
    return chroma_state(store).log_id != mark.log_id


def _begin(store: Store, position: Position | None, *, anew: bool) -> _Begin:
    if not anew and position is not None and position.log_id == BEING_MIGRATED and position.copied is not None:
        resumed = _resumed(store, position.copied)
        if resumed is not None:
            return resumed
    if store.kind == "sqlite":
        after = 0 if position is None else position.position
        log_id, last, version, whole = _sqlite_state(store, after)
        if position is not None and position.log_id == log_id and position.position <= last:
            # It is followed, and a part of it is to be copied again: the rest goes on from where it is.
            mark = CopyMark(log_id, position.position, version, last)
            return _Begin(mark, moved=version != position.structure, whole=frozenset(whole))
        return _Begin(CopyMark(log_id, last, version, last), all_again=True)
    if store.kind == "jsonl":
        state = jsonl_state(store.path)
        if state is None:
            raise SourceError("is gone", where=store.name)
        return _Begin(CopyMark(state.log_id, state.end, ""), all_again=True)
    return _Begin(chroma_state(store).copy_mark(), all_again=True)


def _resumed(store: Store, copied: CopyMark) -> _Begin | None:
    """Return where a copy goes on that was begun before; None if the store is not the one of then."""
    if store.kind == "sqlite":
        log_id, last, version, whole = _sqlite_state(store, max(copied.position, copied.whole))
        if log_id != copied.log_id or last < copied.position:
            return None
        return _Begin(
            replace(copied, structure=version, whole=last), moved=version != copied.structure, whole=frozenset(whole)
        )
    if store.kind == "jsonl":
        state = jsonl_state(store.path)
        same = state is not None and state.log_id == copied.log_id and state.end >= copied.position
        return _Begin(copied) if same else None
    return _Begin(copied) if chroma_state(store).log_id == copied.log_id else None


def _sqlite_state(store: Store, after: int) -> tuple[str, int, str, set[str]]:
    """Return a file's log, its last entry, its structure, and the tables to be read whole after an entry."""

    def read(connection: sqlite3.Connection) -> tuple[str, int, str, set[str]]:
        connection.execute("BEGIN")
        state = change_log.log_state(connection)
        if state is None:
            raise SourceError("its change log was taken out", where=store.name, hint="Run the command again.")
        whole = change_log.tables_to_be_read_whole(connection, after)
        return state.log_id, state.last, change_log.structure_version(connection), whole

    with SqliteFile(store.path, store.name) as file:
        return file.run(read)


def _moves(dataset: Dataset) -> bool:
    """Whether a dataset is read by a rowid that VACUUM may give anew."""
    table = dataset.definition.get("description")
    return table is not None and table["rowid"] is not None and table["integer_primary_key"] is None
