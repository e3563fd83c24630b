"""The tasks of a rollback, as workers run them: writing a store's file, building a Chroma directory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from iceburg.database.catalogue import Dataset, Source
from iceburg.migration.chroma_export import ChromaExport
from iceburg.migration.chroma_restore import Built, build_directory
from iceburg.migration.jsonl_restore import restore_lines, target_lines
from iceburg.migration.output import create, explained, remove
from iceburg.migration.snapshot import seeing
from iceburg.migration.sqlite_restore import SqliteRestore, UnmakeableError, is_empty
from iceburg.migration.table_records import table_batches
from iceburg.migration.target_records import TargetRecords
from iceburg.migration.worker import Advance, Context
from iceburg.records import ChromaRecord, Store
from iceburg.sources.access import dataset_name

_STEP: Final = 2_000


@dataclass(frozen=True, slots=True)
class RestoreTask:
    """Write the file of a store; for a Chroma directory, its export.

    Attributes
    ----------
    source, datasets
        What the catalogue has of the store.
    snapshot
        Name of the state of the target to be read.
    partial
        Where; nothing is there.
    """

    source: Source
    datasets: tuple[Dataset, ...]
    snapshot: str
    partial: Path


@dataclass(frozen=True, slots=True)
class BuildTask:
    """Build a Chroma directory from its export."""

    store: str
    python: Path
    export: Path
    directory: Path


@dataclass(frozen=True, slots=True)
class CheckTask:
    """Compare a restored dataset with the target.

    Attributes
    ----------
    store
        The restored store.
    dataset
        Which.
    snapshot
        Name of the state of the target.
    export
        Of a Chroma directory: the file; then the records of the export are compared, and not those of a directory.
    limit
        How many differences to list.
    rows, originals, quarantined
        What the target has of the dataset.
    refused
        How many records of the dataset are in the export only, because chromadb does not take them.
    """

    store: Store
    dataset: Dataset
    snapshot: str
    export: Path | None
    limit: int
    rows: int
    originals: int
    quarantined: int
    refused: int = 0


@dataclass(slots=True)
class DatasetRestored:
    """What was written of a dataset: rows, quarantined records; and what could not be."""

    rows: int = 0
    quarantined: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, count: int, *, quarantined: bool) -> None:
        """Count records that were written."""
        if quarantined:
            self.quarantined += count
        else:
            self.rows += count


@dataclass(slots=True)
class StoreRestored:
    """What was written of a store, by the number of each dataset."""

    datasets: dict[int, DatasetRestored] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def run_restore(context: Context, task: RestoreTask) -> StoreRestored:
    """Write the file of a store."""
    write = {"sqlite": _restore_sqlite, "jsonl": _restore_jsonl, "chroma": _export_chroma}[task.source.kind]
    try:
        with explained(task.partial), seeing(context.connection, task.snapshot):
            return write(context, task)
    except UnmakeableError as error:
        # It costs no other store anything.
        remove(task.partial)
        return StoreRestored(problems=[f"is not restored: {error.without(task.source.name)}"])


def run_build(context: Context, task: BuildTask) -> Built:
    """Build a Chroma directory."""
    with explained(task.directory):
        return build_directory(
            task.python,
            task.export,
            task.directory,
            lambda count: context.report(Advance(f"{task.store} (chromadb)", count, count)),
            context.stop_if_asked,
        )


def _restore_sqlite(context: Context, task: RestoreTask) -> StoreRestored:
    found = StoreRestored()
    description = task.source.description or {}
    if is_empty(description):
        create(task.partial)
        return found
    if not description.get("schema_sql") and task.datasets:
        found.problems.append("its schema was not kept: run `iceburg-db migrate` with its file, then try again")
        return found
    store = Store("sqlite", task.partial, task.source.name)
    datasets = {dataset.definition["source_table"]: dataset for dataset in task.datasets}
    with SqliteRestore(task.partial, task.source.name, description) as restore:
        restore.make_tables()
        for table in restore.tables:
            dataset = datasets.get(table)
            if dataset is None:
                found.problems.append(f"{dataset_name(store, table)}: not in PostgreSQL, the table is empty")
                continue
            found.datasets[dataset.dataset_id] = _fill(context, restore, dataset)
        context.stop_if_asked()
        restore.finish()
        found.problems.extend(restore.notes)
    return found


def _fill(context: Context, restore: SqliteRestore, dataset: Dataset) -> DatasetRestored:
    """Write the records of a table."""
    write = restore.writer(dataset.definition)
    found = DatasetRestored()
    with TargetRecords(context.connection, context.names, dataset) as target:
        for batch in table_batches(dataset, target):
            context.stop_if_asked()
            write.write(batch.records)
            found.add(len(batch.records), quarantined=batch.quarantined)
            context.report(Advance(dataset.name, len(batch.records), len(batch.records)))
        _account(target, found)
    if write.refused:
        found.problems.append(f"{write.refused} rows are not in the file: {'; '.join(write.examples)}")
    return found


def _restore_jsonl(context: Context, task: RestoreTask) -> StoreRestored:
    found = StoreRestored()
    description = task.source.description or {}
    for dataset in task.datasets:
        of = found.datasets[dataset.dataset_id] = DatasetRestored()
        with TargetRecords(context.connection, context.names, dataset) as records:
            unsaid = 0
            for line in restore_lines(task.partial, target_lines(records), description):
                of.add(1, quarantined=line.whole)
                unsaid += 1
                if unsaid == _STEP:
                    context.stop_if_asked()
                    context.report(Advance(dataset.name, unsaid, unsaid))
                    unsaid = 0
            context.report(Advance(dataset.name, unsaid, unsaid))
            _account(records, of)
        if "end" not in description:
            of.notes.append(
                "blank lines, kinds of line ends and compression were not kept by the version that migrated"
            )
        elif description["blank"] is None or description["crlf"] is None:
            of.notes.append("its blank lines, or its kinds of line ends, were too many to be kept")
    return found


def _export_chroma(context: Context, task: RestoreTask) -> StoreRestored:
    found = StoreRestored()
    with ChromaExport(task.partial, task.source.name) as export:
        for dataset in task.datasets:
            export.add_collection(dataset.dataset_id, dataset.definition["collection"])
            of = found.datasets[dataset.dataset_id] = DatasetRestored()
            with TargetRecords(context.connection, context.names, dataset) as records:
                for batch in records.rows():
                    _export(context, export, dataset, of, [record for _, record in batch], quarantined=False)
                for kept in records.quarantined():
                    _export(context, export, dataset, of, kept, quarantined=True)
                _account(records, of)
    return found


def _export(
    context: Context,
    export: ChromaExport,
    dataset: Dataset,
    of: DatasetRestored,
    records: list[ChromaRecord],
    *,
    quarantined: bool,
) -> None:
    context.stop_if_asked()
    export.add_records(dataset.dataset_id, records)
    of.add(len(records), quarantined=quarantined)
    context.report(Advance(dataset.name, len(records), len(records)))


def _account(records: TargetRecords, of: DatasetRestored) -> None:
    if records.refused.count:
        examples = "; ".join(records.refused.examples[:3])
        of.problems.append(
            f"{records.refused.count} rows were changed by another program, so that no record can be made of them:"
            f" {examples}"
        )
    if records.unplaced:
        of.notes.append(f"{records.unplaced} rows had no number, and came last, with the next ones")
