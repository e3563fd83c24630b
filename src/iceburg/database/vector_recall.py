"""The recall of a vector index: which share of the nearest records it finds, measured against exact search.

The queries lie near stored vectors, as those of an application do, but on none of them: three parts of one vector and
one part of another.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, LiteralString, TypeAlias

import psycopg
from psycopg import sql

from iceburg.database.catalogue import Dataset
from iceburg.database.schema import SchemaNames
from iceburg.database.vector_indexes import OPERATORS, VectorIndex, index_name, vector_type

K: Final = 8
"""How many records an application asks for."""

WANTED: Final = 0.99
"""The recall that the settings of a search are chosen for."""

_QUERIES: Final = 32
# Exact search looks at every vector: not many more than so many, all queries together.
_LOOKED_AT: Final = 3_000_000
_LEAST_QUERIES: Final = 8
# Distances are sums of float4: what is as near as that is as good.
_TOLERANCE: Final = 1e-6
_EF_SEARCH: Final = (40, 64, 100, 150, 200, 300, 400, 600, 800, 1000)
_MOST_PROBES: Final = 32_768

_SAMPLE: Final[LiteralString] = """
SELECT embedding FROM {data}.embeddings
WHERE collection_id = {number} AND embedding IS NOT NULL ORDER BY id LIMIT {limit}
"""
_EXACT: Final[LiteralString] = """
SELECT id, (embedding {operator} %(query)s::vector)::float8 FROM {data}.embeddings
WHERE collection_id = {number} AND embedding IS NOT NULL
ORDER BY embedding {operator} %(query)s::vector, id LIMIT {limit}
"""
_INDEXED: Final[LiteralString] = """
SELECT id, (embedding {operator} %(query)s::vector)::float8 FROM {data}.embeddings
WHERE collection_id = {number} ORDER BY embedding::{type} {operator} %(query)s::{type} LIMIT {limit}
"""

Near: TypeAlias = list[tuple[Any, float]]


@dataclass(frozen=True, slots=True)
class Recall:
    """What was measured of an index.

    Attributes
    ----------
    recall
        Share of the `K` nearest that were found, over all queries.
    queries
        How many were asked.
    chosen
        Whether PostgreSQL takes the index by itself, without being kept from reading the whole table.
    """

    recall: float
    queries: int
    chosen: bool


class RecallMeasurement:
    """Measures one collection; the exact answers are found once.

    Parameters
    ----------
    connection
        In autocommit mode, with `prepare_loaders`.
    names
        Of the target's schemas.
    dataset, rows
        The collection, and how many records it has.
    """

    def __init__(self, connection: psycopg.Connection, names: SchemaNames, dataset: Dataset, rows: int) -> None:
        self._connection = connection
        self._names = names
        collection: dict[str, Any] = dataset.definition["collection"]
        self._parts: dict[str, sql.Composable] = {
            "number": sql.Literal(dataset.dataset_id),
            "operator": sql.SQL(OPERATORS[collection["distance"]]),
            "type": vector_type(collection["dimension"]),
        }
        self._dataset = dataset
        count = max(_LEAST_QUERIES, min(_QUERIES, _LOOKED_AT // max(rows, 1)))
        self.queries = list(self._sample(count))
        self._exact = [self._ask(_EXACT, query) for query in self.queries]

    def _sample(self, count: int) -> Iterator[str]:
        statement = self._names.format(_SAMPLE, limit=sql.Literal(2 * count), **self._parts)
        with self._connection.cursor(binary=True) as cursor:
            vectors = [array("f", raw) for (raw,) in cursor.execute(statement)]
        # The ids are digests: in their order, vectors are as if drawn at random.
        for i in range(min(count, len(vectors))):
            near, far = vectors[i], vectors[(i + len(vectors) // 2) % len(vectors)]
            yield "[" + ",".join(repr(0.75 * a + 0.25 * b) for a, b in zip(near, far, strict=True)) + "]"

    def _ask(self, statement: LiteralString, query: str) -> Near:
        composed = self._names.format(statement, limit=sql.Literal(K), **self._parts)
        return self._connection.execute(composed, {"query": query}).fetchall()

    def measure(self, search: dict[str, int], kind: str) -> Recall:
        """Measure an index of a kind with some settings."""
        name = index_name(self._dataset.dataset_id, kind)
        found = wanted = 0
        with self._searching(search):
            chosen = self._uses(name)
            # The planner takes a small table whole; that the index could be taken is what is measured.
            for setting in ("enable_seqscan", "enable_sort"):
                self._connection.execute(sql.SQL("SET LOCAL {} = off").format(sql.Identifier(setting)))
            for query, exact in zip(self.queries, self._exact, strict=True):
                found += _hits(exact, self._ask(_INDEXED, query))
                wanted += len(exact)
        return Recall(found / wanted if wanted else 1.0, len(self.queries), chosen)

    @contextmanager
    def _searching(self, search: dict[str, int]) -> Iterator[None]:
        with self._connection.transaction():
            for name, value in search.items():
                self._connection.execute("SELECT set_config(%s, %s, TRUE)", (name, str(value)))
            yield

    def _uses(self, index: str) -> bool:
        if not self.queries:
            return False
        statement = self._names.format(_INDEXED, limit=sql.Literal(K), **self._parts)
        plan = self._connection.execute(sql.SQL("EXPLAIN ") + statement, {"query": self.queries[0]}).fetchall()
        return any(index in line for (line,) in plan)

    def tune(self, index: VectorIndex) -> VectorIndex:
        """Return the index with the cheapest settings of a search that find `WANTED` of the nearest records."""
        if index.kind == "none" or not self.queries:
            return index
        best = index
        for search in _settings(index):
            found = self.measure(search, index.kind)
            if best.recall is None or found.recall > best.recall:
                best = index.with_search(search, round(found.recall, 4))
            if found.recall >= WANTED:
                break
        return best


def _settings(index: VectorIndex) -> Iterator[dict[str, int]]:
    if index.kind == "hnsw":
        yield from ({"hnsw.ef_search": value} for value in _EF_SEARCH)
        return
    lists = min(index.options["lists"], _MOST_PROBES)
    probes = 1
    while probes < lists:
        yield {"ivfflat.probes": probes}
        probes = max(probes + 1, probes * 5 // 4)
    yield {"ivfflat.probes": lists}


def _hits(exact: Sequence[tuple[Any, float]], found: Sequence[tuple[Any, float]]) -> int:
    """Count what was found that is as near as the last of the nearest."""
    if not exact:
        return 0
    last = exact[-1][1]
    limit = last + abs(last) * _TOLERANCE + _TOLERANCE
    near = sum(1 for _, distance in found if distance <= limit)
    # Where the last distance is no number, there is nothing to order.
    return min(near, len(exact)) if last == last else len(exact)
