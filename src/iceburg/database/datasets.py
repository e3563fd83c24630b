"""Making the target's datasets those that a file has now, while its changes are applied."""

from __future__ import annotations

from typing import Any, Final, LiteralString

import psycopg

from iceburg.database.catalogue import Catalogue, Dataset, Source
from iceburg.database.indexes import INDEXES, drop_collection_structure, has_trigrams, make_index
from iceburg.database.json_texts import as_jsonb
from iceburg.database.plan import PlannedDataset, plan_store
from iceburg.database.schema import SchemaNames
from iceburg.database.structure import create_table, drop_table, loosen
from iceburg.mappings.json_value import usable_text
from iceburg.records import Store
from iceburg.sources.access import OpenStores

_TAKEN_SCHEMAS: Final[LiteralString] = """
SELECT nspname FROM pg_namespace n WHERE NOT has_schema_privilege(n.oid, 'CREATE')
OR EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid)
OR EXISTS (SELECT FROM pg_type t WHERE t.typnamespace = n.oid)
OR EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = n.oid)
"""
# A stream that has been read to its end: what a later migration goes through again.
_INSERT_STREAM: Final[LiteralString] = """
INSERT INTO {state}.streams (dataset_id, stream, done) VALUES (%s, 0, TRUE)
"""
_UPSERT_COLLECTION: Final[LiteralString] = """
INSERT INTO {data}.embedding_collections
       (collection_id, store, tenant, database, name, dimension, distance, definition)
VALUES (%(collection_id)s, %(store)s, %(tenant)s, %(database)s, %(name)s, %(dimension)s, %(distance)s, %(definition)s)
ON CONFLICT (collection_id) DO UPDATE SET name = EXCLUDED.name, dimension = EXCLUDED.dimension,
    distance = EXCLUDED.distance, definition = EXCLUDED.definition
"""
_DELETE_COLLECTION: Final[LiteralString] = "DELETE FROM {data}.embedding_collections WHERE collection_id = %s"


def taken_schemas(connection: psycopg.Connection, names: SchemaNames, catalogue: Catalogue, source: Source) -> set[str]:
    """Return the schemas in which no table of a source may be made: those of other sources, and those not ours.

    One that is empty may be what is left of a store that was forgotten.
    """
    datasets = catalogue.datasets()
    ours = {dataset.target_schema for dataset in datasets}
    rows = connection.execute(_TAKEN_SCHEMAS).fetchall()
    return (
        {d.target_schema for d in datasets if d.source_id != source.source_id}
        | {name for (name,) in rows} - ours
        | {names.data, names.state}
    )


def has_same_conversion(old: Dataset, planned: PlannedDataset) -> bool:
    """Whether a dataset's rows are as the plan would make them; a collection may change all but its identity."""
    if (old.target_schema, old.target_table) != (planned.schema, planned.table):
        return False
    if "collection" in old.definition and "collection" in planned.definition:
        mine, theirs = ({k: v for k, v in d.items() if k != "collection"} for d in (old.definition, planned.definition))
        return mine == theirs and old.definition["collection"].get("id") == planned.definition["collection"].get("id")
    return old.definition == planned.definition


def put_collection(
    connection: psycopg.Connection, names: SchemaNames, store: Store, dataset_id: int, definition: dict[str, Any]
) -> None:
    """Describe a collection of embeddings in the target, as its definition says now."""
    collection = definition["collection"]
    connection.execute(
        names.format(_UPSERT_COLLECTION),
        {
            "collection_id": dataset_id,
            "store": store.name,
            "tenant": usable_text(collection.get("tenant", "default_tenant")),
            "database": usable_text(collection.get("database", "default_database")),
            "name": usable_text(collection["name"]),
            "dimension": collection["dimension"],
            "distance": collection["distance"],
            "definition": as_jsonb(collection),
        },
    )


def reconcile(connection: psycopg.Connection, names: SchemaNames, store: Store) -> tuple[Source, list[str]]:
    """Make a store's datasets those of its tables as they are now; within the caller's transaction.

    Returns
    -------
    tuple
        The source, and the source tables whose rows have to be written anew.

    Raises
    ------
    SourceError
        The file cannot be read, or a table cannot be held.
    """
    catalogue = Catalogue(connection, names)
    source = catalogue.source(store.name, store.kind)
    known = {dataset.name: dataset for dataset in catalogue.datasets(source.source_id)}
    taken = taken_schemas(connection, names, catalogue, source)
    with OpenStores() as stores:
        plan = plan_store(stores, store, names, {name: d.definition for name, d in known.items()}, taken)
    planned = {found.name: found for found in plan.datasets}
    for name, dataset in known.items():
        if name not in planned or not has_same_conversion(dataset, planned[name]):
            remove_dataset(connection, names, dataset)
    anew = []
    for name, found in planned.items():
        old = known.get(name)
        if old is not None and has_same_conversion(old, found):
            if old.definition != found.definition:
                catalogue.redefine(old.dataset_id, found.definition)
                put_collection(connection, names, store, old.dataset_id, found.definition)
            continue
        _add(connection, names, catalogue, source, store, found)
        anew.append(str(found.definition.get("source_table", "")))
    catalogue.describe_source(source.source_id, plan.description, plan.losses)
    return source, anew


def set_constraints_aside(connection: psycopg.Connection, catalogue: Catalogue, source_id: int) -> None:
    """Drop foreign keys and unique constraints of a source's own tables while its changes are applied.

    SQLite does not enforce foreign keys by default, and rows arrive in another order than they were written: both would
    cost rows. `migrate` makes them again.
    """
    for dataset in catalogue.datasets(source_id):
        if dataset.definition["mapping"] == "table":
            loosen(connection, dataset)


def _add(
    connection: psycopg.Connection,
    names: SchemaNames,
    catalogue: Catalogue,
    source: Source,
    store: Store,
    found: PlannedDataset,
) -> None:
    dataset_id = catalogue.add_dataset(source.source_id, found.name, found.schema, found.table, found.definition)
    connection.execute(names.format(_INSERT_STREAM), (dataset_id,))
    catalogue.set_phase(dataset_id, "complete")
    catalogue.set_notes(dataset_id, found.hazards)
    if found.definition["mapping"] == "table":
        create_table(connection, found.schema, found.table, found.definition)
        return
    if "collection" in found.definition:
        put_collection(connection, names, store, dataset_id, found.definition)
    trigrams = has_trigrams(connection)
    for plan in INDEXES:
        if plan.table == found.table and (trigrams or not plan.needs_trigrams):
            make_index(connection, names, plan)


def remove_dataset(connection: psycopg.Connection, names: SchemaNames, dataset: Dataset) -> None:
    """Remove a dataset's rows, its table if it has one of its own, and what the ledger has of it."""
    if dataset.definition["mapping"] == "table":
        drop_table(connection, dataset.target_schema, dataset.target_table)
    else:
        dataset.target().delete_all(connection)
    if "collection" in dataset.definition:
        drop_collection_structure(connection, names, dataset.dataset_id)
        connection.execute(names.format(_DELETE_COLLECTION), (dataset.dataset_id,))
    Catalogue(connection, names).forget_dataset(dataset.dataset_id)
