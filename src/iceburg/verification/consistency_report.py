"""What a consistency check says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from iceburg.database.catalogue import Dataset
from iceburg.verification.report import RecordDifference


@dataclass(frozen=True, slots=True)
class DatasetConsistency:
    """One dataset.

    Attributes
    ----------
    dataset, source
        Its name and its store.
    source_rows, target_rows, quarantined_rows
        As counted last.
    position
        The position of both sides at which they were counted; None where the store has none, or where it was never
        the same on both sides while they were counted.
    compared_rows
        Records of the source that were compared, to their end.
    rechecked
        Records that were looked at again, because a change of them was on its way.
    differences, unsettled
        Number of differences, and of records that changed at every look; all of them, whether or not they are listed.
    """

    dataset: str
    source: str
    source_rows: int
    target_rows: int
    quarantined_rows: int
    position: int | None
    compared_rows: int
    rechecked: int
    differences: int
    unsettled: int


@dataclass(frozen=True, slots=True)
class ConsistencyReport:
    """A consistency check.

    Attributes
    ----------
    status
        ``identical`` means that every record of every store was compared and none differs.
    seconds
        How long it took.
    datasets
        By store.
    differences
        The first ones of each dataset: nothing was on its way that would have explained them.
    unsettled
        The first ones of each dataset whose records changed at every look, as they were seen last.
    problems
        Stores that could not be compared, and why.
    passed_over
        Datasets that were not compared, and why.
    """

    status: Literal["identical", "different"]
    seconds: float
    datasets: tuple[DatasetConsistency, ...]
    differences: tuple[RecordDifference, ...]
    unsettled: tuple[RecordDifference, ...]
    problems: tuple[dict[str, str], ...] = ()
    passed_over: tuple[dict[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return asdict(self)

    def summary(self) -> str:
        """Say in a sentence what was compared, or the first thing that stands against it."""
        compared = sum(dataset.compared_rows for dataset in self.datasets)
        if self.status == "identical":
            return f"identical, {compared:,} records"
        if self.problems:
            return f"{self.problems[0]['source']}: {self.problems[0]['problem'].splitlines()[0]}"
        for what, found in (("different", self.differences), ("not settled", self.unsettled)):
            if found:
                return f"{what}: {found[0].dataset}, key {found[0].key}, {found[0].field}"
        return self.status

    @property
    def is_only_unsettled(self) -> bool:
        """Whether nothing stands against it but records that changed at every look."""
        return bool(self.unsettled) and not (self.differences or self.problems)


@dataclass(slots=True)
class Account:
    """What is found of one dataset while it is compared; fields as of `DatasetConsistency`."""

    dataset: Dataset
    limit: int
    source_rows: int = 0
    target_rows: int = 0
    quarantined_rows: int = 0
    position: int | None = None
    compared: int = 0
    rechecked: int = 0
    difference_count: int = 0
    unsettled_count: int = 0
    differences: list[RecordDifference] = field(default_factory=list)
    unsettled: list[RecordDifference] = field(default_factory=list)

    def note(self, found: Sequence[RecordDifference]) -> None:
        """Count differences of a record, and keep those that are among the first."""
        self.difference_count += len(found)
        self.differences.extend(found[: max(0, self.limit - len(self.differences))])

    def note_unsettled(self, found: Sequence[RecordDifference]) -> None:
        """Count a record that changed at every look, and keep how it was seen last."""
        self.unsettled_count += 1
        self.unsettled.extend(found[: max(0, self.limit - len(self.unsettled))])

    def result(self) -> DatasetConsistency:
        """Return the account as it is reported."""
        return DatasetConsistency(
            dataset=self.dataset.name,
            source=self.dataset.source,
            source_rows=self.source_rows,
            target_rows=self.target_rows,
            quarantined_rows=self.quarantined_rows,
            position=self.position,
            compared_rows=self.compared,
            rechecked=self.rechecked,
            differences=self.difference_count,
            unsettled=self.unsettled_count,
        )
