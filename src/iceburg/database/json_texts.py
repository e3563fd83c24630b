"""JSON documents for ``jsonb`` columns of our own, with what ``jsonb`` refuses.

SQLite's schema is text that may hold any byte, in a comment or a default: a text with NUL or with bytes that are not
UTF-8 goes in as an object of one member, its bytes in hexadecimal. Reals that JSON does not have go in by their names.
"""

from __future__ import annotations

import math
from typing import Any, Final

from psycopg.types.json import Jsonb

from iceburg.mappings.json_value import is_usable_text

_BYTES: Final = "$utf8"
_REAL: Final = "$real"


def as_jsonb(document: object) -> Jsonb:
    """Return a document as a parameter for a ``jsonb`` column."""
    return Jsonb(escaped(document))


def escaped(value: Any) -> Any:
    """Return a document in a form that ``jsonb`` takes."""
    if isinstance(value, str):
        return value if is_usable_text(value) else {_BYTES: value.encode("utf-8", "surrogateescape").hex()}
    if isinstance(value, float):
        return value if math.isfinite(value) else {_REAL: repr(value)}
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    return [escaped(item) for item in value] if isinstance(value, list | tuple) else value


def unescaped(value: Any) -> Any:
    """Return what `escaped` was given, lists for tuples."""
    if isinstance(value, list):
        return [unescaped(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, item),) = value.items()
        if key == _BYTES and isinstance(item, str):
            return bytes.fromhex(item).decode("utf-8", "surrogateescape")
        if key == _REAL and isinstance(item, str):
            return float(item)
    return {key: unescaped(item) for key, item in value.items()}
