"""What the tables of a ``chroma.sqlite3`` say about collections: names, tenants, distances, segments, positions."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from iceburg.records import MetadataValue

Distance: TypeAlias = Literal["cosine", "l2", "ip"]

#: Every queue row names its collection so, whatever the tenant and database.
TOPIC = "persistent://default/default/"


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection as the catalogue describes it.

    Attributes
    ----------
    id
        Chroma's UUID of it; the segment's UUID where the catalogue is gone.
    tenant, database, name
        Its place; empty tenant and database, and the segment's UUID for a name, where the catalogue is gone.
    dimension
        Components of its vectors; None while it has had none.
    distance
        The distance that it was made for. Chroma's ``l2`` is the squared one.
    metadata
        The collection's own metadata.
    configuration, schema
        The raw JSON of the columns ``config_json_str`` and ``schema_str``, where there are such columns.
    """

    id: str
    tenant: str
    database: str
    name: str
    dimension: int | None
    distance: Distance
    metadata: dict[str, MetadataValue]
    configuration: str | None = None
    schema: str | None = None


@dataclass(frozen=True, slots=True)
class Segments:
    """The segments of a collection; None where the catalogue has no such segment."""

    vector: str | None
    metadata: str | None


def columns(connection: sqlite3.Connection, table: str) -> frozenset[str]:
    """Return the names of a table's columns, none if there is no such table."""
    return frozenset(name for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,)))


def first_value(row: tuple[Any, ...], *, boolean: bool) -> MetadataValue:
    """Return the first of the value columns str, int, float, bool that is not NULL.

    Parameters
    ----------
    row
        The values in that order.
    boolean
        Whether the last of them is the boolean one.
    """
    for position, value in enumerate(row):
        if value is not None:
            if boolean and position == len(row) - 1:
                return bool(value)
            if isinstance(value, bytes):
                return value.decode("utf-8", "surrogateescape")
            return cast(MetadataValue, value)
    return None


def sequence_number(value: Any) -> int | None:
    """Read a position in the queue: INTEGER since 1.0, 8 bytes big-endian before, mixed in upgraded stores."""
    if isinstance(value, bytes):
        return int.from_bytes(value, "big")
    return value if isinstance(value, int) else None


def max_sequence(connection: sqlite3.Connection, segment: str | None) -> int | None:
    """Return the last position of the queue that a segment has taken in, None where no table says."""
    if segment is None or not columns(connection, "max_seq_id"):
        return None
    row = connection.execute("SELECT seq_id FROM max_seq_id WHERE segment_id = ?", (segment,)).fetchone()
    return None if row is None else sequence_number(row[0])


def read_collections(connection: sqlite3.Connection) -> list[CollectionInfo]:
    """List the collections, ordered by tenant, database and name."""
    if not columns(connection, "collections"):
        return []
    have = columns(connection, "collections")
    config = "c.config_json_str" if "config_json_str" in have else "NULL"
    schema = "c.schema_str" if "schema_str" in have else "NULL"
    if columns(connection, "databases"):
        place, join = "d.tenant_id, d.name", "LEFT JOIN databases d ON d.id = c.database_id"
    else:
        # Before 0.4.15 there were no tenants; the upgrade gives them these names.
        place, join = "'default_tenant', 'default_database'", ""
    found = connection.execute(
        f"SELECT c.id, {place}, c.name, c.dimension, {config}, {schema} FROM collections c {join}"  # noqa: S608
    ).fetchall()
    collections = []
    for identity, tenant, database, name, dimension, configuration, schema_text in found:
        metadata = _own_metadata(connection, "collection_metadata", "collection_id", identity)
        vector = segments_of(connection, identity).vector
        of_segment = {} if vector is None else _own_metadata(connection, "segment_metadata", "segment_id", vector)
        distance = choose_distance(schema_text, configuration, of_segment, metadata)
        info = CollectionInfo(
            id=identity,
            tenant=tenant or "",
            database=database or "",
            name=name,
            dimension=dimension,
            distance=distance,
            metadata=metadata,
            configuration=configuration,
            schema=schema_text,
        )
        collections.append(info)
    return sorted(collections, key=lambda c: (c.tenant, c.database, c.name, c.id))


def nameless_collections(connection: sqlite3.Connection) -> list[CollectionInfo]:
    """List the collections whose segments are there while their own row is lost, under their ids."""
    if not columns(connection, "segments"):
        return []
    known = "SELECT id FROM collections" if columns(connection, "collections") else "SELECT NULL WHERE 0"
    found = connection.execute(
        f"SELECT DISTINCT collection FROM segments WHERE collection NOT IN ({known}) ORDER BY 1"  # noqa: S608
    ).fetchall()
    nameless = []
    for (identity,) in found:
        vector = segments_of(connection, identity).vector
        of_segment = {} if vector is None else _own_metadata(connection, "segment_metadata", "segment_id", vector)
        metadata = _own_metadata(connection, "collection_metadata", "collection_id", identity)
        distance = choose_distance(None, None, of_segment, metadata)
        nameless.append(CollectionInfo(identity, "", "", identity, None, distance, metadata))
    return nameless


def is_complete(connection: sqlite3.Connection) -> bool:
    """Tell whether the queue still has every row: never pruned in 0.4, nor in stores upgraded from it."""
    if not columns(connection, "embeddings_queue_config"):
        return True
    row = connection.execute("SELECT config_json_str FROM embeddings_queue_config").fetchone()
    if row is None or not isinstance(row[0], str):
        return False
    try:
        settings = json.loads(row[0])
    except ValueError:
        return False
    return isinstance(settings, dict) and settings.get("automatically_purge") is False


def segments_of(connection: sqlite3.Connection, collection: str) -> Segments:
    """Return the segments that the catalogue gives a collection."""
    if not columns(connection, "segments"):
        return Segments(None, None)
    by_scope = dict(
        connection.execute("SELECT scope, id FROM segments WHERE collection = ? ORDER BY id DESC", (collection,))
    )
    return Segments(by_scope.get("VECTOR"), by_scope.get("METADATA"))


def vector_segments(connection: sqlite3.Connection) -> frozenset[str]:
    """Return the ids of all vector segments, which are the names of their directories."""
    if not columns(connection, "segments"):
        return frozenset()
    return frozenset(i for (i,) in connection.execute("SELECT id FROM segments WHERE scope = 'VECTOR'"))


def choose_distance(
    schema: str | None,
    configuration: str | None,
    of_segment: dict[str, MetadataValue],
    of_collection: dict[str, MetadataValue],
) -> Distance:
    """Choose among the places where versions have kept the distance.

    0.5 and 0.6 write ``l2`` into ``config_json_str`` even for a cosine collection, and changing a collection's metadata
    drops ``hnsw:space`` from ``collection_metadata`` only; hence the order.
    """
    from_schema = _dig(schema, "keys", "#embedding", "float_list", "vector_index", "config", "space")
    candidates = (
        from_schema,
        _dig(configuration, "vector_index", "hnsw", "space"),
        of_segment.get("hnsw:space"),
        of_collection.get("hnsw:space"),
        _dig(configuration, "hnsw_configuration", "space"),
    )
    for candidate in candidates:
        if isinstance(candidate, str) and candidate in {"cosine", "l2", "ip"}:
            return cast(Distance, candidate)
    return "l2"


def _dig(text: str | None, *path: str) -> Any:
    if not text:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        # The other places still hold the distance; the raw text goes along in `CollectionInfo`.
        return None
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _own_metadata(connection: sqlite3.Connection, table: str, owner: str, identity: str) -> dict[str, MetadataValue]:
    have = columns(connection, table)
    if not have:
        return {}
    boolean = "bool_value" in have
    values = "str_value, int_value, float_value" + (", bool_value" if boolean else "")
    rows = connection.execute(f"SELECT key, {values} FROM {table} WHERE {owner} = ?", (identity,))  # noqa: S608
    found = {key: first_value(tuple(rest), boolean=boolean) for key, *rest in rows}
    return {key: value for key, value in found.items() if value is not None}
