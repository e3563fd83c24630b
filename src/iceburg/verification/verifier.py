"""The verification: counts, and every record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import psycopg

from iceburg.database.catalogue import Catalogue, Dataset
from iceburg.database.connection import Target, connect
from iceburg.database.schema import SchemaNames, check_schema
from iceburg.errors import SourceError
from iceburg.migration import statements
from iceburg.migration.ledger import Ledger
from iceburg.migration.run import Listener
from iceburg.migration.worker import StoppedError, Workers
from iceburg.records import Key, Store
from iceburg.sources.access import OpenStores
from iceburg.verification.records import CompareTask, SurplusTask, run_compare, run_surplus
from iceburg.verification.report import DatasetVerification, Findings, RecordDifference, VerificationReport
from iceburg.verification.unowned import unowned_rows


class Verifier:
    """One verification.

    Parameters
    ----------
    target, stores, names
        As for the migration.
    jobs
        Worker processes.
    limit
        Differences listed for each dataset; all are counted.
    sample
        Records compared of each dataset; None for all.
    narrowed
        Whether `stores` is only a part of the installation.
    listener
        Told of progress.
    stopping
        Asked between batches whether to stop.
    """

    def __init__(
        self,
        target: Target,
        stores: Sequence[Store],
        names: SchemaNames,
        *,
        jobs: int,
        limit: int,
        sample: int | None,
        narrowed: bool,
        listener: Listener,
        stopping: Callable[[], bool],
    ) -> None:
        self._target = target
        self._stores = {store.name: store for store in stores}
        self._names = names
        self._jobs = jobs
        self._limit = limit
        self._sample = sample
        self._narrowed = narrowed
        self._listener = listener
        self._stopping = stopping
        self._problems: dict[str, str] = {}
        self._findings: dict[int, Findings] = {}

    def run(self) -> VerificationReport:
        """Verify.

        Raises
        ------
        TargetError
            The target cannot be used, or nothing has been migrated to it.
        StoppedError
            It was asked to stop.
        """
        started = time.monotonic()
        self._listener.phase(f"target: {self._target.description}")
        with connect(self._target.dsn, autocommit=True) as connection:
            check_schema(connection, self._names)
            self._ledger = Ledger(connection, self._names)
            self._catalogue = Catalogue(connection, self._names)
            run_id = self._ledger.start_run("verify")
            try:
                report = self._verify(connection, run_id, started)
            except BaseException as error:
                if not connection.closed:
                    ended = "interrupted" if isinstance(error, StoppedError) else "failed"
                    self._ledger.finish_run(run_id, ended, {"error": str(error)})
                raise
            for dataset in report.datasets:
                connection.execute(
                    self._names.format(statements.INSERT_VERIFICATION),
                    {
                        "run_id": run_id,
                        "dataset": dataset.dataset,
                        "source_rows": dataset.source_rows,
                        "target_rows": dataset.target_rows,
                        "quarantined_rows": dataset.quarantined_rows,
                        "compared_rows": dataset.compared_rows,
                        "differences": dataset.differences,
                    },
                )
            found = {"problems": list(report.problems), "narrowed": self._narrowed, "sampled": report.sampled}
            self._ledger.finish_run(run_id, report.status, found)
            return report

    def _verify(self, connection: psycopg.Connection, run_id: int, started: float) -> VerificationReport:
        known = {source.name: source for source in self._catalogue.sources()}
        for name, store in self._stores.items():
            if store.problem is not None:
                self._problems[name] = store.problem
            elif name not in known:
                self._problems[name] = "is not in PostgreSQL: run `iceburg-db migrate`"
            elif known[name].problem is not None:
                self._problems[name] = f"was not migrated: {known[name].problem}"
        if not self._narrowed:
            for name in known:
                if name not in self._stores:
                    self._problems[name] = "is in PostgreSQL and not in the data directory"
        datasets = [d for d in self._catalogue.datasets() if d.source in self._stores and self._readable(d.source)]
        kept = self._ledger.kept_counts()
        counts = {dataset.dataset_id: dataset.target().count(connection) for dataset in datasets}
        self._findings = {dataset.dataset_id: Findings() for dataset in datasets}
        with OpenStores() as stores, self._workers() as workers:
            self._find_unmigrated(stores, datasets)
            self._compare(workers, datasets, kept)
            if self._sample is None:
                self._find_surplus(workers, datasets, counts, kept)
        results = tuple(
            DatasetVerification(
                dataset=dataset.name,
                source=dataset.source,
                source_rows=self._findings[dataset.dataset_id].source_rows,
                target_rows=counts[dataset.dataset_id],
                quarantined_rows=kept[dataset.dataset_id][1],
                compared_rows=self._findings[dataset.dataset_id].matched_rows
                + self._findings[dataset.dataset_id].quarantined,
                differences=self._findings[dataset.dataset_id].difference_count,
            )
            for dataset in datasets
        )
        differences = tuple(d for dataset in datasets for d in self._findings[dataset.dataset_id].differences)
        surplus = tuple(unowned_rows(connection, self._names))
        identical = not (differences or surplus or self._problems)
        return VerificationReport(
            run_id=run_id,
            status="identical" if identical else "different",
            seconds=round(time.monotonic() - started, 3),
            datasets=results,
            differences=differences + surplus,
            problems=tuple({"source": name, "problem": text} for name, text in self._problems.items()),
            sampled=self._sample is not None,
        )

    def _readable(self, store: str) -> bool:
        return self._stores[store].problem is None

    def _workers(self) -> Workers:
        return Workers(
            self._jobs,
            self._target.dsn,
            self._names,
            stopping=self._stopping,
            on_advance=self._listener.advance,
        )

    def _find_unmigrated(self, stores: OpenStores, datasets: list[Dataset]) -> None:
        """Note the tables and collections that the target does not know, and count what is compared."""
        migrated = {dataset.name for dataset in datasets}
        for name, store in self._stores.items():
            if name in self._problems:
                continue
            try:
                found = stores.dataset_names(store)
            except SourceError as error:
                self._problems[name] = error.without(name)
                continue
            missing = [dataset for dataset in found if dataset not in migrated]
            if missing:
                self._problems[name] = f"{', '.join(missing)}: not in PostgreSQL, run `iceburg-db migrate`"
        for dataset in datasets:
            if dataset.source_rows is not None:
                self._listener.expect(dataset.name, dataset.source_rows, 0)

    def _compare(self, workers: Workers, datasets: list[Dataset], kept: dict[int, tuple[int, int]]) -> None:
        tasks = [
            CompareTask(
                self._stores[dataset.source],
                dataset,
                after,
                upto,
                self._limit,
                None if self._sample is None else -(-self._sample // len(ranges)),
                keeps=any(kept[dataset.dataset_id]),
            )
            for dataset in datasets
            for ranges in [self._ranges(dataset)]
            for after, upto in ranges
        ]
        for outcome in workers.run(run_compare, tasks):
            dataset = outcome.task.dataset
            if isinstance(outcome.error, SourceError):
                self._problems[dataset.source] = outcome.error.without(dataset.source)
            elif outcome.error is not None:
                raise outcome.error
            else:
                self._findings[dataset.dataset_id].add(outcome.result, self._limit)

    def _ranges(self, dataset: Dataset) -> list[tuple[Key | None, Key | None]]:
        return [(stream.after, stream.upto) for stream in self._ledger.streams(dataset.dataset_id)]

    def _find_surplus(
        self,
        workers: Workers,
        datasets: list[Dataset],
        counts: dict[int, int],
        kept: dict[int, tuple[int, int]],
    ) -> None:
        """Find rows, and kept records, that no record of the source has."""
        tasks = []
        for dataset in datasets:
            if dataset.source in self._problems:
                continue
            findings = self._findings[dataset.dataset_id]
            if counts[dataset.dataset_id] != findings.matched_rows:
                tasks.append(SurplusTask(self._stores[dataset.source], dataset, self._limit))
            for what, expected, found in (
                ("originals", findings.originals, kept[dataset.dataset_id][0]),
                ("quarantined records", findings.quarantined, kept[dataset.dataset_id][1]),
            ):
                if expected != found:
                    findings.note(RecordDifference(dataset.name, "", f"({what})", expected, found), self._limit)
        for outcome in workers.run(run_surplus, tasks):
            if outcome.error is not None:
                raise outcome.error
            findings = self._findings[outcome.task.dataset.dataset_id]
            for difference in outcome.result:
                findings.note(difference, self._limit)
            surplus = counts[outcome.task.dataset.dataset_id] - findings.matched_rows
            findings.difference_count += max(0, surplus - len(outcome.result))
