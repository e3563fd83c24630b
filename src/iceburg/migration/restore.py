"""The way back: every store made anew below a directory, from one state of the target, and checked against it.

The target is only read, in one snapshot. Each store is a file of its own that appears when it is whole. A second run
leaves what is done, does the rest, and checks everything against the state that the target has then; what was done
before and is not of that state any more is made anew, so that all files are of one state when a run ends well.

Rejected: going on within a file where a killed run stopped, which would need the state of the target of then; and a
state of the target for each file, of which references between files may be broken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from iceburg.database.catalogue import Dataset, Source
from iceburg.database.connection import Target, connect
from iceburg.database.schema import SchemaNames
from iceburg.errors import UsageError
from iceburg.migration.chroma_restore import find_python
from iceburg.migration.output import Output, explained, open_output
from iceburg.migration.restore_plan import RestorePlan, Wanted, find_origin, plan_restore
from iceburg.migration.restore_report import Checked, DatasetRollback, Note, RollbackReport, StoreRollback
from iceburg.migration.restore_tasks import CheckTask, DatasetRestored
from iceburg.migration.restore_writer import RestoreWriter
from iceburg.migration.run import Listener
from iceburg.migration.snapshot import Snapshot, taken
from iceburg.migration.worker import Context, Workers

Check: TypeAlias = Callable[[Context, CheckTask], Checked]
_NO_CHROMADB = (
    "came back as {} only, because chromadb is not installed; install it (`pip install 'iceburg-database[chroma]'`), or"
    " name a Python that has it with --chroma-python, and run the same command again"
)


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """How a rollback is done.

    Attributes
    ----------
    jobs
        Worker processes.
    limit
        Differences listed for each dataset.
    python
        An interpreter that has chromadb; None for this one.
    chromadb
        Whether Chroma directories are made, beside their exports.
    wanted
        Which stores.
    """

    jobs: int = 2
    limit: int = 100
    python: Path | None = None
    chromadb: bool = True
    wanted: Wanted = field(default=lambda _source: True)


class Restorer:
    """One rollback into a directory.

    Parameters
    ----------
    target, names
        As for the migration.
    data_dir
        The installation, there or not.
    out_dir
        Where it is written.
    options
        How.
    listener
        Told of progress.
    stopping
        Asked between batches whether to stop.
    check
        Compares a restored dataset with the target, in a worker.
    """

    def __init__(
        self,
        target: Target,
        data_dir: Path,
        out_dir: Path,
        names: SchemaNames,
        options: RestoreOptions,
        listener: Listener,
        stopping: Callable[[], bool],
        check: Check,
    ) -> None:
        self._target = target
        self._data_dir = data_dir
        self._out_dir = out_dir
        self._names = names
        self._options = options
        self._listener = listener
        self._stopping = stopping
        self._check = check

    def run(self) -> RollbackReport:
        """Restore, and check.

        Raises
        ------
        UsageError
            The directory holds something else, or was changed.
        TargetError
            The target cannot be read, or holds another installation.
        SourceError
            The directory cannot be written.
        StoppedError
            It was asked to stop; what is done stays.
        """
        started = time.monotonic()
        self._listener.phase(f"target: {self._target.description}")
        self._refuse_inside()
        python = find_python(self._options.python) if self._options.python is not None else None
        with connect(self._target.dsn, autocommit=True) as connection, taken(connection) as snapshot:
            origin = find_origin(connection, self._names, self._data_dir)
            plan = plan_restore(connection, self._names, self._options.wanted)
            if python is None and self._options.chromadb and any(s.kind == "chroma" for s in plan.sources):
                python = find_python(None)
            with open_output(self._out_dir, origin) as output, explained(self._out_dir), self._workers() as workers:
                writer = RestoreWriter(output, plan, workers, snapshot.name, python, self._listener)
                writer.recover()
                checked = self._restore(output, plan, workers, writer, snapshot)
                report = self._report(output, plan, writer, checked, snapshot, started)
                if report.status == "complete":
                    output.note_complete()
                return report

    def _refuse_inside(self) -> None:
        """Refuse a directory within the installation, of which it would seem to be a part."""
        if self._out_dir.resolve().is_relative_to(self._data_dir.resolve()):
            raise UsageError(
                "It is in the installation, whose stores the new files would be taken for.",
                where=str(self._out_dir),
                hint="Give a directory beside it, or --in-place to bring the installation up to date.",
            )

    def _workers(self) -> Workers:
        return Workers(
            self._options.jobs,
            self._target.dsn,
            self._names,
            stopping=self._stopping,
            on_advance=self._listener.advance,
        )

    def _restore(
        self, output: Output, plan: RestorePlan, workers: Workers, writer: RestoreWriter, snapshot: Snapshot
    ) -> dict[tuple[str, bool], Checked]:
        """Write what is not there, and check everything; make anew what an earlier run wrote of another state."""
        kept = [source for source in plan.sources if writer.is_done(source)]
        complete = output.is_complete
        if len(kept) < len(plan.sources):
            self._listener.phase(f"writing to {output.root}")
        writer.write([source for source in plan.sources if source not in kept])
        checked = self._check_stores(plan, workers, writer, snapshot, plan.sources)
        outdated = [] if complete else [source for source in kept if _differs(plan, source, checked)]
        if outdated:
            names = ", ".join(source.name for source in outdated)
            self._listener.phase(f"PostgreSQL has changed since an earlier run wrote {names}: writing it anew")
            writer.write(outdated, again=True)
            checked |= self._check_stores(plan, workers, writer, snapshot, outdated)
        return checked

    def _check_stores(
        self,
        plan: RestorePlan,
        workers: Workers,
        writer: RestoreWriter,
        snapshot: Snapshot,
        sources: Sequence[Source],
    ) -> dict[tuple[str, bool], Checked]:
        """Compare what was written with the target: by the dataset's name, and whether it is that of a directory."""
        self._listener.phase("checking what was written")
        tasks = []
        for source in sources:
            built = writer.built(source)
            for place in writer.places(source):
                is_directory = place.kind == "chroma"
                if not writer.is_there(place):
                    continue
                for dataset in plan.datasets[source.name]:
                    self._listener.expect(dataset.name, plan.records(dataset), 0)
                    export = place.path if source.kind == "chroma" and not is_directory else None
                    refused = 0
                    if is_directory and built is not None:
                        refused = built.count_missing(dataset.dataset_id, plan.records(dataset))
                    tasks.append(
                        CheckTask(
                            place,
                            dataset,
                            snapshot.name,
                            export,
                            self._options.limit,
                            plan.rows[dataset.dataset_id],
                            plan.originals[dataset.dataset_id],
                            plan.quarantined[dataset.dataset_id],
                            refused,
                        )
                    )
        found: dict[tuple[str, bool], Checked] = {}
        for outcome in workers.run(self._check, tasks):
            if outcome.error is not None:
                raise outcome.error
            found[outcome.task.dataset.name, outcome.task.store.kind == "chroma"] = outcome.result
        return found

    def _report(
        self,
        output: Output,
        plan: RestorePlan,
        writer: RestoreWriter,
        checked: dict[tuple[str, bool], Checked],
        snapshot: Snapshot,
        started: float,
    ) -> RollbackReport:
        problems, notes = list(plan.problems), []
        stores = []
        for source in plan.sources:
            there = [place for place in writer.places(source) if writer.is_there(place)]
            built = writer.built(source)
            position = plan.positions[source.name]
            stores.append(
                StoreRollback(
                    source.name,
                    source.kind,
                    tuple(place.name for place in there),
                    "not restored" if not there else "written" if source.name in writer.written else "kept",
                    built.version if built is not None and built.is_whole else None,
                    None if position is None else position.position,
                )
            )
            restored = writer.restored.get(source.name)
            if restored is not None:
                problems += [Note(source.name, text) for text in restored.problems]
                for dataset in plan.datasets[source.name]:
                    found = restored.datasets.get(dataset.dataset_id, DatasetRestored())
                    problems += [Note(source.name, f"{dataset.name}: {text}") for text in found.problems]
                    notes += [Note(source.name, f"{dataset.name}: {text}") for text in found.notes]
            if source.kind == "chroma" and built is not None:
                notes += [Note(source.name, text) for text in built.notes]
                problems += [Note(source.name, text) for text in built.describe_problems()]
            elif source.kind == "chroma" and self._options.chromadb:
                problems.append(Note(source.name, _NO_CHROMADB.format(writer.export(source).name)))
        datasets = tuple(
            _dataset(plan, source, dataset, checked)
            for source in plan.sources
            for dataset in plan.datasets[source.name]
        )
        differences = tuple(entry for found in checked.values() for entry in found.listed)
        different = any(found.differences for found in checked.values())
        if output.is_complete and different:
            problems.append(Note("", "PostgreSQL has changed since this rollback was complete: give another directory"))
        return RollbackReport(
            "incomplete" if problems else "different" if different else "complete",
            round(time.monotonic() - started, 3),
            snapshot.taken_at.isoformat(),
            str(output.root),
            False,
            tuple(stores),
            datasets,
            differences,
            tuple(problems),
            tuple(notes),
        )


def _differs(plan: RestorePlan, source: Source, checked: dict[tuple[str, bool], Checked]) -> bool:
    return any(
        found.differences
        for dataset in plan.datasets[source.name]
        for found in (checked.get((dataset.name, False)), checked.get((dataset.name, True)))
        if found is not None
    )


def _dataset(
    plan: RestorePlan, source: Source, dataset: Dataset, checked: dict[tuple[str, bool], Checked]
) -> DatasetRollback:
    # Of a Chroma directory the export has everything.
    file = checked.get((dataset.name, False), Checked())
    directory = checked.get((dataset.name, True), Checked())
    return DatasetRollback(
        dataset.name,
        source.name,
        plan.rows[dataset.dataset_id],
        plan.quarantined[dataset.dataset_id],
        file.compared,
        0,
        file.compared + directory.compared,
        file.differences + directory.differences,
    )
