"""The four stores of the unified layer: each call is sent to the side that the router chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

from iceburg.database.protocol import (
    Adapter,
    Aggregate,
    Collection,
    Conversation,
    Distance,
    EmbeddingRecord,
    Entity,
    Event,
    Hit,
    Metadata,
    Network,
    Relationship,
    Vector,
    Where,
)

T = TypeVar("T")


class Router(Protocol):
    """Chooses sides; `source` is the store's file."""

    def read(self, operation: str, source: str, call: Callable[[Adapter], T]) -> T:
        """Answer from the side that may."""
        ...

    def write(self, operation: str, source: str, call: Callable[[Adapter], T]) -> T:
        """Write where it has to be written."""
        ...


class RoutedConversations:
    """The conversations; see `iceburg.database.protocol.ConversationStore`."""

    def __init__(self, router: Router, source: str) -> None:
        self._router = router
        self._source = source

    def save(
        self,
        conversation_id: str,
        user_message: str,
        assistant_message: str,
        agent_used: str | None = None,
        mode: str | None = None,
        metadata: Any = None,
        timestamp: str | None = None,
    ) -> int:
        """Save an exchange; return its number."""
        return self._router.write(
            "conversations.save",
            self._source,
            lambda side: side.conversations.save(
                conversation_id, user_message, assistant_message, agent_used, mode, metadata, timestamp
            ),
        )

    def get(self, conversation: int) -> Conversation | None:
        """Return the exchange of a number."""
        return self._router.read("conversations.get", self._source, lambda side: side.conversations.get(conversation))

    def newest(
        self, conversation_id: str | None = None, limit: int = 100, before: Conversation | None = None
    ) -> list[Conversation]:
        """Return the newest exchanges."""
        return self._router.read(
            "conversations.newest", self._source, lambda side: side.conversations.newest(conversation_id, limit, before)
        )

    def update(self, conversation: int, changes: Mapping[str, Any]) -> bool:
        """Change fields of an exchange."""
        return self._router.write(
            "conversations.update", self._source, lambda side: side.conversations.update(conversation, changes)
        )

    def delete(self, conversation: int) -> bool:
        """Delete an exchange."""
        return self._router.write(
            "conversations.delete", self._source, lambda side: side.conversations.delete(conversation)
        )


class RoutedMatrix:
    """The entities and relationships; see `iceburg.database.protocol.MatrixStore`."""

    def __init__(self, router: Router, source: str) -> None:
        self._router = router
        self._source = source

    def _read(self, name: str, call: Callable[[Adapter], T]) -> T:
        return self._router.read(f"matrix.{name}", self._source, call)

    def _write(self, name: str, call: Callable[[Adapter], T]) -> T:
        return self._router.write(f"matrix.{name}", self._source, call)

    def put(self, entity: Entity) -> None:
        """Insert an entity or replace it."""
        self._write("put", lambda side: side.matrix.put(entity))

    def put_many(self, entities: Sequence[Entity]) -> None:
        """Insert or replace entities."""
        self._write("put_many", lambda side: side.matrix.put_many(entities))

    def relate(self, relationships: Sequence[Relationship]) -> None:
        """Insert or replace relationships."""
        self._write("relate", lambda side: side.matrix.relate(relationships))

    def get(self, entity_id: str) -> Entity | None:
        """Return an entity, also by its id with or without ``osanc_``."""
        return self._read("get", lambda side: side.matrix.get(entity_id))

    def get_many(self, entity_ids: Sequence[str]) -> dict[str, Entity]:
        """Return the entities of exactly these ids."""
        return self._read("get_many", lambda side: side.matrix.get_many(entity_ids))

    def search(self, text: str, entity_type: str | None = None, limit: int = 50) -> list[Entity]:
        """Return entities whose name contains a text."""
        return self._read("search", lambda side: side.matrix.search(text, entity_type, limit))

    def relationships(self, entity_id: str) -> list[Relationship]:
        """Return the relationships from and to an id."""
        return self._read("relationships", lambda side: side.matrix.relationships(entity_id))

    def relationships_of(self, entity_ids: Sequence[str]) -> list[Relationship]:
        """Return the relationships from or to any of these ids."""
        return self._read("relationships_of", lambda side: side.matrix.relationships_of(entity_ids))

    def network(self, entity_id: str, depth: int = 2, limit: int = 100) -> Network:
        """Walk around an entity."""
        return self._read("network", lambda side: side.matrix.network(entity_id, depth, limit))

    def delete(self, entity_id: str) -> bool:
        """Delete an entity."""
        return self._write("delete", lambda side: side.matrix.delete(entity_id))

    def unrelate(self, relationship_id: str) -> bool:
        """Delete a relationship."""
        return self._write("unrelate", lambda side: side.matrix.unrelate(relationship_id))

    def count_by_type(self) -> dict[str, int]:
        """Count entities by type."""
        return self._read("count_by_type", lambda side: side.matrix.count_by_type())

    def count_by_source(self) -> dict[str | None, int]:
        """Count entities by source."""
        return self._read("count_by_source", lambda side: side.matrix.count_by_source())


class RoutedEmbeddings:
    """The collections of embeddings; see `iceburg.database.protocol.EmbeddingStore`."""

    def __init__(self, router: Router, source: str) -> None:
        self._router = router
        self._source = source

    def _read(self, name: str, call: Callable[[Adapter], T]) -> T:
        return self._router.read(f"embeddings.{name}", self._source, call)

    def _write(self, name: str, call: Callable[[Adapter], T]) -> T:
        return self._router.write(f"embeddings.{name}", self._source, call)

    def collections(self) -> list[Collection]:
        """Return the collections."""
        return self._read("collections", lambda side: side.embeddings.collections())

    def create(self, name: str, distance: Distance = "cosine", dimension: int | None = None) -> Collection:
        """Return the collection of a name, made if it is not there."""
        return self._write("create", lambda side: side.embeddings.create(name, distance, dimension))

    def add(
        self,
        collection: str,
        ids: Sequence[str],
        vectors: Sequence[Vector],
        documents: Sequence[str | None] | None = None,
        metadatas: Sequence[Metadata | None] | None = None,
    ) -> None:
        """Add records."""
        self._write("add", lambda side: side.embeddings.add(collection, ids, vectors, documents, metadatas))

    def upsert(
        self,
        collection: str,
        ids: Sequence[str],
        vectors: Sequence[Vector],
        documents: Sequence[str | None] | None = None,
        metadatas: Sequence[Metadata | None] | None = None,
    ) -> None:
        """Add records or replace those of the same ids."""
        self._write("upsert", lambda side: side.embeddings.upsert(collection, ids, vectors, documents, metadatas))

    def get(
        self,
        collection: str,
        ids: Sequence[str] | None = None,
        where: Where | None = None,
        where_document: Where | None = None,
        limit: int | None = None,
    ) -> list[EmbeddingRecord]:
        """Return records."""
        return self._read("get", lambda side: side.embeddings.get(collection, ids, where, where_document, limit))

    def delete(
        self,
        collection: str,
        ids: Sequence[str] | None = None,
        where: Where | None = None,
        where_document: Where | None = None,
    ) -> int:
        """Delete records."""
        return self._write("delete", lambda side: side.embeddings.delete(collection, ids, where, where_document))

    def count(self, collection: str) -> int:
        """Return the number of records."""
        return self._read("count", lambda side: side.embeddings.count(collection))

    def query(
        self,
        collection: str,
        vector: Vector,
        k: int = 8,
        where: Where | None = None,
        where_document: Where | None = None,
    ) -> list[Hit]:
        """Return the nearest records."""
        return self._read("query", lambda side: side.embeddings.query(collection, vector, k, where, where_document))


class RoutedTelemetry:
    """The telemetry log; see `iceburg.database.protocol.TelemetryStore`."""

    def __init__(self, router: Router, source: str) -> None:
        self._router = router
        self._source = source

    def append(self, event: Mapping[str, Any]) -> None:
        """Append an event."""
        self._router.write("telemetry.append", self._source, lambda side: side.telemetry.append(event))

    def append_many(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Append events."""
        self._router.write("telemetry.append_many", self._source, lambda side: side.telemetry.append_many(events))

    def newest(
        self, event_type: str | None = None, since: str | None = None, until: str | None = None, limit: int = 100
    ) -> list[Event]:
        """Return the newest events."""
        return self._router.read(
            "telemetry.newest", self._source, lambda side: side.telemetry.newest(event_type, since, until, limit)
        )

    def aggregate(
        self, by: Literal["type", "day"] = "type", since: str | None = None, until: str | None = None
    ) -> list[Aggregate]:
        """Return counts, mean response time and success rate."""
        return self._router.read(
            "telemetry.aggregate", self._source, lambda side: side.telemetry.aggregate(by, since, until)
        )
