"""The shapes that the target's tables should have, found by making them: as temporary tables that are rolled back.

What makes them is what made the target's, so that the two cannot drift apart. What could not be carried over for the
sake of the values is in the notes of a dataset, and not made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, LiteralString

import psycopg
from psycopg import sql

from iceburg.database.catalogue import Dataset
from iceburg.database.indexes import INDEXES, check_dimension, has_trigrams, index_statement
from iceburg.database.schema import SchemaNames, schema_files
from iceburg.database.structure import completion_steps, foreign_key_steps, loosen, table_statement
from iceburg.database.vector_indexes import index_statement as vector_index_statement
from iceburg.database.vector_indexes import recorded_indexes
from iceburg.verification.shapes import Index, TableShape, read_shapes

_TEMPORARY: Final = SchemaNames("pg_temp", "pg_temp", "")
_INSTEAD: Final = "instead_"
_MIGRATED: Final[LiteralString] = "SELECT DISTINCT dataset_id FROM {state}.streams"


@dataclass(slots=True)
class Expectation:
    """What one table should be.

    Attributes
    ----------
    schema, table
        Which.
    datasets
        Those whose rows it has.
    shape
        What it should be.
    instead
        Indexes that do as well as one of the shape, by that one's name.
    """

    schema: str
    table: str
    datasets: tuple[Dataset, ...]
    shape: TableShape
    instead: dict[str, list[Index]] = field(default_factory=dict)

    @property
    def own(self) -> Dataset | None:
        """The dataset that has the table for itself."""
        only = self.datasets[0] if len(self.datasets) == 1 else None
        return only if only is not None and only.definition["mapping"] == "table" else None


def expect(
    connection: psycopg.Connection, names: SchemaNames, datasets: Sequence[Dataset], logged: frozenset[int]
) -> tuple[list[Expectation], frozenset[int]]:
    """Return what the tables of the target should be, and the datasets whose structure a migration has completed.

    What the unified layer and its appliers make of a table has neither constraints nor indexes, defaults nor counters
    before a migration makes them.

    Parameters
    ----------
    connection
        In autocommit mode; may make temporary tables.
    names
        Of the target's schemas.
    datasets
        All of them.
    logged
        Numbers of the sources whose changes are applied: their tables have foreign keys and unique constraints only
        after a migration.
    """
    found = []
    migrated = {number for (number,) in connection.execute(names.format(_MIGRATED))}
    datasets = [d if d.dataset_id in migrated else replace(d, phase="made by the layer") for d in datasets]
    settled = frozenset(d.dataset_id for d in datasets if d.phase == "complete" and d.source_id not in logged)
    with connection.transaction(force_rollback=True):
        found += _expect_plan(connection, names, datasets, settled)
    by_source: dict[int, list[Dataset]] = {}
    for dataset in datasets:
        if dataset.definition["mapping"] == "table":
            by_source.setdefault(dataset.source_id, []).append(dataset)
    for source_id, tables in by_source.items():
        with connection.transaction(force_rollback=True):
            siblings = [d for d in datasets if d.source_id == source_id]
            found += _expect_tables(connection, tables, siblings, loose=source_id in logged)
    return found, settled


def _expect_plan(
    connection: psycopg.Connection, names: SchemaNames, datasets: Sequence[Dataset], settled: frozenset[int]
) -> list[Expectation]:
    data, state = _tables_of_files(connection)
    complete = {d.target_table for d in datasets if d.definition["mapping"] != "table" and d.phase == "complete"}
    trigrams = has_trigrams(connection)
    for plan in INDEXES:
        if plan.table in complete and (trigrams or not plan.needs_trigrams):
            connection.execute(index_statement(_TEMPORARY, plan, plan.definition))
            for place, fallback in enumerate(plan.fallbacks):
                other = replace(plan, name=f"{_INSTEAD}{place}_of_{plan.name}")
                connection.execute(index_statement(_TEMPORARY, other, fallback))
    recorded = recorded_indexes(connection, names)
    for dataset in datasets:
        if "collection" in dataset.definition and dataset.dataset_id in settled:
            check_dimension(connection, _TEMPORARY, dataset)
            index = recorded.get(dataset.dataset_id)
            statement = None if index is None else vector_index_statement(_TEMPORARY, dataset, index)
            if statement is not None:
                connection.execute(statement)
    shapes = read_shapes(connection, None, [*data, *state])
    return [
        _with_alternatives(
            Expectation(
                schema,
                table,
                tuple(d for d in datasets if d.target_table == table and d.definition["mapping"] != "table"),
                shapes[table],
            )
        )
        for schema, tables in ((names.data, data), (names.state, state))
        for table in tables
    ]


def _tables_of_files(connection: psycopg.Connection) -> tuple[list[str], list[str]]:
    """Make the tables of the schema's files; return the names of those of the data, and of those of the state."""
    for file in schema_files():
        connection.execute(_TEMPORARY.format(file.text), prepare=False)
    data = [table for file in schema_files() for table in file.tables("data")]
    return data, [table for file in schema_files() for table in file.tables("state")]


def _with_alternatives(expectation: Expectation) -> Expectation:
    indexes = expectation.shape.indexes
    alternatives = [index for index in indexes if index.name.startswith(_INSTEAD)]
    # Not by `remove`: indexes are equal that do the same.
    indexes[:] = [index for index in indexes if not index.name.startswith(_INSTEAD)]
    for index in alternatives:
        expectation.instead.setdefault(index.name.partition("_of_")[2], []).append(index)
    return expectation


def _expect_tables(
    connection: psycopg.Connection, tables: Sequence[Dataset], siblings: Sequence[Dataset], *, loose: bool
) -> list[Expectation]:
    """Make the tables of one SQLite file, as far as the values of the real ones allow it."""
    copies = {d.dataset_id: replace(d, target_schema="pg_temp") for d in siblings}
    for dataset in tables:
        connection.execute(table_statement("pg_temp", dataset.target_table, dataset.definition))
    for dataset in tables:
        for what, statement in completion_steps(connection, copies[dataset.dataset_id], []):
            if dataset.phase == "complete" and not _is_noted(dataset, what):
                connection.execute(statement)
    for dataset in tables:
        for what, name, statement in foreign_key_steps(copies[dataset.dataset_id], list(copies.values()), []):
            if dataset.phase == "complete" and not _is_noted(dataset, what):
                connection.execute(statement)
                if f"{what} is NOT VALID: there are orphans" not in dataset.notes:
                    table = sql.Identifier("pg_temp", dataset.target_table)
                    connection.execute(sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(table, name))
    if loose:
        for dataset in tables:
            loosen(connection, copies[dataset.dataset_id])
    shapes = read_shapes(connection, None, [dataset.target_table for dataset in tables])
    return [Expectation(d.target_schema, d.target_table, (d,), shapes[d.target_table]) for d in tables]


def _is_noted(dataset: Dataset, what: str) -> bool:
    return any(note.startswith(f"{what} is not carried over") for note in dataset.notes)
