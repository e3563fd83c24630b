"""The migration: every store into PostgreSQL, again and again until both sides are equal.

For each store: see whether it has changed since it was last complete; plan its datasets; copy the streams that are not
done; settle the counts; and look at the store again, because the application may have written meanwhile. Constraints
and indexes come when all stores are loaded. Everything that decides what is left to do is in the target, so that a run
that ends anywhere is continued by the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import psycopg

from iceburg.database.bootstrap import claim_target
from iceburg.database.catalogue import Catalogue
from iceburg.database.connection import Target
from iceburg.database.phases import Phase, require_phase
from iceburg.database.schema import SchemaNames
from iceburg.errors import IceburgError, SourceError
from iceburg.migration.build_progress import watching_builds
from iceburg.migration.completion import complete_stores
from iceburg.migration.keys import defer_keys, keyless_tables
from iceburg.migration.ledger import Ledger
from iceburg.migration.preparation import prepare_store
from iceburg.migration.report import MigrationReport, Problem
from iceburg.migration.run import Listener, Options, Run, Work
from iceburg.migration.session import connect_writer
from iceburg.migration.summary import build_report
from iceburg.migration.tasks import KeyTask, SettleTask, StreamTask, run_key, run_settle, run_stream
from iceburg.migration.vector_indexing import make_vector_indexes, plan_vector_indexes
from iceburg.migration.worker import Outcome, StoppedError, Workers
from iceburg.records import Store
from iceburg.sources.access import OpenStores
from iceburg.sources.fingerprint import fingerprint

# A store that changes faster than it can be gone through needs `migrate --live`, not more rounds.
_ROUNDS: Final = 3


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
        self._missing: list[Problem] = []

    def run(self) -> MigrationReport:
        """Migrate.

        Raises
        ------
        TargetError
            The target cannot be used; what was committed stays.
        """
        started = time.monotonic()
        self._listener.phase(f"target: {self._target.description}")
        with connect_writer(self._target.dsn) as connection, self._open_stores() as stores:
            claim_target(connection, self._names, self._data_dir, moved=self._options.moved)
            ledger = Ledger(connection, self._names)
            self._run = Run(
                connection,
                self._names,
                Catalogue(connection, self._names),
                ledger,
                ledger.take_over(),
                self._options,
                self._listener,
            )
            self._begin()
            run_id = self._run.ledger.start_run("migrate")
            interrupted = False
            try:
                self._find_missing()
                work = self._prepare_all(stores)
                unchanged = not work and not self._run.problems
                with self._workers() as workers:
                    self._bring_over(workers, stores, work)
                    unchanged = not self._change_indexes(workers, work) and unchanged
            except StoppedError:
                interrupted, unchanged = True, False
            except (IceburgError, psycopg.Error) as error:
                if not connection.closed:
                    self._run.ledger.finish_run(run_id, "failed", {"error": str(error)})
                raise
            report = build_report(
                self._run,
                self._stores,
                self._missing,
                run_id,
                time.monotonic() - started,
                unchanged=unchanged,
                interrupted=interrupted,
            )
            # The session's commits are synchronous: this one makes durable all that the workers committed before.
            self._run.ledger.finish_run(run_id, "interrupted" if interrupted else report.status, report.to_json())
            return report

    def _change_indexes(self, workers: Workers, work: list[Work]) -> bool:
        """Give the collections of unchanged stores the index that is asked for; return whether any had another."""
        done = {item.source.source_id for item in work}
        wanted = {store.name for store in self._stores}
        datasets = [d for d in self._run.catalogue.datasets() if d.source_id not in done and d.source in wanted]
        tasks = plan_vector_indexes(self._run, [d for d in datasets if d.phase == "complete"], anew=False)
        if tasks:
            self._listener.phase("vector indexes")
            make_vector_indexes(self._run, workers, tasks)
        return bool(tasks)

    def _open_stores(self) -> OpenStores:
        return OpenStores()

    def _workers(self) -> Workers:
        return Workers(
            self._options.jobs,
            self._target.dsn,
            self._names,
            stopping=self._stopping,
            on_advance=self._listener.advance,
        )

    def _begin(self) -> None:
        """See that this kind of migration may be made of the installation as it is."""
        require_phase(
            self._run.connection,
            self._names,
            "migrate",
            Phase.EMBEDDED,
            hint="PostgreSQL is kept in step with its files: `iceburg-db migrate --live` brings it up to date.",
        )

    def _bring_over(self, workers: Workers, stores: OpenStores, work: list[Work]) -> None:
        self._load(workers, stores, work)
        complete_stores(self._run, workers, work)

    def _find_missing(self) -> None:
        found = {store.name for store in self._stores}
        for source in self._run.catalogue.sources():
            if source.name not in found and not self._options.narrowed:
                self._missing.append(
                    Problem(
                        source.name,
                        "was migrated before and is not there now; its rows stay in PostgreSQL. Is a volume not"
                        " mounted? `iceburg-db migrate --forget NAME` removes what came from it.",
                    )
                )

    def _prepare_all(self, stores: OpenStores) -> list[Work]:
        work = []
        for store in self._stores:
            if self._stopping():
                raise StoppedError
            try:
                prepared = prepare_store(self._run, stores, store)
            except SourceError as error:
                self._run.fail(store.name, error.without(store.name))
            else:
                if prepared is not None:
                    work.append(prepared)
        return work

    def _load(self, workers: Workers, stores: OpenStores, work: list[Work]) -> None:
        pending = list(work)
        defer_keys(self._run, work)
        if any(self._is_refreshing(item) for item in work):
            self._make_keys(workers)
        for _ in range(_ROUNDS):
            self._expect(stores, pending)
            self._copy(workers, pending)
            moved = self._make_keys(workers)
            self._settle(workers, pending)
            changed = [
                item
                for item in pending
                if item.store.name not in self._run.problems
                and (self._has_changed(item) or any(d.target_table in moved for d in item.datasets))
            ]
            if not changed:
                return
            pending = []
            for item in changed:
                self._listener.phase(f"{item.store.name}: it was written to meanwhile, bringing it up to date")
                stores.close()
                try:
                    fresh = prepare_store(self._run, stores, item.store, again=True)
                except SourceError as error:
                    self._run.fail(item.store.name, error.without(item.store.name))
                    continue
                if fresh is not None:
                    work[work.index(item)] = fresh
                    pending.append(fresh)
        for item in pending:
            self._run.fail(
                item.store.name,
                "it is being written to; what was read is in PostgreSQL. Run migrate again when the application rests.",
            )

    def _is_refreshing(self, item: Work) -> bool:
        """Whether rows of a store are to be written over, which takes their key."""
        return any(
            stream.refreshing for dataset in item.datasets for stream in self._run.ledger.streams(dataset.dataset_id)
        )

    def _make_keys(self, workers: Workers) -> set[str]:
        """Make the primary keys that are missing; return the tables whose records have to be read again."""
        tables = keyless_tables(self._run.connection, self._run.names)
        moved = set()
        with watching_builds(self._run.connection, self._listener):
            outcomes = list(workers.run(run_key, [KeyTask(table) for table in tables]))
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
            if outcome.result:
                moved.add(outcome.task.table)
                self._listener.phase(f"{outcome.task.table}: records moved while they were read; they are read again")
        return moved

    def _has_changed(self, item: Work) -> bool:
        try:
            return fingerprint(item.store) != item.fingerprint
        except (SourceError, OSError) as error:
            self._run.fail(item.store.name, str(error))
            return False

    def _expect(self, stores: OpenStores, pending: list[Work]) -> None:
        done = self._run.ledger.progress()
        for item in pending:
            for dataset in item.datasets:
                streams = self._run.ledger.streams(dataset.dataset_id)
                if all(stream.done for stream in streams):
                    continue
                again = any(stream.refreshing for stream in streams)
                try:
                    rows = stores.reader(item.store, dataset.definition).count()
                except SourceError as error:
                    self._run.fail(item.store.name, error.without(item.store.name))
                    break
                self._listener.expect(dataset.name, rows, 0 if again else done.get(dataset.dataset_id, (0, 0))[0])

    def _copy(self, workers: Workers, pending: list[Work]) -> None:
        tasks = [
            StreamTask(
                item.store,
                item.fingerprint,
                dataset,
                stream,
                self._run.fence,
                self._options.batch_size,
                self._options.rewrite,
            )
            for item in pending
            if item.store.name not in self._run.problems
            for dataset in item.datasets
            for stream in self._run.ledger.streams(dataset.dataset_id)
            if not stream.done
        ]
        for outcome in workers.run(run_stream, tasks):
            self._take(outcome)

    def _take(self, outcome: Outcome[StreamTask] | Outcome[SettleTask]) -> None:
        """Account for a task; a source's error is the source's, any other ends the run."""
        if isinstance(outcome.error, SourceError):
            self._run.fail(outcome.task.store.name, outcome.error.without(outcome.task.store.name))
        elif outcome.error is not None:
            raise outcome.error
        else:
            self._run.tally.add(outcome.task.dataset.dataset_id, outcome.result.rows, outcome.result.seconds)

    def _settle(self, workers: Workers, pending: list[Work]) -> None:
        tasks = [
            SettleTask(item.store, item.fingerprint, dataset, self._run.fence)
            for item in pending
            if item.store.name not in self._run.problems
            for dataset in self._run.catalogue.datasets(item.source.source_id)
            if dataset.phase == "loading"
        ]
        for outcome in workers.run(run_settle, tasks):
            self._take(outcome)
