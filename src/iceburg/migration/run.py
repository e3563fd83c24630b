"""One run of the migration: what all its steps share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import psycopg

from iceburg.database.catalogue import Catalogue, Dataset, Source
from iceburg.database.positions import CopyMark, Mark
from iceburg.database.schema import SchemaNames
from iceburg.database.vector_indexes import VectorIndexKind
from iceburg.migration.build_progress import Build
from iceburg.migration.ledger import Ledger
from iceburg.migration.report import Tally
from iceburg.migration.worker import Advance
from iceburg.records import Store


@dataclass(frozen=True, slots=True)
class Options:
    """How a migration is done.

    Attributes
    ----------
    batch_size
        Rows a batch.
    jobs
        Worker processes.
    vector_index
        What collections are indexed with; None: what they are indexed with, ivfflat where that is not known.
    recheck
        Go through stores that look unchanged, too.
    rewrite
        Write every record again, which mends a target that somebody has changed.
    moved
        The installation has been moved: take its new path.
    narrowed
        Whether `stores` is only a part of the installation, so that a store that is not in it need not be missing.
    max_rate
        Records a second that a live migration may write; None for as many as it can.
    throttle
        Milliseconds for which writers may have to wait for a file before a live migration reads less; None for no
        limit.
    """

    batch_size: int = 10_000
    jobs: int = 2
    vector_index: VectorIndexKind | None = None
    recheck: bool = False
    rewrite: bool = False
    moved: bool = False
    narrowed: bool = False
    max_rate: float | None = None
    throttle: float | None = None


class Listener(Protocol):
    """What is told of a migration's progress."""

    def phase(self, text: str) -> None:
        """Hear what is done now."""
        ...

    def expect(self, dataset: str, rows: int, done: int) -> None:
        """Hear how many records a dataset has, and how many of them are done already."""
        ...

    def advance(self, event: Advance) -> None:
        """Hear how far a dataset is."""
        ...

    def build(self, build: Build) -> None:
        """Hear how far an index is."""
        ...


@dataclass(slots=True)
class Run:
    """What the steps of one run share.

    Attributes
    ----------
    connection, names, catalogue, ledger
        The target.
    fence
        From `Ledger.take_over`.
    options, listener
        As given to the migrator.
    problems
        Stores that could not be migrated, and why.
    skipped
        What was passed over, by store.
    tally
        What was done so far.
    """

    connection: psycopg.Connection
    names: SchemaNames
    catalogue: Catalogue
    ledger: Ledger
    fence: int
    options: Options
    listener: Listener
    problems: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)

    def fail(self, store: str, problem: str) -> None:
        """Note that a store cannot be migrated; the others go on."""
        self.problems[store] = problem
        self.listener.phase(f"{store}: {problem}")


@dataclass(slots=True)
class Work:
    """A store that is being migrated: its state when it was looked at, and its datasets.

    Attributes
    ----------
    sequences
        SQLite's AUTOINCREMENT counters, by table.
    log
        Where the file's change log was before anything was read: what was written since is applied from there; None
        where the file has none.
    copied
        The same of a live migration, of any kind of store; None where what is written to it cannot be followed.
    """

    store: Store
    source: Source
    fingerprint: str
    datasets: list[Dataset]
    sequences: dict[str, int | None]
    log: Mark | None = None
    copied: CopyMark | None = None
