"""What the target says of itself: phases, positions, counts, what is kept. Reads only; works while a migration runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from iceburg.database.catalogue import Catalogue
from iceburg.database.connection import Target, connect
from iceburg.database.phases import phase_changes, read_phase
from iceburg.database.schema import SchemaNames, check_schema
from iceburg.database.statements import SELECT_INSTALLATION
from iceburg.errors import SourceError
from iceburg.migration import statements
from iceburg.migration.ledger import Ledger
from iceburg.records import Store
from iceburg.sources.fingerprint import fingerprint

_CHANGES: Final = 5


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
    """One store: whether it is complete, and whether it has changed since."""

    source: str
    kind: str
    complete: bool
    state: str
    problem: str | None


@dataclass(frozen=True, slots=True)
class Status:
    """The target as a whole; of the phase also since when, and the last moves."""

    target: str
    installation: str | None
    phase: str
    phase_since: str
    phase_changes: tuple[dict[str, Any], ...]
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
        sources = tuple(
            SourceStatus(s.name, s.kind, s.complete, _state(by_name.get(s.name), s.fingerprint), s.problem)
            for s in catalogue.sources()
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
        phase = read_phase(connection, names)
        complete = all(source.complete and source.state == "unchanged" for source in sources)
        return Status(
            target.description,
            None if row is None else row[0],
            phase.phase.value,
            str(phase.since),
            tuple(asdict(change) for change in phase_changes(connection, names, _CHANGES)),
            "complete" if complete and sources else "incomplete",
            sources,
            datasets,
            tuple(ledger.reasons()),
            tuple(runs),
        )


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
