"""What the target knows of its sources: the stores, their datasets, and the mapping of each dataset.

A dataset's *definition* is JSON that says all that is needed to convert its records there and back without the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from iceburg.database import statements
from iceburg.database.json_texts import as_jsonb, unescaped
from iceburg.database.schema import SchemaNames
from iceburg.database.target_table import TargetTable
from iceburg.mappings.conversations import ConversationMapping
from iceburg.mappings.document import ENTITIES, RELATIONSHIPS, DocumentMapping
from iceburg.mappings.embeddings import EmbeddingMapping
from iceburg.mappings.json_value import usable_text
from iceburg.mappings.mapping import Mapping
from iceburg.mappings.sqlite_record import RecordShape
from iceburg.mappings.table import ColumnPlan, TableMapping
from iceburg.mappings.telemetry import TelemetryMapping
from iceburg.mappings.vectors import VectorTableMapping
from iceburg.records import StoreKind

Definition = dict[str, Any]
_OWNER_COLUMNS: Final = {"embeddings": "collection_id", "vectors": "collection_id", "table": None}


@dataclass(frozen=True, slots=True)
class Source:
    """A store that the target has rows of.

    Attributes
    ----------
    source_id, name, kind
        Which store.
    fingerprint
        Of the store when its last migration began; None before the first.
    complete
        Whether everything of that state is in the target.
    problem
        Why it could not be read the last time.
    description
        What is needed to make the store anew.
    losses
        What the store as a whole had lost before: kind, ids, detail.
    """

    source_id: int
    name: str
    kind: StoreKind
    fingerprint: str | None
    complete: bool
    problem: str | None
    description: Any
    losses: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset and its place in the target.

    Attributes
    ----------
    dataset_id, source_id, source, name
        Which dataset of which store.
    target_schema, target_table
        Where its rows are.
    definition
        See the module.
    phase
        ``loading``, ``loaded`` (indexes and constraints are missing), ``complete``.
    source_rows, target_rows
        As counted when it was last complete.
    bytes, seconds
        Rendered bytes and working time so far.
    notes
        What of the structure was not carried over, in words.
    losses
        What of its records the source had lost before: kind, ids, detail.
    generation
        Changes with `definition` and the table.
    regular
        Whether nothing was ever kept beside its rows.
    """

    dataset_id: int
    source_id: int
    source: str
    name: str
    target_schema: str
    target_table: str
    definition: Definition
    phase: str
    source_rows: int | None
    target_rows: int | None
    bytes: int
    seconds: float
    notes: list[str]
    losses: list[dict[str, Any]]
    generation: int
    regular: bool

    def mapping(self) -> Mapping[Any]:
        """Build the mapping that the definition describes."""
        return build_mapping(self.name, self.dataset_id, self.definition)

    def target(self) -> TargetTable:
        """Describe the table, as far as this dataset is concerned."""
        mapping = self.mapping()
        owner = _OWNER_COLUMNS.get(self.definition["mapping"], "dataset_id")
        return TargetTable(
            self.target_schema,
            self.target_table,
            tuple((column.name, column.type) for column in mapping.columns),
            mapping.key_columns,
            owner,
            None if owner is None else self.dataset_id,
        )


def build_mapping(name: str, dataset_id: int, definition: Definition) -> Mapping[Any]:
    """Build the mapping that a definition describes.

    Raises
    ------
    ValueError
        The definition names a mapping that this program does not have.
    """
    kind = definition["mapping"]
    if kind == "telemetry":
        return TelemetryMapping(name, dataset_id, definition["stem"])
    if kind == "embeddings":
        return EmbeddingMapping(name, dataset_id)
    key_width = definition["key_width"]
    if kind == "table":
        plans = tuple(ColumnPlan(**plan) for plan in definition["plans"])
        return TableMapping(plans, tuple(definition["key"]), key_width)
    shape = RecordShape(key_width, tuple(definition["columns"]))
    if kind == "vectors":
        return VectorTableMapping(name, dataset_id, shape, definition["collection"]["dimension"])
    if kind == "conversations":
        return ConversationMapping(name, dataset_id, shape)
    if kind in ("entities", "relationships"):
        return DocumentMapping(ENTITIES if kind == "entities" else RELATIONSHIPS, name, dataset_id, shape)
    raise ValueError(f"unknown mapping {kind!r}")


class Catalogue:
    """The sources and datasets of one target."""

    def __init__(self, connection: psycopg.Connection, names: SchemaNames) -> None:
        self.connection = connection
        self.names = names

    def sources(self) -> list[Source]:
        """Return the sources, by name."""
        with self.connection.cursor(row_factory=class_row(Source)) as cursor:
            found = cursor.execute(self.names.format(statements.SELECT_SOURCES)).fetchall()
        return [replace(source, description=unescaped(source.description)) for source in found]

    def source(self, name: str, kind: StoreKind) -> Source:
        """Return the source of a name, made known if it was not."""
        self.connection.execute(self.names.format(statements.INSERT_SOURCE), {"name": name, "kind": kind})
        return next(source for source in self.sources() if source.name == name)

    def update_source(self, source_id: int, *, fingerprint: str | None, complete: bool, problem: str | None) -> None:
        """Set what is known of a source's state."""
        self.connection.execute(
            self.names.format(statements.UPDATE_SOURCE),
            {"source_id": source_id, "fingerprint": fingerprint, "complete": complete, "problem": problem},
        )

    def describe_source(self, source_id: int, description: object, losses: Sequence[dict[str, Any]]) -> None:
        """Keep what is needed to make the store anew, and what it had lost before."""
        self.connection.execute(
            self.names.format(statements.DESCRIBE_SOURCE),
            {"source_id": source_id, "description": as_jsonb(description), "losses": Jsonb(list(losses))},
        )

    def set_losses(self, dataset_id: int, losses: Sequence[dict[str, Any]]) -> None:
        """Keep what of a dataset's records the source had lost before."""
        self.connection.execute(
            self.names.format(statements.SET_LOSSES), {"dataset_id": dataset_id, "losses": Jsonb(list(losses))}
        )

    def forget_source(self, source_id: int) -> None:
        """Remove a source, its datasets and everything the ledger has of them; not the rows in their tables."""
        self.connection.execute(self.names.format(statements.DELETE_SOURCE), {"source_id": source_id})

    def datasets(self, source_id: int | None = None) -> list[Dataset]:
        """Return the datasets of a source, or all of them, in the order they were found."""
        with self.connection.cursor(row_factory=class_row(Dataset)) as cursor:
            found = cursor.execute(self.names.format(statements.SELECT_DATASETS), {"source_id": source_id}).fetchall()
        return [replace(dataset, definition=unescaped(dataset.definition)) for dataset in found]

    def add_dataset(self, source_id: int, name: str, schema: str, table: str, definition: Definition) -> int:
        """Make a dataset known; return its number."""
        row = self.connection.execute(
            self.names.format(statements.INSERT_DATASET),
            {
                "source_id": source_id,
                "name": name,
                "schema": schema,
                "table": table,
                "definition": as_jsonb(definition),
            },
        ).fetchone()
        assert row is not None  # noqa: S101 - INSERT ... RETURNING has a row
        return int(row[0])

    def redefine(self, dataset_id: int, definition: Definition) -> None:
        """Change a dataset's definition, in what does not concern its rows."""
        self.connection.execute(
            self.names.format(statements.SET_DEFINITION), {"dataset_id": dataset_id, "definition": as_jsonb(definition)}
        )

    def note_number(self, source_id: int, table: str, number: int) -> None:
        """Keep AUTOINCREMENT's counter of a table at or above a number, so that no rollback gives the number again."""
        self.connection.execute(
            self.names.format(statements.NOTE_NUMBER), {"source_id": source_id, "table": table, "number": number}
        )

    def set_phase(self, dataset_id: int, phase: str) -> None:
        """Set how far a dataset is."""
        self.connection.execute(self.names.format(statements.SET_PHASE), {"dataset_id": dataset_id, "phase": phase})

    def set_counts(self, dataset_id: int, source_rows: int, target_rows: int) -> None:
        """Keep the counts of a dataset."""
        self.connection.execute(
            self.names.format(statements.SET_COUNTS),
            {"dataset_id": dataset_id, "source_rows": source_rows, "target_rows": target_rows},
        )

    def set_notes(self, dataset_id: int, notes: Sequence[str]) -> None:
        """Keep what of a dataset's structure was not carried over."""
        self.connection.execute(
            self.names.format(statements.SET_NOTES),
            {"dataset_id": dataset_id, "notes": Jsonb([usable_text(note) for note in notes])},
        )

    def forget_dataset(self, dataset_id: int) -> None:
        """Remove a dataset and everything the ledger has of it; not the rows in its table."""
        self.connection.execute(self.names.format(statements.DELETE_DATASET), {"dataset_id": dataset_id})
