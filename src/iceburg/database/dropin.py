"""For code that exists: ICEBURG's own stores under their names, over the unified layer.

A caller changes its import and nothing else. What comes back is dictionaries, the same whichever side answers.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from iceburg.database.protocol import Entity, Hit, Relationship, Vector, Where
from iceburg.database.unified_db import UnifiedDatabase, get_unified_db
from iceburg.errors import UsageError

__all__ = ["MatrixStore", "SearchHit", "Telemetry", "VectorStore"]

EmbeddingFunction = Callable[[list[str]], Sequence[Vector]]
"""Makes a vector of each text."""

COLLECTION: Final = "iceburg"


class _OverDatabase:
    def __init__(self, database: UnifiedDatabase | None) -> None:
        self._given = database

    @property
    def database(self) -> UnifiedDatabase:
        """The database used; without one of its own, the process's, which after a fork is another."""
        return get_unified_db() if self._given is None else self._given


class MatrixStore(_OverDatabase):
    """Entities and relationships, as dictionaries with the keys of the SQLite tables.

    Columns that hold JSON (``properties``, ``countries``, ``datasets``) are Python values.

    Parameters
    ----------
    database
        By default `get_unified_db`'s.
    """

    def __init__(self, database: UnifiedDatabase | None = None) -> None:
        super().__init__(database)

    def search(self, query: str, limit: int = 50) -> list[dict[str, Any]]:
        """Return entities whose name contains a text, by entity_id; see `protocol.MatrixStore.search`."""
        return [_columns(entity) for entity in self.database.matrix.search(query, limit=limit)]

    def get_entity(self, entity_id: str) -> dict[str, Any] | None:
        """Return the entity of an id, also with or without the prefix ``osanc_``; None if there is none."""
        found = self.database.matrix.get(entity_id)
        return None if found is None else _columns(found)

    def get_relationships(self, entity_id: str) -> list[dict[str, Any]]:
        """Return the relationships from and to exactly this id, by relationship_id."""
        return [_columns(one) for one in self.database.matrix.relationships(entity_id)]

    def get_network(self, entity_id: str, depth: int = 2, limit: int = 100) -> dict[str, Any]:
        """Walk breadth-first around an entity, to a depth, over at most `limit` entities.

        Returns
        -------
        dict
            ``nodes``: entities in the order met; ``edges``: relationships between them that were gone along, by id;
            ``center``: the id of the entity begun at, None if it is not there; ``depth``: as asked for; ``truncated``:
            whether the limit ended the walk.
        """
        found = self.database.matrix.network(entity_id, depth, limit)
        return {
            "nodes": [_columns(entity) for entity in found.nodes],
            "edges": [_columns(one) for one in found.edges],
            "center": None if found.center is None else found.center.entity_id,
            "depth": found.depth,
            "truncated": found.truncated,
        }


class SearchHit(dict[str, Any]):
    """What a search found: ``id``, ``document``, ``metadata`` and ``distance``, as keys and as attributes."""

    def __init__(self, hit: Hit) -> None:
        super().__init__(id=hit.id, document=hit.document, metadata=hit.metadata, distance=hit.distance)

    @property
    def id(self) -> str:
        """The record's id."""
        return str(self["id"])

    @property
    def document(self) -> str | None:
        """Its text."""
        document: str | None = self["document"]
        return document

    @property
    def metadata(self) -> dict[str, Any] | None:
        """Its metadata."""
        metadata: dict[str, Any] | None = self["metadata"]
        return metadata

    @property
    def distance(self) -> float:
        """How far it is from the query, in the collection's distance."""
        return float(self["distance"])


class VectorStore(_OverDatabase):
    """Texts that are found by their meaning, in one collection; it is made on first use, with cosine distance.

    Parameters
    ----------
    embedding_function
        Makes a vector of each of a list of texts.
    collection
        The collection's name.
    database
        By default `get_unified_db`'s.
    """

    def __init__(
        self,
        embedding_function: EmbeddingFunction,
        collection: str = COLLECTION,
        database: UnifiedDatabase | None = None,
    ) -> None:
        super().__init__(database)
        self._embedding_function = embedding_function
        self.collection = collection

    def add(
        self,
        texts: Sequence[str],
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        ids: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Add texts, all or none, and return their ids; a record whose id is there already is replaced.

        Parameters
        ----------
        texts
            What the embedding function is given, and what the records hold.
        metadatas
            For each text.
        ids
            For each text; where there is none, it is a new UUID.

        Raises
        ------
        UsageError
            Lengths differ, an id occurs twice, or a vector is of another dimension than the collection.
        """
        texts = _texts(texts)
        given: Sequence[str | None] = [None] * len(texts) if ids is None else ids
        if len(given) != len(texts):
            raise UsageError(f"there are {len(texts)} texts, and {len(given)} ids", where=self._where)
        # Before the function is called, which may cost much.
        if metadatas is not None and len(metadatas) != len(texts):
            raise UsageError(f"there are {len(texts)} texts, and {len(metadatas)} metadatas", where=self._where)
        names = [str(uuid.uuid4()) if name is None else name for name in given]
        if texts:
            self.database.embeddings.upsert(self.collection, names, self._vectors(texts), texts, metadatas)
        return names

    def semantic_search(self, query: str, k: int = 8, where: Where | None = None) -> list[SearchHit]:
        """Return the `k` records nearest to a text, nearest first; `where` filters by metadata, as Chroma does.

        Raises
        ------
        UsageError
            The query's vector is of another dimension than the collection, or the filter is not one.
        """
        (vector,) = self._vectors(_texts([query]))
        return [SearchHit(hit) for hit in self.database.embeddings.query(self.collection, vector, k, where)]

    @property
    def _where(self) -> str:
        return f"collection {self.collection!r}"

    def _vectors(self, texts: list[str]) -> Sequence[Vector]:
        vectors = self._embedding_function(texts)
        if len(vectors) != len(texts):
            raise UsageError(
                f"the embedding function made {len(vectors)} vectors of {len(texts)} texts", where=self._where
            )
        return vectors


class Telemetry(_OverDatabase):
    """The telemetry log.

    Parameters
    ----------
    database
        By default `get_unified_db`'s.
    """

    def __init__(self, database: UnifiedDatabase | None = None) -> None:
        super().__init__(database)

    def write(
        self,
        event_name: str,
        data: Any,
        run_id: str | None = None,
        agent_id: str | None = None,
        task_id: str | None = None,
    ) -> None:
        """Append an event that happens now, in the form of ``telemetry/events.jsonl``.

        Raises
        ------
        UsageError
            The data are not JSON.
        """
        self.database.telemetry.append(
            {
                "event_type": event_name,
                "timestamp": time.time(),
                "agent_id": agent_id,
                "task_id": task_id,
                "run_id": run_id,
                "payload": data,
                "metadata": {},
            }
        )


def _columns(record: Entity | Relationship) -> dict[str, Any]:
    # The values are the record's own: `dataclasses.asdict` would copy them deeply.
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise UsageError("texts is a list of texts, not a text")
    found = list(texts)
    for text in found:
        if not isinstance(text, str):
            raise UsageError(f"what is embedded is a text, not {text!r}")
    return found
