"""The collections of embeddings as PostgreSQL lists them, and new ones where it is alone.

A new collection is described as if it had been made in a SQLite file and migrated, so that a rollback makes its table.
"""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, LiteralString

from iceburg.database import conversion
from iceburg.database.catalogue import Catalogue
from iceburg.database.datasets import put_collection
from iceburg.database.plan import plan_store
from iceburg.database.postgres_answer import Columns
from iceburg.database.postgres_change import Change
from iceburg.database.postgres_session import PostgresSession
from iceburg.database.protocol import Collection, Distance
from iceburg.database.vector_tables import VECTORS_SCHEMA, free_table, make_collection
from iceburg.mappings.json_value import usable_text
from iceburg.records import Store
from iceburg.sources.access import OpenStores

_BY_NAME: Final[LiteralString] = "t.name = $1::text"
_INSERT_STREAM: Final[LiteralString] = """
INSERT INTO {state}.streams (dataset_id, stream, done) VALUES (%s, 0, TRUE)
"""
# Numbers are not used again: the source's sequence is kept up to those that were deleted.
_NEXT_NUMBER: Final[LiteralString] = """
SELECT 1 + greatest(0,
    (SELECT max(row_id) FROM {table} WHERE collection_id = {dataset}),
    (SELECT max(substring(record_key FROM '^\\[([0-9]+)\\]$')::bigint) FROM {state}.quarantine
     WHERE dataset_id = {dataset}),
    (SELECT max((e.value ->> 'sequence')::bigint)
     FROM {state}.sources s, jsonb_array_elements(s.description -> 'tables') e
     WHERE s.source_id = {source} AND e.value ->> 'name' = %s))
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A collection, and the name of the dataset that its records are."""

    collection: Collection
    dataset: str


class PostgresCollections:
    """The collections that a store lists.

    Parameters
    ----------
    session
        The target.
    store
        Name of the SQLite file, there or not.
    """

    def __init__(self, session: PostgresSession, store: str) -> None:
        self._session = session
        self._store = store
        self.dataset = f"{store}/collections"

    def all(self) -> list[Collection]:
        """Return them, by name."""
        rows = self._session.records(self.dataset, "TRUE")
        return sorted((_place(self._store, row).collection for row in rows), key=lambda one: one.name.encode())

    def find(self, name: str) -> Place | None:
        """Return the one of a name."""
        rows = self._session.records(self.dataset, _BY_NAME, (usable_text(name),))
        return next((_place(self._store, row) for row in rows if row["name"] == name), None)

    def ensure(self, change: Change, name: str, distance: Distance | None, dimension: int | None) -> tuple[Place, bool]:
        """Return the one of a name, made if it is not there, and with a dimension if one is given.

        `change` is on this object's dataset: whoever makes or completes a collection does so one after the other.

        Returns
        -------
        tuple
            The collection, and whether it was made or completed.
        """
        rows = self._session.records(self.dataset, _BY_NAME, (usable_text(name),))
        row = next((row for row in rows if row["name"] == name), None)
        if row is None:
            return self._make(change, name, distance or "cosine", dimension), True
        place = _place(self._store, row)
        there = place.collection
        if there.dimension is not None or dimension is None or (distance or there.distance) != there.distance:
            return place, False
        change.write([change.bound.record({**row, "dimension": dimension})])
        bound = self._session.bound(place.dataset).dataset
        definition = {**bound.definition, "collection": {**bound.definition["collection"], "dimension": dimension}}
        Catalogue(change.connection, self._session.names).redefine(bound.dataset_id, definition)
        put_collection(change.connection, self._session.names, self._as_store(), bound.dataset_id, definition)
        return Place(Collection(name, dimension, there.distance), place.dataset), True

    def _make(self, change: Change, name: str, distance: Distance, dimension: int | None) -> Place:
        names, catalogue = self._session.names, Catalogue(change.connection, self._session.names)
        source = next(one for one in catalogue.sources() if one.source_id == change.bound.dataset.source_id)
        prefix = f"{self._store}/"
        taken = {dataset.name.removeprefix(prefix) for dataset in catalogue.datasets(source.source_id)}
        table = free_table(taken)
        definition, description = self._define(name, table, distance, dimension)
        dataset_id = catalogue.add_dataset(source.source_id, prefix + table, names.data, "embeddings", definition)
        change.connection.execute(names.format(_INSERT_STREAM), (dataset_id,))
        catalogue.set_phase(dataset_id, "complete")
        put_collection(change.connection, names, self._as_store(), dataset_id, definition)
        known: dict[str, Any] = source.description or {}
        for part, entries in description.items():
            known = {**known, part: [*known.get(part, ()), *entries]}
        catalogue.describe_source(source.source_id, known, source.losses)
        row: Columns = {
            "name": name,
            "table_name": table,
            "dimension": dimension,
            "distance": distance,
            "created_at": conversion.now_utc(),
        }
        change.write([change.bound.record(row)], new=True)
        return Place(Collection(name, dimension, distance), prefix + table)

    def _define(
        self, name: str, table: str, distance: Distance, dimension: int | None
    ) -> tuple[dict[str, Any], dict[str, list[Any]]]:
        """Return a collection's definition, and what of the file's description is its table's."""
        with tempfile.TemporaryDirectory(prefix="iceburg-") as directory, OpenStores() as stores:
            path = Path(directory) / "vectors.db"
            with closing(sqlite3.connect(path)) as connection:
                connection.executescript(VECTORS_SCHEMA)
                make_collection(connection, name, distance, dimension, table=table)
                connection.commit()
            plan = plan_store(stores, Store("sqlite", path, self._store), self._session.names, {}, ())
        planned = next(one for one in plan.datasets if one.definition["source_table"] == table)
        tables = [one for one in plan.description["tables"] if one["name"] == table]
        objects = [one for one in plan.description["schema_sql"] if one["table"] == table]
        return planned.definition, {"tables": tables, "schema_sql": objects}

    def _as_store(self) -> Store:
        return Store("sqlite", Path(self._store), self._store)


def _place(store: str, row: Columns) -> Place:
    name, dimension, distance = row["name"], row["dimension"], row["distance"]
    return Place(Collection(name, dimension, distance), f"{store}/{row['table_name']!s}")  # type: ignore[arg-type]


def next_number(change: Change) -> int:
    """Return the number of the next record of a collection."""
    found = change.fetch(_NEXT_NUMBER, (change.bound.dataset.definition["source_table"],))
    assert found is not None  # noqa: S101 - no aggregate is without a row
    return int(found[0])
