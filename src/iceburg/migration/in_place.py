"""Bringing an existing installation up to date with the target, after a time in which the target was alone.

First every store is compared, and nothing is written; if any of them cannot be brought up to date without the risk of
losing something, none is. Then each file is written in one transaction. Meanwhile neither a migration nor a writer of
the layer can write to the target.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, LiteralString, TypeAlias

import psycopg

from iceburg.database.catalogue import Dataset, Source
from iceburg.database.connection import Target
from iceburg.database.phases import is_finalized
from iceburg.database.postgres_change import WRITERS_LOCK
from iceburg.database.schema import SchemaNames
from iceburg.database.target_table import prepare_loaders
from iceburg.errors import SourceError, TargetError
from iceburg.migration.jsonl_in_place import LinesDifference, examine_lines, update_lines
from iceburg.migration.ledger import Ledger
from iceburg.migration.restore_plan import RestorePlan, Wanted, find_origin, plan_restore
from iceburg.migration.restore_report import DatasetRollback, Note, RollbackReport, StoreRollback
from iceburg.migration.run import Listener
from iceburg.migration.session import connect_writer
from iceburg.migration.sqlite_in_place import FileDifference, RefusedError, examine_file, update_file
from iceburg.migration.worker import Advance, StoppedError
from iceburg.records import Store

Examined: TypeAlias = FileDifference | LinesDifference
_LOCK: Final[LiteralString] = "SELECT pg_advisory_lock(%s, %s)"
_PATIENCE: Final[LiteralString] = "SELECT set_config('lock_timeout', %s, FALSE)"
# More removals than these, and than half of the records, are taken for an accident on the other side.
_MANY: Final = 100
_REFUSED_HINT = (
    "Nothing was written. Write PostgreSQL's state into a fresh directory (`iceburg-db rollback DATA_DIR OUT_DIR`) and"
    " see there what differs; leave these stores out with --exclude to bring the others up to date."
)


@dataclass(frozen=True, slots=True)
class InPlaceOptions:
    """How an installation is brought up to date.

    Attributes
    ----------
    dry_run
        Only compare, and say what would be done.
    remove_many
        Remove records even where that leaves few of them.
    wanted
        Which stores.
    patience
        Seconds to wait for writers of the target.
    """

    dry_run: bool = False
    remove_many: bool = False
    patience: float = 10.0
    wanted: Wanted = field(default=lambda _source: True)


class InPlace:
    """One run.

    Parameters
    ----------
    target, names
        As for the migration.
    data_dir
        The installation.
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
        names: SchemaNames,
        options: InPlaceOptions,
        listener: Listener,
        stopping: Callable[[], bool],
    ) -> None:
        self._target = target
        self._data_dir = data_dir
        self._names = names
        self._options = options
        self._listener = listener
        self._stopping = stopping

    def run(self) -> RollbackReport:
        """Compare, and write.

        Raises
        ------
        RefusedError
            A store cannot be brought up to date safely; nothing was written.
        TargetError
            The target cannot be used, or holds another installation, or is being written to.
        StoppedError
            It was asked to stop; files that are done are done.
        """
        started = time.monotonic()
        self._listener.phase(f"target: {self._target.description}")
        with connect_writer(self._target.dsn) as connection:
            find_origin(connection, self._names, self._data_dir)
            if is_finalized(connection, self._names):
                raise TargetError(
                    "It is finalized: its files are closed, and stay what they were then.",
                    where=str(self._data_dir),
                    hint="Write PostgreSQL's state into a fresh directory: `iceburg-db rollback DATA_DIR OUT_DIR`.",
                )
            prepare_loaders(connection)
            plan = self._keep_others_out(connection)
            as_of = datetime.now(UTC)
            self._listener.phase("comparing the files with PostgreSQL")
            with ExitStack() as stack:
                examined = self._examine_all(connection, plan, stack)
                again: dict[str, Examined] = {}
                if not self._options.dry_run:
                    self._update_all(connection, examined)
                    changed = [s for s in plan.sources if s.name in examined and examined[s.name].count]
                    if changed:
                        self._listener.phase("checking what was written")
                    again = {s.name: self._examine(connection, s, plan.datasets[s.name], stack) for s in changed}
                return self._report(plan, examined, again, as_of, started)

    def _keep_others_out(self, connection: psycopg.Connection) -> RestorePlan:
        """Take the locks of migrations and of the layer's writers, which go with the session; return what there is."""
        if not Ledger(connection, self._names).try_lock():
            raise TargetError(
                "A migration of this target is running.",
                where=f"schema {self._names.state}",
                hint="Wait for it, or stop it with Ctrl-C.",
            )
        connection.execute(_PATIENCE, (f"{round(self._options.patience * 1000)}ms",))
        held: set[int] = set()
        try:
            while True:
                plan = plan_restore(connection, self._names, self._options.wanted)
                if plan.rows.keys() <= held:
                    return plan
                # A writer may have made a dataset since the plan was read; once the locks are held, none can.
                for number in sorted(plan.rows.keys() - held):
                    connection.execute(_LOCK, (WRITERS_LOCK, number))
                    held.add(number)
        except psycopg.errors.LockNotAvailable:
            raise TargetError(
                "The application is writing to PostgreSQL.",
                where=f"schema {self._names.state}",
                hint="Stop it first: what it writes from now on would not be in the files.",
            ) from None

    def _stop_if_asked(self) -> None:
        if self._stopping():
            raise StoppedError

    def _advance(self, dataset: str, count: int) -> None:
        self._listener.advance(Advance(dataset, count, 0))

    def _examine_all(self, connection: psycopg.Connection, plan: RestorePlan, stack: ExitStack) -> dict[str, Examined]:
        examined = {}
        refused = [f"{note.source}: {note.text}" for note in plan.problems]
        for source in plan.sources:
            if source.kind == "chroma" or any(note.source == source.name for note in plan.problems):
                continue
            for dataset in plan.datasets[source.name]:
                self._listener.expect(dataset.name, plan.records(dataset), 0)
            try:
                examined[source.name] = self._examine(connection, source, plan.datasets[source.name], stack)
                self._refuse_many(examined[source.name])
            except SourceError as error:
                refused.append(f"{source.name}: {error.without(source.name)}")
        if refused:
            raise RefusedError("Not brought up to date:\n  " + "\n  ".join(refused), hint=_REFUSED_HINT)
        return examined

    def _examine(
        self, connection: psycopg.Connection, source: Source, datasets: tuple[Dataset, ...], stack: ExitStack
    ) -> Examined:
        store = Store(source.kind, self._data_dir.resolve() / source.name, source.name)
        names, stop = self._names, self._stop_if_asked
        if source.kind == "sqlite":
            file = examine_file(connection, names, store, source, datasets, self._advance, stop)
            stack.callback(file.close)
            return file
        (dataset,) = datasets
        return examine_lines(connection, names, store, source, dataset, partial(self._advance, dataset.name), stop)

    def _refuse_many(self, found: Examined) -> None:
        if isinstance(found, LinesDifference) or self._options.remove_many:
            return
        for dataset in found.datasets:
            table = found.tables[dataset.dataset_id]
            if table.gone > max(_MANY, table.file_records // 2):
                raise RefusedError(
                    f"PostgreSQL lacks {table.gone:,} of the {table.file_records:,} records of {dataset.name}; if they"
                    " were meant to be deleted, add --remove-many",
                    where=found.store.name,
                )

    def _update_all(self, connection: psycopg.Connection, examined: dict[str, Examined]) -> None:
        for name, found in examined.items():
            self._stop_if_asked()
            if found.count:
                self._listener.phase(f"{name}: bringing it up to date")
            if isinstance(found, LinesDifference):
                update_lines(connection, self._names, found)
            else:
                with connection.transaction():
                    connection.execute("SET LOCAL synchronous_commit = on")
                    update_file(connection, self._names, found)

    def _report(
        self,
        plan: RestorePlan,
        examined: dict[str, Examined],
        again: dict[str, Examined],
        as_of: datetime,
        started: float,
    ) -> RollbackReport:
        stores, datasets, notes = [], [], []
        for source in plan.sources:
            found = examined.get(source.name)
            if found is None:
                notes.append(Note(source.name, "left as it is: Chroma directories are restored into a fresh directory"))
                continue
            position = found.position
            stores.append(
                StoreRollback(
                    source.name,
                    source.kind,
                    (source.name,),
                    "unchanged" if not found.count else "to be changed" if self._options.dry_run else "changed",
                    position=None if position is None else position.position,
                )
            )
            checked = again.get(source.name)
            datasets += [_dataset(plan, source, d, found, checked) for d in plan.datasets[source.name]]
        return RollbackReport(
            "different" if any(found.count for found in again.values()) else "complete",
            round(time.monotonic() - started, 3),
            as_of.isoformat(),
            str(self._data_dir.resolve()),
            True,
            tuple(stores),
            tuple(datasets),
            notes=tuple(notes),
        )


def _dataset(
    plan: RestorePlan, source: Source, dataset: Dataset, found: Examined, checked: Examined | None
) -> DatasetRollback:
    had, changed, now = _numbers(found, dataset)
    compared, differences, _ = (had, 0, 0) if checked is None else _numbers(checked, dataset)
    return DatasetRollback(
        dataset.name,
        source.name,
        plan.rows[dataset.dataset_id],
        plan.quarantined[dataset.dataset_id],
        now,
        changed,
        compared,
        differences,
    )


def _numbers(found: Examined, dataset: Dataset) -> tuple[int, int, int]:
    """Return the records that a file had, those that differ, and the records that it is to have."""
    if isinstance(found, LinesDifference):
        return found.file_lines, found.count, found.file_lines + len(found.lines)
    table = found.tables[dataset.dataset_id]
    return table.file_records, table.count, table.file_records + table.new - table.gone
