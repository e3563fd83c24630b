"""Records of the application as values of `iceburg.database.protocol`, and back; the same on both sides."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar

from iceburg.database.protocol import Conversation, Entity, Relationship
from iceburg.records import Value

Columns = Mapping[str, Value]
P = ParamSpec("P")
T = TypeVar("T")


def quickly(made: Callable[P, T]) -> Callable[P, T]:
    """Return what makes objects of a frozen dataclass with slots, of its fields in their order, in a third of the time.

    Such a class sets each field by its name, past its own guard. Here they are set in an object of a class that has the
    same slots and no guard, which is given its class in the end. The function is written as text for the reason for
    which `dataclasses` does it: a loop would cost more than what it goes around.
    """
    cls: Any = made
    fields = cls.__slots__
    unguarded = type(cls.__name__, (), {"__slots__": fields})
    lines = [f"made.{name} = {name}" for name in fields]
    text = (
        f"def make({', '.join(fields)}):\n made = new()\n "
        + "\n ".join(lines)
        + "\n made.__class__ = cls\n return made"
    )
    scope: dict[str, Any] = {"new": unguarded, "cls": cls}
    exec(text, scope)  # noqa: S102 - of the names of fields alone
    found: Callable[P, T] = scope["make"]
    return found


quick_conversation = quickly(Conversation)
quick_entity = quickly(Entity)
quick_relationship = quickly(Relationship)


def json_text(value: Any) -> str | None:
    """Write a JSON column as ICEBURG does: Python's form, None as NULL."""
    return None if value is None else json.dumps(value)


def json_value(text: Value) -> Any:
    """Read a JSON column; what is not JSON is given as it is."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def now_local() -> str:
    """Return the time as ICEBURG stamps an exchange: local, ISO 8601 with microseconds."""
    return datetime.now().isoformat(timespec="microseconds")


def now_utc() -> str:
    """Return the time as SQLite's CURRENT_TIMESTAMP writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")


def to_conversation(columns: Columns) -> Conversation:
    """Make an exchange of a row."""
    return Conversation(
        columns["id"],  # type: ignore[arg-type]
        columns["conversation_id"],  # type: ignore[arg-type]
        columns["timestamp"],  # type: ignore[arg-type]
        columns["user_message"],  # type: ignore[arg-type]
        columns["assistant_message"],  # type: ignore[arg-type]
        columns.get("agent_used"),  # type: ignore[arg-type]
        columns.get("mode"),  # type: ignore[arg-type]
        json_value(columns.get("metadata")),
        columns.get("created_at"),  # type: ignore[arg-type]
    )


def to_entity(columns: Columns) -> Entity:
    """Make an entity of a row."""
    return Entity(
        columns["entity_id"],  # type: ignore[arg-type]
        columns["name"],  # type: ignore[arg-type]
        columns["entity_type"],  # type: ignore[arg-type]
        columns.get("source"),  # type: ignore[arg-type]
        json_value(columns.get("properties")),
        json_value(columns.get("countries")),
        json_value(columns.get("datasets")),
        columns.get("created_at"),  # type: ignore[arg-type]
    )


def to_relationship(columns: Columns) -> Relationship:
    """Make a relationship of a row."""
    return Relationship(
        columns["relationship_id"],  # type: ignore[arg-type]
        columns["source_id"],  # type: ignore[arg-type]
        columns["target_id"],  # type: ignore[arg-type]
        columns["relationship_type"],  # type: ignore[arg-type]
        json_value(columns.get("properties")),
        columns.get("source"),  # type: ignore[arg-type]
        columns.get("created_at"),  # type: ignore[arg-type]
    )


def of_entity(entity: Entity) -> dict[str, Value]:
    """Write an entity as the columns of a row."""
    return {
        "entity_id": entity.entity_id,
        "name": entity.name,
        "entity_type": entity.entity_type,
        "source": entity.source,
        "properties": json_text(entity.properties),
        "countries": json_text(entity.countries),
        "datasets": json_text(entity.datasets),
        "created_at": entity.created_at or now_utc(),
    }


def of_relationship(relationship: Relationship) -> dict[str, Value]:
    """Write a relationship as the columns of a row."""
    return {
        "relationship_id": relationship.relationship_id,
        "source_id": relationship.source_id,
        "target_id": relationship.target_id,
        "relationship_type": relationship.relationship_type,
        "properties": json_text(relationship.properties),
        "source": relationship.source,
        "created_at": relationship.created_at or now_utc(),
    }
