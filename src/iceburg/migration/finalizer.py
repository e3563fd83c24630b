"""The end of dual write: the files are fenced, PostgreSQL alone is written from then on.

1. See that every condition holds, and compare both sides in full while the application writes.
2. Fence the Chroma directories, apply what they have, and compare them as they rest.
3. Put the marker there, fence the other files, apply their logs to the end, and in one transaction see that they are at
   the end, close them, and set the phase. This takes a second or so; writers of the unified layer wait for it.
4. Write the rest into the marker; make the constraints that were set aside; archive the files.

Up to the commit of step 3 everything can be taken back, and is, if anything fails. After it nothing is. A run that was
killed before it leaves fences, which the next run takes away before it begins; one that was killed after it is
continued.

Rejected: fencing first and verifying then, which would stop the writers for as long as that takes; a prepared
transaction over both sides, which SQLite does not have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import psycopg

from iceburg.database import change_log
from iceburg.database.applier import SqliteApplier
from iceburg.database.catalogue import Catalogue, Source
from iceburg.database.chroma_applier import ChromaApplier
from iceburg.database.connection import Target
from iceburg.database.fence import (
    closed_path,
    fence_chroma,
    fence_lines,
    fence_tables,
    is_fenced_file,
    unfence,
    unfence_lines,
)
from iceburg.database.handover import read_marker, remove_marker, write_marker
from iceburg.database.jsonl_applier import JsonlApplier, jsonl_state
from iceburg.database.phases import Phase, move_phase, phase_changes, read_phase, require_phase
from iceburg.database.positions import (
    BEING_MIGRATED,
    close_position,
    find_position,
    lock_position,
    rename_structure,
)
from iceburg.database.schema import SchemaNames, check_schema
from iceburg.database.sqlite_session import SqliteSession
from iceburg.database.target_table import prepare_loaders
from iceburg.errors import SourceError, TargetError
from iceburg.migration.archive import archive_stores, check_archive, free_space, size_of
from iceburg.migration.completion import complete_tables
from iceburg.migration.final_report import AskMonitor, Condition, FinalReport, Verified, Verify, no_monitor
from iceburg.migration.ledger import Ledger
from iceburg.migration.live_preparation import StoreApplier, applier_of
from iceburg.migration.run import Listener
from iceburg.migration.session import connect_writer
from iceburg.migration.worker import StoppedError
from iceburg.records import Store
from iceburg.sources.discovery import OWN_DIRECTORY
from iceburg.sources.fingerprint import fingerprint

DEFAULT_HOURS: Final = 48.0
"""Hours for which the flag has to have been on."""

# Seconds to wait for writers of a file that is about to be fenced.
_PATIENCE: Final = 30.0
_ROUNDS: Final = 10


class Finalizer:
    """One run.

    Parameters
    ----------
    target, data_dir, names, listener, stopping
        As for a migration.
    rediscover
        Finds the stores.
    verify
        Compares both sides.
    hours
        For how long the phase must have been ``dual``.
    archive
        Where the files go; by default below the data directory.
    ask_monitor
        Asks whoever has watched.
    """

    def __init__(
        self,
        target: Target,
        data_dir: Path,
        names: SchemaNames,
        *,
        rediscover: Callable[[], Sequence[Store]],
        verify: Verify,
        listener: Listener,
        stopping: Callable[[], bool],
        hours: float = DEFAULT_HOURS,
        archive: Path | None = None,
        ask_monitor: AskMonitor = no_monitor,
    ) -> None:
        self._target = target
        self._data_dir = data_dir.absolute()
        self._names = names
        self._rediscover = rediscover
        self._verify = verify
        self._listener = listener
        self._stopping = stopping
        self._hours = hours
        self._archive = archive or self._data_dir / OWN_DIRECTORY / "archive"
        self._ask_monitor = ask_monitor
        self._since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

    def run(self, *, dry_run: bool = False) -> FinalReport:
        """Finalize.

        Parameters
        ----------
        dry_run
            Look at the conditions, compare, and change nothing.

        Raises
        ------
        PhaseError
            The installation is in a phase from which no way leads there.
        SourceError, TargetError, NotReadyError
            It could not be done; everything is as it was before.
        """
        started = time.monotonic()
        with connect_writer(self._target.dsn) as connection:
            check_schema(connection, self._names)
            ledger = Ledger(connection, self._names)
            ledger.take_over()
            if read_phase(connection, self._names).phase is Phase.FINALIZED:
                return self._go_on(connection, started)
            require_phase(connection, self._names, "finalize", Phase.DUAL)
            if read_marker(self._data_dir) is not None and not dry_run:
                self._listener.phase("an earlier run was ended: its fences are taken away")
                self._take_back(self._stores_of_marker())
            stores = list(self._rediscover())
            conditions = self._conditions(connection, stores)
            if all(condition.holds for condition in conditions):
                self._listener.phase("comparing both sides")
                # Chroma directories are compared once nobody writes to them: their queue does not tell what differs.
                followed = [s for s in stores if s.kind != "chroma" or applier_of(s, self._names) is None]
                conditions.append(_as_condition(self._verify(followed, narrowed=True)))
            holds = all(condition.holds for condition in conditions)
            if dry_run or not holds:
                status = "ready" if holds else "refused"
                return FinalReport(status, tuple(conditions), seconds=_seconds(started))  # type: ignore[arg-type]
            run_id = ledger.start_run("finalize")
            try:
                fenced = self._close(connection, stores, conditions)
            except BaseException:
                if not connection.closed:
                    ledger.finish_run(run_id, "failed", {})
                raise
            report = FinalReport("finalized", tuple(conditions), round(fenced, 3), str(self._archive))
            ledger.finish_run(run_id, "complete", report.to_json())
            self._finish(connection)
            files = archive_stores(stores, self._archive, self._stop_if_asked)
            return replace(report, files=tuple(files), seconds=_seconds(started))

    def cancel(self) -> FinalReport:
        """Take away the fences of a run that was ended before its end.

        Raises
        ------
        PhaseError
            The installation is finalized: files that are written again would be others than PostgreSQL's.
        """
        started = time.monotonic()
        with connect_writer(self._target.dsn) as connection:
            check_schema(connection, self._names)
            Ledger(connection, self._names).take_over()
            phases = [phase for phase in Phase if phase is not Phase.FINALIZED]
            require_phase(connection, self._names, "finalize --cancel", *phases)
            self._take_back([*self._stores_of_marker(), *self._rediscover()])
        return FinalReport("cancelled", seconds=_seconds(started))

    def _stop_if_asked(self) -> None:
        if self._stopping():
            raise StoppedError

    # What has to hold

    def _conditions(self, connection: psycopg.Connection, stores: Sequence[Store]) -> list[Condition]:
        catalogue = Catalogue(connection, self._names)
        sources = {source.name: source for source in catalogue.sources()}
        state = read_phase(connection, self._names)
        wanted = timedelta(hours=self._hours)
        found = [
            Condition(
                "the flag has been on",
                f"{state.held.total_seconds() / 3600:.1f} h",
                f"{self._hours:g} h",
                state.held >= wanted,
            )
        ]
        verdict = self._ask_monitor(connection, self._names)
        if verdict is not None:
            found.append(Condition("the monitor's verdict", verdict.summary, "every limit kept", verdict.holds))
        missing = sorted(set(sources) - {store.name for store in stores})
        unknown = [s.name for s in stores if s.name not in sources or not sources[s.name].complete]
        found += [
            _none("stores that are not in PostgreSQL", unknown),
            _none("stores that are in PostgreSQL and not there", missing),
            _none("stores that are not in step", self._not_in_step(connection, stores, sources)),
        ]
        needed, free = size_of(stores), free_space(self._archive)
        found.append(
            Condition("room for the archive", f"{free / 1e6:,.0f} MB", f"{needed / 1e6:,.0f} MB", free > needed)
        )
        return found

    def _not_in_step(
        self, connection: psycopg.Connection, stores: Sequence[Store], sources: dict[str, Source]
    ) -> list[str]:
        late = []
        for store in stores:
            position = find_position(connection, self._names, store.name)
            if position is not None:
                if position.log_id == BEING_MIGRATED:
                    late.append(store.name)
            elif store.name in sources and sources[store.name].fingerprint != fingerprint(store):
                # It has no log: what PostgreSQL has is what it was when it was copied.
                late.append(store.name)
        return late

    # Fencing

    def _close(self, connection: psycopg.Connection, stores: Sequence[Store], conditions: list[Condition]) -> float:
        """Fence, apply to the end, and set the phase; return for how many seconds writers had to wait."""
        with ExitStack() as stack:
            applying = stack.enter_context(connect_writer(self._target.dsn))
            prepare_loaders(applying)
            appliers = {store.name: applier_of(store, self._names) for store in stores}
            # A damaged directory is not written to by anybody; it was compared as it rests.
            chroma = [store for store in stores if store.kind == "chroma" and appliers[store.name] is not None]
            others = [store for store in stores if store.kind != "chroma"]
            for applier in appliers.values():
                if applier is not None:
                    stack.callback(applier.close)
            try:
                if chroma:
                    self._listener.phase("fencing the Chroma directories")
                    for store in chroma:
                        self._stop_if_asked()
                        self._fence(applying, store)
                        _apply(applying, appliers[store.name])
                    verified = self._verify(chroma, narrowed=True)
                    conditions.append(_as_condition(verified, "both sides of the fenced Chroma directories"))
                    if not verified.identical:
                        raise SourceError(verified.summary, where="Chroma", hint="The fences are taken away again.")
                # From here to the end nobody is asked to wait.
                self._stop_if_asked()
                for store in others:
                    _apply(applying, appliers[store.name])
                self._listener.phase("fencing the files")
                began = time.monotonic()
                write_marker(self._data_dir, "closing", self._since, [store.name for store in stores])
                for store in others:
                    self._fence(applying, store)
                self._refuse_late_stores(stores)
                self._commit(connection, applying, stores, appliers, conditions)
                fenced = time.monotonic() - began
            except BaseException:
                self._take_back_unless_committed(stores)
                raise
            write_marker(self._data_dir, "finalized", self._since, [store.name for store in stores])
        return fenced

    def _refuse_late_stores(self, stores: Sequence[Store]) -> None:
        """Refuse to go on if a store has been made meanwhile, which nobody has fenced."""
        late = {store.name for store in self._rediscover()} - {store.name for store in stores}
        if late:
            raise SourceError(
                "has turned up meanwhile",
                where=", ".join(sorted(late)),
                hint="Nothing was changed. Run `iceburg-db finalize` again once it is followed.",
            )

    def _fence(self, applying: psycopg.Connection, store: Store) -> None:
        if store.kind == "jsonl":
            fence_lines(store.path, self._since, patience=_PATIENCE)
            return
        path = _database(store)
        if not path.exists() or not path.stat().st_size:
            return
        session = SqliteSession(path, busy_timeout=_PATIENCE)
        try:
            with session.writing() as file:
                before = change_log.structure_version(file)
                if store.kind == "sqlite":
                    fence_tables(file, store.name, self._since)
                else:
                    fence_chroma(file, self._since)
            after = session.select("PRAGMA schema_version")[0][0]
        finally:
            session.close()
        if store.kind == "sqlite":
            # Not a change after which anything would have to be read again.
            source = Catalogue(applying, self._names).source(store.name, store.kind)
            rename_structure(applying, self._names, source.source_id, before, str(after))

    def _commit(
        self,
        connection: psycopg.Connection,
        applying: psycopg.Connection,
        stores: Sequence[Store],
        appliers: dict[str, StoreApplier | None],
        conditions: Sequence[Condition],
    ) -> None:
        """Apply every log to its end, and set the phase in a transaction in which all of them are there."""
        for _ in range(_ROUNDS):
            for store in stores:
                self._apply_to_the_end(applying, store, appliers[store.name])
            with connection.transaction():
                connection.execute("SET LOCAL synchronous_commit = on")
                late = [name for store in stores if (name := self._close_if_at_end(connection, store)) is not None]
                if late:
                    raise psycopg.Rollback
                move_phase(
                    connection,
                    self._names,
                    Phase.FINALIZED,
                    by="finalize",
                    reason=f"the flag was on for {self._hours:g} hours or more, and every condition held",
                    evidence={condition.condition: condition.found for condition in conditions},
                )
                return
        raise TargetError(f"Not at the end of their logs: {', '.join(late)}.", hint="Run `iceburg-db finalize` again.")

    def _apply_to_the_end(self, applying: psycopg.Connection, store: Store, applier: StoreApplier | None) -> None:
        if isinstance(applier, JsonlApplier):
            # Under the name that it has behind the fence.
            applier = JsonlApplier(_behind_fence(store), self._names, largest=None)
        _apply(applying, applier)
        if isinstance(applier, JsonlApplier):
            applier.take_in_rest(applying)

    def _close_if_at_end(self, connection: psycopg.Connection, store: Store) -> str | None:
        """Close a store's log if all of it is applied; return the store's name if it is not."""
        source = Catalogue(connection, self._names).source(store.name, store.kind)
        position = lock_position(connection, self._names, source.source_id)
        if position is None:
            return None if source.fingerprint == fingerprint(_behind_fence(store)) else store.name
        if store.kind == "sqlite":
            session = SqliteSession(store.path)
            try:
                at_end = (position.position, position.structure) == SqliteApplier(store, session, self._names).look()
                with session.reading() as file:
                    _keep_sequences(connection, self._names, source, change_log.sequences(file))
            finally:
                session.close()
        elif store.kind == "jsonl":
            state = jsonl_state(_behind_fence(store).path)
            at_end = state is not None and (position.log_id, position.position) == (state.log_id, state.end)
        else:
            # It was compared as it rests.
            at_end = ChromaApplier(store, self._names).is_at(position)
        if not at_end:
            return store.name
        close_position(connection, self._names, source.source_id)
        return None

    # Taking back

    def _stores_of_marker(self) -> list[Store]:
        marker = read_marker(self._data_dir)
        stores = {store.name: store for store in self._rediscover()}
        if marker is not None:
            for name in marker.sources:
                path = self._data_dir / name
                # A fenced JSONL file is a directory, which is no store.
                stores.setdefault(name, Store("jsonl", path, name))
        return list(stores.values())

    def _take_back_unless_committed(self, stores: Sequence[Store]) -> None:
        """Take the fences away, unless the phase was set after all: then they stay."""
        try:
            with connect_writer(self._target.dsn) as connection:
                if read_phase(connection, self._names).phase is Phase.FINALIZED:
                    return
        except (psycopg.Error, TargetError):
            # Whether the commit came through is not known: the fences stay until somebody can ask.
            self._listener.phase("PostgreSQL does not say how far it is: run `iceburg-db finalize` again")
            return
        self._take_back(stores)

    def _take_back(self, stores: Sequence[Store]) -> None:
        for store in stores:
            if store.kind == "jsonl":
                unfence_lines(store.path)
                continue
            path = _database(store)
            if store.problem is not None or not path.exists() or not path.stat().st_size:
                continue
            session = SqliteSession(path, busy_timeout=_PATIENCE)
            try:
                with session.writing() as file:
                    unfence(file)
            finally:
                session.close()
        remove_marker(self._data_dir)

    # After the commit

    def _finish(self, connection: psycopg.Connection) -> None:
        """Make what was set aside while changes were applied: unique constraints, foreign keys, counters."""
        self._listener.phase("constraints")
        catalogue = Catalogue(connection, self._names)
        for source in catalogue.sources():
            sequences = {table["name"]: table["sequence"] for table in (source.description or {}).get("tables", ())}
            complete_tables(connection, catalogue, source.source_id, sequences, constraints=True)

    def _go_on(self, connection: psycopg.Connection, started: float) -> FinalReport:
        """Finish what a run has left that was ended after the phase was set, and see that the archive is whole."""
        marker = read_marker(self._data_dir)
        sources = Catalogue(connection, self._names).sources()
        if marker is None or marker.state != "finalized":
            since = self._since if marker is None else marker.since
            write_marker(self._data_dir, "finalized", since, [source.name for source in sources])
        self._finish(connection)
        stores = [Store(source.kind, self._store_path(source), source.name) for source in sources]
        there = [s for s in stores if s.kind == "jsonl" or s.path.exists()]
        files = archive_stores(there, self._archive, self._stop_if_asked)
        wrong = check_archive(self._archive)
        change = phase_changes(connection, self._names, 1)[0]
        return FinalReport(
            "finalized",
            tuple(Condition(name, str(found), "", holds=True) for name, found in change.evidence.items()),
            None,
            str(self._archive),
            tuple(files),
            tuple(f"{name} is not what was archived" for name in wrong),
            _seconds(started),
        )

    def _store_path(self, source: Source) -> Path:
        return self._data_dir if source.name == "." else self._data_dir / source.name


def _apply(connection: psycopg.Connection, applier: StoreApplier | None) -> None:
    if applier is not None:
        applier.apply(connection)


def _behind_fence(store: Store) -> Store:
    """Return a store with the path that it has once it is fenced."""
    return replace(store, path=closed_path(store.path)) if is_fenced_file(store.path) else store


def _database(store: Store) -> Path:
    return store.path if store.kind == "sqlite" else store.path / "chroma.sqlite3"


def _keep_sequences(
    connection: psycopg.Connection, names: SchemaNames, source: Source, sequences: dict[str, int]
) -> None:
    """Keep where SQLite's AUTOINCREMENT counters are: numbers of rows that are gone are not given again."""
    description = dict(source.description or {})
    description["tables"] = [
        {**table, "sequence": sequences.get(table["name"], table["sequence"])} for table in description["tables"]
    ]
    Catalogue(connection, names).describe_source(source.source_id, description, source.losses)


def _none(what: str, names: Sequence[str]) -> Condition:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return Condition(what, shown or "none", "none", not names)


def _as_condition(verified: Verified, what: str = "both sides compared") -> Condition:
    return Condition(what, verified.summary, "identical", verified.identical)


def _seconds(started: float) -> float:
    return round(time.monotonic() - started, 3)
