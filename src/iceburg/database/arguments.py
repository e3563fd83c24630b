"""What callers of the unified layer pass, looked at before anything is read or written; the same for both sides.

A text is one that UTF-8 can hold: no lone surrogates. Those are refused where they would be written; where they are
looked for they are simply not there, because what is read of bytes that are not UTF-8 has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from iceburg.database import conversion
from iceburg.database.protocol import Entity, Relationship
from iceburg.errors import UsageError
from iceburg.records import Value

LONGEST: Final = 2**63 - 1
"""More than any limit that is meant: what SQLite and PostgreSQL take."""
MAX_SEARCH: Final = 49_998
"""Bytes of a text that can be searched for: with a percent sign on either side, the most that SQLite's LIKE takes."""

_CONVERSATION: Final = ("conversation_id", "timestamp", "user_message", "assistant_message")
_CONVERSATION_OPTIONAL: Final = ("agent_used", "mode", "created_at")
_ENTITY: Final = ("entity_id", "name", "entity_type")
_ENTITY_OPTIONAL: Final = ("source", "created_at")
_RELATIONSHIP: Final = ("relationship_id", "source_id", "target_id", "relationship_type")
_RELATIONSHIP_OPTIONAL: Final = ("source", "created_at")


def limited(limit: int, name: str = "limit") -> int:
    """Return a limit that both databases take.

    Raises
    ------
    UsageError
        It is negative, or not a whole number.
    """
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise UsageError(f"{name} is a number from 0 on, not {limit!r}")
    return min(limit, LONGEST)


def is_number(number: object) -> bool:
    """Whether something can be the number of a row."""
    return isinstance(number, int) and -LONGEST - 1 <= number <= LONGEST


def is_text(text: object) -> bool:
    """Whether something is a text that UTF-8 can hold."""
    if not isinstance(text, str):
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_searchable(text: str) -> bool:
    """Whether a name may contain a text; a NUL ends a text for LIKE, so that nothing contains one.

    Raises
    ------
    UsageError
        It is longer than SQLite's LIKE takes.
    """
    if not is_text(text) or "\0" in text:
        return False
    if len(text.encode()) > MAX_SEARCH:
        raise UsageError(f"a text to search for has at most {MAX_SEARCH:,} bytes")
    return True


def conversation_columns(fields: Mapping[str, Any]) -> dict[str, Value]:
    """Return the columns of an exchange for some of its fields.

    Raises
    ------
    UsageError
        There is no field of such a name, or a field cannot hold such a value.
    """
    columns: dict[str, Value] = {}
    for name, value in fields.items():
        if name == "metadata":
            columns[name] = _json("conversation", name, value)
        elif name in _CONVERSATION or name in _CONVERSATION_OPTIONAL:
            _see_text("conversation", name, value, optional=name in _CONVERSATION_OPTIONAL)
            columns[name] = value
        else:
            hint = f"It has {', '.join((*_CONVERSATION, *_CONVERSATION_OPTIONAL, 'metadata'))}."
            raise UsageError(f"a conversation has no field {name!r} that can be changed", hint=hint)
    return columns


def entity_rows(entities: Iterable[Entity]) -> list[dict[str, Value]]:
    """Return entities as columns, in the order given.

    Raises
    ------
    UsageError
        A field cannot hold such a value.
    """
    return [_row(entity, conversion.of_entity, "entity", _ENTITY, _ENTITY_OPTIONAL) for entity in entities]


def relationship_rows(relationships: Iterable[Relationship]) -> list[dict[str, Value]]:
    """Return relationships as columns, in the order given.

    Raises
    ------
    UsageError
        A field cannot hold such a value.
    """
    return [
        _row(one, conversion.of_relationship, "relationship", _RELATIONSHIP, _RELATIONSHIP_OPTIONAL)
        for one in relationships
    ]


def _row(record: Any, write: Any, kind: str, required: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Value]:
    for name in required:
        _see_text(kind, name, getattr(record, name), optional=False)
    for name in optional:
        _see_text(kind, name, getattr(record, name), optional=True)
    try:
        columns: dict[str, Value] = write(record)
    except (TypeError, ValueError, RecursionError) as error:
        where = f"{kind} {getattr(record, required[0])!r}"
        raise UsageError(f"has a value that is not JSON: {error}", where=where) from error
    return columns


def _see_text(kind: str, name: str, value: object, *, optional: bool) -> None:
    if is_text(value) or (optional and value is None):
        return
    if isinstance(value, str):
        raise UsageError(
            f"the {name} of a {kind} has characters that no UTF-8 text can hold (lone surrogates)",
            hint="Replace them, for example with text.encode('utf-8', 'replace').decode().",
        )
    raise UsageError(f"the {name} of a {kind} is a text, not {value!r}")


def _json(kind: str, name: str, value: Any) -> str | None:
    try:
        return conversion.json_text(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the {name} of a {kind} is not JSON: {error}") from error
