"""The tasks of a migration, as workers run them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from psycopg import sql

from iceburg.database.catalogue import Catalogue, Dataset
from iceburg.database.indexes import IndexPlan, make_index
from iceburg.database.losses import describe_losses
from iceburg.mappings.identity import key_text
from iceburg.migration.build_progress import name_session
from iceburg.migration.copy_stream import CopyStream
from iceburg.migration.keys import make_key
from iceburg.migration.ledger import Ledger, Stream
from iceburg.migration.worker import Advance, Context
from iceburg.records import Store
from iceburg.sources.access import ReportsLosses


@dataclass(frozen=True, slots=True)
class StreamTask:
    """Copy one stream of a dataset; `state` is the fingerprint of the store."""

    store: Store
    state: str
    dataset: Dataset
    stream: Stream
    fence: int
    batch_size: int
    rewrite: bool


@dataclass(frozen=True, slots=True)
class SettleTask:
    """Count a dataset whose streams are done, and remove what the source does not have any more."""

    store: Store
    state: str
    dataset: Dataset
    fence: int


@dataclass(frozen=True, slots=True)
class IndexTask:
    """Make one index."""

    what: str
    plan: IndexPlan | None = None
    statement: sql.Composed | None = None


@dataclass(frozen=True, slots=True)
class KeyTask:
    """Give a table its primary key."""

    table: str


@dataclass(frozen=True, slots=True)
class Done:
    """What a task did: rows written, and seconds it took."""

    rows: int
    seconds: float


def run_stream(context: Context, task: StreamTask) -> Done:
    """Copy a stream."""
    started = time.monotonic()

    def progress(seen: int, written: int) -> None:
        context.report(Advance(task.dataset.name, seen, written))
        context.wrote(written)

    stream = CopyStream(
        Ledger(context.connection, context.names),
        task.dataset,
        context.stores_at(task.store, task.state).reader(task.store, task.dataset.definition),
        task.stream,
        fence=task.fence,
        batch_size=task.batch_size,
        rewrite=task.rewrite,
        progress=progress,
        stop_if_asked=context.stop_if_asked,
    )
    return Done(stream.run(), time.monotonic() - started)


def run_settle(context: Context, task: SettleTask) -> Done:
    """Count a dataset on both sides; where the target has more, remove what is not in the source."""
    started = time.monotonic()
    ledger = Ledger(context.connection, context.names)
    catalogue = Catalogue(context.connection, context.names)
    dataset_id = task.dataset.dataset_id
    target = task.dataset.target()
    reader = context.stores_at(task.store, task.state).reader(task.store, task.dataset.definition)
    source_rows = reader.count()
    rows = target.count(context.connection)
    quarantined = ledger.kept_counts()[dataset_id][1]
    removed = 0
    if rows + quarantined > source_rows:
        removed = remove_gone(context, task)
        rows = target.count(context.connection)
    with context.connection.transaction():
        ledger.check_fence(task.fence)
        catalogue.set_counts(dataset_id, source_rows, rows)
        catalogue.set_phase(dataset_id, "loaded")
        if isinstance(reader, ReportsLosses):
            catalogue.set_losses(dataset_id, describe_losses(reader.losses()))
    return Done(removed, time.monotonic() - started)


def run_sweep(context: Context, task: SettleTask) -> Done:
    """Do for a dataset that is written to what settling does: remove what was gone before its log began.

    What has gone, come or moved since is in the log. The counts come later, as of one position.
    """
    started = time.monotonic()
    ledger = Ledger(context.connection, context.names)
    dataset_id = task.dataset.dataset_id
    removed = 0
    if dataset_id in ledger.stale(task.dataset.source_id):
        removed = remove_gone(context, task)
    catalogue = Catalogue(context.connection, context.names)
    reader = context.stores_at(task.store, task.state).reader(task.store, task.dataset.definition)
    rows = task.dataset.target().count(context.connection)
    with context.connection.transaction():
        ledger.check_fence(task.fence)
        ledger.mark_stale([dataset_id], stale=False)
        catalogue.set_counts(dataset_id, rows + ledger.kept_counts()[dataset_id][1], rows)
        catalogue.set_phase(dataset_id, "loaded")
        if isinstance(reader, ReportsLosses):
            catalogue.set_losses(dataset_id, describe_losses(reader.losses()))
    return Done(removed, time.monotonic() - started)


def remove_gone(context: Context, task: SettleTask) -> int:
    """Remove the rows, and what is kept, of records that the source does not have any more; return how many rows."""
    connection = context.connection
    ledger = Ledger(connection, context.names)
    mapping = task.dataset.mapping()
    target = task.dataset.target()
    kept = ledger.kept_keys(task.dataset.dataset_id)
    alive: set[str] = set()
    target.open_seen(connection)
    try:
        for batch in context.stores_at(task.store, task.state).reader(task.store, task.dataset.definition).batches():
            context.stop_if_asked()
            keys = [mapping.row_key(record) for record in batch.records]
            target.add_seen(connection, [key for key in keys if key is not None])
            if kept:
                alive.update(kept.intersection(key_text(mapping.key(record)) for record in batch.records))
        with connection.transaction():
            ledger.check_fence(task.fence)
            removed = target.delete_unseen(connection)
            ledger.forget_kept(task.dataset.dataset_id, sorted(kept - alive))

        return removed
    finally:
        target.close_seen(connection)


def run_key(context: Context, task: KeyTask) -> bool:
    """Give a table its primary key; return whether records were there twice."""
    _prepare_build(context)
    name_session(context.connection, f"key of {task.table}")
    moved = make_key(context.connection, context.names, task.table)
    name_session(context.connection, "")
    return moved


def run_index(context: Context, task: IndexTask) -> str | None:
    """Make an index."""
    _prepare_build(context)
    name_session(context.connection, task.what)
    if task.plan is not None:
        make_index(context.connection, context.names, task.plan)
    if task.statement is not None:
        context.connection.execute(task.statement)
    name_session(context.connection, "")
    return None


def _prepare_build(context: Context) -> None:
    context.stop_if_asked()
    # Set for the session of the worker: an index build is what this memory is for.
    context.connection.execute("SET maintenance_work_mem = '128MB'")
