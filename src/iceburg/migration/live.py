"""The live migration: everything into PostgreSQL while the application goes on writing.

For each store: see to it that its changes are logged; note where its log is; copy in short reads; apply the log from
there until PostgreSQL is in step. From the last step on anybody may go on: the log has everything that comes after, and
`iceburg-db follow` and the unified layer apply it by the same means.

A store that PostgreSQL has already as of some position is not copied, only caught up with. A run that ends anywhere is
continued by the next: where the log goes on from is kept until the copy is caught up with, and nothing is pruned
before.

Rejected: copying until nothing has changed, which a busy application never allows; a snapshot of each file, which
stops its writers for as long as it takes in journal mode DELETE; noting the position after the copy and comparing what
lies in between, which is a second mechanism.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg

from iceburg.database.applied import NeedsCopyError, NotReadyError
from iceburg.database.connection import Target
from iceburg.database.phases import Phase, PhaseError, move_phase, read_phase, require_phase
from iceburg.database.positions import BEING_MIGRATED, find_position
from iceburg.database.schema import SchemaNames
from iceburg.database.target_table import prepare_loaders
from iceburg.errors import IceburgError, SourceBusyError, SourceError
from iceburg.migration.completion import complete_stores
from iceburg.migration.control import ControlFile
from iceburg.migration.keys import defer_keys
from iceburg.migration.live_preparation import StoreApplier, applier_of, has_moved, is_followed, prepare_copy
from iceburg.migration.migrator import Migrator
from iceburg.migration.pace import Pace
from iceburg.migration.run import Listener, Options, Work
from iceburg.migration.session import connect_writer
from iceburg.migration.tasks import SettleTask, StreamTask, run_settle, run_sweep
from iceburg.migration.throttle import Throttle, WriterProbe
from iceburg.migration.worker import Outcome, StoppedError, Workers
from iceburg.records import Store
from iceburg.sources.access import OpenStores

STEP: Final = 5_000
"""Entries of a log that are applied in one transaction while it is caught up with."""

# How often a store is prepared again because its structure changed meanwhile, and new ones are looked for.
_ROUNDS: Final = 8


class LiveMigrator(Migrator):
    """One run of the live migration.

    Parameters
    ----------
    target, data_dir, stores, names, options, listener, stopping
        As for `Migrator`.
    rediscover
        Finds the stores again, to take in those that have turned up meanwhile.
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
        rediscover: Callable[[], Sequence[Store]],
    ) -> None:
        super().__init__(target, data_dir, stores, names, options, listener, stopping)
        self._rediscover = rediscover
        self._pace = Pace(options.jobs, options.max_rate)
        self._throttle = Throttle(ControlFile.of(data_dir), WriterProbe(stores), options.throttle)
        self._throttle.on_change(lambda reason: listener.phase(f"throttled: {reason}"))
        self._appliers: dict[str, StoreApplier | None] = {}
        self._errors: dict[str, SourceError] = {}

    def _open_stores(self) -> OpenStores:
        return OpenStores(self._pace.of_file)

    def _workers(self) -> Workers:
        return Workers(
            self._options.jobs,
            self._target.dsn,
            self._names,
            stopping=self._stopping,
            on_advance=self._listener.advance,
            pace=self._pace,
            poll=self._poll,
        )

    def _poll(self) -> None:
        self._throttle.poll()
        self._pace.share = self._throttle.share
        self._pace.hold(self._throttle.paused)

    def _stop_if_asked(self) -> None:
        if self._stopping():
            raise StoppedError

    def _begin(self) -> None:
        connection = self._run.connection
        state = require_phase(
            connection, self._names, "migrate --live", Phase.EMBEDDED, Phase.COPYING, Phase.FOLLOWING, Phase.DUAL
        )
        if state.phase is Phase.EMBEDDED:
            move_phase(connection, self._names, Phase.COPYING, by="migrate", reason="migrate --live was begun")

    def _prepare_all(self, stores: OpenStores) -> list[Work]:
        return [work for store in self._stores if (work := self._prepare(stores, store)) is not None]

    def _prepare(self, stores: OpenStores, store: Store, *, restless: bool = False) -> Work | None:
        """Prepare a store to be copied; None where nothing of it has to be, or it cannot be."""
        self._stop_if_asked()
        try:
            if store.problem is not None:
                raise SourceError(store.problem, where=store.name)
            if store.name not in self._appliers:
                self._appliers[store.name] = applier_of(store, self._names)
            applier = self._appliers[store.name]
            again = self._options.recheck or self._options.rewrite
            if not restless and not again and is_followed(self._run, store, applier):
                return None
            # Too much of a directory has changed to be applied from where its copy began.
            anew = restless and store.kind == "chroma"
            return prepare_copy(self._run, stores, store, applier, again=again, anew=anew)
        except SourceError as error:
            self._fail(store, error)
            return None

    def _fail(self, store: Store, error: IceburgError) -> None:
        problem = error.without(store.name)
        self._run.fail(store.name, problem)
        if not isinstance(error, SourceBusyError | NotReadyError):
            source = self._run.catalogue.source(store.name, store.kind)
            self._run.catalogue.update_source(source.source_id, fingerprint=None, complete=False, problem=problem)

    def _bring_over(self, workers: Workers, stores: OpenStores, work: list[Work]) -> None:
        with self._applying() as connection:
            for _ in range(_ROUNDS):
                restless = self._copy_all(workers, stores, work) if work else []
                # What they know of the files is as of when they were opened.
                stores.close()
                restless += self._catch_up_all(connection, {store.name for store in restless})
                fresh = self._new_stores()
                if not restless and not fresh:
                    break
                work = [
                    found for store in restless if (found := self._prepare(stores, store, restless=True)) is not None
                ]
                work += [found for store in fresh if (found := self._prepare(stores, store)) is not None]
            else:
                for store in restless:
                    self._fail(store, SourceBusyError("its structure changes again and again", where=store.name))
            self._account(connection)
        self._hand_over()

    @contextmanager
    def _applying(self) -> Iterator[psycopg.Connection]:
        with connect_writer(self._target.dsn) as connection:
            connection.execute("SET synchronous_commit = off")
            prepare_loaders(connection)
            try:
                yield connection
            finally:
                self._throttle.close()
                for applier in self._appliers.values():
                    if applier is not None:
                        applier.close()

    # Copying

    def _copy_all(self, workers: Workers, stores: OpenStores, work: list[Work]) -> list[Store]:
        """Copy, and complete what is copied; return the stores that have to be prepared again."""
        defer_keys(self._run, work)
        if any(self._is_refreshing(item) for item in work):
            self._make_keys(workers)
        self._expect(stores, work)
        self._copy(workers, work)
        # Records that were read at two places have moved, so that the log has them: they are written from there.
        self._make_keys(workers)
        self._settle(workers, work)
        restless, done = [], []
        for item in work:
            error = self._errors.pop(item.store.name, None)
            try:
                moved = has_moved(item.store, item.copied, item.fingerprint)
            except SourceError as found:
                error, moved = error or found, False
            if moved:
                self._listener.phase(f"{item.store.name}: its structure has changed meanwhile, looking at it again")
                restless.append(item.store)
            elif error is not None:
                self._fail(item.store, error)
            elif item.store.name not in self._run.problems:
                done.append(item)
        complete_stores(self._run, workers, done)
        return restless

    def _take(self, outcome: Outcome[StreamTask] | Outcome[SettleTask]) -> None:
        if isinstance(outcome.error, SourceError):
            # Whether that is because the store has changed is seen when all are done.
            self._errors.setdefault(outcome.task.store.name, outcome.error)
        else:
            super()._take(outcome)

    def _settle(self, workers: Workers, pending: list[Work]) -> None:
        for follows, settle in ((True, run_sweep), (False, run_settle)):
            tasks = [
                SettleTask(item.store, item.fingerprint, dataset, self._run.fence)
                for item in pending
                if (item.copied is not None) == follows and item.store.name not in {*self._run.problems, *self._errors}
                for dataset in self._run.catalogue.datasets(item.source.source_id)
                if dataset.phase == "loading"
            ]
            for outcome in workers.run(settle, tasks):
                self._take(outcome)

    # Catching up

    def _followed(self) -> list[tuple[Store, StoreApplier]]:
        return [
            (store, applier)
            for store in self._stores
            if store.name not in self._run.problems and (applier := self._appliers.get(store.name)) is not None
        ]

    def _catch_up_all(self, connection: psycopg.Connection, but: set[str]) -> list[Store]:
        """Apply what was written meanwhile to all `but` some; return those of which a part has to be copied first."""
        self._listener.phase("catching up with what was written meanwhile")
        copied_again = []
        for store, applier in self._followed():
            if store.name in but:
                continue
            try:
                self._catch_up(connection, store, applier)
            except NeedsCopyError:
                copied_again.append(store)
            except (SourceError, NotReadyError) as error:
                self._fail(store, error)
        return copied_again

    def _catch_up(self, connection: psycopg.Connection, store: Store, applier: StoreApplier) -> None:
        """Apply until there is nothing left, in steps where nobody believes the store yet."""
        position = find_position(connection, self._names, store.name)
        in_steps = store.kind == "jsonl" or (position is not None and position.log_id == BEING_MIGRATED)
        while True:
            self._stop_if_asked()
            self._poll()
            self._pace.wait(self._stop_if_asked)
            applied = applier.advance(connection, STEP) if in_steps else applier.apply(connection)
            if applied.settled:
                return

    def _new_stores(self) -> list[Store]:
        """Return the stores that have turned up since they were last looked for."""
        known = {store.name for store in self._stores}
        fresh = [store for store in self._rediscover() if store.name not in known]
        self._stores = [*self._stores, *fresh]
        for store in fresh:
            self._listener.phase(f"{store.name}: it is new")
        return fresh

    def _account(self, connection: psycopg.Connection) -> None:
        """Count both sides of each store as of one position."""
        for store, applier in self._followed():
            self._stop_if_asked()
            try:
                applier.account(connection)
            except (SourceError, NotReadyError) as error:
                self._fail(store, error)

    def _hand_over(self) -> None:
        connection = self._run.connection
        if read_phase(connection, self._names).phase is not Phase.COPYING:
            return
        try:
            move_phase(
                connection,
                self._names,
                Phase.FOLLOWING,
                by="migrate",
                reason="everything is copied and caught up with",
                evidence={"problems": dict(self._run.problems)},
            )
        except PhaseError as error:
            self._listener.phase(str(error))
