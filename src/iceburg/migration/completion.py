"""Completing what is loaded: constraints, indexes, statistics; then a store counts as migrated."""

from __future__ import annotations

from collections.abc import Mapping

import psycopg
from psycopg import sql

from iceburg.database.catalogue import Catalogue
from iceburg.database.datasets import set_constraints_aside
from iceburg.database.indexes import INDEXES, check_dimension, has_trigrams
from iceburg.database.jsonl_applier import JsonlApplier
from iceburg.database.positions import Mark, drop_position, set_position
from iceburg.database.schema import PLAN_TABLES
from iceburg.database.structure import add_foreign_keys, complete_table, loosen
from iceburg.migration.build_progress import watching_builds
from iceburg.migration.keys import end_load
from iceburg.migration.run import Run, Work
from iceburg.migration.tasks import IndexTask, run_index
from iceburg.migration.vector_indexing import make_vector_indexes, plan_vector_indexes
from iceburg.migration.worker import Workers


def complete_stores(run: Run, workers: Workers, work: list[Work]) -> None:
    if not work:
        return
    run.listener.phase("constraints and indexes")
    for item in work:
        if item.store.name not in run.problems:
            # What is followed has its constraints set aside: see `set_constraints_aside`.
            complete_tables(
                run.connection, run.catalogue, item.source.source_id, item.sequences, constraints=item.copied is None
            )
    _make_indexes(run, workers, work)
    end_load(run)
    for item in work:
        if item.store.name in run.problems:
            continue
        with run.connection.transaction():
            run.ledger.check_fence(run.fence)
            for dataset in item.datasets:
                run.catalogue.set_phase(dataset.dataset_id, "complete")
            run.catalogue.update_source(
                item.source.source_id, fingerprint=item.fingerprint, complete=True, problem=None
            )
            if item.copied is not None and item.store.kind == "jsonl":
                mark = Mark(item.copied.log_id, item.copied.position)
                JsonlApplier(item.store, run.names).begin_after_copy(run.connection, item.source.source_id, mark)
            elif item.copied is not None:
                continue  # to be caught up with before it counts
            elif item.log is None:
                drop_position(run.connection, run.names, item.source.source_id)
            else:
                set_constraints_aside(run.connection, run.catalogue, item.source.source_id)
                log = item.log
                set_position(run.connection, run.names, item.source.source_id, log.log_id, log.position, "")


def complete_tables(
    connection: psycopg.Connection,
    catalogue: Catalogue,
    source_id: int,
    sequences: Mapping[str, int | None],
    *,
    constraints: bool,
) -> None:
    """Make what the tables of a source lack that are migrated one to one, and note what could not be carried over.

    Parameters
    ----------
    connection, catalogue, source_id
        Which tables.
    sequences
        SQLite's AUTOINCREMENT counters, by table.
    constraints
        Whether unique constraints and foreign keys are made, too.
    """
    datasets = catalogue.datasets(source_id)
    tables = [dataset for dataset in datasets if dataset.definition["mapping"] == "table"]
    notes = {}
    for dataset in tables:
        # A run that was killed here has left some of them.
        loosen(connection, dataset)
    for dataset in tables:
        sequence = sequences.get(dataset.definition["source_table"])
        notes[dataset.dataset_id] = complete_table(connection, dataset, sequence, unique=constraints)
    for dataset in tables:
        found = notes[dataset.dataset_id]
        if constraints:
            found = found + add_foreign_keys(connection, dataset, datasets)
        hazards = [note for note in dataset.notes if note not in found and not _is_of_structure(note)]
        catalogue.set_notes(dataset.dataset_id, hazards + found)


def _make_indexes(run: Run, workers: Workers, work: list[Work]) -> None:
    trigrams = has_trigrams(run.connection)
    touched = {dataset.target_table for item in work for dataset in item.datasets}
    tasks = [
        IndexTask(plan.name, plan=plan)
        # The slowest first: the others fit beside it.
        for plan in sorted(INDEXES, key=lambda plan: not plan.needs_trigrams)
        if plan.table in touched and (trigrams or not plan.needs_trigrams)
    ]
    collections = []
    for item in work:
        if item.store.name in run.problems:
            continue
        for dataset in run.catalogue.datasets(item.source.source_id):
            if "collection" not in dataset.definition:
                continue
            check_dimension(run.connection, run.names, dataset)
            collections.append(dataset)
    analyses = [
        # VACUUM, because what an index alone can answer is answered from the table until it was there once.
        IndexTask(
            f"statistics of {table}", statement=run.names.format("VACUUM (ANALYZE) {data}.{t}", t=sql.Identifier(table))
        )
        for table in PLAN_TABLES
        if table in touched
    ]
    with watching_builds(run.connection, run.listener):
        _run_all(workers, tasks)
    make_vector_indexes(run, workers, plan_vector_indexes(run, collections, anew=True))
    _run_all(workers, analyses)


def _run_all(workers: Workers, tasks: list[IndexTask]) -> None:
    for outcome in workers.run(run_index, tasks):
        if outcome.error is not None:
            raise outcome.error


def _is_of_structure(note: str) -> bool:
    """Whether a note comes from completing a table, and so is found anew each time."""
    return "carried over" in note or "NOT VALID" in note or note.startswith("generated columns")
