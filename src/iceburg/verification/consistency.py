"""The consistency check: both sides compared in full while the application writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import psycopg

from iceburg.database.applied import NotReadyError
from iceburg.database.arming import is_compressed
from iceburg.database.catalogue import Catalogue, Dataset, Source
from iceburg.database.change_log import log_state
from iceburg.database.chroma_applier import digest_catalogue, read_structure
from iceburg.database.connection import Target, connect
from iceburg.database.jsonl_applier import jsonl_state
from iceburg.database.positions import BEING_MIGRATED, Position
from iceburg.database.schema import SchemaNames, check_schema
from iceburg.database.target_table import prepare_loaders
from iceburg.errors import SourceError
from iceburg.migration.heartbeat import TAKEN_IN, read_heartbeat
from iceburg.migration.run import Listener
from iceburg.migration.worker import Advance, StoppedError
from iceburg.records import Store
from iceburg.sources.access import OpenStores, dataset_name
from iceburg.sources.fingerprint import fingerprint
from iceburg.sources.sqlite import SqliteFile
from iceburg.sources.sqlite_schema import Table
from iceburg.verification.catching_up import CatchingUp
from iceburg.verification.consistency_report import Account, ConsistencyReport
from iceburg.verification.lines_check import LinesCheck, is_applied
from iceburg.verification.logged_file import FileMark, LoggedFile
from iceburg.verification.report import RecordDifference
from iceburg.verification.resting_check import RestingCheck
from iceburg.verification.table_check import TableCheck
from iceburg.verification.target_look import RedefinedError, TargetLook
from iceburg.verification.unowned import unowned_rows

if TYPE_CHECKING:
    from iceburg.sources.chroma_catalogue import CollectionInfo

_ATTEMPTS: Final = 10
_LOOK_AGAIN: Final = 0.5
_SHADOW: Final = "a shadow table of a virtual table: SQLite writes it without triggers, so its changes are not logged"


class ConsistencyCheck:
    """One check.

    Parameters
    ----------
    target, stores, names, narrowed, listener, stopping
        As for the verifier.
    limit
        Differences, and unsettled records, listed for each dataset; all are counted.
    patience
        Seconds to wait for others to apply what is pending before it is applied here.
    taken_in
        Seconds to wait for a follower that lives to take in a store that has just been made.
    rediscover
        Finds the stores as they are when the rest was compared: to tell one that has just been made from one that has
        gone. None where the stores are known to stay.
    """

    def __init__(
        self,
        target: Target,
        stores: Sequence[Store],
        names: SchemaNames,
        *,
        limit: int,
        narrowed: bool,
        listener: Listener,
        stopping: Callable[[], bool],
        patience: float = 3.0,
        taken_in: float = TAKEN_IN,
        rediscover: Callable[[], Sequence[Store]] | None = None,
    ) -> None:
        self._target = target
        self._stores = stores
        self._names = names
        self._limit = limit
        self._narrowed = narrowed
        self._listener = listener
        self._stopping = stopping
        self._patience = patience
        self._taken_in = taken_in
        self._rediscover = rediscover
        self._problems: dict[str, list[str]] = {}
        self._passed_over: dict[str, str] = {}
        self._accounts: dict[str, Account] = {}

    def run(self) -> ConsistencyReport:
        """Compare.

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
            prepare_loaders(connection)
            # Each look is one snapshot. A plan that is kept would outlive the definition of its table.
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.prepare_threshold = None
            self._connection = connection
            self._catalogue = Catalogue(connection, self._names)
            known = {source.name: source for source in self._catalogue.sources()}
            new = [store for store in self._stores if store.name not in known]
            for store in self._stores:
                self._stop_if_asked()
                if store.name in known:
                    self._check_store(store, known[store.name])
            # Last, so that whoever follows the installation has had the time of the rest for them.
            for store in new:
                self._check_new(store)
            if not self._narrowed:
                for name in self._gone(known):
                    self._fail(name, "is in PostgreSQL and not in the data directory")
            surplus = tuple(unowned_rows(connection, self._names))
        return self._report(surplus, started)

    def _report(self, surplus: tuple[RecordDifference, ...], started: float) -> ConsistencyReport:
        accounts = [self._accounts[name] for name in sorted(self._accounts)]
        results = tuple(account.result() for account in accounts)
        found = any(result.differences or result.unsettled for result in results)
        return ConsistencyReport(
            status="different" if found or surplus or self._problems else "identical",
            seconds=round(time.monotonic() - started, 3),
            datasets=results,
            differences=tuple(d for account in accounts for d in account.differences) + surplus,
            unsettled=tuple(d for account in accounts for d in account.unsettled),
            problems=tuple(
                {"source": name, "problem": text} for name, texts in sorted(self._problems.items()) for text in texts
            ),
            passed_over=tuple({"dataset": name, "why": why} for name, why in sorted(self._passed_over.items())),
        )

    def _fail(self, store: str, problem: str) -> None:
        self._problems.setdefault(store, []).append(problem)

    def _stop_if_asked(self) -> None:
        if self._stopping():
            raise StoppedError

    def _check_new(self, store: Store) -> None:
        """Compare a store that was not in PostgreSQL, once a follower has taken it in; without one it never will be."""
        deadline = time.monotonic() + self._taken_in
        while True:
            self._stop_if_asked()
            known = {source.name: source for source in self._catalogue.sources()}
            source = known.get(store.name)
            if source is None and self._rediscover is not None and not store.path.exists():
                return  # it has another name by now, or is gone: nothing is lost of what was never there
            heartbeat = read_heartbeat(self._connection, self._names)
            waits = heartbeat is not None and heartbeat.is_following and time.monotonic() < deadline
            if store.problem is not None or (source is not None and source.complete) or not waits:
                self._check_store(store, source)
                return
            time.sleep(_LOOK_AGAIN)

    def _gone(self, known: dict[str, Source]) -> list[str]:
        """Return the stores that are in PostgreSQL and not in the data directory."""
        gone = known.keys() - {store.name for store in self._stores}
        if gone and self._rediscover is not None:
            gone -= {store.name for store in self._rediscover()}
        return sorted(gone)

    def _check_store(self, store: Store, source: Source | None) -> None:
        if store.problem is not None:
            self._fail(store.name, store.problem)
        elif source is None:
            self._fail(store.name, "is not in PostgreSQL: run `iceburg-db migrate`")
        elif source.problem is not None:
            self._fail(store.name, f"was not migrated: {source.problem}")
        else:
            try:
                self._check_readable(store, source)
            except (SourceError, NotReadyError) as error:
                self._fail(store.name, error.without(store.name))

    def _check_readable(self, store: Store, source: Source) -> None:
        with CatchingUp(
            self._connection, self._target.dsn, self._names, store, self._patience, self._stop_if_asked
        ) as catching_up:
            position = catching_up.position()
            if position is not None and position.log_id == BEING_MIGRATED:
                raise SourceError(
                    "is being migrated, or a migration of it was stopped",
                    where=store.name,
                    hint="Wait for `iceburg-db migrate` to end, or run it again.",
                )
            for _ in range(_ATTEMPTS):
                try:
                    if store.kind == "sqlite" and (log_id := _log_id(store)) is not None:
                        self._check_logged(store, source, log_id, catching_up)
                    elif store.kind == "chroma" and position is not None:
                        self._check_collections(store, source, catching_up)
                    elif store.kind == "jsonl" and position is not None and not is_compressed(store):
                        self._check_lines(store, source, catching_up)
                    else:
                        self._check_resting(store, source)
                except RedefinedError:
                    continue
                return
        self._fail(store.name, "its structure changed again and again while it was being compared")

    def _look(self, store: Store, dataset: Dataset, epoch: int | None) -> TargetLook:
        return TargetLook(self._connection, self._names, store, dataset, epoch)

    def _advance(self, dataset: Dataset, count: int) -> None:
        self._stop_if_asked()
        self._listener.advance(Advance(dataset.name, count, 0))

    def _begin(self, dataset: Dataset) -> Account:
        """Begin an account; one that was begun before its dataset was redefined is forgotten."""
        self._accounts[dataset.name] = Account(dataset, self._limit)
        self._listener.expect(dataset.name, dataset.source_rows or 0, 0)
        return self._accounts[dataset.name]

    # Stores that rest

    def _check_resting(self, store: Store, source: Source) -> None:
        state = fingerprint(store)
        datasets = {dataset.name: dataset for dataset in self._catalogue.datasets(source.source_id)}
        with OpenStores() as stores:
            names = stores.dataset_names(store)
            self._name_strangers(store, names, datasets)
            for name, dataset in datasets.items():
                if name in names:
                    account = self._begin(dataset)
                    reader = stores.reader(store, dataset.definition)
                    look = self._look(store, dataset, None)
                    RestingCheck(store, state, reader, look, account, partial(self._advance, dataset)).run()

    def _name_strangers(self, store: Store, names: Sequence[str], datasets: dict[str, Dataset]) -> None:
        missing = [name for name in names if name not in datasets]
        if missing:
            self._fail(store.name, f"{', '.join(missing)}: not in PostgreSQL, run `iceburg-db migrate`")
        gone = [name for name in datasets if name not in names]
        if gone:
            self._fail(store.name, f"{', '.join(gone)}: in PostgreSQL and not in the store, run `iceburg-db migrate`")

    # JSONL files

    def _check_lines(self, store: Store, source: Source, catching_up: CatchingUp) -> None:
        if jsonl_state(store.path) is None:
            raise SourceError("is gone", where=store.name)
        position = catching_up.wait(lambda at: is_applied(at, jsonl_state(store.path)), lambda: None)
        (dataset,) = self._catalogue.datasets(source.source_id)
        look = self._look(store, dataset, position.epoch)
        advance = partial(self._advance, dataset)
        LinesCheck(store, self._connection, self._names, look, catching_up, self._begin(dataset), advance).run()

    # Chroma directories that are followed

    def _check_collections(self, store: Store, source: Source, catching_up: CatchingUp) -> None:
        # numpy comes with them, which an installation without Chroma directories does without.
        from iceburg.sources.chroma import ChromaStore, CollectionReader
        from iceburg.verification.collection_check import CollectionCheck

        def datasets() -> dict[str, Dataset]:
            found = self._catalogue.datasets(source.source_id)
            return {dataset.definition["collection"]["id"]: dataset for dataset in found}

        def dataset_of(collection: str) -> Dataset | None:
            return datasets().get(collection)

        with ChromaStore(store.path, store.name) as directory:
            if not directory.is_whole:
                self._check_resting(store, source)
                return
            catching_up.wait(lambda at: _has_catalogue(at, directory.collections()), lambda: None)
            collections = directory.collections()
            for collection in collections:
                dataset = dataset_of(collection.id)
                if dataset is None:
                    raise RedefinedError
                if dataset.name in self._accounts:
                    continue
                reader = directory.reader(collection)
                assert isinstance(reader, CollectionReader)  # noqa: S101 - an orphan is not in the catalogue
                look = self._look(store, dataset, None)
                try:
                    CollectionCheck(
                        directory,
                        reader,
                        look,
                        catching_up,
                        self._begin(dataset),
                        partial(dataset_of, collection.id),
                        partial(self._advance, dataset),
                    ).run()
                except RedefinedError:
                    del self._accounts[dataset.name]
                    raise
            if directory.collections() != collections:
                # There may be some that were not there before; those that were compared are not gone through again.
                raise RedefinedError
            self._forget_gone(source, datasets().values())

    def _forget_gone(self, source: Source, datasets: Iterable[Dataset]) -> None:
        """Forget the accounts of collections that were deleted or renamed after they were compared."""
        there = {dataset.name: dataset.dataset_id for dataset in datasets}
        for name, account in list(self._accounts.items()):
            if account.dataset.source == source.name and there.get(name) != account.dataset.dataset_id:
                del self._accounts[name]

    # SQLite files whose changes are logged

    def _check_logged(self, store: Store, source: Source, log_id: str, catching_up: CatchingUp) -> None:
        with SqliteFile(store.path, store.name) as sqlite, OpenStores() as stores:
            file = LoggedFile(sqlite, log_id)
            mark = file.mark()
            _require_attached(store, log_id, catching_up.position())
            tables = {dataset_name(store, table.name): table for table in stores.sqlite(store)[1].tables}
            datasets, position = self._datasets(source, tables, file, mark, catching_up)
            for name, table in tables.items():
                if table.kind == "shadow":
                    self._passed_over[name] = _SHADOW
                elif name in datasets and name not in self._accounts:
                    reader = stores.sqlite(store)[0].reader(table)
                    dataset = datasets[name]
                    look = self._look(store, dataset, position.epoch)
                    advance = partial(self._advance, dataset)
                    check = TableCheck(file, mark.version, reader, look, catching_up, self._begin(dataset), advance)
                    try:
                        check.run()
                    except RedefinedError:
                        del self._accounts[name]
                        raise
            if file.mark().version != mark.version:
                # There may be tables that were not there before; those that were compared are not gone through again.
                raise RedefinedError
            self._name_strangers(store, list(tables), datasets)

    def _datasets(
        self,
        source: Source,
        tables: dict[str, Table],
        file: LoggedFile,
        mark: FileMark,
        catching_up: CatchingUp,
    ) -> tuple[dict[str, Dataset], Position]:
        """Return the datasets of a file, once they are those of its structure at `mark`, and the position."""

        def require_same() -> None:
            if file.mark().version != mark.version:
                raise RedefinedError

        # Asked before the datasets: if they change in between, the epoch is another.
        position = catching_up.position()
        datasets = {dataset.name: dataset for dataset in self._catalogue.datasets(source.source_id)}
        current = position is not None and (
            position.structure == mark.version or (position.structure == "" and _are_of(tables, datasets))
        )
        if position is None or not current:
            position = catching_up.wait(
                lambda at: at.structure == mark.version and at.position >= mark.last, require_same
            )
            datasets = {dataset.name: dataset for dataset in self._catalogue.datasets(source.source_id)}
        return datasets, position


def _has_catalogue(position: Position, collections: Sequence[CollectionInfo]) -> bool:
    """Whether the datasets of a Chroma directory are those of its collections."""
    return read_structure(position.structure)[0] == digest_catalogue(collections)


def _log_id(store: Store) -> str | None:
    """Return the name of a SQLite file's log; None if it has none."""
    with SqliteFile(store.path, store.name) as file:
        state = file.run(log_state)
    return None if state is None else state.log_id


def _are_of(tables: dict[str, Table], datasets: dict[str, Dataset]) -> bool:
    """Whether datasets are those of tables."""
    return tables.keys() == datasets.keys() and all(
        datasets[name].definition["description"]["sql"] == table.sql for name, table in tables.items()
    )


def _require_attached(store: Store, log_id: str, position: Position | None) -> None:
    if position is None:
        what = "its changes are logged, and nothing applies them: PostgreSQL has no position of it"
    elif position.log_id == BEING_MIGRATED:
        what = "is being migrated"
    elif position.log_id != log_id:
        what = "its log is not the one applied so far"
    else:
        return
    raise SourceError(what, where=store.name, hint="Run `iceburg-db migrate`, which begins the position anew.")
