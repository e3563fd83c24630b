"""What a read of PostgreSQL found: rows, and the records of the source that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import orjson
from psycopg import sql

from iceburg.database.catalogue import Dataset
from iceburg.database.kept import unpack_value
from iceburg.database.postgres_failures import BehindError
from iceburg.mappings.document import ENTITIES, RELATIONSHIPS
from iceburg.mappings.identity import identify, key_text
from iceburg.mappings.mapping import Mapping, TargetColumn, UnrestorableError
from iceburg.records import Value

if TYPE_CHECKING:
    from iceburg.database.quick_write import QuickWrite

Columns: TypeAlias = dict[str, Value]
Fetched: TypeAlias = tuple[Any, ...]
Originals: TypeAlias = dict[str, Value]

_DIGITS: Final = bytes.maketrans(b"0123456789.", b"00000000000")
_LONG_NUMBER: Final = b"0" * 16
# Where identities are texts; all others are numbers.
_KEY_FIELDS: Final = {"entities": (ENTITIES.key,), "relationships": (RELATIONSHIPS.key,)}


@dataclass(slots=True)
class Bound:
    """A dataset with what reading it takes.

    Attributes
    ----------
    dataset, mapping
        Which, and how its records are held.
    epoch
        Of the position when the definition was read; None where there was no position.
    columns, width
        Names of the source's columns, and how many values of the reading key come before them in a record.
    key_fields
        Source columns in which a record's identity may be kept as an original.
    identity
        Gives the id of a row for the `key_text` of its record.
    has_originals
        Whether originals were met.
    statements, quick
        Those made for it so far, and the short way of writing to it.
    refused, apart
        Until when short reads are not to be tried, by read; short reads of which there are records to be given apart.
    """

    dataset: Dataset
    mapping: Mapping[Any]
    epoch: int | None
    columns: tuple[str, ...]
    width: int
    key_fields: tuple[str, ...]
    identity: Callable[[str], bytes]
    has_originals: bool = False
    statements: dict[Any, Any] = field(default_factory=dict, repr=False)
    refused: dict[Any, float] = field(default_factory=dict, repr=False)
    apart: set[Any] = field(default_factory=set, repr=False)
    quick: QuickWrite | None = None

    @classmethod
    def of(cls, dataset: Dataset, epoch: int | None) -> Bound:
        """Bind a dataset."""
        definition = dataset.definition
        return cls(
            dataset,
            dataset.mapping(),
            epoch,
            tuple(definition.get("columns", ())),
            int(definition.get("key_width", 0)),
            _KEY_FIELDS.get(definition["mapping"], ()),
            identify(dataset.name),
        )

    def row_ids(self, keys: Sequence[str]) -> list[str]:
        """Return the ids (hexadecimal) of the rows of records, by their `key_text`."""
        return [raw.hex() for raw in map(self.identity, keys)]

    def record(self, columns: Columns, reading_key: Sequence[Value] = ()) -> tuple[Value, ...]:
        """Make a source record of columns by name; those that are not given are NULL."""
        key = tuple(reading_key) or (None,) * self.width
        return (*key, *(columns.get(column) for column in self.columns))

    @property
    def owned(self) -> sql.Composable:
        """The condition that a row of ``t`` is the dataset's."""
        owner = self.dataset.target().owner_column
        if owner is None:
            return sql.SQL("TRUE")
        return sql.SQL("{} = {}").format(sql.Identifier("t", owner), sql.Literal(self.dataset.dataset_id))

    @property
    def has_ids(self) -> bool:
        """Whether a row begins with an id that follows from its record's key."""
        return self.mapping.columns[0] == TargetColumn("id", "uuid")

    def originals(self, found: Sequence[Fetched]) -> dict[bytes | str, Originals]:
        """Group originals (record key, field, storage class, value) by row id; without ids by key."""
        identity = self.identity if self.has_ids else str
        originals: dict[bytes | str, Originals] = {}
        for key, name, kind, raw in found:
            originals.setdefault(identity(key), {})[name] = unpack_value(kind, raw)
        return originals


@dataclass(slots=True)
class Answer:
    """What a read found.

    Attributes
    ----------
    bound
        The dataset.
    rows
        As selected.
    odd
        Whether there are originals of the fields asked about.
    kept
        Whether records may have originals that were not read with them.
    originals
        Of the rows' records: see `Bound.originals`.
    """

    bound: Bound
    rows: list[Fetched]
    odd: bool = False
    kept: bool = False
    originals: dict[bytes | str, Originals] = field(default_factory=dict)

    def record(self, row: Fetched) -> Any:
        """Return the source record of a row of the mapping's columns, as it was.

        Raises
        ------
        BehindError
            Another program has changed the row.
        """
        mapping = self.bound.mapping
        try:
            if not self.originals:
                return mapping.restore(row, {})
            identity = row[0] if self.bound.has_ids else key_text(mapping.key(mapping.restore(row, {})))
            return mapping.restore(row, self.originals.get(identity, {}))
        except UnrestorableError as error:
            raise BehindError(
                f"a row was changed by another program: {error}", where=self.bound.dataset.name
            ) from error

    def columns(self, row: Fetched) -> Columns:
        """Return the source's columns of a row, by name, as they were."""
        return dict(zip(self.bound.columns, self.record(row)[self.bound.width :], strict=True))


@dataclass(slots=True)
class ShortAnswer:
    """What a read in the short way found.

    Attributes
    ----------
    bound
        The dataset.
    rows
        As selected.
    kept
        The originals of the records of rows, by their places.
    apart
        How many rows at the end are of records given apart: see `iceburg.database.short_statement`.
    """

    bound: Bound
    rows: list[Fetched]
    kept: dict[int, Originals]
    apart: int = 0

    def settled(self, fields: Sequence[str]) -> Sequence[int]:
        """Return the places of rows not given apart of which nothing is kept in these fields of the source."""
        found = range(len(self.rows) - self.apart)
        if not self.apart:
            return found
        kept = self.kept
        return [at for at in found if at not in kept or kept[at].keys().isdisjoint(fields)]


def stored_json(text: str | None) -> Any:
    """Return the JSON value of a text that ``jsonb`` printed, as `json.loads` does; None of None."""
    if text is None:
        return None
    if len(text) < len(_LONG_NUMBER):
        return orjson.loads(text)
    raw = text.encode()
    return json.loads(text) if has_long_number(raw) else orjson.loads(raw)


def has_long_number(raw: bytes) -> bool:
    """Whether what ``jsonb`` printed may have a number that orjson reads in another way than `json.loads` does.

    One of fewer digits is the same to both; ``jsonb`` prints no exponents.
    """
    return _LONG_NUMBER in raw.translate(_DIGITS)
