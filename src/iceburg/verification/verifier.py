"""The verification: counts, every record, answers and structure; and mending what it finds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, LiteralString

from iceburg.database.catalogue import Catalogue, Dataset
from iceburg.database.connection import Target, connect
from iceburg.database.schema import SchemaNames, check_schema
from iceburg.errors import SourceError
from iceburg.migration import statements
from iceburg.migration.ledger import Ledger
from iceburg.migration.run import Listener
from iceburg.migration.worker import StoppedError, Workers
from iceburg.records import Store
from iceburg.sources.access import OpenStores
from iceburg.verification.comparing import RecordComparison, count_rows
from iceburg.verification.inspecting import (
    Structure,
    ask_questions,
    check_collections,
    check_definitions,
    check_soundness,
    check_structure,
    measure_recall,
)
from iceburg.verification.mending import mend, refuse_followed
from iceburg.verification.report import (
    DatasetVerification,
    Findings,
    RecordDifference,
    StructureVerification,
    VerificationReport,
)
from iceburg.verification.scope import Options, Scope
from iceburg.verification.soundness import Soundness
from iceburg.verification.unowned import unowned_rows

_FOLLOWED: Final[LiteralString] = "SELECT source_id, name FROM {state}.sources JOIN {state}.positions USING (source_id)"


@dataclass(frozen=True, slots=True)
class _Damage:
    """What can be mended: the structure, the datasets with differences, and the indexes that are not sound."""

    structure: Structure
    datasets: tuple[Dataset, ...]
    unsound: tuple[tuple[str, str, str], ...]


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
    recheck, repair, seed
        See `iceburg.verification.scope.Options`.
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
        recheck: bool = False,
        repair: bool = False,
        seed: int = 0,
    ) -> None:
        self._target = target
        self._stores = {store.name: store for store in stores}
        self._names = names
        self._options = Options(jobs, limit, sample, recheck, repair, seed, narrowed)
        self._listener = listener
        self._stopping = stopping

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
            ledger = Ledger(connection, self._names)
            followed = {name: number for number, name in connection.execute(self._names.format(_FOLLOWED))}
            if self._options.repair:
                refuse_followed(followed, self._stores)
            run_id = ledger.start_run("verify")
            try:
                with self._workers() as workers:
                    scope = Scope(
                        connection,
                        self._names,
                        Catalogue(connection, self._names),
                        ledger,
                        run_id,
                        self._stores,
                        workers,
                        self._listener,
                        self._options,
                        followed=followed,
                    )
                    report, damage = self._verify(scope, started)
                    if self._options.repair and report.status == "different":
                        repairs = mend(scope, damage.structure, damage.datasets, damage.unsound)
                        again = replace(scope, problems={}, notes={}, findings={})
                        self._listener.phase("verifying again")
                        report = replace(self._verify(again, started)[0], repairs=tuple(repairs))
            except BaseException as error:
                if not connection.closed:
                    ended = "interrupted" if isinstance(error, StoppedError) else "failed"
                    ledger.finish_run(run_id, ended, {"error": str(error)})
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
            narrowed = self._options.narrowed
            found = {"problems": list(report.problems), "narrowed": narrowed, "sampled": report.sampled}
            ledger.finish_run(run_id, report.status, found)
            return report

    def _workers(self) -> Workers:
        return Workers(
            self._options.jobs,
            self._target.dsn,
            self._names,
            stopping=self._stopping,
            on_advance=self._listener.advance,
        )

    def _verify(self, scope: Scope, started: float) -> tuple[VerificationReport, _Damage]:
        self._look_at_stores(scope)
        datasets = [d for d in scope.catalogue.datasets() if scope.can_read(d)]
        for dataset in datasets:
            scope.of(dataset)
        kept = scope.ledger.kept_counts()
        with OpenStores() as stores:
            self._find_unmigrated(scope, stores, datasets)
            structure = check_structure(scope, stores, datasets)
            definitions, unusable = check_definitions(scope, stores, datasets)
            definitions += check_collections(scope, structure)
            usable = [d for d in datasets if d.dataset_id not in structure.unusable | unusable]
            for dataset in datasets:
                if dataset.dataset_id in structure.unusable and dataset.source_rows != 0:
                    scope.of(dataset).note(_nothing_to_compare(dataset), scope.options.limit)
            comparison = RecordComparison(scope, stores)
            comparison.run(usable, kept)
            counts = dict.fromkeys((d.dataset_id for d in datasets), 0) | count_rows(scope, usable)
            if scope.options.sample is None:
                comparison.find_surplus(usable, counts)
            comparison.save_proofs(usable)
        whole = [dataset for dataset in usable if comparison.is_whole(dataset)]
        soundness, recall = Soundness(why_not="is not asked with a sample"), []
        if scope.options.sample is None:
            soundness = check_soundness(scope, structure)
            recall = measure_recall(scope, whole, counts, structure)
        answered = ask_questions(scope, whole, kept, self._target.dsn)
        records = [d for dataset in datasets for d in scope.of(dataset).differences]
        differences = [*(finding.difference for finding in structure.findings), *soundness.differences, *definitions]
        differences += [*records, *unowned_rows(scope.connection, scope.names, structure.missing_tables())]
        problems = scope.all_problems()
        is_same = all(query.identical for query in answered.queries)
        report = VerificationReport(
            run_id=scope.run_id,
            status="identical" if is_same and not (differences or problems) else "different",
            seconds=round(time.monotonic() - started, 3),
            datasets=tuple(_result(dataset, scope.of(dataset), counts, kept) for dataset in datasets),
            differences=tuple(differences),
            problems=tuple({"source": name, "problem": text} for name, text in problems.items()),
            queries=tuple(answered.queries),
            not_asked=tuple(answered.not_asked),
            recall=tuple(recall),
            structure=StructureVerification(len(structure.expectations), soundness.checked, soundness.why_not),
            sampled=scope.options.sample is not None,
            seed=scope.options.seed,
        )
        wrong = tuple(dataset for dataset in whole if scope.of(dataset).difference_count)
        return report, _Damage(structure, wrong, soundness.unsound)

    def _look_at_stores(self, scope: Scope) -> None:
        """Note the stores that cannot be verified."""
        known = {source.name: source for source in scope.catalogue.sources()}
        for name, store in scope.stores.items():
            if store.problem is not None:
                scope.problems[name] = store.problem
            elif name not in known:
                scope.problems[name] = "is not in PostgreSQL: run `iceburg-db migrate`"
            elif known[name].problem is not None:
                scope.problems[name] = f"was not migrated: {known[name].problem}"
        if not scope.options.narrowed:
            for name in known:
                if name not in scope.stores:
                    scope.problems[name] = "is in PostgreSQL and not in the data directory"

    def _find_unmigrated(self, scope: Scope, stores: OpenStores, datasets: list[Dataset]) -> None:
        """Note the tables and collections that the target does not know, and say how much is compared."""
        migrated = {dataset.name for dataset in datasets}
        for name, store in scope.stores.items():
            if name in scope.problems:
                continue
            try:
                found = stores.dataset_names(store)
            except SourceError as error:
                scope.problems[name] = error.without(name)
                continue
            missing = [dataset for dataset in found if dataset not in migrated]
            if missing:
                scope.note_problem(name, f"{', '.join(missing)}: not in PostgreSQL, run `iceburg-db migrate`")
        for dataset in datasets:
            if dataset.source_rows is not None:
                scope.listener.expect(dataset.name, dataset.source_rows, 0)


def _nothing_to_compare(dataset: Dataset) -> RecordDifference:
    """Return the difference of a dataset whose table, or a column of it, is gone: no record of it can come back."""
    records = "its records" if dataset.source_rows is None else f"{dataset.source_rows:,} records"
    return RecordDifference(dataset.name, "", "(records)", records, "no rows that they could be made of")


def _result(
    dataset: Dataset, findings: Findings, counts: dict[int, int], kept: dict[int, tuple[int, int]]
) -> DatasetVerification:
    return DatasetVerification(
        dataset=dataset.name,
        source=dataset.source,
        source_rows=findings.source_rows,
        target_rows=counts[dataset.dataset_id],
        quarantined_rows=kept[dataset.dataset_id][1],
        compared_rows=findings.matched_rows + findings.quarantined,
        differences=findings.difference_count,
        unchanged_rows=findings.unchanged,
    )
