"""Putting together what a migration reports when it is over."""

from __future__ import annotations

from collections.abc import Sequence

from iceburg.migration.report import DatasetReport, MigrationReport, Problem
from iceburg.migration.run import Run
from iceburg.records import Store


def build_report(
    run: Run,
    stores: Sequence[Store],
    missing: Sequence[Problem],
    run_id: int,
    seconds: float,
    *,
    unchanged: bool,
    interrupted: bool,
) -> MigrationReport:
    kept = run.ledger.kept_counts()
    names = {store.name for store in stores}
    datasets = tuple(
        DatasetReport(
            dataset=dataset.name,
            source=dataset.source,
            target=f"{dataset.target_schema}.{dataset.target_table}",
            source_rows=dataset.source_rows or 0,
            target_rows=dataset.target_rows or 0,
            quarantined_rows=kept[dataset.dataset_id][1],
            preserved_originals=kept[dataset.dataset_id][0],
            copied_rows=run.tally.copied.get(dataset.dataset_id, 0),
            bytes=dataset.bytes,
            seconds=round(run.tally.seconds.get(dataset.dataset_id, 0.0), 3),
            notes=tuple(dataset.notes),
        )
        for dataset in run.catalogue.datasets()
        if dataset.source in names
    )
    problems = tuple(Problem(store, problem) for store, problem in run.problems.items()) + tuple(missing)
    uneven = tuple(
        Problem(
            d.source,
            f"{d.dataset}: {d.source_rows} records, but {d.target_rows} rows and {d.quarantined_rows} quarantined"
            " records: PostgreSQL was changed. `iceburg-db migrate --rewrite` writes them again.",
        )
        for d in datasets
        if d.source_rows != d.target_rows + d.quarantined_rows and d.source not in run.problems
    )
    reported = {dataset.dataset for dataset in datasets}
    complete = not (problems or interrupted or uneven)
    return MigrationReport(
        run_id=run_id,
        status="complete" if complete else "incomplete",
        seconds=round(seconds, 3),
        datasets=datasets,
        problems=problems + (() if interrupted else uneven),
        kept=tuple(entry for entry in run.ledger.reasons() if entry["dataset"] in reported),
        skipped=tuple({"source": store, "what": what} for store, found in run.skipped.items() for what in found),
        losses=tuple(_losses(run, names)),
        unchanged=unchanged,
        interrupted=interrupted,
    )


def _losses(run: Run, names: set[str]) -> list[dict[str, object]]:
    of_stores = [
        {"dataset": source.name, **loss}
        for source in run.catalogue.sources()
        if source.name in names
        for loss in source.losses
    ]
    of_datasets = [
        {"dataset": dataset.name, **loss}
        for dataset in run.catalogue.datasets()
        if dataset.source in names
        for loss in dataset.losses
    ]
    return of_stores + of_datasets
