"""What the target says of itself: phases, positions, counts, what is kept. Reads only; works while a migration runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import psycopg

from iceburg.database.arming import read_logs
from iceburg.database.catalogue import Catalogue, Source
from iceburg.database.connection import Target, connect
from iceburg.database.known_target import KnownPositions
from iceburg.database.phases import Phase, phase_changes, read_phase
from iceburg.database.positions import BEING_MIGRATED, CLOSED, Position, find_position
from iceburg.database.schema import SchemaNames, check_schema
from iceburg.database.statements import SELECT_INSTALLATION
from iceburg.errors import SourceError
from iceburg.migration import statements
from iceburg.migration.heartbeat import read_heartbeat
from iceburg.migration.ledger import Ledger
from iceburg.records import Store
from iceburg.sources.fingerprint import fingerprint

_CHANGES: Final = 5
# What a store may be like if everything of it is in PostgreSQL, or on its way.
WELL: Final = ("unchanged", "in step", "behind", "closed")


@dataclass(frozen=True, slots=True)
class DatasetStatus:
    """One dataset: how far it is, and what is kept of it."""

    dataset: str
    source: str
    target: str
    phase: str
    source_rows: int | None
    copied_rows: int
    quarantined_rows: int
    preserved_originals: int
    position: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """One store: whether it is complete, whether it has changed since, and how much PostgreSQL does not have of it."""

    source: str
    kind: str
    complete: bool
    state: str
    pending: int | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class Status:
    """The target as a whole; of the phase also since when, and the last moves."""

    target: str
    installation: str | None
    phase: str
    phase_since: str
    phase_changes: tuple[dict[str, Any], ...]
    follower: dict[str, Any] | None
    status: str
    sources: tuple[SourceStatus, ...]
    datasets: tuple[DatasetStatus, ...]
    kept: tuple[dict[str, Any], ...]
    runs: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return asdict(self)


def read_status(target: Target, stores: Sequence[Store], names: SchemaNames) -> Status:
    """Ask the target how far everything is.

    Raises
    ------
    TargetError
        It cannot be reached, or nothing has been migrated to it.
    """
    with connect(target.dsn, autocommit=True) as connection:
        check_schema(connection, names)
        catalogue, ledger = Catalogue(connection, names), Ledger(connection, names)
        by_name = {store.name: store for store in stores}
        phase = read_phase(connection, names)
        closed = phase.phase is Phase.FINALIZED
        sources = tuple(
            source_status(connection, names, source, by_name.get(source.name), closed=closed)
            for source in catalogue.sources()
        )
        kept = ledger.kept_counts()
        progress = ledger.progress()
        datasets = tuple(
            DatasetStatus(
                dataset.name,
                dataset.source,
                f"{dataset.target_schema}.{dataset.target_table}",
                dataset.phase,
                dataset.source_rows,
                progress.get(dataset.dataset_id, (0, 0))[0] - kept[dataset.dataset_id][1],
                kept[dataset.dataset_id][1],
                kept[dataset.dataset_id][0],
                _position(ledger, dataset.dataset_id),
                tuple(dataset.notes),
            )
            for dataset in catalogue.datasets()
        )
        runs = [
            {"run_id": run, "command": command, "started": str(start), "finished": end and str(end), "status": status}
            for run, command, start, end, status in connection.execute(names.format(statements.SELECT_RUNS), (5,))
        ]
        row = connection.execute(names.format(SELECT_INSTALLATION)).fetchone()
        heartbeat = read_heartbeat(connection, names)
        complete = all(source.complete and source.state in WELL for source in sources)
        return Status(
            target.description,
            None if row is None else row[0],
            phase.phase.value,
            str(phase.since),
            tuple(asdict(change) for change in phase_changes(connection, names, _CHANGES)),
            None if heartbeat is None else asdict(heartbeat),
            "complete" if complete and sources else "incomplete",
            sources,
            datasets,
            tuple(ledger.reasons()),
            tuple(runs),
        )


def source_status(
    connection: psycopg.Connection, names: SchemaNames, source: Source, store: Store | None, *, closed: bool = False
) -> SourceStatus:
    """Say how one store stands, which may be gone; all are closed where the installation is finalized."""
    position = find_position(connection, names, source.name)
    pending = None
    if closed or (position is not None and position.log_id == CLOSED):
        state = "closed"
    elif position is None:
        state = _state(store, source.fingerprint)
    elif position.log_id == BEING_MIGRATED:
        state = "catching up" if source.complete else "being copied"
    else:
        state, pending = _followed(store, source.name, position)
    return SourceStatus(source.name, source.kind, source.complete, state, pending, source.problem)


def _followed(store: Store | None, name: str, position: Position) -> tuple[str, int | None]:
    """Say how a store is that has a position, and how many of its entries PostgreSQL does not have."""
    if store is None:
        return "missing", None
    (log,) = read_logs([store], KnownPositions("", None, {name: position}), lambda: None)
    if log.problem is not None:
        return "unreadable", None
    return ("another log", None) if log.pending is None else ("in step" if not log.pending else "behind", log.pending)


def _state(store: Store | None, migrated: str | None) -> str:
    if store is None:
        return "missing"
    if migrated is None:
        return "never read"
    try:
        return "unchanged" if fingerprint(store) == migrated else "changed"
    except (SourceError, OSError):
        return "unreadable"


def _position(ledger: Ledger, dataset_id: int) -> str | None:
    chunks = [ledger.last_chunk(stream) for stream in ledger.streams(dataset_id)]
    found = [str(list(chunk.last)) for chunk in chunks if chunk is not None]
    return " ".join(found) or None
