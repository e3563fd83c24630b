"""The nearest records of a Chroma collection, searched exactly on both sides; what an index finds is another matter.

The source's side is computed from the collection's files in double precision, in one pass and in batches; PostgreSQL's
by pgvector without an index. Distances may differ by what float32 rounds, and equally near records may change places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from iceburg.database.catalogue import Dataset
from iceburg.database.schema import SchemaNames
from iceburg.database.vector_indexes import OPERATORS
from iceburg.database.vector_recall import K
from iceburg.mappings.identity import key_text
from iceburg.mappings.json_value import is_usable_text
from iceburg.records import ChromaRecord, DatasetReader
from iceburg.verification.answers import Question

if TYPE_CHECKING:
    import numpy as np

_QUERIES: Final = 6
_FILTERED: Final = 3
_BATCH: Final = 1_000
_MOST_KEPT: Final = 1_000
# pgvector adds float32 up: some units of the last place of the numbers that are added.
_ROUNDING: Final = 1e-5
_KEPT: Final[LiteralString] = """
SELECT record_key FROM {state}.quarantine WHERE dataset_id = %(id)s
UNION SELECT record_key FROM {state}.originals WHERE dataset_id = %(id)s AND field IN ('id', 'vector', 'metadata')
LIMIT %(limit)s
"""
_NEAREST: Final[LiteralString] = """
SELECT record_id, (embedding {operator} %(query)s::vector)::float8 FROM {data}.embeddings
WHERE collection_id = {number} AND embedding IS NOT NULL AND (%(where)s::jsonb IS NULL OR metadata @> %(where)s::jsonb)
      AND id <> ALL(%(kept)s::text[]::uuid[])
ORDER BY (embedding {operator} %(query)s::vector)::float8, record_id LIMIT {limit}
"""

Near = list[tuple[str, float]]


class CollectionQuestions:
    """Asks both sides of one collection.

    Parameters
    ----------
    reader
        Of the collection.
    connection, names
        The target.
    dataset
        The collection's.
    random
        Draws the queries.
    """

    def __init__(
        self,
        reader: DatasetReader[ChromaRecord],
        connection: psycopg.Connection,
        names: SchemaNames,
        dataset: Dataset,
        random: Random,
    ) -> None:
        self._reader = reader
        self._connection = connection
        self._names = names
        self._dataset = dataset
        self._random = random
        self._mapping = dataset.mapping()
        collection = dataset.definition["collection"]
        self._dimension: int = collection["dimension"] or 0
        self._distance: str = collection["distance"]
        parameters = {"id": dataset.dataset_id, "limit": _MOST_KEPT + 1}
        kept = connection.execute(names.format(_KEPT), parameters).fetchall()
        self._kept = frozenset(text for (text,) in kept)
        self._kept_rows: set[str] = set()
        self._found: list[Near] | None = None
        self._queries: list[tuple[str, Sequence[float], tuple[str, str] | None]] = []

    @property
    def why_not(self) -> str | None:
        """Why nothing can be asked; None if it can."""
        if len(self._kept) > _MOST_KEPT:
            return f"of more than {_MOST_KEPT} records PostgreSQL cannot hold the vectors or ids as they are"
        return None

    def questions(self) -> Iterator[Question]:
        """Yield the questions; the source is gone through once for all of them."""
        if self.why_not is not None or not self._dimension:
            return
        self._queries = list(self._draw())
        for place, (record, query, where) in enumerate(self._queries):
            plain = "the nearest records, by exact search"
            yield Question(
                plain if where is None else f"{plain} with a filter",
                (record,) if where is None else (record, dict([where])),
                self._source(place),
                self._target(query, where),
                self._same(query),
            )

    def _draw(self) -> Iterator[tuple[str, Sequence[float], tuple[str, str] | None]]:
        """Draw queries near vectors of the first batch, as those of an application are, and on none of them."""
        first = next(iter(self._reader.batches(size=_BATCH)), None)
        records = [] if first is None else [r for r in first.records if self._is_asked(r)]
        drawn = self._random.sample(records, min(_QUERIES, len(records)))
        for i, record in enumerate(drawn):
            near, far = self._vector(record), self._vector(drawn[(i + 1) % len(drawn)])
            query = [float(x) for x in (0.75 * near + 0.25 * far)]
            yield record.id, query, None
            where = next(
                ((k, v) for k, v in (record.metadata or {}).items() if isinstance(v, str) and is_usable_text(k + v)),
                None,
            )
            if where is not None and i < _FILTERED:
                yield record.id, query, where

    @staticmethod
    def _vector(record: ChromaRecord) -> np.ndarray[Any, Any]:
        import numpy as np

        return np.frombuffer(record.vector or b"", "<f4")

    def _is_asked(self, record: ChromaRecord) -> bool:
        """Whether both sides have a vector of a record with which a distance can be computed."""
        import numpy as np

        if record.vector is None or len(record.vector) != 4 * self._dimension:
            return False
        if self._kept and key_text(self._mapping.key(record)) in self._kept:
            key = self._mapping.row_key(record)
            if key is not None:
                self._kept_rows.add(bytes(key[0]).hex())  # type: ignore[arg-type]
            return False
        vector = self._vector(record)
        return bool(np.isfinite(vector).all()) and (self._distance != "cosine" or bool(vector.any()))

    def _source(self, place: int) -> Callable[[], Near]:
        return lambda: self._search()[place]

    def _search(self) -> list[Near]:
        import numpy as np

        if self._found is not None:
            return self._found
        found: list[Near] = [[] for _ in self._queries]
        matrix = np.array([query for _, query, _ in self._queries], np.float32).astype(np.float64)
        for batch in self._reader.batches(size=_BATCH):
            records = [record for record in batch.records if self._is_asked(record)]
            if not records:
                continue
            vectors = np.stack([self._vector(record) for record in records]).astype(np.float64)
            distances = _distances(self._distance, vectors, matrix)
            for place, (_, _, where) in enumerate(self._queries):
                near = [
                    (record.id, float(distance))
                    for record, distance in zip(records, distances[:, place], strict=True)
                    if where is None or (record.metadata or {}).get(where[0]) == where[1]
                ]
                found[place] = sorted([*found[place], *near], key=lambda pair: (pair[1], pair[0]))[:K]
        self._found = found
        return found

    def _target(self, query: Sequence[float], where: tuple[str, str] | None) -> Callable[[], Near]:
        def ask() -> Near:
            statement = self._names.format(
                _NEAREST,
                number=sql.Literal(self._dataset.dataset_id),
                operator=sql.SQL(OPERATORS[self._distance]),
                limit=sql.Literal(K),
            )
            parameters = {
                "query": str(list(query)),
                "where": None if where is None else Jsonb(dict([where])),
                "kept": sorted(self._kept_rows),
            }
            rows = self._connection.execute(statement, parameters).fetchall()
            # NaN, the distance from a vector without a direction, comes last.
            return [(one, distance) for one, distance in rows if distance == distance]

        return ask

    def _same(self, query: Sequence[float]) -> Callable[[Any, Any], bool]:
        length = sum(x * x for x in query) ** 0.5

        def same(left: Any, right: Any) -> bool:
            if not isinstance(left, list) or not isinstance(right, list):
                return bool(left == right)
            return same_nearest(left, right, 1.0 if self._distance == "cosine" else length)

        return same


def _distances(distance: str, vectors: np.ndarray[Any, Any], queries: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return pgvector's distance of each vector (rows) from each query (columns)."""
    import numpy as np

    if distance == "l2":
        return np.stack([np.linalg.norm(vectors - query, axis=1) for query in queries], axis=1)
    products = vectors @ queries.T
    if distance == "ip":
        return np.asarray(-products)
    lengths = np.linalg.norm(vectors, axis=1)[:, None] * np.linalg.norm(queries, axis=1)[None, :]
    return np.asarray(1 - products / lengths)


def same_nearest(left: Near, right: Near, scale: float) -> bool:
    """Compare two answers: the same records at the same distances, up to what float32 rounds.

    Parameters
    ----------
    left, right
        Ids and distances, the nearest first.
    scale
        Of the numbers that a distance is computed from.
    """
    if len(left) != len(right):
        return False
    if not left:
        return True
    limit = _ROUNDING * max(scale, abs(left[-1][1]), abs(right[-1][1]))
    if any(abs(a - b) > limit for (_, a), (_, b) in zip(left, right, strict=True)):
        return False
    mine, theirs = dict(left), dict(right)
    if len(mine) != len(left) or len(theirs) != len(right):
        return False
    last = left[-1][1]
    # Of records that are equally near, the last place has any.
    only = [*(mine[one] for one in mine.keys() - theirs.keys()), *(theirs[one] for one in theirs.keys() - mine.keys())]
    return all(abs(mine[one] - theirs[one]) <= limit for one in mine.keys() & theirs.keys()) and all(
        abs(distance - last) <= 2 * limit for distance in only
    )
