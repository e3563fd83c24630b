"""What the dashboard shows, as it is at one moment: records, and how they are read from the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg.rows import class_row

from iceburg.dashboard import statements
from iceburg.database.catalogue import Catalogue, Dataset
from iceburg.database.phases import PhaseChange, PhaseState, phase_changes, read_phase
from iceburg.database.positions import Position, find_position
from iceburg.database.schema import SchemaNames
from iceburg.database.statements import SELECT_INSTALLATION
from iceburg.migration.heartbeat import Heartbeat, read_heartbeat
from iceburg.migration.ledger import Ledger
from iceburg.migration.statements import SELECT_RUNS
from iceburg.migration.status import SourceStatus, source_status
from iceburg.monitoring.gate import Condition, Limits
from iceburg.monitoring.quarantine import Review, last_review
from iceburg.monitoring.window import LayerProcess, SeenMismatch, last_mismatches, layer_processes
from iceburg.records import Store

_MOVES: Final = 20
_RUNS: Final = 8
_MISMATCHES: Final = 50


@dataclass(frozen=True, slots=True)
class SourceNow:
    """How far PostgreSQL is behind one store.

    Attributes
    ----------
    source, kind
        Which store.
    pending
        Changes (bytes of a JSONL file) in its log that PostgreSQL does not have; None where that is not known.
    lag_seconds
        For how long it has not had the oldest of these, as seen from here.
    """

    source: str
    kind: str
    pending: int | None
    lag_seconds: float


@dataclass(frozen=True, slots=True)
class Now:
    """What is looked at every second.

    Attributes
    ----------
    at
        When (with a time zone), by this machine's clock.
    reachable, problem, hint
        Whether PostgreSQL has answered, or why not, and what to do.
    phase, phase_since, phase_seconds
        Of the installation; for how long by the server's clock. None before PostgreSQL has answered.
    follower
        What the last follower said; None if there never was one.
    paused
        Whether the control file is there.
    sources
        The stores whose logs PostgreSQL has a position of.
    pending_changes, pending_bytes, lag_seconds
        Over all of them: changes of SQLite files and Chroma directories, bytes of JSONL files, the longest lag.
    """

    at: datetime
    reachable: bool
    problem: str | None
    hint: str
    phase: str | None
    phase_since: datetime | None
    phase_seconds: float | None
    follower: Heartbeat | None
    paused: bool
    sources: tuple[SourceNow, ...]
    pending_changes: int
    pending_bytes: int
    lag_seconds: float


@dataclass(frozen=True, slots=True)
class TargetNow:
    """What PostgreSQL itself says every second: see `Now`."""

    phase: PhaseState
    follower: Heartbeat | None
    positions: Mapping[str, Position]


@dataclass(frozen=True, slots=True)
class DatasetProgress:
    """How far the copy of a dataset is.

    Attributes
    ----------
    dataset, source, target, phase
        Which; where its rows are; ``loading``, ``loaded`` or ``complete``.
    total_rows
        Records in the store: counted at the end of the copy, before that now and then; None where not known yet, and of
        what was never copied because it was new and small: the follower applies it.
    copied_rows, quarantined_rows, preserved_originals
        Rows copied; records that became none; values kept beside their row.
    rate
        Records a second over the last seconds; None while there is nothing to go by.
    seconds_left
        At that rate; None where that says nothing.
    """

    dataset: str
    source: str
    target: str
    phase: str
    total_rows: int | None
    copied_rows: int
    quarantined_rows: int
    preserved_originals: int
    rate: float | None
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a command: `finished` and `status` as its ledger has them."""

    run_id: int
    command: str
    started: datetime
    finished: datetime | None
    status: str


@dataclass(frozen=True, slots=True)
class Migration:
    """The migration: where from, where to, its datasets and its last runs; `target` is without secrets."""

    target: str
    installation: str | None
    datasets: tuple[DatasetProgress, ...]
    runs: tuple[Run, ...]
    moves: tuple[PhaseChange, ...]


@dataclass(frozen=True, slots=True)
class Gate:
    """The conditions of the gate, what they ask for, and when they were evaluated (with a time zone)."""

    at: datetime
    limits: Limits
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class QuarantineCount:
    """Records of one dataset in quarantine for one reason."""

    dataset: str
    reason: str
    records: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What is in quarantine, and who has accepted it."""

    counts: tuple[QuarantineCount, ...]
    records: int
    review: Review | None


@dataclass(frozen=True, slots=True)
class Connections:
    """Connections to the database: whose, in which state, how many."""

    application: str
    state: str
    connections: int


@dataclass(frozen=True, slots=True)
class Server:
    """The server.

    Attributes
    ----------
    version, vector_version, database
        Of PostgreSQL and pgvector; which database.
    size_bytes, started_at
        Of the database; of the server (with a time zone).
    max_connections, connections
        Of the server as a whole.
    longest_transaction
        Seconds since the oldest open transaction in the database began; None if there is none.
    cache_hit_share
        Blocks found in the server's memory, of all that were asked for; None before any was.
    rollbacks, deadlocks
        Since the statistics began.
    """

    version: str
    vector_version: str | None
    database: str
    size_bytes: int
    started_at: datetime
    max_connections: int
    connections: int
    longest_transaction: float | None
    cache_hit_share: float | None
    rollbacks: int
    deadlocks: int


@dataclass(frozen=True, slots=True)
class State:
    """The server, its connections, the processes of the layer and the stores."""

    server: Server
    connections: tuple[Connections, ...]
    processes: tuple[LayerProcess, ...]
    sources: tuple[SourceStatus, ...]


@dataclass(frozen=True, slots=True)
class Mismatches:
    """The last reads that differed, the newest first."""

    last: tuple[SeenMismatch, ...]


def read_now(connection: psycopg.Connection, names: SchemaNames, sources: Sequence[str]) -> TargetNow:
    """Ask for what changes every second."""
    positions = {name: find_position(connection, names, name) for name in sources}
    return TargetNow(
        read_phase(connection, names),
        read_heartbeat(connection, names),
        {name: position for name, position in positions.items() if position is not None},
    )


@dataclass(frozen=True, slots=True)
class Copied:
    """A dataset, and how many records of it are copied (quarantined ones too), quarantined, and kept beside a row."""

    dataset: Dataset
    records: int
    quarantined: int
    originals: int


def read_copied(connection: psycopg.Connection, names: SchemaNames) -> tuple[Copied, ...]:
    """Ask how far each dataset is."""
    ledger = Ledger(connection, names)
    progress, kept = ledger.progress(), ledger.kept_counts()
    found = []
    for dataset in Catalogue(connection, names).datasets():
        originals, quarantined = kept.get(dataset.dataset_id, (0, 0))
        found.append(Copied(dataset, progress.get(dataset.dataset_id, (0, 0))[0], quarantined, originals))
    return tuple(found)


def progress_of(copied: Copied, total: int | None, rate: float | None) -> DatasetProgress:
    """Say how far a dataset is, of so many records, at a rate."""
    dataset = copied.dataset
    complete = dataset.phase == "complete"
    left = None
    if not complete and rate and total is not None:
        left = max(0, total - copied.records) / rate
    return DatasetProgress(
        dataset.name,
        dataset.source,
        f"{dataset.target_schema}.{dataset.target_table}",
        dataset.phase,
        dataset.source_rows if complete or dataset.source_rows is not None else total,
        copied.records - copied.quarantined,
        copied.quarantined,
        copied.originals,
        None if complete else rate,
        left,
    )


def read_migration(
    connection: psycopg.Connection, names: SchemaNames, target: str, datasets: tuple[DatasetProgress, ...]
) -> Migration:
    """Ask for what there is around the datasets."""
    row = connection.execute(names.format(SELECT_INSTALLATION)).fetchone()
    runs = connection.execute(names.format(SELECT_RUNS), (_RUNS,)).fetchall()
    return Migration(
        target,
        None if row is None else row[0],
        datasets,
        tuple(Run(*run) for run in runs),
        phase_changes(connection, names, _MOVES),
    )


def read_kept(connection: psycopg.Connection, names: SchemaNames) -> Kept:
    """Ask what is in quarantine."""
    rows = connection.execute(names.format(statements.SELECT_QUARANTINE_COUNTS)).fetchall()
    counts = tuple(QuarantineCount(dataset, reason, records) for _, dataset, reason, records in rows)
    return Kept(counts, sum(count.records for count in counts), last_review(connection, names))


def read_mismatches(connection: psycopg.Connection, names: SchemaNames) -> Mismatches:
    """Ask for the last reads that differed."""
    return Mismatches(last_mismatches(connection, names, _MISMATCHES))


def read_state(connection: psycopg.Connection, names: SchemaNames, stores: Mapping[str, Store]) -> State:
    """Ask how the server, the processes and the stores are."""
    with connection.cursor(row_factory=class_row(Server)) as cursor:
        server = cursor.execute(statements.SELECT_SERVER).fetchone()
    assert server is not None  # noqa: S101 - a database that is connected to is in the statistics
    with connection.cursor(row_factory=class_row(Connections)) as others:
        connections = others.execute(statements.SELECT_CONNECTIONS).fetchall()
    return State(
        server,
        tuple(connections),
        layer_processes(connection, names),
        tuple(
            source_status(connection, names, source, stores.get(source.name))
            for source in Catalogue(connection, names).sources()
        ),
    )


def to_plain(value: Any) -> Any:
    """Return what `orjson` does not know by itself as something that it does."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not shown")
