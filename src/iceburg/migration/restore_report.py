"""What a rollback says when it is over."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from iceburg.records import StoreKind


@dataclass(frozen=True, slots=True)
class Checked:
    """What comparing a restored dataset with the target found.

    Attributes
    ----------
    compared
        Records of the files that were compared with what the target has of them.
    differences
        How many differences there are.
    listed
        The first of them, in the form in which `verify` prints them; ``source`` is the file.
    """

    compared: int = 0
    differences: int = 0
    listed: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class StoreRollback:
    """One store.

    Attributes
    ----------
    store, kind
        Which.
    files
        Where it is now: what was written, or brought up to date.
    state
        ``written``, ``kept`` (written by an earlier run), ``not restored``; with ``--in-place`` ``changed``,
        ``to be changed`` or ``unchanged``.
    chromadb
        The version of chromadb that made a Chroma directory; None where none was made.
    position
        How far the target was in the store's change log; None where it has no position.
    """

    store: str
    kind: StoreKind
    files: tuple[str, ...]
    state: Literal["written", "kept", "not restored", "changed", "to be changed", "unchanged"]
    chromadb: str | None = None
    position: int | None = None


@dataclass(frozen=True, slots=True)
class DatasetRollback:
    """One dataset.

    Attributes
    ----------
    dataset, source
        Its name, and its store.
    target_rows, quarantined_rows
        What the target had: rows, and records kept whole.
    restored_rows
        Records in the file now.
    changed_rows
        With ``--in-place``: records that were written or removed; with ``--dry-run``, that would be.
    compared_rows, differences
        Of the check: records compared, and the number of differences.
    """

    dataset: str
    source: str
    target_rows: int
    quarantined_rows: int
    restored_rows: int
    changed_rows: int
    compared_rows: int
    differences: int


@dataclass(frozen=True, slots=True)
class Note:
    """Something to know of a store."""

    source: str
    text: str


@dataclass(frozen=True, slots=True)
class RollbackReport:
    """A rollback.

    Attributes
    ----------
    status
        ``complete``: all is there, and every record is what the target has; ``different``: a record is not;
        ``incomplete``: something of a store is not there.
    seconds
        How long it took.
    as_of
        When the state of the target was taken that all files have, in UTC.
    output
        The directory that was written; with ``--in-place`` the installation.
    in_place
        Whether the installation was brought up to date.
    stores, datasets
        What was done.
    differences
        The first ones of each dataset.
    problems
        What keeps it from being complete.
    notes
        What is otherwise than it was, or else to be known.
    """

    status: Literal["complete", "different", "incomplete"]
    seconds: float
    as_of: str
    output: str
    in_place: bool
    stores: tuple[StoreRollback, ...]
    datasets: tuple[DatasetRollback, ...]
    differences: tuple[dict[str, Any], ...] = ()
    problems: tuple[Note, ...] = ()
    notes: tuple[Note, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return asdict(self)
