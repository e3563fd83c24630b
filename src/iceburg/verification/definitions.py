"""What the target knows of its sources, compared with the sources: collections, and how tables are described.

A rollback makes the stores anew from it, so that it is data as much as the rows are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final, LiteralString

import psycopg

from iceburg.database.catalogue import Dataset, Source
from iceburg.database.plan import describe_table
from iceburg.database.schema import SchemaNames
from iceburg.errors import SourceError
from iceburg.records import Store
from iceburg.sources.access import OpenStores
from iceburg.sources.fingerprint import fingerprint
from iceburg.verification.report import RecordDifference, show

DEFINITION: Final = "(definition)"
_SELECT_COLLECTIONS: Final[LiteralString] = """
SELECT collection_id, store, tenant, database, name, dimension, distance, definition FROM {data}.embedding_collections
"""
_FIELDS: Final = ("store", "tenant", "database", "name", "dimension", "distance", "definition")
_ABSENT: Final = "(absent)"


def compare_collections(
    connection: psycopg.Connection, names: SchemaNames, datasets: Sequence[Dataset]
) -> Iterator[RecordDifference]:
    """Yield the differences between the collections that are listed and those that there are."""
    place = f"{names.data}.embedding_collections"
    rows = connection.execute(names.format(_SELECT_COLLECTIONS)).fetchall()
    listed = {row[0]: dict(zip(_FIELDS, row[1:], strict=True)) for row in rows}
    for dataset in datasets:
        if "collection" not in dataset.definition:
            continue
        wanted, key = _listing(dataset), f"[{dataset.dataset_id}]"
        found = listed.pop(dataset.dataset_id, None)
        if found is None:
            yield RecordDifference(place, key, "(record)", "a record", None)
            continue
        for name in _FIELDS:
            if _plain(wanted[name]) != _plain(found[name]):
                yield RecordDifference(place, key, name, show(wanted[name]), show(found[name]))
    for number in sorted(listed):
        yield RecordDifference(place, f"[{number}]", "(record)", None, "a row of which there is no collection")


def _listing(dataset: Dataset) -> dict[str, Any]:
    collection: dict[str, Any] = dataset.definition["collection"]
    return {
        "store": dataset.source,
        "tenant": collection.get("tenant", "default_tenant"),
        "database": collection.get("database", "default_database"),
        "name": collection["name"],
        "dimension": collection["dimension"],
        "distance": collection["distance"],
        "definition": collection,
    }


def compare_description(stores: OpenStores, store: Store, source: Source) -> Iterator[RecordDifference]:
    """Yield where the description of a store does not say what the store is.

    It changes with every row, and is compared only where the store is as it was when it was migrated.

    Raises
    ------
    SourceError
        The store cannot be read.
    """
    if store.kind == "sqlite" and source.fingerprint is not None and fingerprint(store) == source.fingerprint:
        described = _plain(asdict(stores.sqlite(store)[1]))
        yield from _lost_counters(source.name, described, source.description)
        wanted, found = _without_counters(described), _without_counters(source.description)
        if wanted != found:
            yield RecordDifference(source.name, "", "(description)", *_first_difference(wanted, found))


def _lost_counters(name: str, wanted: dict[str, Any], found: dict[str, Any]) -> Iterator[RecordDifference]:
    """Yield AUTOINCREMENT's counters after which a rollback would give a number again that a row has had."""
    known = {table["name"]: table.get("sequence") or 0 for table in found.get("tables", ())}
    for counter in wanted["sequences"]:
        # Up to the highest row it needs no counter: the rows are compared.
        needed, kept = counter["value"] or 0, max(known.get(counter["table"], 0), counter["highest"] or 0)
        if needed > kept:
            field = f"(counter of {counter['table']})"
            yield RecordDifference(name, "", field, str(needed), str(kept))


def _without_counters(description: dict[str, Any]) -> dict[str, Any]:
    # They go on with the rows: `_lost_counters` compares what must not be lost of them.
    tables = [{**table, "sequence": None} for table in description.get("tables", ())]
    return {**description, "tables": tables, "sequences": None}


def compare_definition(stores: OpenStores, store: Store, dataset: Dataset) -> Iterator[RecordDifference]:
    """Yield where the definition of a dataset does not say what it is; it cannot be compared by such a definition.

    Raises
    ------
    SourceError
        The store cannot be read, or has no such dataset.
    """
    definition = dataset.definition
    wanted: dict[str, Any] = {}
    if store.kind == "sqlite":
        tables = {table.name: table for table in stores.sqlite(store)[1].tables}
        table = tables.get(definition["source_table"])
        if table is None:
            raise SourceError("the table is gone", where=f"{store.name}, table {definition['source_table']}")
        wanted = {"description": describe_table(table), "columns": [column.name for column in table.columns]}
    elif store.kind == "chroma":
        identity = definition["collection"]["id"]
        there = next((c for c in stores.chroma(store).collections() if c.id == identity), None)
        if there is None:
            raise SourceError("the collection is gone", where=f"{store.name}, collection {identity}")
        wanted = {"collection": asdict(there)}
    for name, value in wanted.items():
        # A table's columns are in its description, where the mapping does without the list of them.
        if name in definition and _plain(value) != _plain(definition[name]):
            yield RecordDifference(
                dataset.name, "", DEFINITION, *_first_difference(_plain(value), _plain(definition[name]))
            )


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return json.loads(json.dumps(value)) if isinstance(value, dict | list | tuple) else value


def _first_difference(left: Any, right: Any, path: str = "") -> tuple[Any, Any]:
    """Return the innermost values in which two JSON values differ first, each with its path."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in [*left, *(key for key in right if key not in left)]:
            a, b = left.get(key, _ABSENT), right.get(key, _ABSENT)
            if a != b:
                return _first_difference(a, b, f"{path}.{key}" if path else key)
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            if a != b:
                return _first_difference(a, b, f"{path}[{i}]")
    prefix = f"{path}: " if path else ""
    return f"{prefix}{show(left)}", f"{prefix}{show(right)}"
