"""Making the vector indexes of collections after the load, and choosing how they are searched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import sql

from iceburg.database.catalogue import Dataset
from iceburg.database.vector_indexes import (
    VectorIndex,
    build_memory,
    drop_index,
    index_statement,
    plan_index,
    record_index,
    recorded_indexes,
)
from iceburg.database.vector_recall import RecallMeasurement
from iceburg.migration.build_progress import name_session, watching_builds
from iceburg.migration.run import Run
from iceburg.migration.worker import Context, Workers

_DEFAULT: Final = "ivfflat"


@dataclass(frozen=True, slots=True)
class VectorIndexTask:
    """Make the index of a collection of so many rows, and choose how it is searched."""

    dataset: Dataset
    index: VectorIndex
    rows: int


def plan_vector_indexes(run: Run, datasets: Iterable[Dataset], *, anew: bool) -> list[VectorIndexTask]:
    """Plan the indexes of collections: all of them `anew`, else those that are not of the kind that is asked for."""
    recorded = recorded_indexes(run.connection, run.names)
    tasks = []
    for dataset in datasets:
        if "collection" not in dataset.definition:
            continue
        old = recorded.get(dataset.dataset_id)
        kind = run.options.vector_index or (_DEFAULT if old is None else old.asked)
        index = plan_index(dataset, kind, dataset.target_rows or 0)
        asked = run.options.vector_index is not None
        if anew or (asked and (old is None or old.kind != index.kind)):
            run.catalogue.set_notes(dataset.dataset_id, [] if index.why is None else [index.why])
            tasks.append(VectorIndexTask(dataset, index, dataset.target_rows or 0))
    return tasks


def make_vector_indexes(run: Run, workers: Workers, tasks: list[VectorIndexTask]) -> None:
    """Make vector indexes.

    Raises
    ------
    TargetError
        PostgreSQL could not; what was made stays.
    """
    if not tasks:
        return
    with watching_builds(run.connection, run.listener):
        for outcome in workers.run(run_vector_index, tasks):
            if outcome.error is not None:
                raise outcome.error


def run_vector_index(context: Context, task: VectorIndexTask) -> VectorIndex:
    """Make one; the collection's others go when it is there."""
    context.stop_if_asked()
    connection, names, dataset = context.connection, context.names, task.dataset
    index = task.index
    statement = index_statement(names, dataset, index)
    if statement is not None:
        memory = f"{build_memory(dataset, index, task.rows)}MB"
        connection.execute(sql.SQL("SET maintenance_work_mem = {}").format(sql.Literal(memory)))
        name_session(connection, f"{index.kind} of {dataset.name}")
        try:
            connection.execute(statement)
        finally:
            _unname(connection)
        index = RecallMeasurement(connection, names, dataset, task.rows).tune(index)
    with connection.transaction():
        drop_index(connection, names, dataset.dataset_id, keep=index.kind)
        record_index(connection, names, dataset.dataset_id, index)
    return index


def _unname(connection: psycopg.Connection) -> None:
    if not connection.broken:
        name_session(connection, "")
