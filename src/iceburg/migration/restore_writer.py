"""Writing stores into the directory of a rollback: each by a worker, and each to its name when it is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from iceburg.database.catalogue import Source
from iceburg.errors import IceburgError, UsageError
from iceburg.migration.chroma_export import SUFFIX
from iceburg.migration.chroma_restore import CATALOGUE, Built
from iceburg.migration.output import Output, remove, sync
from iceburg.migration.restore_plan import RestorePlan
from iceburg.migration.restore_tasks import BuildTask, RestoreTask, StoreRestored, run_build, run_restore
from iceburg.migration.run import Listener
from iceburg.migration.worker import Context, StoppedError, Workers
from iceburg.records import Store


class RestoreWriter:
    """Writes stores.

    Parameters
    ----------
    output
        The directory.
    plan
        What there is.
    workers
        Who works.
    snapshot
        Name of the state of the target.
    python
        A Python that has chromadb; None where no Chroma directories are made.
    listener
        Told of progress.

    Attributes
    ----------
    restored
        What was written to a file, by the store's name.
    written
        Names of the stores of which anything was written.
    """

    def __init__(
        self,
        output: Output,
        plan: RestorePlan,
        workers: Workers,
        snapshot: str,
        python: Path | None,
        listener: Listener,
    ) -> None:
        self.restored: dict[str, StoreRestored] = {}
        self.written: set[str] = set()
        self._output = output
        self._plan = plan
        self._workers = workers
        self._snapshot = snapshot
        self._python = python
        self._listener = listener

    def store(self, source: Source) -> Store:
        """Return a store as it is, or will be, in the directory."""
        return Store(source.kind, self._output.path(source.name), source.name)

    def export(self, source: Source) -> Store:
        """Return the file that a Chroma directory is exported to."""
        name = export_name(source.name, {other.name for other in self._plan.sources})
        return Store("sqlite", self._output.path(name), name)

    def places(self, source: Source) -> list[Store]:
        """Return what a store becomes here."""
        if source.kind != "chroma":
            return [self.store(source)]
        return [self.export(source), self.store(source)] if self._python is not None else [self.export(source)]

    def is_done(self, source: Source) -> bool:
        """Whether a store is there, whole."""
        return all(self._output.is_done(place.name) for place in self.places(source))

    def is_there(self, place: Store) -> bool:
        """Whether one of the places of a store is there, whole."""
        return self._output.is_done(place.name)

    def built(self, source: Source) -> Built | None:
        """Return what came of building a Chroma directory, in this run or before; None where none was built."""
        notes = self._output.notes(source.name)
        return Built(**notes) if notes else None

    def recover(self) -> None:
        """Take up what a run was killed over.

        Raises
        ------
        UsageError
            Somebody has changed what was restored: it is not ours any more.
        """
        changed = []
        for source in self._plan.sources:
            for place in (self.store(source), self.export(source)):
                if place.kind == "chroma":
                    self._take_rest(place)
                    self._move_rest(place)
                else:
                    self._output.recover_placed(place)
                if not self._output.is_done(place.name):
                    continue
                self._output.remove_partial(place.name)
                if not self._output.is_untouched(place):
                    changed.append(place.name)
        if changed:
            raise UsageError(
                f"Changed since it was restored: {', '.join(changed)}.",
                where=str(self._output.root),
                hint="Nothing was written. Give another directory.",
            )

    def write(self, sources: Sequence[Source], *, again: bool = False) -> None:
        """Write stores that are not there; or `again`, over what an earlier run of this rollback has written."""
        # The largest first: the others fit beside it.
        ordered = sorted(sources, key=self._plan.size, reverse=True)
        files = [place for source in ordered for place in self.places(source) if place.kind != "chroma"]
        tasks = {}
        for source, place in zip(ordered, files, strict=True):
            if self._output.is_done(place.name) and not again:
                continue
            for dataset in self._plan.datasets[source.name]:
                self._listener.expect(dataset.name, self._plan.records(dataset), 0)
            task = RestoreTask(
                source, self._plan.datasets[source.name], self._snapshot, self._output.partial(place.name)
            )
            tasks[task.partial] = task, place
        for task, restored in self._run(run_restore, [task for task, _ in tasks.values()]):
            place = tasks[task.partial][1]
            if task.partial.exists():
                self._output.place(task.partial, place, replace=self._output.is_done(place.name))
            self.restored[task.source.name] = restored
            self.written.add(task.source.name)
        self._build([source for source in ordered if source.kind == "chroma"], again=again)

    def _build(self, sources: Sequence[Source], *, again: bool) -> None:
        if self._python is None:
            return
        tasks = {}
        for source in sources:
            place = self.store(source)
            if self._output.is_done(place.name):
                if not again:
                    continue
                self._take_away(place)
            self._listener.expect(f"{source.name} (chromadb)", self._plan.size(source), 0)
            staging = self._output.partial(place.name)
            tasks[staging] = BuildTask(source.name, self._python, self.export(source).path, staging), place
        for task, built in self._run(run_build, [task for task, _ in tasks.values()]):
            place = tasks[task.directory][1]
            if built.is_whole:
                self._move(task.directory, place, built)
                self.written.add(task.store)
            else:
                remove(task.directory)
                self._output.note_failed(place, asdict(built))

    def _run(self, function: Callable[[Context, Any], Any], tasks: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Run tasks; yield each with its result. An error ends it when what is under way has ended."""
        failed: IceburgError | StoppedError | None = None
        for outcome in self._workers.run(function, tasks):
            if outcome.error is None:
                yield outcome.task, outcome.result
            else:
                failed = failed or outcome.error
        if failed is not None:
            raise failed

    def _move(self, staging: Path, place: Store, built: Built) -> None:
        """Give the entries of a finished directory their names: the catalogue last, so that it is there when all is."""
        entries = sorted((path.name for path in staging.iterdir()), key=lambda name: (name == CATALOGUE, name))
        taken = [name for name in entries if (place.path / name).exists()]
        if taken:
            raise UsageError(
                f"It has {', '.join(taken)}, which this rollback did not make.",
                where=str(place.path),
                hint="Give another directory, one that is empty or does not exist.",
            )
        self._output.note_moving(place, entries, asdict(built))
        self._move_rest(place)

    def _move_rest(self, place: Store) -> None:
        entries = self._output.moving(place.name)
        if not entries:
            return
        staging = self._output.staging(place.name)
        if not place.path.exists():
            place.path.mkdir(mode=0o700)
            sync(place.path.parent)
        for name in entries:
            if (staging / name).exists():
                (staging / name).rename(place.path / name)
        sync(place.path)
        self._output.note_done(place)

    def _take_away(self, place: Store) -> None:
        """Remove the entries of a directory that an earlier run has made, and nobody has touched since."""
        self._output.note_taking_away(place)
        self._take_rest(place)

    def _take_rest(self, place: Store) -> None:
        entries = self._output.taking_away(place.name)
        for name in entries:
            remove(place.path / name)
        if entries:
            self._output.forget(place.name)


def export_name(store: str, taken: Iterable[str]) -> str:
    """Name the file that a Chroma directory is exported to."""
    stem = "chroma" if store == "." else store
    name, number = stem + SUFFIX, 1
    while name in taken:
        number += 1
        name = f"{stem}.{number}{SUFFIX}"
    return name
