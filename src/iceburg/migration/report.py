"""What a migration says when it is over."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """One dataset of a migration.

    Attributes
    ----------
    dataset, source, target
        Its name, its store and its table.
    source_rows, target_rows, quarantined_rows
        Counts; the first is the sum of the others.
    preserved_originals
        Values kept beside their rows.
    copied_rows
        Rows written by this run.
    bytes
        Size of all rows as rendered.
    seconds
        Working time of this run.
    notes
        What of the structure could not be carried over, or is lost in the source.
    """

    dataset: str
    source: str
    target: str
    source_rows: int
    target_rows: int
    quarantined_rows: int
    preserved_originals: int
    copied_rows: int
    bytes: int
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """A store that could not be migrated, or not to its end."""

    source: str
    problem: str


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """A migration.

    Attributes
    ----------
    run_id, status, seconds
        ``complete`` means that everything in every store is in PostgreSQL or in the quarantine.
    datasets
        In the order they were found.
    problems
        Stores that are not complete, and why.
    kept
        What is preserved or quarantined: dataset, kind, reason, count, a few keys.
    skipped
        What holds no rows of its own and was passed over: views and virtual tables, by store.
    losses
        What the stores had lost before: dataset (or store), kind, count, ids, detail.
    unchanged
        Whether nothing had to be copied because no store has changed.
    interrupted
        Whether the run was asked to stop.
    """

    run_id: int
    status: Literal["complete", "incomplete"]
    seconds: float
    datasets: tuple[DatasetReport, ...]
    problems: tuple[Problem, ...] = ()
    kept: tuple[dict[str, Any], ...] = ()
    skipped: tuple[dict[str, str], ...] = ()
    losses: tuple[dict[str, Any], ...] = ()
    unchanged: bool = False
    interrupted: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return asdict(self)

    @property
    def quarantined(self) -> int:
        """Number of quarantined records."""
        return sum(dataset.quarantined_rows for dataset in self.datasets)


@dataclass(slots=True)
class Tally:
    """Counts of one run, gathered while it goes on: rows written and working seconds by dataset number."""

    copied: dict[int, int] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)

    def add(self, dataset_id: int, rows: int, seconds: float) -> None:
        """Add what one task did."""
        self.copied[dataset_id] = self.copied.get(dataset_id, 0) + rows
        self.seconds[dataset_id] = self.seconds.get(dataset_id, 0.0) + seconds
