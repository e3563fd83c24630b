"""Preparing a store: planning its datasets, and making the catalogue and the tables those of the plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from iceburg.database.catalogue import Dataset, Source
from iceburg.database.change_log import log_state
from iceburg.database.datasets import has_same_conversion, put_collection, remove_dataset, taken_schemas
from iceburg.database.indexes import drop_collection_structure
from iceburg.database.plan import PlannedDataset, StorePlan, plan_store
from iceburg.database.positions import BEING_MIGRATED, Mark, set_position
from iceburg.database.structure import create_table, loosen
from iceburg.errors import SourceError
from iceburg.migration.run import Run, Work
from iceburg.records import DatasetReader, Key, Store
from iceburg.sources.access import OpenStores
from iceburg.sources.fingerprint import fingerprint
from iceburg.sources.sqlite_rows import TableReader

# Below this, starting a second stream costs more than it gains.
_ROWS_PER_STREAM: Final = 50_000


def prepare_store(run: Run, stores: OpenStores, store: Store, *, again: bool = False) -> Work | None:
    """Plan a store's datasets and make their tables; None if there is nothing to do."""
    source = run.catalogue.source(store.name, store.kind)
    if store.problem is not None:
        run.catalogue.update_source(source.source_id, fingerprint=None, complete=False, problem=store.problem)
        raise SourceError(store.problem, where=store.name)
    print_of_store = fingerprint(store)
    unchanged = source.complete and source.fingerprint == print_of_store
    again = again or run.options.recheck or run.options.rewrite
    if unchanged and not again:
        return None
    run.listener.phase(f"{store.name}: looking at what it holds")
    log = _log(stores, store)
    known = {dataset.name: dataset for dataset in run.catalogue.datasets(source.source_id)}
    taken = taken_schemas(run.connection, run.names, run.catalogue, source)
    try:
        plan = plan_store(stores, store, run.names, {n: d.definition for n, d in known.items()}, taken)
    except SourceError as error:
        run.catalogue.update_source(
            source.source_id, fingerprint=None, complete=False, problem=error.without(store.name)
        )
        raise
    run.skipped[store.name] = plan.skipped
    refresh = source.fingerprint != print_of_store or again
    with run.connection.transaction():
        run.ledger.check_fence(run.fence)
        # Waits for an applier that is at work; none begins until the store is complete.
        set_position(run.connection, run.names, source.source_id, BEING_MIGRATED, 0, "")
        take_in(run, stores, store, source, plan, known, lambda _: refresh)
        run.catalogue.update_source(source.source_id, fingerprint=print_of_store, complete=False, problem=None)
        run.catalogue.describe_source(source.source_id, plan.description, plan.losses)
    return Work(store, source, print_of_store, run.catalogue.datasets(source.source_id), sequences_of(plan), log)


def sequences_of(plan: StorePlan) -> dict[str, int | None]:
    """Return SQLite's AUTOINCREMENT counters, by table."""
    return {table["name"]: table["sequence"] for table in plan.description.get("tables", ())}


def _log(stores: OpenStores, store: Store) -> Mark | None:
    if store.kind != "sqlite":
        return None
    state = stores.sqlite(store)[0].run(log_state)
    return None if state is None else Mark(state.log_id, state.last)


def take_in(
    run: Run,
    stores: OpenStores,
    store: Store,
    source: Source,
    plan: StorePlan,
    known: dict[str, Dataset],
    refresh: Callable[[Dataset], bool],
) -> None:
    """Make the catalogue, and the tables, those of the plan; `refresh` says which datasets are gone through again."""
    planned = {dataset.name for dataset in plan.datasets}
    for name, dataset in known.items():
        if name not in planned:
            remove_dataset(run.connection, run.names, dataset)
    for found in plan.datasets:
        old = known.get(found.name)
        if old is not None and not has_same_conversion(old, found):
            remove_dataset(run.connection, run.names, old)
            old = None
        if old is None:
            _add(run, stores, store, source, found)
        elif refresh(old):
            run.ledger.reopen_streams(old.dataset_id)
            run.catalogue.set_phase(old.dataset_id, "loading")
            if old.definition["mapping"] == "table":
                loosen(run.connection, old)
            elif "collection" in old.definition:
                _put_collection(run, store, old.dataset_id, found)


def _add(run: Run, stores: OpenStores, store: Store, source: Source, planned: PlannedDataset) -> None:
    dataset_id = run.catalogue.add_dataset(
        source.source_id, planned.name, planned.schema, planned.table, planned.definition
    )
    if planned.definition["mapping"] == "table":
        create_table(run.connection, planned.schema, planned.table, planned.definition)
    if "collection" in planned.definition:
        _put_collection(run, store, dataset_id, planned)
    reader = stores.reader(store, planned.definition)
    run.ledger.add_streams(dataset_id, _ranges(reader, run.options.jobs))
    run.catalogue.set_notes(dataset_id, planned.hazards)


def _put_collection(run: Run, store: Store, dataset_id: int, planned: PlannedDataset) -> None:
    drop_collection_structure(run.connection, run.names, dataset_id)
    run.catalogue.redefine(dataset_id, planned.definition)
    put_collection(run.connection, run.names, store, dataset_id, planned.definition)


def _ranges(reader: DatasetReader[Any], jobs: int) -> list[tuple[Key | None, Key | None]]:
    if not isinstance(reader, TableReader):
        return [(None, None)]
    streams = max(1, min(jobs, reader.count() // _ROWS_PER_STREAM))
    return list(reader.partitions(streams)) if streams > 1 else [(None, None)]
