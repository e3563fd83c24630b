"""What short reads of conversations, entities and relationships select, and the records that their rows are.

Where nothing is kept beside it, the row says all that there is to say: it gives what restoring the source's record and
converting that would give, in a fraction of the time. Times come as texts, which are nearly those that are wanted;
documents as bytes, which are parsed as they are. What is kept takes the place of what the row has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, LiteralString, TypeVar

import orjson

from iceburg.database import conversion
from iceburg.database.postgres_answer import Fetched, Originals, ShortAnswer, has_long_number, stored_json
from iceburg.database.postgres_failures import BehindError
from iceburg.database.protocol import Conversation, Entity, Relationship

CONVERSATION: Final[LiteralString] = (
    't.query, t.row_id, t.conversation_id, t."timestamp"::text AS at, t.response, t.agent, t.mode,'
    " t.metadata::text AS data, t.created_at::text AS made"
)
TIME: Final = 3
"""Where the time of a conversation stands."""
ENTITY: Final[LiteralString] = (
    "convert_to(t.entity_data::text, 'UTF8') AS data, t.entity_type AS kind, t.created_at::text AS made"
)
RELATIONSHIP: Final[LiteralString] = (
    "convert_to(t.relationship_data::text, 'UTF8') AS data, t.relationship_type AS kind, t.created_at::text AS made"
)
RecordT = TypeVar("RecordT", Conversation, Entity, Relationship)
# Fields that hold JSON.
_DOCUMENTS: Final = frozenset({"metadata", "properties", "countries", "datasets"})
# Characters of a time as PostgreSQL and Python print it, without a fraction of a second, and with all six digits.
_WITHOUT_FRACTION, _WITH_MICROSECONDS = 19, 26


def to_conversations(rows: Iterable[Fetched]) -> list[Conversation]:
    """Make exchanges of rows."""
    make = conversion.quick_conversation
    return [
        make(
            number,
            conversation_id,
            # Nearly all have microseconds.
            time and (time if len(time) == _WITH_MICROSECONDS else written_time(time)).replace(" ", "T"),
            query,
            response,
            agent,
            mode,
            metadata and stored_json(metadata),
            created if created is None or len(created) == _WITHOUT_FRACTION else written_time(created),
        )
        for query, number, conversation_id, time, response, agent, mode, metadata, created in rows
    ]


def to_entity(document: bytes, kind: str, created: str | None) -> Entity:
    """Make an entity of a row."""
    get: Callable[[str], Any] = _document(document).get
    return conversion.quick_entity(
        get("entity_id"),
        get("name"),
        kind,
        get("source"),
        get("properties"),
        get("countries"),
        get("datasets"),
        created if created is None or len(created) == _WITHOUT_FRACTION else written_time(created),
    )


def to_relationship(document: bytes, kind: str, created: str | None) -> Relationship:
    """Make a relationship of a row."""
    get: Callable[[str], Any] = _document(document).get
    return conversion.quick_relationship(
        get("relationship_id"),
        get("source_id"),
        get("target_id"),
        kind,
        get("properties"),
        get("source"),
        created if created is None or len(created) == _WITHOUT_FRACTION else written_time(created),
    )


def conversations(found: ShortAnswer) -> list[Conversation]:
    """Make exchanges of the rows of an answer."""
    return restored(to_conversations(found.rows), found.kept)


def entities(found: ShortAnswer) -> list[Entity]:
    """Make entities of the rows of an answer."""
    return restored([to_entity(*row) for row in found.rows], found.kept)


def relationships(found: ShortAnswer) -> list[Relationship]:
    """Make relationships of the rows of an answer."""
    return restored([to_relationship(*row) for row in found.rows], found.kept)


def restored(records: list[RecordT], kept: Mapping[int, Originals]) -> list[RecordT]:
    """Put originals, by the places of their records, where PostgreSQL has substitutes; return the list."""
    for at, originals in kept.items():
        records[at] = _restored(records[at], originals)
    return records


def _restored(record: RecordT, originals: Originals) -> RecordT:
    values: dict[str, Any] = {
        name: conversion.json_value(value) if name in _DOCUMENTS else value
        for name, value in originals.items()
        if name in record.__slots__  # the source may have further columns
    }
    return replace(record, **values)


def _document(raw: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(raw) if has_long_number(raw) else orjson.loads(raw)
    return found


def written_time(text: str) -> str:
    """Return a point in time that PostgreSQL printed as `datetime.isoformat` does, but for the letter between.

    Raises
    ------
    BehindError
        Another program has written a time that Python has not.
    """
    if len(text) in (_WITHOUT_FRACTION, _WITH_MICROSECONDS):
        return text
    try:
        # PostgreSQL prints no zeros at the end.
        return datetime.fromisoformat(text).isoformat(" ")
    except ValueError as error:
        raise BehindError(f"a row was changed by another program: {text!r}") from error
