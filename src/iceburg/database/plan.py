"""What a store's datasets become: the definition of each, with its place in the target.

Tables with the columns of ICEBURG's own stores go into the plan's tables, whatever the file's name; every other table
gets a table of its own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

from iceburg.database.catalogue import Definition
from iceburg.database.census import choose_codec, choose_key, misfits, plan_columns, take_census
from iceburg.database.losses import describe_losses
from iceburg.database.names import column_names, schema_name, unique
from iceburg.database.schema import SchemaNames
from iceburg.mappings.conversations import REQUIRED
from iceburg.mappings.document import ENTITIES, RELATIONSHIPS
from iceburg.mappings.embeddings import MAX_DIMENSION
from iceburg.mappings.json_value import is_usable_text
from iceburg.mappings.table import ROWID_COLUMN
from iceburg.mappings.vectors import TABLE_COLUMNS
from iceburg.records import Store
from iceburg.sources.access import OpenStores, dataset_name, name_collections
from iceburg.sources.discovery import jsonl_stem
from iceburg.sources.jsonl_layout import read_layout
from iceburg.sources.sqlite_fetch import lenient_text
from iceburg.sources.sqlite_rows import TableReader
from iceburg.sources.sqlite_schema import DatabaseDescription, Table

_DOCUMENTS: Final = {
    "entities": (ENTITIES, {"entity_id", "name", "entity_type"}),
    "relationships": (RELATIONSHIPS, {"relationship_id", "source_id", "target_id", "relationship_type"}),
}
# The table in which the unified layer lists its collections of embeddings, and the table of each.
_COLLECTIONS: Final = "collections"
_SELECT_COLLECTIONS: Final = "SELECT table_name, name, dimension, distance FROM main.collections"


@dataclass(frozen=True, slots=True)
class PlannedDataset:
    """A dataset as found in its source, and the table its rows go to.

    Attributes
    ----------
    name
        ``store/table``, ``store/collection`` or the name of a JSONL file.
    definition
        What `iceburg.database.catalogue.build_mapping` reads.
    schema, table
        Where the rows go; `schema` is the name of the plan's schema for the plan's tables.
    hazards
        What the census saw of the structure, in words.
    """

    name: str
    definition: Definition
    schema: str
    table: str
    hazards: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StorePlan:
    """What one store holds.

    Attributes
    ----------
    datasets
        What is migrated.
    skipped
        What holds no rows of its own: views and virtual tables, in words.
    losses
        What the store as a whole had lost before: kind, ids, detail.
    description
        What is needed to make the store anew.
    """

    datasets: tuple[PlannedDataset, ...]
    skipped: tuple[str, ...] = ()
    losses: tuple[dict[str, Any], ...] = ()
    description: dict[str, Any] = field(default_factory=dict)


def plan_store(
    stores: OpenStores, store: Store, names: SchemaNames, known: dict[str, Definition], taken: Collection[str]
) -> StorePlan:
    """Say what the datasets of a store become.

    Parameters
    ----------
    stores
        Opens the store.
    store
        The store.
    names
        Of the target's schemas.
    known
        Definitions of datasets that have been migrated before, by name: a table whose structure has not changed keeps
        its plan, and no census is taken.
    taken
        Names of schemas that are not free for this store.

    Raises
    ------
    SourceError
        The store cannot be read.
    """
    if store.kind == "jsonl":
        definition = {"mapping": "telemetry", "stem": jsonl_stem(PurePosixPath(store.name).name)}
        planned = PlannedDataset(store.name, definition, names.data, "telemetry")
        return StorePlan((planned,), description=asdict(read_layout(store.path, store.name)))
    if store.kind == "chroma":
        return _plan_chroma(stores, store, names)
    return _plan_sqlite(stores, store, names, known, taken)


def _plan_chroma(stores: OpenStores, store: Store, names: SchemaNames) -> StorePlan:
    directory = stores.chroma(store)
    found = [
        PlannedDataset(
            dataset_name(store, name),
            {"mapping": "embeddings", "collection": asdict(collection)},
            names.data,
            "embeddings",
        )
        for name, collection in name_collections(directory.collections()).items()
    ]
    return StorePlan(tuple(found), losses=tuple(describe_losses(directory.losses())))


def _plan_sqlite(
    stores: OpenStores, store: Store, names: SchemaNames, known: dict[str, Definition], taken: Collection[str]
) -> StorePlan:
    file, description = stores.sqlite(store)
    schema = schema_name(store.name, names.prefix, taken)
    tables = _table_names(description.tables)
    collections = file.run(lambda connection: _collections(connection, description))
    found = []
    for table in description.tables:
        name = dataset_name(store, table.name)
        old = known.get(name)
        collection = collections.get(table.name)
        if collection is not None:
            definition: Definition = {
                "mapping": "vectors",
                **_common(file.reader(table), table),
                "collection": collection,
            }
            found.append(PlannedDataset(name, definition, names.data, "embeddings"))
            continue
        if old is not None and old["mapping"] != "vectors" and old["description"] == describe_table(table):
            found.append(PlannedDataset(name, old, *_place(old, names, schema, tables[table.name])))
            continue
        reader = file.reader(table)
        definition, hazards = define_table(reader, table)
        place = _place(definition, names, schema, tables[table.name])
        found.append(PlannedDataset(name, definition, *place, hazards))
    skipped = tuple(f"{s.kind} {s.name}: {s.why}" for s in description.skipped)
    return StorePlan(tuple(found), skipped, description=asdict(description))


def _collections(connection: sqlite3.Connection, description: DatabaseDescription) -> dict[str, dict[str, Any]]:
    """Return the collections of embeddings that the unified layer keeps in a file, by the name of their tables."""
    tables = {table.name: table for table in description.tables}
    listed = tables.get(_COLLECTIONS)
    if listed is None or not {"name", "table_name", "dimension", "distance"} <= {c.name for c in listed.columns}:
        return {}
    connection.text_factory = lenient_text
    found = {}
    for table_name, name, dimension, distance in connection.execute(_SELECT_COLLECTIONS).fetchall():
        table = tables.get(table_name) if isinstance(table_name, str) else None
        fits = isinstance(name, str) and is_usable_text(name) and distance in ("cosine", "l2", "ip")
        sized = dimension is None or (isinstance(dimension, int) and 0 < dimension <= MAX_DIMENSION)
        if table is not None and fits and sized and _is_vector_table(table):
            found[table_name] = {
                "id": table_name,
                "tenant": "default_tenant",
                "database": "default_database",
                "name": name,
                "dimension": dimension,
                "distance": distance,
            }
    return found


def _is_vector_table(table: Table) -> bool:
    return tuple(column.name for column in table.columns) == TABLE_COLUMNS and table.integer_primary_key == "row_id"


def _table_names(tables: tuple[Table, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for table in tables:
        found[table.name] = unique(table.name, found.values())
    return found


def _place(definition: Definition, names: SchemaNames, schema: str, table: str) -> tuple[str, str]:
    kind = definition["mapping"]
    if kind == "table":
        return schema, table
    return names.data, "conversations" if kind == "conversations" else _DOCUMENTS[kind][0].target


def describe_table(table: Table) -> dict[str, Any]:
    """Describe a table in JSON; what changes with every row, and is no structure, is left out."""
    found = asdict(table)
    del found["sequence"]
    return _as_json(found)  # type: ignore[no-any-return]


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value


def _common(reader: TableReader, table: Table) -> Definition:
    return {
        "source_table": table.name,
        "description": describe_table(table),
        "key_width": reader.key_width,
        "columns": [column.name for column in table.columns],
    }


def define_table(reader: TableReader, table: Table) -> tuple[Definition, tuple[str, ...]]:
    """Define the dataset of a table; also say what the census saw."""
    common = _common(reader, table)
    builtin = builtin_mapping(table)
    if builtin is not None:
        return {"mapping": builtin, **common}, ()
    censuses = take_census(reader, table, reader.key_width)
    codecs = tuple(map(choose_codec, table.columns, censuses))
    key = choose_key(table, censuses, codecs)
    targets = column_names((column.name for column in table.columns), {ROWID_COLUMN})
    plans = plan_columns(table, censuses, codecs, targets)
    definition = {"mapping": "table", **common, "plans": [asdict(plan) for plan in plans], "key": list(key)}
    return definition, tuple(_hazards(table, plans, censuses, key))


def _hazards(table: Table, plans: Any, censuses: Any, key: tuple[str, ...]) -> Iterator[str]:
    if table.primary_key and not key:
        yield "its primary key holds NULLs or values of several types: rows are identified by rowid instead"
    for column, plan, census in zip(table.columns, plans, censuses, strict=True):
        strays = misfits(plan.codec, census)
        if strays and column.not_null:
            yield f"column {column.name} is not NOT NULL: {strays} of its values have no equivalent"
        if plan.target != column.name:
            yield f"column {column.name} is called {plan.target}: PostgreSQL cannot use its name"


def builtin_mapping(table: Table) -> str | None:
    """Return the built-in mapping of a table that is one of ICEBURG's own, judged by its columns."""
    columns = {column.name for column in table.columns}
    if table.without_rowid or len(columns) != len(table.columns):
        return None
    for name, (document, required) in _DOCUMENTS.items():
        if required <= columns and table.primary_key == (document.key,) and table.integer_primary_key is None:
            return name
    if set(REQUIRED) <= columns and table.integer_primary_key == "id":
        return "conversations"
    return None
