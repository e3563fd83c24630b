"""What every mapping offers: records to rows, and rows back to records.

A mapping is a pure function of its definition. ``convert`` gives the row and the originals that have to be kept beside
it; ``restore`` gives the record back from the row and those originals alone. Law, held by a Hypothesis test for every
mapping: ``differences(record, restore(convert(record))) == []``.
"""

from __future__ import annotations

from collections.abc import Mapping as Dictionary
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from iceburg.mappings.codecs import PgValue
from iceburg.records import Key, Value

Row: TypeAlias = tuple[PgValue, ...]
Originals: TypeAlias = "tuple[Original, ...]"
RecordT = TypeVar("RecordT")


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """A column that a mapping writes: its name and PostgreSQL type (`copy_stream` lists the types)."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Original:
    """A value that PostgreSQL cannot hold as it is, kept beside its row.

    Attributes
    ----------
    field
        The field of the source record.
    value
        The original value.
    reason
        What stood in the way, in a few words: reports count by it.
    """

    field: str
    value: Value
    reason: str


@dataclass(frozen=True, slots=True)
class Difference:
    """One field in which a source record and its target disagree."""

    field: str
    source: Any
    target: Any


class UnmappableError(Exception):
    """A record of which no row can be made: it goes to the quarantine whole."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class UnrestorableError(Exception):
    """A row of which no record can be made, because something has changed it."""

    def __init__(self, field: str, found: Any) -> None:
        self.field = field
        self.found = found
        super().__init__(f"{field}: {found!r}")


class Mapping(Protocol[RecordT]):
    """Conversion between the records of one dataset and the rows of one table."""

    @property
    def columns(self) -> tuple[TargetColumn, ...]:
        """The columns written, in row order."""
        ...

    @property
    def key_columns(self) -> tuple[int, ...]:
        """The positions in a row of the columns that identify it."""
        ...

    def key(self, record: RecordT) -> Key:
        """Return the record's identity in its source."""
        ...

    def row_key(self, record: RecordT) -> Row | None:
        """Return the values of `key_columns` for a record; None if no row can have them."""
        ...

    def convert(self, record: RecordT) -> tuple[Row, Originals]:
        """Return the row and the originals to keep.

        Raises
        ------
        UnmappableError
            If no row can be made of the record.
        """
        ...

    def restore(self, row: Row, originals: Dictionary[str, Value]) -> RecordT:
        """Return the record that `row` and its originals came from.

        Raises
        ------
        UnrestorableError
            If the row is not one that `convert` makes.
        """
        ...

    def differences(self, source: RecordT, restored: RecordT) -> list[Difference]:
        """Compare two records field by field: JSON as values with exact numbers, all else to the byte."""
        ...

    def derived(self, record: RecordT) -> tuple[tuple[int, PgValue], ...]:
        """Return position and value of the columns that `restore` does not need."""
        ...

    def pack(self, record: RecordT) -> bytes:
        """Write the whole record for the quarantine."""
        ...

    def unpack(self, packed: bytes) -> RecordT:
        """Read what `pack` wrote."""
        ...


@runtime_checkable
class Matching(Protocol):
    """A mapping that can tell in one go what `restore`, `differences` and `derived` tell one after the other.

    The first of its columns is a UUID, which identifies a row.
    """

    def matches(self, record: Any, sent: bytes) -> bool:
        """Whether a row without originals is restored to `record`, and its derived columns are the record's.

        `sent` is what PostgreSQL's ``record_send`` gives of the row's columns. False may also mean "not sure". Law,
        held by a Hypothesis test: where it is True, the long way finds nothing.
        """
        ...
