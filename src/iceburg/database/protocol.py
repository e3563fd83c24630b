"""What an application may ask of its state, whichever side answers.

Both adapters satisfy `Adapter`, and one contract test suite holds them to it: the same call gives equal results on both
sides, in the same order. Times are texts as the embedded stores hold them. JSON values are Python values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

Distance: TypeAlias = Literal["cosine", "l2", "ip"]
"""Chroma's: ``cosine`` is 1 - similarity, ``l2`` the *squared* Euclidean distance, ``ip`` is 1 - inner product."""

Vector: TypeAlias = Sequence[float]
Where: TypeAlias = Mapping[str, Any]
"""A filter in Chroma's language: ``{"key": value}``, ``{"key": {"$gt": 1}}``, ``{"$and": [..]}``."""
Metadata: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One exchange.

    Attributes
    ----------
    id
        Its number, ascending in the order of saving.
    conversation_id
        The conversation it belongs to.
    timestamp
        ISO 8601, local, with microseconds, as the application wrote it.
    user_message, assistant_message, agent_used, mode
        As saved.
    metadata
        The JSON value, None where there is none; a text that is not JSON is that text.
    created_at
        When the row was made, UTC, ``YYYY-MM-DD HH:MM:SS``.
    """

    id: int
    conversation_id: str
    timestamp: str
    user_message: str
    assistant_message: str
    agent_used: str | None = None
    mode: str | None = None
    metadata: Any = None
    created_at: str | None = None


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity of the Matrix store; `properties`, `countries` and `datasets` are JSON values."""

    entity_id: str
    name: str
    entity_type: str
    source: str | None = None
    properties: Any = None
    countries: Any = None
    datasets: Any = None
    created_at: str | None = None


@dataclass(frozen=True, slots=True)
class Relationship:
    """A directed relationship of the Matrix store; its ends may name entities that are not there."""

    relationship_id: str
    source_id: str
    target_id: str
    relationship_type: str
    properties: Any = None
    source: str | None = None
    created_at: str | None = None


@dataclass(frozen=True, slots=True)
class Network:
    """What is around an entity.

    Attributes
    ----------
    center
        The entity asked for, None if it is not there.
    nodes
        Entities in the order in which a breadth-first walk meets them, the center first.
    edges
        Relationships between the nodes that the walk went along, by id.
    depth
        The depth asked for.
    truncated
        Whether the limit ended the walk.
    """

    center: Entity | None
    nodes: tuple[Entity, ...]
    edges: tuple[Relationship, ...]
    depth: int
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection of embeddings; `dimension` is None until the first vector is added."""

    name: str
    dimension: int | None
    distance: Distance


@dataclass(frozen=True, slots=True)
class EmbeddingRecord:
    """A record of a collection; `vector` is a tuple of float32 values, None where it was lost before."""

    id: str
    document: str | None
    metadata: dict[str, Any] | None
    vector: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A record found near a vector."""

    id: str
    document: str | None
    metadata: dict[str, Any] | None
    distance: float


@dataclass(frozen=True, slots=True)
class Event:
    """A telemetry event: a line of the log.

    Attributes
    ----------
    event_type
        Its ``event_type``, the file's stem where it has none.
    timestamp
        UTC, ISO 8601 without zone; None where it has none that can be read.
    data
        The whole line.
    """

    event_type: str
    timestamp: str | None
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Telemetry of one type or one day.

    Attributes
    ----------
    key
        The type, or the day (``YYYY-MM-DD``; '' for events without a time).
    count
        How many events.
    mean_response_time
        Over those that have a numeric ``response_time``, seconds or whatever they hold; None if none has.
    success_rate
        Share of true among those whose ``success`` is a boolean; None if none has.
    """

    key: str
    count: int
    mean_response_time: float | None = None
    success_rate: float | None = None


class ConversationStore(Protocol):
    """The conversations."""

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
        """Save an exchange, now or at `timestamp`; return its number."""
        ...

    def get(self, conversation: int) -> Conversation | None:
        """Return the exchange of a number."""
        ...

    def newest(
        self, conversation_id: str | None = None, limit: int = 100, before: Conversation | None = None
    ) -> list[Conversation]:
        """Return the newest exchanges, of one conversation or of all, by timestamp and number, newest first.

        `before` continues behind the last one of a page: exchanges older than it in that order.
        """
        ...

    def update(self, conversation: int, changes: Mapping[str, Any]) -> bool:
        """Change fields (`Conversation` names them; not the number); return whether the exchange is there.

        Raises
        ------
        UsageError
            There is no field of such a name.
        """
        ...

    def delete(self, conversation: int) -> bool:
        """Delete an exchange; return whether it was there."""
        ...


class MatrixStore(Protocol):
    """The entities and relationships."""

    def put(self, entity: Entity) -> None:
        """Insert an entity or replace it."""
        ...

    def put_many(self, entities: Sequence[Entity]) -> None:
        """Insert or replace entities, all or none; of several with one id the last counts."""
        ...

    def relate(self, relationships: Sequence[Relationship]) -> None:
        """Insert or replace relationships, all or none."""
        ...

    def get(self, entity_id: str) -> Entity | None:
        """Return the entity of an id; failing that, of the id with or without the prefix ``osanc_``."""
        ...

    def get_many(self, entity_ids: Sequence[str]) -> dict[str, Entity]:
        """Return the entities of exactly these ids, by id."""
        ...

    def search(self, text: str, entity_type: str | None = None, limit: int = 50) -> list[Entity]:
        """Return entities whose name contains a text, by entity_id (bytewise).

        As SQLite's LIKE: ASCII letters match in either case, others exactly; ``%`` and ``_`` are wildcards and there is
        no escape.
        """
        ...

    def relationships(self, entity_id: str) -> list[Relationship]:
        """Return the relationships from and to exactly this id, by relationship_id (bytewise)."""
        ...

    def relationships_of(self, entity_ids: Sequence[str]) -> list[Relationship]:
        """Return the relationships from or to any of these ids, each once, by relationship_id."""
        ...

    def network(self, entity_id: str, depth: int = 2, limit: int = 100) -> Network:
        """Walk breadth-first around an entity, to a depth, over at most `limit` entities.

        The relationships of a level are gone along in the order of their ids.
        """
        ...

    def delete(self, entity_id: str) -> bool:
        """Delete the entity of exactly this id, not its relationships; return whether it was there."""
        ...

    def unrelate(self, relationship_id: str) -> bool:
        """Delete a relationship; return whether it was there."""
        ...

    def count_by_type(self) -> dict[str, int]:
        """Count entities by type; most first, then by type."""
        ...

    def count_by_source(self) -> dict[str | None, int]:
        """Count entities by source; most first, then by source, those without one last among equals."""
        ...


class EmbeddingStore(Protocol):
    """The collections of embeddings.

    Vectors are held as float32. Results that are equal in distance come by id, bytewise.
    """

    def collections(self) -> list[Collection]:
        """Return the collections, by name."""
        ...

    def create(self, name: str, distance: Distance = "cosine", dimension: int | None = None) -> Collection:
        """Return the collection of a name, made if it is not there.

        Raises
        ------
        UsageError
            It is there with another distance or dimension.
        """
        ...

    def add(
        self,
        collection: str,
        ids: Sequence[str],
        vectors: Sequence[Vector],
        documents: Sequence[str | None] | None = None,
        metadatas: Sequence[Metadata | None] | None = None,
    ) -> None:
        """Add records, all or none; the collection is made on first use, with cosine distance.

        Raises
        ------
        UsageError
            An id is there already or twice in `ids`; lengths differ; a vector is of another dimension than the
            collection, or holds what is not finite.
        """
        ...

    def upsert(
        self,
        collection: str,
        ids: Sequence[str],
        vectors: Sequence[Vector],
        documents: Sequence[str | None] | None = None,
        metadatas: Sequence[Metadata | None] | None = None,
    ) -> None:
        """Add records or replace those of the same ids, all or none."""
        ...

    def get(
        self,
        collection: str,
        ids: Sequence[str] | None = None,
        where: Where | None = None,
        where_document: Where | None = None,
        limit: int | None = None,
    ) -> list[EmbeddingRecord]:
        """Return records, in the order in which they were first added; none if there is no such collection."""
        ...

    def delete(
        self,
        collection: str,
        ids: Sequence[str] | None = None,
        where: Where | None = None,
        where_document: Where | None = None,
    ) -> int:
        """Delete the records that all given conditions hold for; return how many.

        Raises
        ------
        UsageError
            No condition is given.
        """
        ...

    def count(self, collection: str) -> int:
        """Return the number of records."""
        ...

    def query(
        self,
        collection: str,
        vector: Vector,
        k: int = 8,
        where: Where | None = None,
        where_document: Where | None = None,
    ) -> list[Hit]:
        """Return the `k` nearest records, exactly: nearest first, equal ones by id.

        Raises
        ------
        UsageError
            The vector is of another dimension, or the filter is not one.
        """
        ...


class TelemetryStore(Protocol):
    """The telemetry log."""

    def append(self, event: Mapping[str, Any]) -> None:
        """Append an event."""
        ...

    def append_many(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Append events, all or none."""
        ...

    def newest(
        self, event_type: str | None = None, since: str | None = None, until: str | None = None, limit: int = 100
    ) -> list[Event]:
        """Return the newest events by time, then by place in the log; those without a time last.

        `since` is inclusive, `until` exclusive, both UTC in ISO 8601; with either, events without a time are left out.
        """
        ...

    def aggregate(
        self, by: Literal["type", "day"] = "type", since: str | None = None, until: str | None = None
    ) -> list[Aggregate]:
        """Return counts, mean response time and success rate, by type or by day, in the order of the key."""
        ...


class Adapter(Protocol):
    """One side: all four stores of an installation."""

    @property
    def conversations(self) -> ConversationStore:
        """The conversations."""
        ...

    @property
    def matrix(self) -> MatrixStore:
        """The entities and relationships."""
        ...

    @property
    def embeddings(self) -> EmbeddingStore:
        """The embeddings."""
        ...

    @property
    def telemetry(self) -> TelemetryStore:
        """The telemetry."""
        ...

    def close(self) -> None:
        """Give back every connection."""
        ...
