"""The vector indexes of collections: of which kind, how they are made and searched, and what is recorded of that.

Each is a partial index on the expression that gives the untyped column the collection's dimension, ``halfvec`` above
2,000 dimensions. What a session has to set for a search to find what it should is recorded with the collection, and
``nearest_embeddings`` sets it. Rejected: ALTER DATABASE, which changes sessions that are none of ours and has one
number for all collections.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, LiteralString, TypeAlias

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from iceburg.database.catalogue import Dataset
from iceburg.database.schema import SchemaNames

VectorIndexKind: TypeAlias = Literal["ivfflat", "hnsw", "none"]
VECTOR_INDEXES: Final[tuple[VectorIndexKind, ...]] = ("ivfflat", "hnsw", "none")
# pgvector's limits: an index on vector ends at 2,000 dimensions, one on halfvec at 4,000.
VECTOR_LIMIT: Final = 2_000
HALFVEC_LIMIT: Final = 4_000
OPERATORS: Final[dict[str, LiteralString]] = {"cosine": "<=>", "l2": "<->", "ip": "<#>"}
_OPERATOR_CLASSES: Final[dict[str, LiteralString]] = {"cosine": "cosine_ops", "l2": "l2_ops", "ip": "ip_ops"}
# pgvector's defaults, said so that they are recorded.
_HNSW: Final = {"m": 16, "ef_construction": 64}
# What pgvector's k-means takes: samples of each list, at least so many, in single precision.
_SAMPLES_OF_A_LIST: Final = 50
_SAMPLES: Final = 10_000
_MEGABYTE: Final = 1 << 20
_LEAST_MEMORY: Final = 128
_MOST_HNSW_MEMORY: Final = 1_024

_SELECT: Final[LiteralString] = "SELECT collection_id, vector_index FROM {data}.embedding_collections"
_RECORD: Final[LiteralString] = """
UPDATE {data}.embedding_collections SET vector_index = %s WHERE collection_id = %s
"""


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """A collection's vector index.

    Attributes
    ----------
    kind
        ``none`` where search is exact.
    options
        What it was made with.
    search
        What a session has to set for a search to find what it should.
    recall
        Share of the nearest records that it then found; None where it was not measured.
    asked
        The kind that was asked for.
    why
        Why there is none.
    """

    kind: VectorIndexKind
    options: dict[str, int] = field(default_factory=dict)
    search: dict[str, int] = field(default_factory=dict)
    recall: float | None = None
    asked: VectorIndexKind = "ivfflat"
    why: str | None = None

    def with_search(self, search: dict[str, int], recall: float) -> VectorIndex:
        """Return it with other settings, and the recall that was measured with them."""
        return replace(self, search=search, recall=recall)

    def to_json(self) -> dict[str, Any]:
        """Return what is recorded of it."""
        return {
            "kind": self.kind,
            "asked": self.asked,
            "options": self.options,
            "search": self.search,
            "recall": self.recall,
        }


def plan_index(dataset: Dataset, kind: VectorIndexKind, rows: int) -> VectorIndex:
    """Plan the index of a collection of so many rows.

    ``lists`` of ivfflat follows pgvector's documentation: rows / 1,000 up to a million rows, the square root of the
    rows above.
    """
    collection: dict[str, Any] = dataset.definition["collection"]
    dimension = collection["dimension"]
    if kind == "none" or not rows or not dimension:
        return VectorIndex("none", asked=kind)
    if dimension > HALFVEC_LIMIT:
        return VectorIndex(
            "none",
            asked=kind,
            why=f"no vector index: pgvector indexes up to {HALFVEC_LIMIT} dimensions, search is exact",
        )
    if kind == "hnsw":
        return VectorIndex(kind, dict(_HNSW), {"hnsw.ef_search": 40}, asked=kind)
    if dimension == 1 and collection["distance"] != "l2":
        return VectorIndex(
            "none",
            asked=kind,
            why="no vector index: pgvector's ivfflat needs two dimensions for this distance, search is exact",
        )
    lists = max(1, rows // 1000 if rows <= 1_000_000 else round(rows**0.5))
    return VectorIndex(kind, {"lists": lists}, {"ivfflat.probes": max(1, round(lists**0.5))}, asked=kind)


def vector_type(dimension: int | None) -> sql.Composable:
    """Return the type that a collection's vectors are indexed as."""
    if dimension is None or dimension > HALFVEC_LIMIT:
        return sql.SQL("vector")
    name: LiteralString = "vector({})" if dimension <= VECTOR_LIMIT else "halfvec({})"
    return sql.SQL(name).format(sql.Literal(dimension))


def index_name(dataset_id: int, kind: str) -> str:
    """Return the name of a collection's index."""
    return f"embeddings_{kind}_{dataset_id}"


def index_statement(names: SchemaNames, dataset: Dataset, index: VectorIndex) -> sql.Composed | None:
    """Return the statement that makes an index; None where there is to be none."""
    if index.kind == "none":
        return None
    collection: dict[str, Any] = dataset.definition["collection"]
    dimension = collection["dimension"]
    kind: LiteralString = "vector_" if dimension <= VECTOR_LIMIT else "halfvec_"
    method: LiteralString = "ivfflat" if index.kind == "ivfflat" else "hnsw"
    options = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value)) for name, value in index.options.items()
    )
    return sql.SQL(
        "CREATE INDEX IF NOT EXISTS {} ON {}.embeddings USING {} ((embedding::{}) {}) WITH ({}) WHERE {}"
    ).format(
        sql.Identifier(index_name(dataset.dataset_id, index.kind)),
        sql.Identifier(names.data),
        sql.SQL(method),
        vector_type(dimension),
        sql.SQL(kind + _OPERATOR_CLASSES[collection["distance"]]),
        options,
        sql.SQL("collection_id = {}").format(sql.Literal(dataset.dataset_id)),
    )


def build_memory(dataset: Dataset, index: VectorIndex, rows: int) -> int:
    """Return the megabytes that making an index takes: with less, ivfflat cannot be made, and hnsw is made slowly."""
    dimension = dataset.definition["collection"]["dimension"] or 1
    if index.kind == "ivfflat":
        lists = index.options["lists"]
        samples = max(lists * _SAMPLES_OF_A_LIST, _SAMPLES)
        floats = samples * (dimension + 2) + samples * lists + 3 * lists * dimension + 2 * lists * lists
        return max(_LEAST_MEMORY, int(floats * 4 * 1.1 / _MEGABYTE) + 16)
    # A vector, and the neighbours of two levels at eight bytes each.
    needed = rows * (4 * dimension + 4 * index.options.get("m", 16) * 8 + 128)
    return max(_LEAST_MEMORY, min(needed // _MEGABYTE + 16, _MOST_HNSW_MEMORY))


def drop_index(connection: psycopg.Connection, names: SchemaNames, dataset_id: int, *, keep: str = "none") -> None:
    """Drop the indexes of a collection, but one of the kind `keep`."""
    for kind in VECTOR_INDEXES:
        if kind not in ("none", keep):
            name = sql.Identifier(names.data, index_name(dataset_id, kind))
            connection.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(name))


def record_index(connection: psycopg.Connection, names: SchemaNames, dataset_id: int, index: VectorIndex) -> None:
    """Record how a collection is indexed."""
    connection.execute(names.format(_RECORD), (Jsonb(index.to_json()), dataset_id))


def recorded_indexes(connection: psycopg.Connection, names: SchemaNames) -> dict[int, VectorIndex]:
    """Return what is recorded, by collection."""
    rows: list[tuple[int, Any]] = connection.execute(names.format(_SELECT)).fetchall()
    return {
        number: VectorIndex(
            found["kind"],
            found.get("options", {}),
            found.get("search", {}),
            found.get("recall"),
            found["asked"],
        )
        for number, found in rows
        if isinstance(found, dict) and found.get("kind") in VECTOR_INDEXES
    }
