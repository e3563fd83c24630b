"""What a verification says."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

FoundBy: TypeAlias = Literal["counts", "records", "structure"]


@dataclass(frozen=True, slots=True)
class QueryVerification:
    """One kind of question, asked of one store with several arguments.

    Attributes
    ----------
    query, store
        What was asked, in words, and of which store or dataset.
    identical
        Whether all answers were the same.
    asked, different
        How many times, and how many of the answers were not the same.
    example
        The first that was not: its arguments, and both answers from where they differ.
    """

    query: str
    store: str
    identical: bool
    asked: int
    different: int
    example: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RecallVerification:
    """How much a collection's vector index finds of what exact search does.

    Attributes
    ----------
    collection
        The dataset.
    kind, options, search
        The index, what it was made with, and what a session sets to search it.
    recall
        Share of the 8 nearest records that were found now; None where search is exact.
    recorded
        The share that was measured when the index was made.
    queries
        How many were asked.
    chosen
        Whether PostgreSQL takes the index by itself; it reads a small collection whole.
    """

    collection: str
    kind: str
    options: dict[str, int]
    search: dict[str, int]
    recall: float | None
    recorded: float | None
    queries: int
    chosen: bool


@dataclass(frozen=True, slots=True)
class StructureVerification:
    """What was looked at of the structure.

    Attributes
    ----------
    tables
        Tables compared with what they should be.
    indexes
        Indexes that amcheck looked through, with every row of their tables.
    why_not
        Why amcheck looked through none; empty where it did.
    """

    tables: int
    indexes: int
    why_not: str


@dataclass(frozen=True, slots=True)
class Repair:
    """Something that was mended.

    Attributes
    ----------
    dataset, key
        Where; no key where it is no record.
    action
        ``added``, ``replaced``, ``removed``, or what was done in words.
    problem
        Why it could not be done; None where it was.
    """

    dataset: str
    key: str
    action: str
    problem: str | None = None


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
        Questions asked of both sides.
    not_asked
        Datasets of which nothing, or not everything, was asked, and why.
    recall
        What the vector indexes find.
    structure
        What was looked at of the structure; what was found is among the differences.
    repairs
        What was mended; the rest of the report is of the time after it.
    sampled
        Whether only a sample was compared.
    seed
        Of the arguments that questions are asked with.
    """

    run_id: int
    status: Literal["identical", "different"]
    seconds: float
    datasets: tuple[DatasetVerification, ...]
    differences: tuple[RecordDifference, ...]
    problems: tuple[dict[str, str], ...] = ()
    queries: tuple[QueryVerification, ...] = ()
    not_asked: tuple[dict[str, str], ...] = ()
    recall: tuple[RecallVerification, ...] = ()
    structure: StructureVerification = StructureVerification(0, 0, "")
    repairs: tuple[Repair, ...] = ()
    sampled: bool = False
    seed: int = 0

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
