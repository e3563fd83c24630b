"""What short reads of conversations, entities and relationships select, and the records that their rows are.

Where nothing is kept beside it, the row says all that there is to say: it gives what restoring the source's record and
converting that would give, in a fraction of the time. Times come as texts, which are nearly those that are wanted;
documents as bytes, which are parsed as they are. Where something is kept, the source's record is restored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final, LiteralString

import orjson

from iceburg.database import conversion
from iceburg.database.postgres_answer import (
    Bound,
    Fetched,
    ShortAnswer,
    has_long_number,
    kept_of,
    restored,
    stored_json,
)
from iceburg.database.postgres_failures import BehindError
from iceburg.database.protocol import Conversation, Entity, Relationship
from iceburg.mappings.conversations import COLUMNS, OPTIONAL, REQUIRED

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
    made = to_conversations(found.rows)
    for at, kept in found.kept.items():
        made[at] = _restored_conversation(found.bound, kept, *found.rows[at])
    return made


def _restored_conversation(
    bound: Bound,
    kept: str,
    query: str,
    number: int,
    conversation_id: str | None,
    time: str | None,
    response: str | None,
    agent: str | None,
    mode: str | None,
    metadata: str | None,
    created: str | None,
) -> Conversation:
    values = {
        "row_id": number,
        "conversation_id": conversation_id,
        "timestamp": _time_of(time),
        "query": query,
        "response": response,
        "mode": mode,
        "agent": agent,
        "created_at": _time_of(created),
        "metadata": metadata,
        # Of columns that no exchange has.
        "extra": None if set(bound.columns) <= {*REQUIRED, *OPTIONAL} else "{}",
    }
    row = tuple(values.get(column.name) for column in COLUMNS)
    return conversion.to_conversation(restored(bound, row, kept_of(kept)))


def entities(found: ShortAnswer) -> list[Entity]:
    """Make entities of the rows of an answer."""
    made = [to_entity(*row) for row in found.rows]
    for at, kept in found.kept.items():
        made[at] = restored_entity(found.bound, kept, *found.rows[at])
    return made


def relationships(found: ShortAnswer) -> list[Relationship]:
    """Make relationships of the rows of an answer."""
    made = [to_relationship(*row) for row in found.rows]
    for at, kept in found.kept.items():
        made[at] = restored_relationship(found.bound, kept, *found.rows[at])
    return made


def restored_entity(bound: Bound, kept: str, document: bytes, kind: str, created: str | None) -> Entity:
    """Make an entity of a row and of what is kept beside it."""
    return conversion.to_entity(restored(bound, _row(document, kind, created), kept_of(kept)))


def restored_relationship(bound: Bound, kept: str, document: bytes, kind: str, created: str | None) -> Relationship:
    """Make a relationship of a row and of what is kept beside it."""
    return conversion.to_relationship(restored(bound, _row(document, kind, created), kept_of(kept)))


def _row(document: bytes, kind: str, created: str | None) -> Fetched:
    """Return the row of an entity or relationship as its mapping makes it, in what restoring it takes."""
    return None, None, kind, document.decode(), _time_of(created), None


def _time_of(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(written_time(text))


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
