"""The migration: every store into PostgreSQL, again and again until both sides are equal.

For each store: see whether it has changed since it was last complete; plan its datasets; copy the streams that are not
done; settle the counts; and look at the store again, because the application may have written meanwhile. Constraints
and indexes come when all stores are loaded. Everything that decides what is left to do is in the target, so that a run
that ends anywhere is continued by the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from iceburg.database.catalogue import Catalogue, Dataset, Source
from iceburg.database.connection import Target, check_server
from iceburg.database.schema import SchemaNames, apply_schema
from iceburg.errors import IceburgError, SourceError, TargetError
from iceburg.migration import statements
from iceburg.migration.indexes import (
    INDEXES,
    check_dimension,
    drop_collection_structure,
    has_trigrams,
    vector_index,
)
from iceburg.migration.ledger import Ledger
from iceburg.migration.plan import PlannedDataset, StorePlan, plan_store
from iceburg.migration.removal import remove_dataset
from iceburg.migration.report import DatasetReport, MigrationReport, Problem, Tally
from iceburg.migration.session import connect_writer
from iceburg.migration.structure import add_foreign_keys, complete_table, create_table, loosen
from iceburg.migration.tasks import IndexTask, SettleTask, StreamTask, run_index, run_settle, run_stream
from iceburg.migration.worker import Advance, Outcome, StoppedError, Workers
from iceburg.records import DatasetReader, Key, Store
from iceburg.sources.access import OpenStores
from iceburg.sources.fingerprint import fingerprint
from iceburg.sources.sqlite_rows import TableReader

# A store that changes faster than it can be gone through needs `migrate --live`, not more rounds.
_ROUNDS: Final = 3
# Below this, starting a second stream costs more than it gains.
_ROWS_PER_STREAM: Final = 50_000


@dataclass(frozen=True, slots=True)
class Options:
    """How a migration is done.

    Attributes
    ----------
    batch_size
        Rows a batch.
    jobs
        Worker processes.
    vector_index
        ``ivfflat``, ``hnsw`` or ``none``.
    recheck
        Go through stores that look unchanged, too.
    rewrite
        Write every record again, which mends a target that somebody has changed.
    moved
        The installation has been moved: take its new path.
    narrowed
        Whether `stores` is only a part of the installation, so that a store that is not in it need not be missing.
    """

    batch_size: int = 10_000
    jobs: int = 2
    vector_index: str = "ivfflat"
    recheck: bool = False
    rewrite: bool = False
    moved: bool = False
    narrowed: bool = False


class Listener(Protocol):
    """What is told of a migration's progress."""

    def phase(self, text: str) -> None:
        """Hear what is done now."""
        ...

    def expect(self, dataset: str, rows: int, done: int) -> None:
        """Hear how many records a dataset has, and how many of them are done already."""
        ...

    def advance(self, event: Advance) -> None:
        """Hear how far a dataset is."""
        ...


@dataclass(slots=True)
class _Work:
    """A store that is being migrated."""

    store: Store
    source: Source
    fingerprint: str
    datasets: list[Dataset]
    sequences: dict[str, int | None]


class Migrator:
    """One run of the migration.

    Parameters
    ----------
    target
        The PostgreSQL.
    data_dir
        The installation.
    stores
        What was found in it.
    names
        Of the target's schemas.
    options
        How.
    listener
        Told of progress.
    stopping
        Asked between batches whether to stop.
    """

    def __init__(
        self,
        target: Target,
        data_dir: Path,
        stores: Sequence[Store],
        names: SchemaNames,
        options: Options,
        listener: Listener,
        stopping: Callable[[], bool],
    ) -> None:
        self._target = target
        self._data_dir = data_dir
        self._stores = stores
        self._names = names
        self._options = options
        self._listener = listener
        self._stopping = stopping
        self._problems: dict[str, str] = {}
        self._tally = Tally()
        self._missing: list[Problem] = []
        self._skipped: dict[str, tuple[str, ...]] = {}

    def run(self) -> MigrationReport:
        """Migrate.

        Raises
        ------
        TargetError
            The target cannot be used; what was committed stays.
        """
        started = time.monotonic()
        self._listener.phase(f"target: {self._target.description}")
        with connect_writer(self._target.dsn) as connection, OpenStores() as stores:
            check_server(connection, schema=self._names.data)
            apply_schema(connection, self._names)
            self._claim(connection)
            self._connection = connection
            self._catalogue = Catalogue(connection, self._names)
            self._ledger = Ledger(connection, self._names)
            self._fence = self._ledger.take_over()
            run_id = self._ledger.start_run("migrate")
            interrupted = False
            try:
                self._find_missing()
                work = self._prepare_all(stores)
                unchanged = not work and not self._problems
                with Workers(
                    self._options.jobs,
                    self._target.dsn,
                    self._names,
                    stopping=self._stopping,
                    on_advance=self._listener.advance,
                ) as workers:
                    self._load(workers, stores, work)
                    self._complete(workers, work)
            except StoppedError:
                interrupted, unchanged = True, False
            except (IceburgError, psycopg.Error) as error:
                if not connection.closed:
                    self._ledger.finish_run(run_id, "failed", {"error": str(error)})
                raise
            report = self._report(run_id, time.monotonic() - started, unchanged=unchanged, interrupted=interrupted)
            # The session's commits are synchronous: this one makes durable all that the workers committed before.
            self._ledger.finish_run(run_id, "interrupted" if interrupted else report.status, report.to_json())
            return report

    def _claim(self, connection: psycopg.Connection) -> None:
        """Have the target belong to this installation, or refuse."""
        path = str(self._data_dir.resolve())
        with connection.transaction():
            row = connection.execute(self._names.format(statements.SELECT_INSTALLATION)).fetchone()
            if row is None:
                connection.execute(self._names.format(statements.INSERT_INSTALLATION), (path,))
            elif row[0] != path:
                if not self._options.moved:
                    raise TargetError(
                        f"It holds the installation {row[0]}, not {path}.",
                        where=f"schema {self._names.state}",
                        hint="Nothing was changed. Give another schema (`--schema NAME`) or another database; if it is"
                        " the same installation at a new place, add --moved.",
                    )
                connection.execute(self._names.format(statements.MOVE_INSTALLATION), (path,))

    def _find_missing(self) -> None:
        found = {store.name for store in self._stores}
        for source in self._catalogue.sources():
            if source.name not in found and not self._options.narrowed:
                self._missing.append(
                    Problem(
                        source.name,
                        "was migrated before and is not there now; its rows stay in PostgreSQL. Is a volume not"
                        " mounted? `iceburg-db migrate --forget NAME` removes what came from it.",
                    )
                )

    # Preparing

    def _prepare_all(self, stores: OpenStores) -> list[_Work]:
        work = []
        for store in self._stores:
            if self._stopping():
                raise StoppedError
            try:
                prepared = self._prepare(stores, store)
            except SourceError as error:
                self._fail(store.name, error.without(store.name))
            else:
                if prepared is not None:
                    work.append(prepared)
        return work

    def _fail(self, store: str, problem: str) -> None:
        self._problems[store] = problem
        self._listener.phase(f"{store}: {problem}")

    def _prepare(self, stores: OpenStores, store: Store, *, again: bool = False) -> _Work | None:
        """Plan a store's datasets and make their tables; None if there is nothing to do."""
        source = self._catalogue.source(store.name, store.kind)
        if store.problem is not None:
            self._catalogue.update_source(source.source_id, fingerprint=None, complete=False, problem=store.problem)
            raise SourceError(store.problem, where=store.name)
        print_of_store = fingerprint(store)
        unchanged = source.complete and source.fingerprint == print_of_store
        again = again or self._options.recheck or self._options.rewrite
        if unchanged and not again:
            return None
        self._listener.phase(f"{store.name}: looking at what it holds")
        known = {dataset.name: dataset for dataset in self._catalogue.datasets(source.source_id)}
        taken = {d.target_schema for d in self._catalogue.datasets() if d.source_id != source.source_id}
        taken |= self._foreign_schemas()
        try:
            plan = plan_store(stores, store, self._names, {n: d.definition for n, d in known.items()}, taken)
        except SourceError as error:
            self._catalogue.update_source(
                source.source_id, fingerprint=None, complete=False, problem=error.without(store.name)
            )
            raise
        self._skipped[store.name] = plan.skipped
        refresh = source.fingerprint != print_of_store or again
        with self._connection.transaction():
            self._ledger.check_fence(self._fence)
            self._take_in(stores, store, source, plan, known, refresh=refresh)
            self._catalogue.update_source(source.source_id, fingerprint=print_of_store, complete=False, problem=None)
            self._catalogue.describe_source(source.source_id, plan.description, plan.losses)
        sequences = {table["name"]: table["sequence"] for table in plan.description.get("tables", ())}
        return _Work(store, source, print_of_store, self._catalogue.datasets(source.source_id), sequences)

    def _foreign_schemas(self) -> set[str]:
        """Return the schemas of the database that are not ours: no file's tables may go there.

        One that is empty may be what is left of a store that was forgotten.
        """
        ours = {dataset.target_schema for dataset in self._catalogue.datasets()}
        rows = self._connection.execute(statements.SELECT_TAKEN_SCHEMAS).fetchall()
        return {name for (name,) in rows} - ours | {self._names.data, self._names.state}

    def _take_in(
        self,
        stores: OpenStores,
        store: Store,
        source: Source,
        plan: StorePlan,
        known: dict[str, Dataset],
        *,
        refresh: bool,
    ) -> None:
        """Make the catalogue, and the tables, those of the plan."""
        planned = {dataset.name for dataset in plan.datasets}
        for name, dataset in known.items():
            if name not in planned:
                self._drop(dataset)
        for found in plan.datasets:
            old = known.get(found.name)
            if old is not None and not _same_conversion(old, found):
                self._drop(old)
                old = None
            if old is None:
                self._add(stores, store, source, found)
            elif refresh:
                self._ledger.reopen_streams(old.dataset_id)
                self._catalogue.set_phase(old.dataset_id, "loading")
                if old.definition["mapping"] == "table":
                    loosen(self._connection, old)
                elif old.definition["mapping"] == "embeddings":
                    self._put_collection(store, old.dataset_id, found)

    def _add(self, stores: OpenStores, store: Store, source: Source, planned: PlannedDataset) -> None:
        dataset_id = self._catalogue.add_dataset(
            source.source_id, planned.name, planned.schema, planned.table, planned.definition
        )
        if planned.definition["mapping"] == "table":
            create_table(self._connection, planned.schema, planned.table, planned.definition)
        if planned.definition["mapping"] == "embeddings":
            self._put_collection(store, dataset_id, planned)
        reader = stores.reader(store, planned.definition)
        self._ledger.add_streams(dataset_id, _ranges(reader, self._options.jobs))
        self._catalogue.set_notes(dataset_id, planned.hazards)

    def _put_collection(self, store: Store, dataset_id: int, planned: PlannedDataset) -> None:
        collection = planned.definition["collection"]
        drop_collection_structure(self._connection, self._names, dataset_id)
        self._catalogue.redefine(dataset_id, planned.definition)
        self._connection.execute(
            self._names.format(statements.UPSERT_COLLECTION),
            {
                "collection_id": dataset_id,
                "store": store.name,
                "tenant": collection["tenant"],
                "database": collection["database"],
                "name": collection["name"],
                "dimension": collection["dimension"],
                "distance": collection["distance"],
                "definition": Jsonb(collection),
            },
        )

    def _drop(self, dataset: Dataset) -> None:
        """Remove a dataset that the source has no more, or has in another shape."""
        remove_dataset(self._connection, self._names, dataset)

    # Loading

    def _load(self, workers: Workers, stores: OpenStores, work: list[_Work]) -> None:
        pending = list(work)
        for _ in range(_ROUNDS):
            self._expect(stores, pending)
            self._copy(workers, pending)
            self._settle(workers, pending)
            changed = [item for item in pending if item.store.name not in self._problems and self._has_changed(item)]
            if not changed:
                return
            pending = []
            for item in changed:
                self._listener.phase(f"{item.store.name}: it was written to meanwhile, bringing it up to date")
                stores.close()
                try:
                    fresh = self._prepare(stores, item.store, again=True)
                except SourceError as error:
                    self._fail(item.store.name, error.without(item.store.name))
                    continue
                if fresh is not None:
                    work[work.index(item)] = fresh
                    pending.append(fresh)
        for item in pending:
            self._fail(
                item.store.name,
                "it is being written to; what was read is in PostgreSQL. Run migrate again when the application rests.",
            )

    def _has_changed(self, item: _Work) -> bool:
        try:
            return fingerprint(item.store) != item.fingerprint
        except (SourceError, OSError) as error:
            self._fail(item.store.name, str(error))
            return False

    def _expect(self, stores: OpenStores, pending: list[_Work]) -> None:
        done = self._ledger.progress()
        for item in pending:
            for dataset in item.datasets:
                streams = self._ledger.streams(dataset.dataset_id)
                if all(stream.done for stream in streams):
                    continue
                again = any(stream.refreshing for stream in streams)
                try:
                    rows = stores.reader(item.store, dataset.definition).count()
                except SourceError as error:
                    self._fail(item.store.name, error.without(item.store.name))
                    break
                self._listener.expect(dataset.name, rows, 0 if again else done.get(dataset.dataset_id, (0, 0))[0])

    def _copy(self, workers: Workers, pending: list[_Work]) -> None:
        tasks = [
            StreamTask(
                item.store,
                item.fingerprint,
                dataset,
                stream,
                self._fence,
                self._options.batch_size,
                self._options.rewrite,
            )
            for item in pending
            if item.store.name not in self._problems
            for dataset in item.datasets
            for stream in self._ledger.streams(dataset.dataset_id)
            if not stream.done
        ]
        for outcome in workers.run(run_stream, tasks):
            self._take(outcome)

    def _take(self, outcome: Outcome[StreamTask] | Outcome[SettleTask]) -> None:
        """Account for a task; a source's error is the source's, any other ends the run."""
        if isinstance(outcome.error, SourceError):
            self._fail(outcome.task.store.name, outcome.error.without(outcome.task.store.name))
        elif outcome.error is not None:
            raise outcome.error
        else:
            self._tally.add(outcome.task.dataset.dataset_id, outcome.result.rows, outcome.result.seconds)

    def _settle(self, workers: Workers, pending: list[_Work]) -> None:
        tasks = [
            SettleTask(item.store, item.fingerprint, dataset, self._fence)
            for item in pending
            if item.store.name not in self._problems
            for dataset in self._catalogue.datasets(item.source.source_id)
            if dataset.phase == "loading"
        ]
        for outcome in workers.run(run_settle, tasks):
            self._take(outcome)

    # Completing

    def _complete(self, workers: Workers, work: list[_Work]) -> None:
        if not work:
            return
        self._listener.phase("constraints and indexes")
        for item in work:
            if item.store.name not in self._problems:
                self._complete_tables(item)
        self._make_indexes(workers, work)
        for table in ("conversations", "matrix_entities", "matrix_relationships", "embeddings", "telemetry"):
            self._connection.execute(self._names.format("ANALYZE {data}.{table}", table=sql.Identifier(table)))
        for item in work:
            if item.store.name in self._problems:
                continue
            with self._connection.transaction():
                self._ledger.check_fence(self._fence)
                for dataset in item.datasets:
                    self._catalogue.set_phase(dataset.dataset_id, "complete")
                self._catalogue.update_source(
                    item.source.source_id, fingerprint=item.fingerprint, complete=True, problem=None
                )

    def _complete_tables(self, item: _Work) -> None:
        datasets = self._catalogue.datasets(item.source.source_id)
        tables = [dataset for dataset in datasets if dataset.definition["mapping"] == "table"]
        notes = {}
        for dataset in tables:
            # A run that was killed here has left some of them.
            loosen(self._connection, dataset)
        for dataset in tables:
            notes[dataset.dataset_id] = complete_table(
                self._connection, dataset, item.sequences.get(dataset.definition["source_table"])
            )
        for dataset in tables:
            found = notes[dataset.dataset_id] + add_foreign_keys(self._connection, dataset, datasets)
            hazards = [note for note in dataset.notes if note not in found and not _is_of_structure(note)]
            self._catalogue.set_notes(dataset.dataset_id, hazards + found)

    def _make_indexes(self, workers: Workers, work: list[_Work]) -> None:
        trigrams = has_trigrams(self._connection)
        touched = {dataset.target_table for item in work for dataset in item.datasets}
        tasks = [
            IndexTask(plan.name, plan=plan)
            for plan in INDEXES
            if plan.table in touched and (trigrams or not plan.needs_trigrams)
        ]
        for item in work:
            if item.store.name in self._problems:
                continue
            for dataset in self._catalogue.datasets(item.source.source_id):
                if dataset.definition["mapping"] != "embeddings":
                    continue
                check_dimension(self._connection, self._names, dataset)
                statement, note = vector_index(
                    self._names, dataset, self._options.vector_index, dataset.target_rows or 0
                )
                if note is not None:
                    self._catalogue.set_notes(dataset.dataset_id, [note])
                if statement is not None:
                    tasks.append(IndexTask(f"vector index of {dataset.name}", statement=statement))
        for outcome in workers.run(run_index, tasks):
            if outcome.error is not None:
                raise outcome.error

    # Reporting

    def _report(self, run_id: int, seconds: float, *, unchanged: bool, interrupted: bool) -> MigrationReport:
        kept = self._ledger.kept_counts()
        names = {store.name for store in self._stores}
        datasets = tuple(
            DatasetReport(
                dataset=dataset.name,
                source=dataset.source,
                target=f"{dataset.target_schema}.{dataset.target_table}",
                source_rows=dataset.source_rows or 0,
                target_rows=dataset.target_rows or 0,
                quarantined_rows=kept[dataset.dataset_id][1],
                preserved_originals=kept[dataset.dataset_id][0],
                copied_rows=self._tally.copied.get(dataset.dataset_id, 0),
                bytes=dataset.bytes,
                seconds=round(self._tally.seconds.get(dataset.dataset_id, 0.0), 3),
                notes=tuple(dataset.notes),
            )
            for dataset in self._catalogue.datasets()
            if dataset.source in names
        )
        problems = tuple(Problem(store, problem) for store, problem in self._problems.items()) + tuple(self._missing)
        uneven = tuple(
            Problem(
                d.source,
                f"{d.dataset}: {d.source_rows} records, but {d.target_rows} rows and {d.quarantined_rows} quarantined"
                " records: PostgreSQL was changed. `iceburg-db migrate --rewrite` writes them again.",
            )
            for d in datasets
            if d.source_rows != d.target_rows + d.quarantined_rows and d.source not in self._problems
        )
        reported = {dataset.dataset for dataset in datasets}
        complete = not (problems or interrupted or uneven)
        return MigrationReport(
            run_id=run_id,
            status="complete" if complete else "incomplete",
            seconds=round(seconds, 3),
            datasets=datasets,
            problems=problems + (() if interrupted else uneven),
            kept=tuple(entry for entry in self._ledger.reasons() if entry["dataset"] in reported),
            skipped=tuple({"source": store, "what": what} for store, found in self._skipped.items() for what in found),
            losses=tuple(self._losses()),
            unchanged=unchanged,
            interrupted=interrupted,
        )

    def _losses(self) -> list[dict[str, object]]:
        names = {store.name for store in self._stores}
        of_stores = [
            {"dataset": source.name, **loss}
            for source in self._catalogue.sources()
            if source.name in names
            for loss in source.losses
        ]
        of_datasets = [
            {"dataset": dataset.name, **loss}
            for dataset in self._catalogue.datasets()
            if dataset.source in names
            for loss in dataset.losses
        ]
        return of_stores + of_datasets


def _is_of_structure(note: str) -> bool:
    """Whether a note comes from completing a table, and so is found anew each time."""
    return "carried over" in note or "NOT VALID" in note or note.startswith("generated columns")


def _same_conversion(old: Dataset, planned: PlannedDataset) -> bool:
    """Whether a dataset's rows are as the plan would make them; a collection may change all but its identity."""
    if (old.target_schema, old.target_table) != (planned.schema, planned.table):
        return False
    if old.definition["mapping"] == planned.definition["mapping"] == "embeddings":
        return bool(old.definition["collection"]["id"] == planned.definition["collection"]["id"])
    return old.definition == planned.definition


def _ranges(reader: DatasetReader[Any], jobs: int) -> list[tuple[Key | None, Key | None]]:
    if not isinstance(reader, TableReader):
        return [(None, None)]
    streams = max(1, min(jobs, reader.count() // _ROWS_PER_STREAM))
    return list(reader.partitions(streams)) if streams > 1 else [(None, None)]
