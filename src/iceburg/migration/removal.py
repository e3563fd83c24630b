"""Removing a dataset from the target."""

from __future__ import annotations

import psycopg

from iceburg.database.catalogue import Catalogue, Dataset
from iceburg.database.indexes import drop_collection_structure
from iceburg.database.schema import SchemaNames
from iceburg.database.structure import drop_table
from iceburg.migration import statements


def remove_dataset(connection: psycopg.Connection, names: SchemaNames, dataset: Dataset) -> None:
    """Remove a dataset's rows, its table if it has one of its own, and what the ledger has of it."""
    kind = dataset.definition["mapping"]
    if kind == "table":
        drop_table(connection, dataset.target_schema, dataset.target_table)
    else:
        dataset.target().delete_all(connection)
    if "collection" in dataset.definition:
        drop_collection_structure(connection, names, dataset.dataset_id)
        connection.execute(names.format(statements.DELETE_COLLECTION), (dataset.dataset_id,))
    Catalogue(connection, names).forget_dataset(dataset.dataset_id)
