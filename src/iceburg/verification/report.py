"""What a verification says."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

FoundBy: TypeAlias = Literal["counts", "records", "structure"]


@dataclass(frozen=True, slots=True)
class RecordDifference:
    """One field of one record in which source and target disagree.

    Attributes
    ----------
    dataset, key, field
        Where; `key` is the record's key as JSON text, `field` is ``(record)`` where the whole of it is missing or too
        much.
    source, target
        Both values, in a form that JSON holds.
    found_by
        What found it: ``counts``, ``records`` or ``structure``.
    """

    dataset: str
    key: str
    field: str
    source: Any
    target: Any
    found_by: FoundBy = "records"


@dataclass(frozen=True, slots=True)
class DatasetVerification:
    """One dataset.

    Attributes
    ----------
    dataset, source
        Its name and its store.
    source_rows, target_rows, quarantined_rows
        As counted now.
    compared_rows
        Records compared field by field, through the restore conversion: now, or by an earlier verification since which
        neither side has changed.
    unchanged_rows
        Of these, those that were compared earlier.
    differences
        Number of differences, all of them, whether or not they are listed.
    """

    dataset: str
    source: str
    source_rows: int
    target_rows: int
    quarantined_rows: int
    compared_rows: int
    differences: int
    unchanged_rows: int = 0


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """A verification.

    Attributes
    ----------
    run_id, status, seconds
        ``identical`` means that every record of every store was compared (or, with a sample, every one drawn) and none
        differs.
    datasets
        In the order they were migrated.
    differences
        The first ones of each dataset.
    problems
        Stores that could not be verified, and why.
    queries
        Answers compared; none in this version.
    sampled
        Whether only a sample was compared.
    """

    run_id: int
    status: Literal["identical", "different"]
    seconds: float
    datasets: tuple[DatasetVerification, ...]
    differences: tuple[RecordDifference, ...]
    problems: tuple[dict[str, str], ...] = ()
    queries: tuple[dict[str, Any], ...] = ()
    sampled: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return asdict(self)


@dataclass(slots=True)
class Findings:
    """What comparing a range of records found.

    Attributes
    ----------
    source_rows, matched_rows, quarantined, originals
        Records read; rows, quarantined records and originals that belong to them.
    unchanged
        Records that were not compared again, because both sides are as they were when they were.
    difference_count
        Number of differences.
    differences
        The first of them.
    """

    source_rows: int = 0
    matched_rows: int = 0
    quarantined: int = 0
    originals: int = 0
    unchanged: int = 0
    difference_count: int = 0
    differences: list[RecordDifference] = field(default_factory=list)

    def note(self, difference: RecordDifference, limit: int) -> None:
        """Count a difference, and keep it if it is one of the first `limit`."""
        self.difference_count += 1
        if len(self.differences) < limit:
            self.differences.append(difference)

    def add(self, other: Findings, limit: int) -> None:
        """Add what another range found."""
        self.source_rows += other.source_rows
        self.matched_rows += other.matched_rows
        self.quarantined += other.quarantined
        self.originals += other.originals
        self.unchanged += other.unchanged
        self.difference_count += other.difference_count
        self.differences.extend(other.differences[: limit - len(self.differences)])


def show(value: Any) -> Any:
    """Return a value in a form that JSON holds and a person can read; long ones are cut."""
    if isinstance(value, bytes):
        text = f"x'{value[:64].hex()}'"
        return text if len(value) <= 64 else f"{text}... ({len(value)} bytes)"
    if isinstance(value, str):
        return value if len(value) <= 300 else f"{value[:300]}... ({len(value)} characters)"
    if value is None or isinstance(value, int | float | bool):
        return value
    if isinstance(value, dict | list):
        return value if len(repr(value)) <= 300 else show(repr(value))
    return str(value)
