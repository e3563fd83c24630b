"""Values of SQLite columns as parts of a JSON document that ``jsonb`` takes."""

from __future__ import annotations

from typing import TypeAlias

import orjson

from iceburg.mappings.json_number import number_text
from iceburg.mappings.json_value import analyse, is_sound, is_usable_text, quote
from iceburg.records import Value

Fragment: TypeAlias = tuple[str | None, str | None]


def fragment_of_text(value: Value) -> Fragment:
    """Return the JSON for a text column's value (None: leave the key out) and the reason to keep the original."""
    if type(value) is str:
        if is_usable_text(value):
            return orjson.dumps(value).decode(), None
        return quote(value), "NUL in text" if "\0" in value else "invalid UTF-8"
    if value is None:
        return None, None
    return _fragment_of_misfit(value)


def fragment_of_json(value: Value) -> Fragment:
    """Return the JSON for a column that holds JSON text.

    NULL leaves the key out and ``''`` is the empty string, so that both come back; a JSON text that *is* the empty
    string has to keep its original.
    """
    if type(value) is str:
        if is_sound(value):
            return (value, None) if value != '""' else ('""', "empty JSON string")
        if value == "":
            return '""', None
        found = analyse(value)
        return found.jsonb, found.reason or ("empty JSON string" if found.jsonb == '""' else None)
    if value is None:
        return None, None
    return _fragment_of_misfit(value)


def fragment_of_any(value: Value) -> Fragment:
    """Return the JSON for a column of no known type: numbers as numbers, text as strings."""
    if isinstance(value, int):
        return str(value), None
    if isinstance(value, float):
        if value - value == 0 and not (value == 0 and str(value).startswith("-")):
            return number_text(value), None
        return _fragment_of_misfit(value)
    return fragment_of_text(value)


def _fragment_of_misfit(value: int | float | bytes | str) -> Fragment:
    if isinstance(value, bytes):
        return quote(value.decode("utf-8", "replace")), "blob in a text column"
    if isinstance(value, float):
        if value - value != 0 or (value == 0 and str(value).startswith("-")):
            return "0.0" if value == 0 else quote(repr(value)), "real that JSON does not hold"
        return number_text(value), "real in a text column"
    return str(value), "integer in a text column"
